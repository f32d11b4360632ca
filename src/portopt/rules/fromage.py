"""Fromage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect
from portopt.hyperparameters import dialect_option, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import maximum, sqrt, where


class Fromage(DialectRule):
    """Fromage: steps of a given length relative to the parameter's norm, and a shrinking that keeps that norm from growing.

    With `shrink = 1 / sqrt(1 + lr**2)` and `trust = max(norm(p), min_norm) / max(norm(g), min_norm)`:

    - optax: `p + ((shrink - 1) * p - lr * shrink * trust * g)`

    The norms are those of one parameter. Without min_norm, `trust` is 1 where one of them is 0. The paper writes the same as
    `shrink * (p - lr * trust * g)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        min_norm: in [0, inf); the norms count as at least this.
        dialect: see `DialectRule`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Fromage(learning_rate=0.75), np.asarray([3.0, 4.0])
        >>> opt.apply(w, np.asarray([0.5, 0.0]), opt.init(w))[0].round(6)
        array([-0.6,  3.2])

    Reference:
        Bernstein, Vahdat, Yue, Liu, "On the distance between two neural networks and the stability of learning", 2020,
        https://arxiv.org/abs/2002.03432
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (Counterpart("optax.fromage", counts=False),)
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 0.05, "min_norm": 0.0},
        {"learning_rate": 0.05, "min_norm": 3.0},
    )

    dialect: Dialect = dialect_option(default="optax")
    min_norm: float = hyperparameter(default=1e-6, at_least=0)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        lr = self.learning_rate_at(t)
        shrink = 1 / sqrt(1 + lr * lr)
        return {"rate": lr * shrink, "growth": shrink - 1}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        size_p = maximum(xp.linalg.vector_norm(p), self.min_norm)
        size_g = maximum(xp.linalg.vector_norm(g), self.min_norm)
        trust = where((size_p == 0) | (size_g == 0), 1.0, size_p / size_g)
        return p + (c.growth * p - c.rate * trust * g), {}
