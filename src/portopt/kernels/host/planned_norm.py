"""The norm of all gradients within the call that does a planned step: by one thread, or in passes of the job that updates.

It is that of `norm.py`, to the same bits: a guess of the bins, a pass that adds up, another one if the guess was wrong, and the
root of what all parts have found.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.host.norm import GradientTable, norm_kernel, stride_of_guess
from portopt.program.bins import LOWEST_OF_SQUARES, SCALING, UNSCALED, WIDTH

MOST_ELEMENTS = 2**31
"""Of so many elements, integers of 64 bits can hold the sums of all parts together."""

_GROUP_WORDS = 9
"""Words that tell of gradients of one dtype: the kernel, the offset of the table, columns, column, sizes, their number and sum,
the stride of a guess, and the bits of infinity."""
_PART_WORDS = 16
"""Words of what a part has found: the exponent that its bins need, if infinite or NaN, three sums; then a kernel's record."""
_HEAD_WORDS = 8
"""Words before those of the parts: the exponent that was guessed, and one that a kernel may write."""
_SMALL_WORDS = _HEAD_WORDS + 2 * _PART_WORDS
"""Words of memory that one thread needs."""

NORM = f'''def guessed(groups, count, table, memory):
    """Return the exponent of the bins for the largest of some gradients."""
    exponent = {LOWEST_OF_SQUARES}
    record = pointer_to_int64(memory + {8 * (_HEAD_WORDS + 8)})
    for k in range(count):
        group = pointer_to_int64(groups + {8 * _GROUP_WORDS} * k)
        record[0] = 0
        record[1] = 0
        call_norm(
            group[0], memory + 8, memory + 8, table + group[1], group[2], group[3], group[4], group[5], 0, group[6], group[7],
            memory + {8 * (_HEAD_WORDS + 8)},
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
        group = pointer_to_int64(groups + {8 * _GROUP_WORDS} * k)
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
        result = pointer_to_int64(found + {8 * _PART_WORDS} * k)
        exponent = max(exponent, result[0])
        special = special | result[1]
    return exponent, special


def power_of_two(exponent):
    return float64_of_bits(uint64(exponent + 1023) << uint64(52))


def root_of_parts(found, parts, exponent):
    """Return the norm, given what all parts have found in bins of one exponent."""
    first = 0
    second = 0
    third = 0
    for k in range(parts):
        result = pointer_to_int64(found + {8 * _PART_WORDS} * k)
        first += result[2]
        second += result[3]
        third += result[4]
    carry = (third + {2 ** (WIDTH - 1)}) >> {WIDTH}
    low = numpy_float64(third - (carry << {WIDTH})) * {2.0**-64!r}
    second += carry
    carry = (second + {2 ** (WIDTH - 1)}) >> {WIDTH}
    small = low + numpy_float64(second - (carry << {WIDTH})) * {2.0**-32!r}
    half = {SCALING} if exponent > {2 * UNSCALED} else {-SCALING} if exponent <= {-2 * UNSCALED} else 0
    scaled = product_float64(small + numpy_float64(first + carry), power_of_two(exponent - 2 * half - 31))
    return product_float64(sqrt(scaled), power_of_two(half))


def norm_of_parts(found, again, parts, exponent):
    """Return the norm, given what all parts have found in bins of an exponent, or `again` in those that they needed."""
    wanted, special = needed(found, parts)
    if special != 0:
        return float64_nan if special > 1 else float64_inf
    return root_of_parts(again if wanted > exponent else found, parts, wanted)


def norm_of_all(groups, count, total, table, memory):
    """Return the norm, in this thread."""
    found = memory + {8 * _HEAD_WORDS}
    exponent = guessed(groups, count, table, memory)
    add_part(groups, count, table, 0, total, exponent, found)
    wanted, special = needed(found, 1)
    if special == 0 and wanted > exponent:
        add_part(groups, count, table, 0, total, wanted, found + {8 * _PART_WORDS})
    return norm_of_parts(found, found + {8 * _PART_WORDS}, 1, exponent)
'''
"""Source of the functions of the norm."""

_RECORD_WORDS = threads.HEAD + 8
"""Words of a record: first and last element; the pass; address and number of groups, table, memory, number of the part and of all
parts; the address of the places of the norm."""

_PART_SOURCE = f'''"""One thread's part of a pass for the norm of all gradients."""


{NORM}

def kernel():
    """Guess the exponent; add up; add up again if the guess was wrong; or find the norm."""
    address = first_argument()
    record = pointer_to_int64(address)
    memory = record[6]
    head = pointer_to_int64(memory)
    found = memory + {8 * _HEAD_WORDS}
    own = found + {8 * _PART_WORDS} * record[7]
    again = {8 * _PART_WORDS} * record[8]
    if record[2] == 0:
        head[0] = guessed(record[3], record[4], record[5], memory)
    elif record[2] == 1:
        add_part(record[3], record[4], record[5], record[0], record[1], head[0], own)
    elif record[2] == 2:
        wanted, special = needed(found, record[8])
        if special == 0 and wanted > head[0]:
            add_part(record[3], record[4], record[5], record[0], record[1], wanted, own + again)
    else:
        norm = norm_of_parts(found, found + again, record[8], head[0])
        places = pointer_to_int64(record[9])
        for k in range(places[0]):
            pointer_to_float64(places[k + 1])[0] = norm
'''


@functools.cache
def _part() -> int:
    return threads.address_of(compile_function(_PART_SOURCE, "part"))


class PlannedNorm:
    """The norm of all gradients whose addresses are in a table.

    Args:
        tables: the gradients; `address` is the offset in the table of all, in bytes.

    Attributes:
        groups: the words of all tables.
        total: number of elements.
    """

    memory_words = _SMALL_WORDS

    def __init__(self, tables: Sequence[GradientTable]) -> None:
        self.groups = array("q")
        self.total = 0
        for table in tables:
            kernel, total = norm_kernel(table.dtype, default_flush()), int(table.sizes.sum())
            self.total += total
            self.groups.extend((
                threads.address_of(kernel), table.address, table.columns, table.column,
                table.sizes.ctypes.data, len(table.sizes), total, stride_of_guess(total),
                0x7FF0000000000000 if COMPUTE_DTYPE[table.dtype] == "float64" else 0x7F800000,
            ))  # fmt: skip
        self._keep_alive = tables

    def __len__(self) -> int:
        return len(self.groups) // _GROUP_WORDS

    @property
    def address(self) -> int:
        """Of the groups."""
        return self.groups.buffer_info()[0]

    def passes(self, table: int, places: Sequence[int]) -> list[threads.Pass]:
        """Return the passes that find the norm.

        Args:
            table: address of the table of addresses.
            places: addresses of where the norm goes.
        """
        parts = threads.parts(self.total)
        memory = array("q", bytes(8 * (_HEAD_WORDS + 2 * _PART_WORDS * len(parts))))
        where = array("q", (len(places), *places))
        given = self.address, len(self), table, memory.buffer_info()[0]
        found = []
        for number, ranges in enumerate(([(0, 0)], parts, parts, [(0, 0)])):
            records = array("q")
            for k, part in enumerate(ranges):
                records.extend((*part, number, *given, k, len(parts), where.buffer_info()[0]))
            found.append(threads.Pass(_part(), records, _RECORD_WORDS, (memory, where, self)))
        return found
