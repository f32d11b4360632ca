"""What is given for a step alone, as plans keep it: numbers that may change, and schedules that compiled code can run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from portopt.hyperparameters import Range
from portopt.kernels.host.scalar_script import ScalarScript, scalar_script
from portopt.kernels.rates import Rate, rates_program
from portopt.nested import rates_of
from portopt.program import Program
from portopt.program.reductions import GRADIENT_NORM
from portopt.protocols import Rule
from portopt.schedules import is_ready_made, is_schedule


def changing(rule: Rule, given: Mapping[str, Any]) -> dict[str, tuple[str, Range]]:
    """Return the hyperparameters for which numbers are given that may change, and their ranges, by the names that were given.

    There is none unless all that is given are such numbers: whatever else there is decides about more than a number.
    """
    found = {}
    for name, value in given.items():
        if type(value) is not float:
            return {}
        ((own, _),) = rule.check_overrides({name: value}).items()
        if own == GRADIENT_NORM:
            return {}
        found[name] = own, rule.hyperparameter_named(own).range
    return found


def same_numbers(overrides: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Tell whether the same hyperparameters have the same values, all of them Python numbers."""
    if len(overrides) != len(others):
        return False
    return all(
        type(v) in (int, float) and name in others and type(others[name]) is type(v) and repr(v) == repr(others[name])
        for name, v in overrides.items()
    )


class Scheduled(NamedTuple):
    """The learning rates of a step that are schedules.

    Attributes:
        script: computes them; None if there are none.
        is_all: whether that is all of them, and none is a user's function.
    """

    script: ScalarScript | None
    is_all: bool


class Schedules:
    """What computes the learning rates that are schedules, as long as these are the same.

    Args:
        programs: of the step, which need some of the rates.
        first: the number from which on scripts have numbers of their own.
    """

    def __init__(self, programs: Iterable[Program], first: int) -> None:
        self._asked = {name for program in programs for name in program.scalar_inputs}
        self._first = first
        self._known: tuple[list[Any], Scheduled] = [], Scheduled(None, is_all=True)

    def of(self, rule: Rule, overrides: Mapping[str, Any]) -> Scheduled:
        """Return what computes the rates of a step with these hyperparameters."""
        rates = {
            name: rate
            for name, rate in zip(rule.rates, rates_of(rule, overrides), strict=True)
            if name in self._asked and is_schedule(rate)
        }
        known, found = self._known
        if len(known) != len(rates) or any(a is not b for a, b in zip(known, rates.values(), strict=True)):
            ready = [
                Rate(name, rate, rule.hyperparameter_named(name).range)
                for name, rate in rates.items()
                if is_ready_made(rate)
            ]
            script = scalar_script(rates_program(ready), self._first) if rates and len(ready) == len(rates) else None
            found = Scheduled(script, is_all=script is not None or not rates)
            self._known = list(rates.values()), found
        return found
