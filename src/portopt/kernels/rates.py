"""The learning rates of ready-made schedules as a program of scalars, for steps that compute them where they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.hyperparameters import Range
from portopt.program import Kind, Op, Program
from portopt.program.builder import Builder, Node, rewritten
from portopt.program.expansion import expand_elementary
from portopt.program.ir import pruned
from portopt.scalars import Scalar
from portopt.schedules import Schedule, rate_at

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


def with_rates(program: Program, schedules: Mapping[str, Callable[[Any], Any]]) -> Program:
    """Return a program that computes by schedules, from the number of its step, what it was given under these names.

    Raises:
        ValueError: a schedule cannot be a program, for it asks for the value of the step, or does not depend on it.
    """
    if not schedules:
        return program
    builder = Builder()
    step = Scalar(Node(builder.record("input", Kind.INTEGER, label="t")), builder) - 1
    rates = {name: _rate(schedule, step, builder) for name, schedule in schedules.items()}

    def record(op: Op, args: tuple[int, ...]) -> int:
        if op.name == "input" and op.label in rates:
            return rates[str(op.label)]
        return builder.record(op.name, op.kind, *args, label=op.label, dims=op.dims)

    return rewritten(program, builder, record)


def _rate(schedule: Callable[[Any], Any], step: Scalar, builder: Builder) -> int:
    try:
        found = rate_at(schedule, step)
        rate = builder.scalar(builder.to_float(found))
    except Exception as error:
        raise ValueError(
            f"the schedule {schedule!r} cannot be computed on a device: it must be made of + - * / ** and the functions of "
            f"portopt.scalars on the step that it is given ({error})"
        ) from error
    if not isinstance(schedule, Schedule) and not _depends_on_step(builder, rate):
        raise ValueError(
            f"the schedule {schedule!r} does not depend on the step that it is given, so each repetition of a graph would have "
            "the rate of the first: give the rate as a number, or as an array on the device that is filled in place"
        )
    return rate


def _depends_on_step(builder: Builder, index: int) -> bool:
    op = builder.ops[index]
    return op.name == "input" or any(_depends_on_step(builder, i) for i in op.args)
