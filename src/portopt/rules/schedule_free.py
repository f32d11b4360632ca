"""Schedule-Free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.hyperparameters import alias, hyperparameter
from portopt.nested import rule
from portopt.optimizer import Optimizer
from portopt.rules.adamw import AdamW
from portopt.rules.sgd import SGD
from portopt.scalars import maximum, where
from portopt.schedules import LearningRate
from portopt.slot import slot
from portopt.state import OptimizerState
from portopt.trees import Tree


class ScheduleFree(Optimizer):
    """Schedule-Free: another rule's steps, whose average takes the place of a schedule.

    Parameters are where gradients are taken, `y`; the inner rule moves `z`, and `x` is the average to evaluate with
    (`evaluation_params`). With the inner rule's step `d` from `y`, which includes its weight decay there, and its learning rate
    `lr`: `top = maximum(top, lr)`; `weight = t**r * top**weight_lr_power`; `sum = sum + weight`; `share = weight / sum`, or 0 if
    `sum` is. Then `y = y + share * (z - y) + (1 - beta * (1 - share)) * d`; `z = z + d`.

    That is `x = (1 - share) * x + share * z` and `y = beta * x + (1 - beta) * z` without `x`. The inner rule should have no
    momentum of its own, such as `SGD()` or `AdamW(beta_1=0.0)`, and a learning rate that is constant, or only warms up.

    Args:
        inner: the rule that does the steps. It must not clip: clipnorm and clipvalue are given to ScheduleFree.
        beta: in (0, 1]; how near gradients are taken to the average.
        weight_lr_power: in [0, inf); steps count in the average by the learning rate raised to this.
        r: in [0, inf); and by their number raised to this.
        learning_rate, lr: the inner rule's.
        clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range, or the inner rule clips.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.ScheduleFree(portopt.SGD(1.0), beta=0.5), np.asarray([0.0])
        >>> state = opt.init(w)
        >>> for _ in range(2):
        ...     w, state = opt.apply(w, np.asarray([-1.0]), state)
        >>> w, state.slots["z"], opt.evaluation_params(w, state)
        (array([1.75]), array([2.]), array([1.5]))

    Reference:
        Defazio et al., "The road less scheduled", 2024, https://arxiv.org/abs/2405.15682
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "optax.contrib.schedule_free_adamw",
            {"z": "z", "largest_rate": "max_lr", "weight_sum": "weight_sum", "inner.v": "nu"},
            names={
                "beta": "b1", "inner.learning_rate": "learning_rate", "inner.beta_2": "b2", "inner.epsilon": "eps",
                "inner.weight_decay": "weight_decay",
            },
            inner={"inner": AdamW(beta_1=0.0, dialect="optax")},
            unread=("inner.m",),
            lacks=("r",),
            next_step="step_count",
        ),
        Counterpart(
            "optax.contrib.schedule_free_sgd",
            {"z": "z", "largest_rate": "max_lr", "weight_sum": "weight_sum"},
            names={"beta": "b1", "inner.learning_rate": "learning_rate", "inner.weight_decay": "weight_decay"},
            # With what optax calls weight decay, it is SGD of torch; without, that of optax as well.
            inner={"inner": SGD(dialect="torch")},
            none=("inner.weight_decay",),
            lacks=("r",),
            counts=False,
            next_step="step_count",
        ),
        Counterpart(
            "optax.contrib.schedule_free_sgd",
            {"z": "z", "largest_rate": "max_lr", "weight_sum": "weight_sum"},
            names={"beta": "b1", "inner.learning_rate": "learning_rate"},
            inner={"inner": SGD(dialect="optax")},
            lacks=("r",),
            counts=False,
            next_step="step_count",
        ),
        Counterpart(
            "keras.optimizers.ScheduleFreeAdamW",
            names={"beta": "beta_1"},
            inner={"inner": AdamW(beta_1=0.0)},
            lacks=("weight_lr_power", "r"),
            exact=False,
            differs="as of Keras 3.15, on torch and TensorFlow, it takes the z of after the step for that of before it",
            compared=False,
        ),
    )  # fmt: skip
    slots = (slot("z", start="p"),)
    scalar_slots: ClassVar[Mapping[str, float]] = {"largest_rate": 0.0, "weight_sum": 0.0}
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"inner": SGD(), "learning_rate": 0.05},
        {"inner": AdamW(beta_1=0.0, dialect="optax"), "learning_rate": 0.05},
    )

    inner: Optimizer = rule(default=AdamW(learning_rate=0.0025, beta_1=0.0, weight_decay=0.0), kw_only=False)
    learning_rate: LearningRate = alias("inner.learning_rate", default=None, kw_only=True)
    beta: float = hyperparameter(default=0.9, above=0, at_most=1, kw_only=False)
    weight_lr_power: float = hyperparameter(default=2.0, at_least=0, off=0.0)
    r: float = hyperparameter(default=0.0, at_least=0, off=0.0)

    def coefficients(self, t: Any, largest_rate: Any, weight_sum: Any) -> Mapping[str, Any]:
        largest_rate = maximum(largest_rate, self.inner.learning_rate_at(t))
        weight = largest_rate**self.weight_lr_power if self.weight_lr_power else 1.0
        if self.r:
            weight = weight * t**self.r
        weight_sum = weight_sum + weight
        share = where(weight_sum > 0, weight / weight_sum, 0.0)
        along = 1 - self.beta * (1 - share)
        return {"share": share, "along": along, "largest_rate": largest_rate, "weight_sum": weight_sum}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        moved, inner = self.inner.update(xp, p, g, slots.inner, c.inner)
        d = moved - p
        return p + c.share * (slots.z - p) + c.along * d, {"z": slots.z + d, "inner": inner}

    def evaluation_params(self, params: Tree, state: OptimizerState) -> Tree:
        """Return the averages `x`, to evaluate with: `y + (1 - 1 / beta) * (z - y)`.

        Args:
            params: the parameters after a step.
            state: the state after that step.

        Example:
            >>> import numpy as np, portopt
            >>> opt, w = portopt.ScheduleFree(beta=0.5), {"w": np.ones(2)}
            >>> opt.evaluation_params(w, opt.init(w))
            {'w': array([1., 1.])}
        """
        return _Average(beta=self.beta).apply(params, params, OptimizerState(0, {"z": state.slots["z"]}))[0]


class _Average(Optimizer):
    """What the parameters are an average towards: a rule, so that it has the same bits on every library."""

    slots: ClassVar[tuple[str, ...]] = ("z",)

    beta: float = hyperparameter(default=0.9, above=0, at_most=1, kw_only=False)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        return {"away": 1 - 1 / self.beta}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p + c.away * (slots.z - p), {"z": slots.z}
