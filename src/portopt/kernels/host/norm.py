"""The norm of all gradients together, in two passes of a compiled kernel over their memory.

The steps are those of `portopt.program.reductions`. Both passes may be split among threads in any way: the first takes a
maximum, and what the second adds up has an exact sum.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.groups import positions
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.key import Flush
from portopt.program.reductions import norm_of_sums, scaling

_SOURCE = '''"""Maximum and exact sums of squares of {dtype} gradients; subnormals flushed by {flush}."""


def largest_of(first, last, gradient):
    """Return the bits of the largest magnitude; those of a NaN are larger than those of infinity."""
    largest = {bits}(0)
    for i in range(first, last):
        magnitude = {real}_bits({load}) & {bits}({mask})
        largest = magnitude if magnitude > largest else largest
    return largest


def sums_of(first, last, gradient, factor_1, factor_2, constant_1, constant_2, constant_3, sums):
    """Add the three exact sums of elements first to last to `sums`."""
    sum_1 = 0.0
    sum_2 = 0.0
    sum_3 = 0.0
    for i in range(first, last):
        scaled = (float({loaded}) * factor_1) * factor_2
        rest = {square}
        rounded = (rest + constant_1) - constant_1
        sum_1 = add_in_any_order(sum_1, rounded)
        rest = rest - rounded
        rounded = (rest + constant_2) - constant_2
        sum_2 = add_in_any_order(sum_2, rounded)
        rest = rest - rounded
        rounded = (rest + constant_3) - constant_3
        sum_3 = add_in_any_order(sum_3, rounded)
    sums[0] += sum_1
    sums[1] += sum_2
    sums[2] += sum_3


def kernel(table, columns, column, sizes, count, start, stop, values, bits, sums):
    """Without `sums`, put the largest bits of elements start to stop into `bits`; else add to `sums`, scaled by `values`."""
{control}    offset = 0
    for k in range(count):
        size = sizes[k]
        first = max(start - offset, 0)
        last = min(stop - offset, size)
        offset += size
        if first < last:
            gradient = pointer_to_{dtype}(table[k * columns + column])
            if sums == 0:
                bits[0] = max(bits[0], numpy_int64(largest_of(first, last, gradient)))
            else:
                sums_of(
                    first, last, gradient, values[0], values[1], values[2], values[3], values[4], pointer_to_float64(sums)
                )
{restore}'''


def norm_source(dtype: str, flush: Flush) -> str:
    """Return the source of the kernel for gradients of a dtype."""
    real = COMPUTE_DTYPE[dtype]
    load = "gradient[i]" if dtype == real else f"{dtype}_to_{real}(gradient[i])"
    by_where = flush == "where"
    return _SOURCE.format(
        dtype=dtype,
        flush=flush,
        real=real,
        bits="uint32" if real == "float32" else "uint64",
        mask="0x7FFFFFFF" if real == "float32" else "0x7FFFFFFFFFFFFFFF",
        load=load,
        loaded=f"flush_{real}({load})" if by_where else load,
        square="product_float64(scaled, scaled)" if by_where else "scaled * scaled",
        control="" if by_where else "    control = flush_subnormals()\n",
        restore="" if by_where else "    restore(control)\n",
    )


# After the head of a record: kernel, table, columns, column, sizes, count, values, whether to add up; the largest bits, and
# three sums.
_RECORD_WORDS = threads.HEAD + 12
_PART_SOURCE = '''"""One thread's part of a pass over the gradients."""


def kernel():
    """Run the kernel on the elements that the record names; its results go into the record."""
    address = first_argument()
    record = pointer_to_int64(address)
    call_norm(
        record[5], address, address, record[6], record[7], record[8], record[9], record[10], record[3], record[4], record[11],
        address + 8 * 13, address + 8 * 14 if record[12] != 0 else 0,
    )
'''


@functools.cache
def _kernel(dtype: str, flush: Flush) -> Any:
    return compile_function(norm_source(dtype, flush), "norm")


@functools.cache
def _part() -> Any:
    return compile_function(_PART_SOURCE, "part")


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


def gradient_norm(tables: Sequence[GradientTable], flush: Flush | None = None) -> float:
    """Return the Euclidean norm of all gradients together; NaN if an element is NaN, else infinite if one is."""
    flush = flush or default_flush()

    def run(table: GradientTable, values: array[float] | None) -> tuple[int, list[list[float]]]:
        """Return the largest bits, and the sums of each thread's part."""
        function = _kernel(table.dtype, flush)
        total = int(table.sizes.sum())
        values_at = values.buffer_info()[0] if values else 0
        given = (*table[1:4], table.sizes.ctypes.data, len(table.sizes))
        records = threads.make_records(
            total, (threads.address_of(function), *given, values_at, int(values is not None), *[0] * 4)
        )
        if threads.is_small(total):
            at = records.buffer_info()[0]
            function(at, at, *given, 0, total, values_at, at + 8 * 13, at + 8 * 14 if values else 0)
        else:
            threads.split(threads.address_of(_part()), records, _RECORD_WORDS)
        results = [records[i - 4 : i] for i in range(_RECORD_WORDS, len(records) + 1, _RECORD_WORDS)]
        return max(bits for bits, *_ in results), [array("d", result[1:].tobytes()).tolist() for result in results]

    magnitudes = [_magnitude(run(table, None)[0], table.dtype) for table in tables]
    largest = max(magnitudes, key=lambda m: (m != m, m), default=0.0)
    scale = scaling(largest, sum(int(table.sizes.sum()) for table in tables))
    if scale is None:
        return largest
    values = array("d", (*scale.factors, *scale.constants))
    return norm_of_sums(scale, [part for table in tables for part in run(table, values)[1]])


def norm_of_arrays(gradients: Sequence[Any], dtypes: Sequence[str]) -> float:
    """Return the norm of NumPy arrays of any strides; they may show their bits as integers of the size of their dtypes."""
    dense = [np.ascontiguousarray(g) for g in gradients]
    tables, keep_alive = [], []
    for dtype, members in positions(dtypes).items():
        table = np.array([[dense[i].ctypes.data] for i in members], np.int64)
        tables.append(
            GradientTable(dtype, table.ctypes.data, 1, 0, np.array([dense[i].size for i in members], np.int64))
        )
        keep_alive.append(table)
    return gradient_norm(tables)


def _magnitude(bits: int, dtype: str) -> float:
    """Return the number with these bits in the compute dtype, subnormals as zero."""
    real = COMPUTE_DTYPE[dtype]
    number = np.array(bits, np.int64).astype(f"uint{8 * np.dtype(real).itemsize}").view(real)
    return 0.0 if number < np.finfo(real).tiny else float(number)
