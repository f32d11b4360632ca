"""A rule whose arrays are chosen by conditions of scalars, and what it does, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from support.bits import Array

import portopt


class Conditional(portopt.Optimizer):
    """Each slot takes one of two arrays, or an array and a number."""

    slots = ("above", "first", "not_first", "both", "either", "not_both", "with_mask", "from_mask", "always", "counted")

    threshold: float = portopt.hyperparameter(default=0.1, at_least=0)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        rate = self.learning_rate_at(t)
        return {"lr": rate, "flag": rate - self.threshold, "t": t, "first": t == 1, "not_first": t != 1, "always": True}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        above = c.flag > 0
        return p - c.lr * g, {
            "above": xp.where(above, p, g),
            "first": xp.where(c.first, p, 0.5),
            "not_first": xp.where(c.not_first, p, g),
            "both": xp.where((c.t > 1) & above, c.lr, g),
            "either": xp.where((c.t > 2) | above, p, g),
            "not_both": xp.where(~((c.t > 1) & above), p, g),
            "with_mask": xp.where(c.first & (g > 0), p, g),
            "from_mask": xp.where((g > 0) | above, p, g),
            "always": xp.where(c.always, p, g),
            "counted": g * (c.t > 1),
        }


def expected_slots(p: Array, g: Array, t: int, rate: float, threshold: float = 0.1) -> dict[str, Array]:
    """Return the slots after step `t` from a parameter, as it was before, and a gradient, both float32."""
    above, rounded = rate - threshold > 0, np.full_like(p, rate)
    return {
        "above": p if above else g,
        "first": p if t == 1 else np.full_like(p, 0.5),
        "not_first": p if t != 1 else g,
        "both": rounded if t > 1 and above else g,
        "either": p if t > 2 or above else g,
        "not_both": g if t > 1 and above else p,
        "with_mask": np.where((g > 0) & (t == 1), p, g),
        "from_mask": np.where((g > 0) | above, p, g),
        "always": p,
        "counted": g * np.float32(t > 1),
    }
