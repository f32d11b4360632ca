"""The programs that a rule has for parameters of several kinds."""

from __future__ import annotations

import portopt
from portopt.program import Program


def programs(optimizer: portopt.Optimizer) -> list[Program]:
    """Return the program for a matrix and the one for a vector, which a rule may treat otherwise; with all further inputs."""
    given = dict.fromkeys(optimizer.inputs, True)
    return [optimizer.program(given, shape=shape) for shape in ((3, 4), (5,))]


def operations(optimizer: portopt.Optimizer) -> int:
    """Return how many operations they have together."""
    return sum(len(program.ops) for program in programs(optimizer))
