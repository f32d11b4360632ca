"""Prodigy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import maximum, minimum, sqrt, where
from portopt.schedules import LearningRate
from portopt.slot import slot


class Prodigy(DialectRule):
    """Prodigy: Adam that finds its learning rate, an estimate `d` of how far the solution is, from all parameters together.

    With `c1 = 1 - beta_1**t`, `c2 = 1 - beta_2**t`, the parameter `p0` before the first step, and `<·,·>` over all parameters:

    - torch: `rate = d * lr`, with bias correction `d * lr * sqrt(c2) / c1`; `n = beta_3 * n + d / d0 * rate * <g, p0 - p>`;
      `m = beta_1 * m + (1 - beta_1) * d * g`; `v = beta_2 * v + (1 - beta_2) * (d * g)**2`; `s = beta_3 * s + d / d0 * rate * g`;
      `h = d_coef * n / <1, |s|>`; `d_max = max(d_max, h)`; `d = min(d_max, d * growth_rate)`;
      `p = p * (1 - rate * weight_decay)`; `p - rate * m / (sqrt(v) + d * epsilon)`
    - optax: `rate = d * lr * sqrt(c2) / c1`; `n`, `m`, `v`, `s` and `h` as in torch; `d = max(d, h)`;
      `p - (weight_decay * rate * p + rate * m / (sqrt(v) + d * epsilon))`

    So the step has the new `d` beside epsilon, and the old one in `rate`. The dialect torch is that of the authors' package for
    torch, prodigyopt 1.1.2, which leaves out a step whose learning rate is 0; here it is a step. While there has been no gradient
    but zero, `d` stays what it is, where optax makes it NaN.

    Args:
        learning_rate: in [0, inf), or a schedule; what `d` is multiplied by.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        beta_3: decay of the sums with which `d` is estimated, in [0, 1). None: the square root of beta_2.
        epsilon: in [0, inf).
        weight_decay: in [0, inf).
        d0: in (0, inf); what `d` is at first.
        d_coef: in (0, inf); what the estimate is multiplied by.
        safeguard_warmup: whether the learning rate is left out of `s`, so that low rates at first do no harm.
        growth_rate: torch: in [1, inf); how much `d` may grow in a step. None: as much as it does.
        use_bias_correction: torch: whether the rate is corrected for the start of the means at zero.
        decouple: torch: whether weight decay acts on the parameter; otherwise `g + weight_decay * p`.
        dialect, maximize: see `DialectRule`.
        betas, beta3, eps: torch: other names for (beta_1, beta_2), beta_3 and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Prodigy(), np.asarray([1.0, -1.0])
        >>> state = opt.init(w)
        >>> for _ in range(100):
        ...     w, state = opt.apply(w, 2 * w, state)
        >>> bool(np.abs(w).max() < 0.5), state.slots["d"] > 0.01
        (True, True)

    Reference:
        Mishchenko, Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", 2023, https://arxiv.org/abs/2306.06101
    """

    slots = ("m", "v", "s", slot("p0", start="p"))
    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "optax.contrib.prodigy",
            {"m": "exp_avg", "v": "exp_avg_sq", "s": "grad_sum", "p0": "params0", "d": "estim_lr", "n": "numerator_weighted"},
            names={
                "beta_1": "betas.0", "beta_2": "betas.1", "beta_3": "beta3", "d0": "estim_lr0", "d_coef": "estim_lr_coef",
            },
            epsilon="beside the root",
        ),
    )  # fmt: skip
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"d0": 0.01, "beta_2": 0.9, "weight_decay": 0.1},
        {"dialect": "optax", "d0": 0.01, "beta_2": 0.9, "weight_decay": 0.1},
    )

    dialect: Dialect = dialect_option(default="torch", others=("optax",))
    learning_rate: LearningRate = hyperparameter(default=1.0, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1)
    beta_3: float | None = hyperparameter(default=None, at_least=0, below=1, off=None)
    epsilon: float = hyperparameter(default=1e-8, at_least=0)
    weight_decay: float | None = hyperparameter(default=0.0, at_least=0, off=0.0)
    d0: float = hyperparameter(default=1e-6, above=0)
    d_coef: float = hyperparameter(default=1.0, above=0)
    safeguard_warmup: bool = option(default=False)
    growth_rate: float | None = hyperparameter(default=per_dialect(torch=None), at_least=1, off=None)
    use_bias_correction: bool | None = option(default=per_dialect(torch=False))
    decouple: bool | None = option(default=per_dialect(torch=True))
    betas: tuple[float, float] | None = alias("beta_1", "beta_2", dialect="torch", default=None, kw_only=True)
    beta3: float | None = alias("beta_3", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    @property
    def scalar_slots(self) -> Mapping[str, float]:  # type: ignore[override]  # depends on growth_rate
        """`d` and `n`; with growth_rate, `d_max` too, which is otherwise `d`."""
        first = {"d": self.d0, "n": 0.0}
        return first if self.growth_rate is None else {**first, "d_max": self.d0}

    def rate_at(self, t: Any, d: Any) -> Any:
        """Return what the step number `t` is multiplied by."""
        rate = d * self.learning_rate_at(t)
        if self.dialect == "torch" and not self.use_bias_correction:
            return rate
        return rate * (sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t))

    def _decay_of_sums(self) -> Any:
        return sqrt(self.beta_2) if self.beta_3 is None else self.beta_3

    def _weight(self, d: Any, rate: Any) -> Any:
        return d / self.d0 * (d if self.safeguard_warmup else rate)

    def _sum(self, g: Any, slots: Any, weight: Any) -> Any:
        """Return the sum of gradients after the step."""
        return self._decay_of_sums() * slots.s + weight * g

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Mapping[str, Any]:
        _, g = self.prepare(p, g, 0.0, decoupled=self.decouple)
        travelled = self._sum(g, slots, self._weight(c.d, self.rate_at(c.t, c.d)))
        return {"progress": xp.sum(g * (slots.p0 - p)), "travelled": xp.sum(xp.abs(travelled))}

    def coefficients(
        self, t: Any, d: Any, n: Any, progress: Any, travelled: Any, d_max: Any = None
    ) -> Mapping[str, Any]:
        rate = self.rate_at(t, d)
        n = self._decay_of_sums() * n + d / self.d0 * rate * progress
        estimate = where(travelled > 0, self.d_coef * n / travelled, d)
        largest = maximum(d if d_max is None else d_max, estimate)
        grown = largest
        if self.growth_rate is not None:
            grown = minimum(largest, where(d == self.d0, maximum(d, estimate), d) * self.growth_rate)
        new = {"d": grown, "n": n, **({} if d_max is None else {"d_max": largest})}
        return {**new, "scale": d, "rate": rate, "weight": self._weight(d, rate), "floor": grown * self.epsilon}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.rate, decoupled=self.decouple)
        scaled = c.scale * g
        m = self.beta_1 * slots.m + (1 - self.beta_1) * scaled
        v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(scaled)
        change = c.rate * m / (xp.sqrt(v) + c.floor)
        if self.dialect == "optax" and self.weight_decay:
            change = self.weight_decay * c.rate * p + change
        return p - change, {"m": m, "v": v, "s": self._sum(g, slots, c.weight), "p0": slots.p0}
