"""Rules that know which of all variables those of a step are, or of a part of it: what they draw depends on it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import portopt
from portopt.program.draws import Place


class PlacedRules:
    """Copies of rules, each for some of the variables of an optimizer. A copy of this has none, as a copied rule lacks places."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[portopt.Optimizer, portopt.Optimizer]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacedRules, ()

    def of(self, rule: portopt.Optimizer, params: Sequence[Any], numbers: Sequence[int]) -> portopt.Optimizer:
        """Return what does the step of a rule on parameters with these numbers among all variables."""
        if not rule.draws or list(numbers) == list(range(len(numbers))):
            return rule
        key = (id(rule), *numbers)
        if key not in self._known:
            placed = copy.copy(rule)
            placed.place_parameters([Place.of(n, tuple(p.shape)) for n, p in zip(numbers, params, strict=True)])
            # The rule is kept, so that no other gets its identity.
            self._known[key] = rule, placed
        return self._known[key][1]
