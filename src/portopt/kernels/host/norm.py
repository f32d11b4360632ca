"""The norm of all gradients together, in one pass of a compiled kernel over their memory, seldom two.

What is summed are the bins of `portopt.program.bins`. Which ones depends on the largest gradient, which is guessed from a few;
the pass that adds up also finds out whether the guess was good. If not, a second pass knows the largest. The work may be split
among threads in any way, since parts combine exactly.

Two integers stand for the three sums: of squares rounded to 46 bits below the largest, and of what that leaves.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.groups import positions
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.host.reduction_source import FIRST_BITS, SQUARES_AT_ONCE
from portopt.kernels.key import Flush
from portopt.program.bins import (
    LOWEST_OF_SQUARES,
    NO_SQUARES,
    OFFSET,
    SCALING,
    UNSCALED,
    WIDTH,
    Bins,
    combined,
    exponent_from,
    root_of,
)

_BLOCK = SQUARES_AT_ONCE << (52 - FIRST_BITS)
"""Elements of a block: each of these sums, a float64, takes as many of such integers as 52 bits can hold."""
SAMPLES = 1024
"""About so many gradients are looked at for a guess of the largest."""

_SOURCE = '''"""Sums of squares of {dtype} gradients in integer bins; subnormals flushed by {flush}."""


def largest_of(first, last, stride, gradient):
    """Return the bits of the largest magnitude; those of a NaN are larger than those of infinity."""
    largest = {bits}(0)
    for i in range(first, last, stride):
        magnitude = {real}_bits({load}) & {bits}({mask})
        largest = magnitude if magnitude > largest else largest
    return largest


def power_of_two(exponent):
    return float64_of_bits(uint64(exponent + 1023) << uint64(52))


def scaling_of(largest):
    """Return the exponent of what numbers are divided by before they are squared, given the bits of the largest."""
    {scaling}


def exponent_of(largest):
    """Return the exponent of the bins for the square of the largest magnitude."""
    if largest < {bits}({smallest}):
        return {lowest}
    half = scaling_of(largest)
    scaled = numpy_float64({real}_of_bits(largest)) * power_of_two(-half)
    exponent = numpy_int64(float64_bits(scaled * scaled) >> uint64(52)) - 1023
    return (exponent + {above}) // {width} * {width} + {offset} + 2 * half


def add_squares(first, last, gradient, half, exponent, record):
    """Add the squares of elements first to last to the sums, and return 0; or the bits of the largest, too large for the bins."""
    # Adding a number to one that is so large rounds it to a multiple of the unit of the last bit.
    constant_1 = 1.5 * power_of_two(exponent - 2 * half - {first_bits} + 52)
    constant_2 = 1.5 * power_of_two(exponent - 2 * half - 95 + 52)
    bits_1 = uint64(0)
    bits_2 = uint64(0)
    seen = float64_bits(constant_1)
{vectors}    scale = power_of_two(-half)
    for i in range(begin, last):
        value = {load}
        scaled = {scaled}
        square = scaled * scaled
        # The integer is in the lowest bits of the sum, and so the bits of all sums add up to the sum of the integers.
        rounded = square + constant_1
        bits_1 += float64_bits(rounded)
        bits_2 += float64_bits((square - (rounded - constant_1)) + constant_2)
        seen |= float64_bits(rounded)
    # A larger exponent has a bit that a smaller one has not. Squares that fit may have one too, if they are rounded up or many.
    if {is_outside}(seen ^ float64_bits(constant_1)) >> uint64({first_bits}) != 0:
        largest = largest_of(first, last, 1, gradient)
        if exponent_of(largest) > exponent:
            return largest
    count = uint64(last - begin)
    sum_1 = {more_1}numpy_int64(bits_1 - count * float64_bits(constant_1))
    sum_2 = {more_2}numpy_int64(bits_2 - count * float64_bits(constant_2))
    record[2] += sum_1 >> {first_bits} - 31
    record[3] += ((sum_1 & {first_mask}) << 63 - {first_bits}) + (sum_2 >> 32)
    record[4] += sum_2 & 0xFFFFFFFF
    return {bits}(0)


def add_blocks(first, last, gradient, record):
    """Add elements first to last, a block at a time, as long as none is too large for the bins; look at the others."""
    exponent = record[1]
    half = {half}
    largest = {bits}(record[0])
    for start in range(first, last, {block}):
        stop = min(start + {block}, last)
        # Squares of this dtype are all too large for lower bins, and zero in higher ones.
        if largest == 0 and {least} <= exponent <= {most}:
            largest = add_squares(start, stop, gradient, half, exponent, record)
            continue
        magnitude = largest_of(start, stop, 1, gradient)
        largest = magnitude if magnitude > largest else largest
    record[0] = numpy_int64(largest)


def kernel(table, columns, column, sizes, count, start, stop, stride, result):
    """Look at elements start to stop; without a stride, add them to the sums of the record.

    The record has the bits of the largest magnitude among those that were looked at; the exponent of the bins, and in its place
    that which the largest needs; and three sums.
    """
{control}    offset = 0
    record = pointer_to_int64(result)
    for k in range(count):
        size = sizes[k]
        first = max(start - offset, 0)
        last = min(stop - offset, size)
        offset += size
        if first < last:
            gradient = pointer_to_{dtype}(table[k * columns + column])
            if stride == 0:
                add_blocks(first, last, gradient, record)
            else:
                record[0] = max(record[0], numpy_int64(largest_of(first, last, stride, gradient)))
    record[1] = exponent_of({bits}(record[0]))
{restore}'''

_VECTORS = f"""    begin = first + (last - first) // {SQUARES_AT_ONCE} * {SQUARES_AT_ONCE}
    start = power_of_two(exponent - {FIRST_BITS} + 52)
    found = sums_of_squares(gradient, first, begin, start, constant_2)
    found_1 = found[0] - {SQUARES_AT_ONCE} * numpy_int64(float64_bits(start))
    found_2 = found[1] - (begin - first) * numpy_int64(float64_bits(constant_2))
