"""Adam with D-Adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import maximum, minimum, sqrt, where
from portopt.schedules import LearningRate


class DAdaptAdam(DialectRule):
    """Adam with D-Adaptation: its learning rate is a lower bound `d` of how far the solution is, from all parameters together.

    With `c1 = 1 - beta_1**t`, `c2 = 1 - beta_2**t`, `beta_3 = sqrt(beta_2)`, and `<·,·>` over all parameters:

    - torch: `rate = d * lr`, with bias correction `d * lr * sqrt(c2) / c1`;
      `n = beta_3 * n + (1 - beta_3) * rate * <g, s / (sqrt(v) + epsilon)>`; `m = beta_1 * m + (1 - beta_1) * rate * g`;
      `v = beta_2 * v + (1 - beta_2) * g**2`; `s = beta_3 * s + (1 - beta_3) * rate * g`; `h = n / ((1 - beta_3) * <1, |s|>)`;
      `d = max(d, min(h, d * growth_rate))`; `p = p * (1 - rate * weight_decay)`; `p - m / (sqrt(v) + epsilon)`
    - optax: `rate = d * lr * sqrt(c2) / c1`; `n`, `m`, `v`, `s` and `h` as in torch; `d = max(d, h)`;
      `p - (weight_decay * rate * p + m / (sqrt(v) + epsilon))`

    So a gradient enters `m` with the rate of its own step. The dialect torch is that of the authors' package for torch,
    dadaptation 3.2, which leaves out a step whose learning rate is 0; here it is a step. While there has been no gradient but
    zero, `d` stays what it is, where optax makes it NaN.

    Args:
        learning_rate: in [0, inf), or a schedule; what `d` is multiplied by.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        epsilon: in [0, inf); with 0 the first step divides by zero.
        weight_decay: in [0, inf).
        d0: in (0, inf); what `d` is at first.
        growth_rate: torch: in [1, inf); how much `d` may grow in a step. None: as much as it does.
        use_bias_correction: torch: whether the rate is corrected for the start of the means at zero.
        decouple: torch: whether weight decay acts on the parameter; otherwise `g + weight_decay * p`.
        dialect, maximize: see `DialectRule`.
        betas, eps: torch: other names for (beta_1, beta_2) and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.DAdaptAdam(), np.asarray([1.0, -1.0])
        >>> state = opt.init(w)
        >>> for _ in range(100):
        ...     w, state = opt.apply(w, 2 * w, state)
        >>> bool(np.abs(w).max() < 0.5), state.slots["d"] > 0.01
        (True, True)

    Reference:
        Defazio, Mishchenko, "Learning-rate-free learning by D-Adaptation", 2023, https://arxiv.org/abs/2301.07733
    """

    slots = ("m", "v", "s")
    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "optax.contrib.dadapt_adamw",
            {"m": "exp_avg", "v": "exp_avg_sq", "s": "grad_sum", "d": "estim_lr", "n": "numerator_weighted"},
            names={"beta_1": "betas.0", "beta_2": "betas.1", "d0": "estim_lr0"},
            epsilon="beside the root",
        ),
    )
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"d0": 0.01, "beta_2": 0.9, "weight_decay": 0.1},
        {"dialect": "optax", "d0": 0.01, "beta_2": 0.9, "weight_decay": 0.1},
    )

    dialect: Dialect = dialect_option(default="torch", others=("optax",))
    learning_rate: LearningRate = hyperparameter(default=1.0, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1)
    epsilon: float = hyperparameter(default=1e-8, at_least=0)
    weight_decay: float | None = hyperparameter(default=0.0, at_least=0, off=0.0)
    d0: float = hyperparameter(default=1e-6, above=0, at_init=True)
    growth_rate: float | None = hyperparameter(default=per_dialect(torch=None), at_least=1, off=None)
    use_bias_correction: bool | None = option(default=per_dialect(torch=False))
    decouple: bool | None = option(default=per_dialect(torch=False))
    betas: tuple[float, float] | None = alias("beta_1", "beta_2", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    @property
    def scalar_slots(self) -> Mapping[str, float]:  # type: ignore[override]  # begins with a hyperparameter
        """`d` and `n`."""
        return {"d": self.d0, "n": 0.0}

    def rate_at(self, t: Any, d: Any) -> Any:
        """Return what the gradient of step number `t` is multiplied by."""
        rate = d * self.learning_rate_at(t)
        if self.dialect == "torch" and not self.use_bias_correction:
            return rate
        return rate * (sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t))

    def _sum(self, g: Any, slots: Any, rate: Any) -> Any:
        """Return the sum of gradients after the step."""
        beta_3 = sqrt(self.beta_2)
        return beta_3 * slots.s + (1 - beta_3) * rate * g

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Mapping[str, Any]:
        _, g = self.prepare(p, g, 0.0, decoupled=self.decouple)
        return {
            "progress": xp.sum(g * (slots.s / (xp.sqrt(slots.v) + self.epsilon))),
            "travelled": xp.sum(xp.abs(self._sum(g, slots, self.rate_at(c.t, c.d)))),
        }

    def coefficients(self, t: Any, d: Any, n: Any, progress: Any, travelled: Any) -> Mapping[str, Any]:
        beta_3, rate = sqrt(self.beta_2), self.rate_at(t, d)
        n = beta_3 * n + (1 - beta_3) * rate * progress
        estimate = where(travelled > 0, n / ((1 - beta_3) * travelled), d)
        if self.growth_rate is not None:
            estimate = minimum(estimate, d * self.growth_rate)
        return {"d": maximum(d, estimate), "n": n, "rate": rate}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.rate, decoupled=self.decouple)
        m = self.beta_1 * slots.m + (1 - self.beta_1) * c.rate * g
        v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
        change = m / (xp.sqrt(v) + self.epsilon)
        if self.dialect == "optax" and self.weight_decay:
            change = self.weight_decay * c.rate * p + change
        return p - change, {"m": m, "v": v, "s": self._sum(g, slots, c.rate)}
