"""The rules that are measured, and their hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.optimizer import Optimizer
from portopt.rules import RULES, SGD

OPTIONS: Mapping[type[Optimizer], dict[str, Any]] = {SGD: {"momentum": 0.9}}
"""Arguments that are not the defaults: plain gradient descent keeps no slots, and nobody waits for it."""

RULES_BY_NAME: Mapping[str, type[Optimizer]] = {rule.__name__.lower(): rule for rule in RULES}


def make_optimizer(rule: type[Optimizer]) -> Optimizer:
    """Return the optimizer that is measured for a rule."""
    return rule(**OPTIONS.get(rule, {}))


def arrays_moved(optimizer: Optimizer) -> int:
    """Return how many arrays, each as large as the parameters, a step has to read and write at least."""
    program = optimizer.program()
    return len(program.array_inputs) + len(program.array_outputs)
