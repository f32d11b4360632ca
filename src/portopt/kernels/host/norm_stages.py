"""The norm of all gradients together for those who call machine code and no Python, to the bits of `norm.py`.

It takes a guess of the bins, a pass that adds up, another one if the guess was wrong, and the root of what all parts have found.
The passes over memory are the kernels of `norm.py`, one for each dtype. Planned steps use the functions; for others there is a
kernel with stages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.host.norm import SAMPLES, infinity_of, norm_kernel
from portopt.program.bins import LOWEST_OF_SQUARES, SCALING, UNSCALED, WIDTH

MOST_ELEMENTS = 2**31
"""Of so many elements, integers of 64 bits can hold the sums of all parts together."""

GROUP_WORDS = 9
"""Words that tell of gradients of one dtype: the kernel, the offset of the table, columns, column, sizes, their number and sum,
the stride of a guess, and the bits of infinity."""
PART_WORDS = 16
"""Words of what a part has found: the exponent that its bins need, if infinite or NaN, three sums; then a kernel's record."""
HEAD_WORDS = 8
"""Words before those of the parts: the exponent that was guessed, and one that a kernel may write."""
SMALL_WORDS = HEAD_WORDS + 2 * PART_WORDS
"""Words of memory that one thread needs."""

NORM = f'''def guessed(groups, count, table, memory):
    """Return the exponent of the bins for the largest of some gradients."""
    exponent = {LOWEST_OF_SQUARES}
    record = pointer_to_int64(memory + {8 * (HEAD_WORDS + 8)})
    for k in range(count):
        group = pointer_to_int64(groups + {8 * GROUP_WORDS} * k)
        record[0] = 0
        record[1] = 0
        call_norm(
            group[0], memory + 8, memory + 8, table + group[1], group[2], group[3], group[4], group[5], 0, group[6], group[7],
            memory + {8 * (HEAD_WORDS + 8)},
        )
        exponent = max(exponent, record[1])
    return exponent


def add_part(groups, count, table, start, stop, exponent, found):
    """Add up the squares of elements start to stop, counted through all groups, in bins of an exponent."""
    result = pointer_to_int64(found)
    record = pointer_to_int64(found + 64)
    result[0] = exponent
    for i in range(1, 5):
        result[i] = 0
    offset = 0
    for k in range(count):
        group = pointer_to_int64(groups + {8 * GROUP_WORDS} * k)
        first = max(start - offset, 0)
        last = min(stop - offset, group[6])
        offset += group[6]
        if first < last:
            record[0] = 0
            record[1] = exponent
            for i in range(2, 5):
                record[i] = 0
            call_norm(
                group[0], found + 56, found + 56, table + group[1], group[2], group[3], group[4], group[5], first, last, 0,
                found + 64,
            )
            result[0] = max(result[0], record[1])
            if record[0] >= group[8]:
                result[1] = result[1] | (2 if record[0] > group[8] else 1)
            for i in range(2, 5):
                result[i] += record[i]


def needed(found, parts):
    """Return the exponent that the bins of all parts need, and which of infinity (1) and NaN (2) they have."""
    exponent = {LOWEST_OF_SQUARES}
    special = 0
    for k in range(parts):
        result = pointer_to_int64(found + {8 * PART_WORDS} * k)
        exponent = max(exponent, result[0])
        special = special | result[1]
    return exponent, special


def power_of_two(exponent):
    return float64_of_bits(uint64(exponent + 1023) << uint64(52))


def significand_of(first, second, third):
    """Return a sum, given its three integers, in units of the first."""
    carry = (third + {2 ** (WIDTH - 1)}) >> {WIDTH}
    low = numpy_float64(third - (carry << {WIDTH})) * {2.0**-64!r}
    second += carry
    carry = (second + {2 ** (WIDTH - 1)}) >> {WIDTH}
    small = low + numpy_float64(second - (carry << {WIDTH})) * {2.0**-32!r}
    return small + numpy_float64(first + carry)


def root_of(significand, exponent):
    """Return the root of a sum of squares in bins of an exponent."""
    half = {SCALING} if exponent > {2 * UNSCALED} else {-SCALING} if exponent <= {-2 * UNSCALED} else 0
    scaled = product_float64(significand, power_of_two(exponent - 2 * half - 31))
    return product_float64(sqrt(scaled), power_of_two(half))


def root_of_parts(found, parts, exponent):
    """Return the norm, given what all parts have found in bins of one exponent."""
    first = 0
    second = 0
    third = 0
    for k in range(parts):
        result = pointer_to_int64(found + {8 * PART_WORDS} * k)
        first += result[2]
        second += result[3]
        third += result[4]
    return root_of(significand_of(first, second, third), exponent)


def norm_of_parts(found, again, parts, exponent):
    """Return the norm, given what all parts have found in bins of an exponent, or `again` in those that they needed."""
    wanted, special = needed(found, parts)
    if special != 0:
        return float64_nan if special > 1 else float64_inf
    return root_of_parts(again if wanted > exponent else found, parts, wanted)


def norm_of_all(groups, count, total, table, memory):
    """Return the norm, in this thread."""
    found = memory + {8 * HEAD_WORDS}
    exponent = guessed(groups, count, table, memory)
    add_part(groups, count, table, 0, total, exponent, found)
    wanted, special = needed(found, 1)
    if special == 0 and wanted > exponent:
        add_part(groups, count, table, 0, total, wanted, found + {8 * PART_WORDS})
    return norm_of_parts(found, found + {8 * PART_WORDS}, 1, exponent)
'''
"""Source of the functions of the norm."""

