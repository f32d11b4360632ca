"""The norm of all gradients together as one kernel with stages, for those who call machine code and no Python.

It does what `portopt.kernels.host.norm` does: a guess of the largest gradient, a pass that adds up, seldom another one, and the
root of all parts' sums. The passes over memory are that module's kernels, one for each dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.host.norm import SAMPLES, norm_kernel
from portopt.program.bins import LOWEST_OF_SQUARES, SCALING, UNSCALED, WIDTH

ALL, GUESS, ADD, DECIDE, FINISH = -1, 0, 1, 2, 3
"""The stages: everything in one part; or one after the other, `ADD` in parts, and once more if `DECIDE` says so."""

_HEAD = 2
_RECORD = 6

SOURCE = f'''"""The norm of gradients of several dtypes, in integer bins."""


def record_of(workspace, dtypes, part, k):
    return workspace + 8 * ({_HEAD} + {_RECORD} * (part * dtypes + k))


def guess(table, sizes, kernels, groups, workspace):
    """Find the exponent of the bins for the largest of some gradients."""
    shared = pointer_to_int64(workspace)
    exponent = {LOWEST_OF_SQUARES}
    row = 0
    for k in range(kernels[0]):
        rows = groups[2 * k]
        total = groups[2 * k + 1]
        if total > 0:
            address = record_of(workspace, kernels[0], 0, k)
            record = pointer_to_int64(address)
            record[1] = 0
            call_norm(
                kernels[2 * k + 1], address, address, table + 8 * row, 1, 0, sizes + 8 * row, rows, 0, total,
                total // {SAMPLES} | 1, address + 8,
            )
            exponent = max(exponent, record[2])
        row += rows
    shared[0] = exponent
    shared[1] = 0


def add(table, sizes, kernels, groups, start, stop, workspace, part):
    """Add the squares of elements start to stop to the sums of the part's records."""
    exponent = pointer_to_int64(workspace)[0]
    row = 0
    offset = 0
    for k in range(kernels[0]):
        rows = groups[2 * k]
        total = groups[2 * k + 1]
        address = record_of(workspace, kernels[0], part, k)
        record = pointer_to_int64(address)
        record[1] = 0
        record[2] = exponent
        record[3] = 0
        record[4] = 0
        record[5] = 0
        first = max(start - offset, 0)
        last = min(stop - offset, total)
        if first < last:
            call_norm(
                kernels[2 * k + 1], address, address, table + 8 * row, 1, 0, sizes + 8 * row, rows, first, last, 0, address + 8
            )
        row += rows
        offset += total


def decide(kernels, workspace, parts):
    """Find the exponent of the bins that all parts need; leave 1 beside it if it is not the one that they have."""
    shared = pointer_to_int64(workspace)
    needed = shared[0]
    is_finite = True
    for part in range(parts):
        for k in range(kernels[0]):
            record = pointer_to_int64(record_of(workspace, kernels[0], part, k))
            needed = max(needed, record[2])
            is_finite = is_finite and record[1] < kernels[2 * k + 2]
    shared[1] = 1 if is_finite and needed > shared[0] else 0
    shared[0] = needed


def scaling(exponent):
    if exponent > {2 * UNSCALED}:
        return {SCALING}
    return {-SCALING} if exponent <= {-2 * UNSCALED} else 0


def power_of_two(exponent):
    return float64_of_bits(uint64(exponent + 1023) << uint64(52))


def root(kernels, workspace, parts):
    """Return the root of the sum of all parts, which have one exponent; NaN if an element is NaN, else infinity if one is."""
    exponent = pointer_to_int64(workspace)[0]
    first = 0
    second = 0
    third = 0
    is_infinite = False
    for part in range(parts):
        for k in range(kernels[0]):
            record = pointer_to_int64(record_of(workspace, kernels[0], part, k))
            if record[1] > kernels[2 * k + 2]:
                return float64_nan
            is_infinite = is_infinite or record[1] == kernels[2 * k + 2]
            first += record[3]
            second += record[4]
            third += record[5]
    if is_infinite:
        return float64_inf
    carry = third + {2 ** (WIDTH - 1)} >> {WIDTH}
    third -= carry << {WIDTH}
    second += carry
    carry = second + {2 ** (WIDTH - 1)} >> {WIDTH}
    second -= carry << {WIDTH}
    small = numpy_float64(third) * 2.0**-64 + numpy_float64(second) * 2.0**-32
    half = scaling(exponent)
    scaled = (small + numpy_float64(first + carry)) * power_of_two(exponent - 2 * half - {WIDTH - 1})
    return product_float64(sqrt(scaled), power_of_two(half))


def kernel(table, sizes, kernels, groups, start, stop, result, stage, workspace, part, parts):
    """Do a stage, or all of them where there is one part.

    Args:
        table: addresses of the gradients, those of a dtype beside each other.
        sizes: of each.
        kernels: the number of dtypes, then for each the address of its kernel and the bits of its infinity.
        groups: number of gradients of each dtype, and of their elements.
        start: first of the part's elements.
        stop: the one past its last.
        result: where the norm goes.
        stage: one of the stages, -1 for all.
        workspace: what the stages share.
        part: the part's number.
        parts: their number.
    """
    if stage == {ALL}:
        guess(table, sizes, kernels, groups, workspace)
        add(table, sizes, kernels, groups, start, stop, workspace, 0)
        decide(kernels, workspace, 1)
        if pointer_to_int64(workspace)[1] != 0:
            add(table, sizes, kernels, groups, start, stop, workspace, 0)
        result[0] = root(kernels, workspace, 1)
    if stage == {GUESS}:
        guess(table, sizes, kernels, groups, workspace)
    if stage == {ADD}:
        add(table, sizes, kernels, groups, start, stop, workspace, part)
    if stage == {DECIDE}:
        decide(kernels, workspace, parts)
    if stage == {FINISH}:
        result[0] = root(kernels, workspace, parts)
'''


@functools.cache
def norm_stages() -> Any:
    """Return the kernel, of the prototype `"norm_stages"`."""
    return compile_function(SOURCE, "norm_stages")


def kernels_of(dtypes: Sequence[str]) -> list[int]:
    """Return what the kernel is to know of dtypes: their number, then for each the address of its kernel and its infinity."""
    words = [len(dtypes)]
    for dtype in dtypes:
        infinity = 0x7FF0000000000000 if COMPUTE_DTYPE[dtype] == "float64" else 0x7F800000
        words += [threads.address_of(norm_kernel(dtype, default_flush())), infinity]
    return words


def words_of(dtypes: int) -> tuple[int, int]:
    """Return the words of workspace for gradients of so many dtypes, as a whole and for each part."""
    return _HEAD, _RECORD * dtypes
