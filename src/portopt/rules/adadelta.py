"""Adadelta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.schedules import LearningRate


class Adadelta(DialectRule):
    """Adadelta: steps in the units of the parameter, from running means of squared gradients and squared steps.

    `accumulator = rho * accumulator + (1 - rho) * g**2`; then `change`:

    - keras2: `g * sqrt(delta_accumulator + epsilon) / sqrt(accumulator + epsilon)`
    - keras3: `g * sqrt(delta_accumulator + epsilon) / sqrt(accumulator + epsilon)`
    - torch: `sqrt(delta_accumulator + epsilon) / sqrt(accumulator + epsilon) * g`
    - optax: `sqrt(delta_accumulator + epsilon) / sqrt(accumulator + epsilon) * g`

    Then `delta_accumulator = rho * delta_accumulator + (1 - rho) * change**2`; `p - lr * change`.

    Args:
        learning_rate: in [0, inf), or a schedule. The paper has none, which is 1.
        rho: decay of both running means, in [0, 1).
        epsilon: in [0, inf); None means the dialect's default, which in keras2 is `portopt.epsilon()`.
        decay: keras2: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        weight_decay: in [0, inf). keras3: `p - p * weight_decay * lr` before the step. torch, optax: `g + weight_decay * p`.
        dialect, maximize: see `DialectRule`.
        eps: torch: another name for epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adadelta(rho=0.5, epsilon=0.5), np.asarray([1.0])
        >>> opt.apply(w, np.asarray([1.0]), opt.init(w))[0].round(4)
        array([0.2929])

    Reference:
        Zeiler, "ADADELTA: an adaptive learning rate method", 2012, https://arxiv.org/abs/1212.5701
    """

    slots = ("accumulator", "delta_accumulator")
    keras_short_list = (0, 0.0)

    counterparts = (
        Counterpart(
            "torch.optim.Adadelta",
            {"accumulator": "square_avg", "delta_accumulator": "acc_delta"},
            epsilon="under the root",
        ),
        Counterpart(
            "optax.adadelta",
            {"accumulator": "e_g", "delta_accumulator": "e_x"},
            counts=False,
            epsilon="under the root",
        ),
        Counterpart(
            "keras.optimizers.Adadelta",
            {"accumulator": "accumulated_grad", "delta_accumulator": "accumulated_delta_var"},
            epsilon="under the root",
        ),
        Counterpart(
            "tf_keras.optimizers.legacy.Adadelta",
            {"accumulator": "accum_grad", "delta_accumulator": "accum_var"},
            epsilon="under the root",
        ),
        Counterpart("tf.compat.v1.train.AdadeltaOptimizer", epsilon="under the root"),
    )

    dialect: Dialect = dialect_option(default="keras2", others=("keras3", "torch", "optax"))
    learning_rate: LearningRate = hyperparameter(
        default=per_dialect(keras2=1.0, keras3=0.001, torch=1.0, optax=1.0), at_least=0, kw_only=False
    )
    rho: float = hyperparameter(
        default=per_dialect(keras2=0.95, keras3=0.95, torch=0.9, optax=0.9), at_least=0, below=1, kw_only=False
    )
    epsilon: float | None = epsilon_hyperparameter(
        default=per_dialect(keras2=None, keras3=1e-7, torch=1e-6, optax=1e-6)
    )
    decay: float | None = hyperparameter(default=per_dialect(keras2=0.0), at_least=0, off=0.0)
    weight_decay: float | None = hyperparameter(
        default=per_dialect(keras3=0.0, torch=0.0, optax=0.0), at_least=0, off=0.0
    )
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        if self.dialect == "optax" and self.weight_decay:
            g = g + self.weight_decay * p
        accumulator = self.rho * slots.accumulator + (1 - self.rho) * xp.square(g)
        match self.dialect:
            case "keras2" | "keras3":
                change = g * xp.sqrt(slots.delta_accumulator + self.epsilon) / xp.sqrt(accumulator + self.epsilon)
            case "torch" | "optax":
                change = xp.sqrt(slots.delta_accumulator + self.epsilon) / xp.sqrt(accumulator + self.epsilon) * g
        delta_accumulator = self.rho * slots.delta_accumulator + (1 - self.rho) * xp.square(change)
        return p - c.lr * change, {"accumulator": accumulator, "delta_accumulator": delta_accumulator}
