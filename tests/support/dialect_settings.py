"""What each dialect is compared with its framework on: the settings of the rules that have it, and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from support.bits import Array, ordinary

import portopt
from portopt.rules.settings import settings as of_rule

APART = ("Muon",)
"""Rules that a framework has for some parameters only, or not in float64: a module of their own compares them."""

STEPS = 50
SHAPES = ((3, 4), (5,), ())


def settings(dialect: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Yield name, number and arguments of each setting of each rule that has a dialect."""
    for rule in portopt.RULES:
        if dialect in rule.dialects():
            for number, arguments in enumerate(of_rule(rule, dialect)):
                yield rule.__name__, number, arguments


def rate_at(step: int, learning_rate: float) -> float:
    """Return the learning rate of a step, from 0: it changes, so that it matters whether the moment holds it."""
    return learning_rate if step < STEPS // 2 else 0.3 * learning_rate


def parameters() -> list[Array]:
    return [ordinary(shape, "float64", seed) for seed, shape in enumerate(SHAPES)]


def gradients() -> list[list[Array]]:
    """Return the gradients of each step: one element is always zero, and one tensor at first."""
    found = [[ordinary(shape, "float64", 100 * s + i) for i, shape in enumerate(SHAPES)] for s in range(1, STEPS + 1)]
    for step in found:
        step[0][0, 0] = 0.0
    found[0][1] = np.zeros_like(found[0][1])
    return found