"""
_SCALING_OF_DOUBLES = f"""if largest >= float64_bits({2.0**UNSCALED!r}):
        return {SCALING}
    return {-SCALING} if largest < float64_bits({2.0**-UNSCALED!r}) else 0"""
_SCALING_OF_SQUARES = f"{SCALING} if exponent > {2 * UNSCALED} else {-SCALING} if exponent <= {-2 * UNSCALED} else 0"


def norm_source(dtype: str, flush: Flush) -> str:
    """Return the source of the kernel for gradients of a dtype."""
    real = COMPUTE_DTYPE[dtype]
    is_double = real == "float64"
    load = "gradient[i]" if dtype == real else f"{dtype}_to_{real}(gradient[i])"
    by_where = flush == "where"
    in_vectors = dtype == "float32" and not by_where
    loaded = f"flush_{real}(value)" if by_where else "value"
    return _SOURCE.format(
        dtype=dtype,
        flush=flush,
        real=real,
        bits="uint64" if is_double else "uint32",
        least=LOWEST_OF_SQUARES if is_double else exponent_from(2 * -126 + 1),
        most=exponent_from(2 * 1024) if is_double else 2 * 128 + 3 * WIDTH,
        mask="0x7FFFFFFFFFFFFFFF" if is_double else "0x7FFFFFFF",
        smallest="0x0010000000000000" if is_double else "0x00800000",
        infinity="0x7FF0000000000000" if is_double else "0x7F800000",
        scaling=_SCALING_OF_DOUBLES if is_double else "return 0",
        first_bits=FIRST_BITS,
        first_mask=hex(2 ** (FIRST_BITS - 31) - 1),
        vectors=_VECTORS if in_vectors else "    begin = first\n",
        is_outside="found[2] != 0 or " if in_vectors else "",
        more_1="found_1 + " if in_vectors else "",
        more_2="found_2 + " if in_vectors else "",
        load=load,
        scaled=f"{loaded} * scale" if is_double else f"numpy_float64({loaded})",
        half=_SCALING_OF_SQUARES if is_double else "0",
        lowest=LOWEST_OF_SQUARES,
        above=WIDTH - OFFSET,
        width=WIDTH,
        offset=OFFSET,
        block=_BLOCK,
        control="" if by_where else "    control = flush_subnormals()\n",
        restore="" if by_where else "    restore(control)\n",
    )


# After the head of a record: kernel, table, columns, column, sizes and count; then the five results.
_GIVEN = threads.HEAD + 6
_RECORD_WORDS = _GIVEN + 5
_PART_SOURCE = f'''"""One thread's part of a pass over the gradients."""


def kernel():
    """Run the kernel on the elements that the record names; its results go into the record."""
    address = first_argument()
    record = pointer_to_int64(address)
    call_norm(
        record[2], address, address, record[3], record[4], record[5], record[6], record[7], record[0], record[1],
        0, address + 8 * {_GIVEN},
    )
