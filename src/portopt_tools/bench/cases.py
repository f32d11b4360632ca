"""The rules that are measured, and their hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from portopt.optimizer import Optimizer
from portopt.program.interpreter import shape_of
from portopt.rules import RULES
from portopt_tools import rule_argument


@dataclass(frozen=True)
class Case:
    """A rule that is measured, with its hyperparameters.

    Attributes:
        text: what names it on a command line.
        optimizer: the rule.
        options: arguments that are not the defaults.
    """

    text: str
    optimizer: Optimizer
    options: Mapping[str, Any] = field(compare=False)

    @property
    def rule(self) -> str:
        """The rule's name."""
        return type(self.optimizer).__name__


def built_in() -> list[Case]:
    """Return a case for each of portopt's own rules."""
    return [_of_class(rule, rule.__name__.lower()) for rule in RULES]


def read(text: str) -> Case:
    """Return the case of a rule as a command line names it, see `rule_argument.optimizer`.

    Raises:
        ValueError, TypeError, OSError: there is no such rule; the message says why.
    """
    config = rule_argument.configuration(text)
    if config is not None:
        return Case(text, rule_argument.optimizer(text), config["config"])
    rule = rule_argument.rule_class(text)
    if not rule.worth_measuring:
        # Who needs arguments is told how to give them.
        return Case(_name(rule, text), rule_argument.optimizer(text), {})
    return _of_class(rule, _name(rule, text))


def _name(rule: type[Optimizer], text: str) -> str:
    return text.lower() if rule in RULES else text


def _of_class(rule: type[Optimizer], text: str) -> Case:
    return Case(text, make_optimizer(rule), rule.worth_measuring)


def make_optimizer(rule: type[Optimizer]) -> Optimizer:
    """Return the optimizer that is measured for a rule."""
    return rule(**rule.worth_measuring)


def elements_moved(optimizer: Optimizer, shapes: Iterable[tuple[int, ...]]) -> int:
    """Return how many elements of arrays a step on parameters of these shapes has to read and write at least."""
    return sum(
        math.prod(shape_of(op.dims, shape))
        for shape in shapes
        for program in (optimizer.program(shape=shape),)
        for op in (*(op for op in program.ops if op.reads), *(program.ops[i] for i in program.array_outputs.values()))
    )
