"""The norm of all gradients together, in two passes of a compiled kernel over their memory.

The steps are those of `portopt.reductions`. Both passes may be split among threads in any way: the first takes a maximum, and
what the second adds up has an exact sum.
"""

from __future__ import annotations

import functools
import threading
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.host import threads
from portopt.host.compiler import compile_function, default_flush
from portopt.host.source import Flush
from portopt.primitives import COMPUTE_DTYPE
from portopt.reductions import norm_of_sums, scaling

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


@functools.cache
def _kernel(dtype: str, flush: Flush) -> Any:
    return compile_function(norm_source(dtype, flush), "norm")


class GradientTable(NamedTuple):
    """Gradients of one dtype.

    Attributes:
        dtype: their dtype's name.
        table: addresses, int64 of shape (parameters, columns), C-contiguous.
        column: the gradients' column.
        sizes: number of elements of each, int64.
    """

    dtype: str
    table: Any
    column: int
    sizes: Any


def gradient_norm(tables: Sequence[GradientTable], flush: Flush | None = None) -> float:
    """Return the Euclidean norm of all gradients together; NaN if an element is NaN, else infinite if one is."""
    flush = flush or default_flush()
    unused = array("q", [0])
    lock = threading.Lock()

    def run(table: GradientTable, values: array[float] | None) -> tuple[int, list[float]]:
        function = _kernel(table.dtype, flush)
        values_address = values.buffer_info()[0] if values else 0
        largest, sums = 0, [0.0, 0.0, 0.0]

        def work(start: int, stop: int) -> None:
            nonlocal largest
            bits, parts = array("q", [0]), array("d", [0.0, 0.0, 0.0])
            function(
                unused.buffer_info()[0], unused.buffer_info()[0],
                table.table.ctypes.data, table.table.shape[1], table.column, table.sizes.ctypes.data, len(table.sizes),
                start, stop, values_address, bits.buffer_info()[0], parts.buffer_info()[0] if values else 0,
            )  # fmt: skip
            with lock:
                largest = max(largest, bits[0])
                sums[:] = [a + b for a, b in zip(sums, parts, strict=True)]

        threads.run_split(work, int(table.sizes.sum()))
        return largest, sums

    magnitudes = [_magnitude(run(table, None)[0], table.dtype) for table in tables]
    largest = max(magnitudes, key=lambda m: (m != m, m), default=0.0)
    scale = scaling(largest, sum(int(table.sizes.sum()) for table in tables))
    if scale is None:
        return largest
    parts = [run(table, array("d", (*scale.factors, *scale.constants)))[1] for table in tables]
    return norm_of_sums(scale, parts)


def norm_of_arrays(gradients: Sequence[Any], dtypes: Sequence[str]) -> float:
    """Return the norm of NumPy arrays of any strides; they may show their bits as integers of the size of their dtypes."""
    dense = [np.ascontiguousarray(g) for g in gradients]
    tables = []
    for dtype in sorted(set(dtypes)):
        members = [g for g, name in zip(dense, dtypes, strict=True) if name == dtype]
        table = np.array([[g.ctypes.data] for g in members], np.int64)
        tables.append(GradientTable(dtype, table, 0, np.array([g.size for g in members], np.int64)))
    return gradient_norm(tables)


def _magnitude(bits: int, dtype: str) -> float:
    """Return the number with these bits in the compute dtype, subnormals as zero."""
    real = COMPUTE_DTYPE[dtype]
    number = np.array(bits, np.int64).astype(f"uint{8 * np.dtype(real).itemsize}").view(real)
    return 0.0 if number < np.finfo(real).tiny else float(number)