'''


@functools.cache
def norm_kernel(dtype: str, flush: Flush) -> Any:
    """Return the kernel for gradients of a dtype."""
    return compile_function(norm_source(dtype, flush), "norm")


@functools.cache
def _part() -> Any:
    return compile_function(_PART_SOURCE, "part")


def stride_of_guess(total: int) -> int:
    """Return the stride in which so many gradients are looked at for a guess of the largest."""
    return (total // SAMPLES) | 1


class GradientTable(NamedTuple):
    """Gradients of one dtype, which whoever has the table keeps alive.

    Attributes:
        dtype: their dtype's name.
        address: of a table of addresses, int64, one row a parameter.
        columns: the length of a row.
        column: the gradients' column.
        sizes: number of elements of each, int64.
    """

    dtype: str
    address: int
    columns: int
    column: int
    sizes: Any


def infinity_of(dtype: str) -> int:
    """Return the bits of infinity in the compute dtype of gradients of a dtype."""
    return 0x7FF0000000000000 if COMPUTE_DTYPE[dtype] == "float64" else 0x7F800000


def gradient_norm(tables: Sequence[GradientTable], flush: Flush | None = None) -> float:
    """Return the Euclidean norm of all gradients together; NaN if an element is NaN, else infinite if one is."""
    return root_of(_squares_of_tables(tables, flush))


def _squares_of_tables(tables: Sequence[GradientTable], flush: Flush | None = None) -> Bins:
    works = [_Work(table, flush or default_flush()) for table in tables]
    exponent = max((work.guess() for work in works), default=LOWEST_OF_SQUARES)
    parts = [part for work in works for part in work.parts(exponent)]
    needed = max((part.exponent for part in parts), default=exponent)
    if needed > exponent and not any(part.special for part in parts):
        parts = [part for work in works for part in work.parts(needed)]
    return combined([NO_SQUARES, *parts])


class _Work:
    """The passes over the gradients of a table."""

    def __init__(self, table: GradientTable, flush: Flush) -> None:
        self._function = norm_kernel(table.dtype, flush)
        self._given = (*table[1:4], table.sizes.ctypes.data, len(table.sizes))
        self._total = int(table.sizes.sum())
        self._infinity = infinity_of(table.dtype)

    def _records(self, exponent: int) -> array[int]:
        """Return a record for each thread, for bins of an exponent."""
        given = (threads.address_of(self._function), *self._given)
        return threads.make_records(self._total, (*given, 0, exponent, 0, 0, 0))

    def guess(self) -> int:
        """Return the exponent of the bins for the largest of some gradients."""
        record = array("q", (0, 0))
        at = record.buffer_info()[0]
        self._function(at, at, *self._given, 0, self._total, stride_of_guess(self._total), at)
        return record[1]

    def parts(self, exponent: int) -> list[Bins]:
        """Return the bins of each thread's squares, whose sums are true if no part has a larger exponent than the given one."""
        records = self._records(exponent)
        if len(records) == _RECORD_WORDS:
            at = records.buffer_info()[0]
            self._function(at, at, *self._given, 0, self._total, 0, at + 8 * _GIVEN)
        else:
            threads.split(threads.address_of(_part()), records, _RECORD_WORDS)
        parts = []
        for i in range(_GIVEN, len(records), _RECORD_WORDS):
            largest, needed, *sums = records[i : i + 5]
            special = 0.0 if largest < self._infinity else math.inf if largest == self._infinity else math.nan
            parts.append(Bins(max(needed, exponent), (sums[0], sums[1], sums[2]), special))
        return parts


def norm_of_arrays(gradients: Sequence[Any], dtypes: Sequence[str]) -> float:
    """Return the norm of NumPy arrays of any strides; they may show their bits as integers of the size of their dtypes."""
    return root_of(squares_of_arrays(gradients, dtypes))


def squares_of_arrays(arrays: Sequence[Any], dtypes: Sequence[str]) -> Bins:
    """Return the bins of the squares of all elements, not to be moved to a larger exponent; arguments as for `norm_of_arrays`."""
    dense = [a.ravel("K") for a in arrays]
    tables, keep_alive = [], []
    for dtype, members in positions(dtypes).items():
        table = np.array([[dense[i].ctypes.data] for i in members], np.int64)
        tables.append(
            GradientTable(dtype, table.ctypes.data, 1, 0, np.array([dense[i].size for i in members], np.int64))
        )
        keep_alive.append(table)
    return _squares_of_tables(tables)