ALL, GUESS, ADD, DECIDE, FINISH = -1, 0, 1, 2, 3
"""The stages: everything in one part; or one after the other, `ADD` in parts, and once more if `DECIDE` says so."""

_WORDS = 2
"""Words of the workspace before those that tell of the gradients: one that is not used, and whether to add up once more."""

SOURCE = f'''"""The norm of gradients of several dtypes, in integer bins."""


{NORM}

def describe(groups, table, sizes, kernels, counts):
    """Write the words that tell of the gradients of each dtype."""
    row = 0
    for k in range(kernels[0]):
        words = pointer_to_int64(groups + {8 * GROUP_WORDS} * k)
        total = counts[2 * k + 1]
        words[0] = kernels[2 * k + 1]
        words[1] = 8 * row
        words[2] = 1
        words[3] = 0
        words[4] = sizes + 8 * row
        words[5] = counts[2 * k]
        words[6] = total
        words[7] = total // {SAMPLES} | 1
        words[8] = kernels[2 * k + 2]
        row += counts[2 * k]


def kernel(table, sizes, kernels, counts, start, stop, result, stage, workspace, part, parts):
    """Do a stage, or all of them where there is one part.

    Args:
        table: addresses of the gradients, those of a dtype beside each other.
        sizes: of each.
        kernels: the number of dtypes, then for each the address of its kernel and the bits of its infinity.
        counts: number of gradients of each dtype, and of their elements.
        start: first of the part's elements.
        stop: the one past its last.
        result: where the norm goes.
        stage: one of the stages, -1 for all.
        workspace: what the stages share.
        part: the part's number.
        parts: their number.
    """
    shared = pointer_to_int64(workspace)
    groups = workspace + {8 * _WORDS}
    memory = groups + {8 * GROUP_WORDS} * kernels[0]
    head = pointer_to_int64(memory)
    found = memory + {8 * HEAD_WORDS}
    if stage == {ALL}:
        describe(groups, table, sizes, kernels, counts)
        result[0] = norm_of_all(groups, kernels[0], stop, table, memory)
    if stage == {GUESS}:
        describe(groups, table, sizes, kernels, counts)
        head[0] = guessed(groups, kernels[0], table, memory)
    if stage == {ADD}:
        add_part(groups, kernels[0], table, start, stop, head[0], found + {8 * PART_WORDS} * part)
    if stage == {DECIDE}:
        wanted, special = needed(found, parts)
        shared[1] = 1 if special == 0 and wanted > head[0] else 0
        head[0] = wanted
    if stage == {FINISH}:
        result[0] = norm_of_parts(found, found, parts, head[0])
'''


@functools.cache
def norm_stages() -> Any:
    """Return the kernel, of the prototype `"norm_stages"`."""
    return compile_function(SOURCE, "norm_stages")


def kernels_of(dtypes: Sequence[str]) -> list[int]:
    """Return what the kernel is to know of dtypes: their number, then for each the address of its kernel and its infinity."""
    words = [len(dtypes)]
    for dtype in dtypes:
        words += [threads.address_of(norm_kernel(dtype, default_flush())), infinity_of(dtype)]
    return words


def words_of(dtypes: int) -> tuple[int, int]:
    """Return the words of workspace for gradients of so many dtypes, as a whole and for each part."""
    # Of one part, the first and another pass have memory each.
    return _WORDS + GROUP_WORDS * dtypes + HEAD_WORDS + PART_WORDS, PART_WORDS
