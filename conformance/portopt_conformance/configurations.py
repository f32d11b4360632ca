"""The one table of configurations: what every rule is tested with. A rule takes part with the options that it has.

Options that the table does not know are tested with the values that `portopt.rules.settings` finds for them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from portopt import Optimizer, schedules
from portopt.program import DRAWS
from portopt.rules.settings import other_values, together
from portopt_conformance.arrangement import UNLIKE, is_elementwise


@dataclass(frozen=True)
class Configuration:
    """A rule with constructor arguments.

    Attributes:
        name: what it is called in identifiers.
        core: whether it is tested in every dtype and mode, rather than in a selection.
        dialect: whether it stands for a dialect, and is tested in single steps only.
    """

    rule: type[Optimizer]
    name: str
    arguments: Mapping[str, Any]
    core: bool = False
    dialect: bool = False

    @functools.cached_property
    def is_elementwise(self) -> bool:
        """Whether an element of a step depends on that element only, and on what all parameters share."""
        return is_elementwise(self.optimizer())

    @functools.cached_property
    def kind(self) -> str:
        """What a step does beside arithmetic on elements: one of the kinds that take turns."""
        if self.is_elementwise:
            return "elementwise"
        operations = {op.name for op in self.optimizer().program(shape=UNLIKE["matrix"]).ops}
        return "multiplying or drawing" if operations & {"matmul", *DRAWS} else "reducing"

    def optimizer(self, **changes: Any) -> Optimizer:
        return self.rule(**{**self.arguments, **changes})


_TABLE: tuple[tuple[str, bool, Mapping[str, Any]], ...] = (
    ("default", True, {}),
    ("momentum", False, {"momentum": 0.9}),
    ("nesterov", True, {"momentum": 0.9, "nesterov": True}),
    ("nesterov_alone", False, {"nesterov": True}),
    ("amsgrad", True, {"amsgrad": True}),
    ("decay", False, {"decay": 0.0123}),
    ("schedule_decay", False, {"schedule_decay": 0.1}),
    ("betas", False, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}),
    ("rho", False, {"rho": 0.5, "epsilon": 1e-3}),
    ("epsilon_zero", False, {"epsilon": 0.0}),
    ("clipnorm", False, {"clipnorm": 1.0}),
    ("clipvalue", False, {"clipvalue": 0.01}),
)
_ALL_OPTIONS: Mapping[str, Any] = {"momentum": 0.9, "nesterov": True, "amsgrad": True}
_DIALECT_OPTIONS: Mapping[str, Any] = {
    "momentum": 0.9,
    "amsgrad": True,
    "weight_decay": 0.1,
    "decoupled_weight_decay": True,
    "maximize": True,
    "dampening": 0.3,
    "centered": True,
    "bias_correction": True,
    "eps_root": 1e-3,
    "decay": 0.0123,
    "nesterov": True,
}
_AT_THEIR_DEFAULTS = frozenset({"initial_accumulator_value", "eps_in_sqrt"})
"""Options that stay as they are where all options of a dialect are on: without the first, single steps start from slots given."""

SCHEDULES: Mapping[str, schedules.Schedule] = {
    "Constant": schedules.Constant(0.1),
    "InverseTimeDecay": schedules.InverseTimeDecay(0.1, rate=0.7, steps=3),
    "ExponentialDecay": schedules.ExponentialDecay(0.1, rate=0.9, steps=3),
    "ExponentialDecay_staircase": schedules.ExponentialDecay(0.1, rate=0.7, steps=3, staircase=True),
    "ExponentialDecay_each_step": schedules.ExponentialDecay(0.1, rate=0.9),
    "PolynomialDecay": schedules.PolynomialDecay(0.1, steps=7, end=0.01, power=2),
    "PolynomialDecay_root": schedules.PolynomialDecay(0.1, steps=7, end=0.01, power=0.5),
    "PiecewiseConstant": schedules.PiecewiseConstant([2, 5], [0.1, 0.03, 0.007]),
    "CosineDecay": schedules.CosineDecay(0.1, steps=7, end=0.003),
    "CosineDecay_warmup": schedules.CosineDecay(0.1, steps=5, end=0.003, warmup_steps=3, warmup_initial=0.01),
}
"""Learning rates that change within the ten steps for which each is tested."""


_found: WeakKeyDictionary[type[Optimizer], tuple[Configuration, ...]] = WeakKeyDictionary()


def configurations(rule: type[Optimizer]) -> tuple[Configuration, ...]:
    """Return every configuration of a rule, the defaults first, all options together with clipping last.

    They are the same objects each time: what one knows of its program is found once.
    """
    if rule not in _found:
        _found[rule] = _configurations(rule)
    return _found[rule]


def _configurations(rule: type[Optimizer]) -> tuple[Configuration, ...]:
    defaults = rule.defaults()
    found = [
        Configuration(rule, name, given, core)
        for name, core, given in _TABLE
        if defaults.keys() >= given.keys() and together(rule, None, given) == given
    ]
    for name, value in _others(rule, None, known={option for _, _, given in _TABLE for option in given}).items():
        found.append(Configuration(rule, name, {name: _DIALECT_OPTIONS.get(name, value)}))
    dialects = [_in_dialect(rule, dialect) for dialect in rule.dialects()[1:]]
    options = {name: value for name, value in _ALL_OPTIONS.items() if name in defaults}
    clipped = Configuration(rule, "clipped", {**options, "clipnorm": 1.0, "clipvalue": 0.01}, core=True)
    return (*found, *dialects, clipped)


def _in_dialect(rule: type[Optimizer], dialect: str) -> Configuration:
    """Return a configuration with every option that a rule has in a dialect, as far as they go together."""
    table = {option for _, _, given in _TABLE for option in given} | _AT_THEIR_DEFAULTS
    options = {name: value for name, value in _DIALECT_OPTIONS.items() if name in rule.defaults(dialect)}
    options |= _others(rule, dialect, known=table | _DIALECT_OPTIONS.keys())
    return Configuration(rule, dialect, {"dialect": dialect, **together(rule, dialect, options)}, dialect=True)


def _others(rule: type[Optimizer], dialect: str | None, known: Set[str]) -> dict[str, Any]:
    """Return values for the options that a rule has in a dialect, but the table does not know."""
    return {name: value for name, value in other_values(rule, dialect).items() if name not in known}
