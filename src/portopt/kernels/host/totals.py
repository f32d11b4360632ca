"""Totals over all parameters in one pass of a kernel over their arrays: what it leaves are the integers of each thread's part.

The kernel is that of a program whose result is a reduction. It adds one parameter after the other to what is kept of it, so a
thread's parameters, or its part of one, take one call; and parts combine exactly.
"""

from __future__ import annotations

import functools
import math
import struct
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from portopt import backend
from portopt.kernels.groups import grouped
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import default_flush
from portopt.kernels.host.kernel import (
    Inputs,
    Job,
    Passes,
    Work,
    group_words,
    host_kernel,
    make_works,
)
from portopt.kernels.host.reduction_source import ABOVE, first_words
from portopt.kernels.host.staged_steps import can_be_staged
from portopt.kernels.totals import reducing
from portopt.program import Program
from portopt.program.bins import LOWEST_OF_SQUARES, Bins
from portopt.program.interpreter import StepScalars
from portopt.program.reductions import of_numbers


def can_run(name: str, work: backend.Work) -> bool:
    """Tell whether there can be a kernel that reduces what a program computes, and its step has Python numbers."""
    return isinstance(work.scalars, StepScalars) and can_be_reduced(work.program, name)


@functools.lru_cache(maxsize=512)
def can_be_reduced(part: Program, name: str) -> bool:
    """Tell whether there can be a kernel of the program that reduces an array; arguments are those of `reducing`."""
    return can_be_staged(reducing(part, name))


def total_of(name: str, jobs: Sequence[Job]) -> float:
    """Return a total over all parameters.

    Args:
        name: of the reduction.
        jobs: programs that compute the arrays, and those of their inputs, NumPy arrays of any strides.
    """
    parts: list[Any] = []
    for job in jobs:
        program = reducing(job.program, name)
        for key, _, members in grouped(program, job.dtypes, in_place=True, flush=default_flush()):
            kernel = host_kernel(program, key)
            rows = [{n: np.ascontiguousarray(job.inputs[i][n]) for n in kernel.columns} for i in members]
            addresses = [[row[n].__array_interface__["data"][0] for n in kernel.columns] for row in rows]
            works = make_works(kernel, 0, members, addresses, [job.inputs[i]["p"].shape for i in members])
            parts += parts_of(works, job.scalars)
    return of_numbers(name, parts)


def parts_of(works: Sequence[Work], scalars: StepScalars) -> list[Any]:
    """Return what threads found for the total that kernels leave, as `Reductions.partial` returns it, in no particular order.

    Args:
        works: kernels of programs as `reducing` returns them, and parameters.
        scalars: of the step.
    """
    found: list[Any] = []
    for work in works:
        inputs = Inputs([work])
        values = array("d", inputs.values([scalars.inputs]))
        at, step = values.buffer_info()[0], int(scalars.inputs.get("t", 0))
        op = work.kernel.program.ops[-1]
        first = first_words(op.name, work.kernel.key.compute_dtype)
        if threads.is_small(work.total):
            memory = array("q", bytes(8 * (1 + work.memory.words(1))))
            memory[1 : 1 + len(first)] = array("q", first)
            unused, kept = memory.buffer_info()[0], [1]
            work.kernel.function(
                unused, unused, work.table.ctypes.data, work.sizes.ctypes.data, len(work.sizes), 0, work.total, at, step, at,
                -1, unused + 8, 0, 1,
            )  # fmt: skip
        else:
            groups = group_words([work], [work.table.ctypes.data], inputs)
            job = Passes([work], groups.buffer_info()[0]).job(0, at, step, at)
            memory, parts = job.memory, job.parts
            stride = work.memory.part if work.is_shared else work.memory.words(1)
            kept = [stride * k for k in range(parts)]
            for k in kept:
                memory[k : k + len(first)] = first
            job.call()()
        found += [_partial(op.name, work.kernel.key.compute_dtype, memory[k : k + len(first)]) for k in kept]
    return found


def _partial(name: str, real: str, words: Sequence[int]) -> Any:
    if name == "max":
        return _number(real, int(words[0]))
    exponent, *sums, special = map(int, words)
    # Bins of squares that are all zero, of float32 numbers too, are not above any others.
    if name == "norm" and not any(sums):
        exponent = LOWEST_OF_SQUARES
    return Bins(exponent, (sums[0], sums[1], sums[2]), _SPECIAL[special])


# Of a NaN, of positive and of negative infinities, each a bit.
_SPECIAL = {0: 0.0, 2: math.inf, 4: -math.inf, **dict.fromkeys((1, 3, 5, 6, 7), math.nan)}


def _number(real: str, ordered: int) -> float:
    """Return the number that stands at a place in the order of numbers; a zero is positive."""
    if ordered == ABOVE[real]:
        return math.nan
    integer, number = ("i", "f") if real == "float32" else ("q", "d")
    bits = ordered if ordered >= 0 else ordered ^ ABOVE[real]
    return float(struct.unpack(number, struct.pack(integer, bits))[0]) + 0.0
