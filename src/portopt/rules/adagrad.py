"""Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.schedules import LearningRate
from portopt.slot import slot


class Adagrad(DialectRule):
    """Adagrad: the gradient divided by the root of the sum of its squares so far.

    `accumulator = accumulator + g**2`; then:

    - keras2: `p - lr * g / (sqrt(accumulator) + epsilon)`
    - keras3: `p - lr * g / sqrt(accumulator + epsilon)`
    - torch: `p - lr * g / (sqrt(accumulator) + epsilon)`
    - optax: `p - lr * (g / sqrt(accumulator + epsilon))`, but `p` where accumulator is 0

    Args:
        learning_rate: in [0, inf), or a schedule.
        epsilon: in [0, inf); None means the dialect's default, which in keras2 is `portopt.epsilon()`.
        decay: keras2, torch: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        initial_accumulator_value: keras3, torch, optax: in [0, inf); the accumulator at first, which in keras2 is 0.
        dialect, weight_decay, maximize: see `DialectRule`.
        lr_decay, eps: torch: other names for decay and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adagrad(learning_rate=0.5, epsilon=0), np.asarray([1.0])
        >>> opt.apply(w, np.asarray([4.0]), opt.init(w))[0]
        array([0.5])

    Reference:
        Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011,
        https://jmlr.org/papers/v12/duchi11a.html
    """

    keras_short_list = (0, 0.0)
    worth_testing = (
        {"dialect": "keras3", "initial_accumulator_value": 0.0},
        {"dialect": "optax", "initial_accumulator_value": 0.0, "epsilon": 0.0},
    )

    counterparts = (
        Counterpart("torch.optim.Adagrad", {"accumulator": "sum"}, epsilon="beside the root"),
        Counterpart(
            "optax.adagrad",
            {"accumulator": "sum_of_squares"},
            counts=False,
            near={"initial_accumulator_value": 0.0},
            epsilon="under the root",
        ),
        Counterpart(
            "keras.optimizers.Adagrad",
            {"accumulator": "accumulator"},
            near={"initial_accumulator_value": 0.0},
            epsilon="under the root",
        ),
        Counterpart(
            "tf_keras.optimizers.legacy.Adagrad",
            {"accumulator": "accumulator"},
            # The first value of the accumulator is in the state.
            ignored=("initial_accumulator_value",),
            epsilon="beside the root",
        ),
        # It has no epsilon, but what keeps it from dividing by 0 as well.
        Counterpart("tf.compat.v1.train.AdagradOptimizer", names={"epsilon": "initial_accumulator_value"}, exact=False),
    )

    dialect: Dialect = dialect_option(default="keras2", others=("keras3", "torch", "optax"))
    learning_rate: LearningRate = hyperparameter(
        default=per_dialect(keras2=0.01, keras3=0.001, torch=0.01, optax=0.001), at_least=0, kw_only=False
    )
    epsilon: float | None = epsilon_hyperparameter(
        default=per_dialect(keras2=None, keras3=1e-7, torch=1e-10, optax=1e-7)
    )
    decay: float | None = hyperparameter(default=per_dialect(keras2=0.0, torch=0.0), at_least=0, off=0.0)
    initial_accumulator_value: float | None = hyperparameter(
        default=per_dialect(keras3=0.1, torch=0.0, optax=0.1), at_least=0, at_init=True
    )
    lr_decay: float | None = alias("decay", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # its start depends on a hyperparameter
        """`accumulator`."""
        return (slot("accumulator", start=self.initial_accumulator_value or 0.0),)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        accumulator = slots.accumulator + xp.square(g)
        match self.dialect:
            case "keras2" | "torch":
                p = p - c.lr * g / (xp.sqrt(accumulator) + self.epsilon)
            case "keras3":
                p = p - c.lr * g / xp.sqrt(accumulator + self.epsilon)
            case "optax":
                direction = g / xp.sqrt(accumulator + self.epsilon)
                p = p - c.lr * xp.where(accumulator > 0, direction, xp.zeros_like(g))
        return p, {"accumulator": accumulator}
