"""The learning rates of ready-made schedules as a program of scalars, for steps that compute them where they are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from portopt.hyperparameters import Range
from portopt.program import Kind, Program
from portopt.program.builder import Builder, Node
from portopt.program.expansion import expand_elementary
from portopt.program.ir import pruned
from portopt.scalars import Scalar
from portopt.schedules import Schedule

ARE_ALLOWED = "rates are allowed"
"""The name of the output that tells whether all rates are in their ranges."""


class Rate(NamedTuple):
    """A hyperparameter whose value is a schedule.

    Attributes:
        name: of the hyperparameter.
        schedule: a ready-made one.
        range: the allowed values.
    """

    name: str
    schedule: Schedule
    range: Range


def rates_program(rates: Sequence[Rate]) -> Program:
    """Return the program that computes rates, its scalar outputs of their names, of the number of the step, its input `t`.

    Its elementary functions are written out. The further output `ARE_ALLOWED` is a condition: where it does not hold, the rates
    are not to be used, and `Range.check` has the words for what is wrong.
    """
    builder = Builder()
    # A schedule is a function of the finished steps.
    step = Scalar(Node(builder.record("input", Kind.INTEGER, label="t")), builder) - 1
    outputs: dict[str, int] = {}
    allowed = Scalar(builder.equal(0.0, 0.0), builder)
    for name, schedule, range_ in rates:
        found = schedule(step)
        rate = Scalar(builder.to_float(found.value if isinstance(found, Scalar) else found), builder)
        outputs[name] = builder.scalar(rate.value)
        allowed = allowed & (rate < math.inf) & (-math.inf < rate)
        if range_.at_least is not None:
            allowed = allowed & (range_.at_least <= rate)
        if range_.above is not None:
            allowed = allowed & (range_.above < rate)
        if range_.at_most is not None:
            allowed = allowed & (rate <= range_.at_most)
        if range_.below is not None:
            allowed = allowed & (rate < range_.below)
    outputs[ARE_ALLOWED] = builder.scalar(allowed.value)
    return expand_elementary(pruned("rates", builder.ops, {}, outputs))
