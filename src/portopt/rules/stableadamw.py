"""StableAdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter
from portopt.optimizer import Optimizer
from portopt.scalars import maximum, sqrt
from portopt.schedules import LearningRate


class StableAdamW(Optimizer):
    """StableAdamW: AdamW whose rate is lowered, for each parameter, where the gradient is larger than its running mean knows.

    With `d1 = (beta_1**t - beta_1) / (beta_1**t - 1)`, `d2 = (beta_2**t - beta_2) / (beta_2**t - 1)`, which take the place of a
    correction of the running means: `m = m + (1 - d1) * (g - m)`; `v = d2 * v + (1 - d2) * g**2`;
    `rate = lr / max(1, sqrt(mean(g**2 / max(v, epsilon**2))))`, the mean being that of one parameter;
    `p * (1 - rate * weight_decay) - rate * m / (sqrt(v) + epsilon)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        weight_decay: in [0, inf).
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.StableAdamW(learning_rate=0.5, weight_decay=0.0), np.asarray([1.0, 2.0])
        >>> w, state = opt.apply(w, np.asarray([0.1, 0.1]), opt.init(w))
        >>> w.round(3), opt.apply(w, np.asarray([100.0, 0.1]), state)[0].round(3)
        (array([0.5, 1.5]), array([0.196, 1.091]))

    Reference:
        Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt, "Stable and low-precision training for large-scale
        vision-language models", 2023, https://arxiv.org/abs/2304.13013; the formula is that of torch-optimi 0.3.3.
    """

    slots = ("m", "v")
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 0.05, "weight_decay": 0.0},
        {"learning_rate": 0.05, "weight_decay": 0.5, "beta_2": 0.999},
    )

    learning_rate: LearningRate = hyperparameter(default=0.001, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.99, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=1e-6)
    weight_decay: float = hyperparameter(default=0.01, at_least=0, off=0.0)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        power_1, power_2 = self.beta_1**t, self.beta_2**t
        d1, d2 = (power_1 - self.beta_1) / (power_1 - 1), (power_2 - self.beta_2) / (power_2 - 1)
        epsilon: Any = self.epsilon
        return {
            "lr": self.learning_rate_at(t), "d2": d2, "part_1": 1 - d1, "part_2": 1 - d2, "smallest": epsilon * epsilon,
        }  # fmt: skip

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        square = xp.square(g)
        m = slots.m + c.part_1 * (g - slots.m)
        v = c.d2 * slots.v + c.part_2 * square
        excess = sqrt(xp.mean(square / xp.maximum(v, c.smallest)))
        rate = c.lr / maximum(1.0, excess)
        if self.weight_decay:
            p = p * (1 - rate * self.weight_decay)
        return p - rate * m / (xp.sqrt(v) + self.epsilon), {"m": m, "v": v}
