"""What a product of float32 matrices is made of beside the product itself: one pass to slice an operand, one to scale back.

The steps are those of `portopt.program.products`, on NumPy's arrays; whoever has the arrays multiplies their slices.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from portopt.kernels.host import memory, threads
from portopt.kernels.host.compiler import compile_function
from portopt.kernels.host.product_constants import ROUND, TILE
from portopt.program.products import Slices, slice_bits

ELEMENTS_PER_THREAD = 1 << 20
"""A thread gets at least so many: a library that multiplied just now has its own threads wait for more on each processor."""

ELEMENTS_PER_READY_THREAD = 1 << 15
"""As above, where these threads do the passes."""

POWERS = '''
def power_of_two(exponent):
    """Return 2**exponent for one between -1022 and 1023."""
    return float64_of_bits(uint64(exponent + 1023) << uint64(52))


def exponent_above(bits):
    """Return e of the smallest power of two above a float32 magnitude with these bits."""
    return (bits >> 23) - 126
'''

SLICED_ROW = '''def sliced_row(x, out, factor, columns, bits):
    """Slice a row."""
    largest = largest_magnitude(pointer_to_uint32(x), columns)
    finite = largest < 0x7F800000
    exponent = exponent_above(largest) if finite else 0
    pointer_to_float64(factor)[0] = power_of_two(exponent - bits) if finite else float64_nan
    target = pointer_to_float64(out)
    if finite:
        write_integers(pointer_to_float32(x), target, power_of_two(bits - exponent), columns)
    else:
        for j in range(columns):
            target[j] = 0.0
'''

_ROWS = f'''"""Rows of a float32 matrix as integers in float64."""

{POWERS}

{SLICED_ROW}

def kernel(x, out, factors, columns, unused, bits, unused_2, start, stop):
    """Slice rows start to stop."""
    for row in range(start, stop):
        sliced_row(x + 4 * columns * row, out + 8 * columns * row, factors + 8 * row, columns, bits)
'''

_COLUMNS = f'''"""Columns of float32 matrices as integers in float64."""

{POWERS}

def sliced(x, out, factors, rows, columns, bits, first, last, ups, largest):
    """Slice columns first to last of one matrix."""
    for j in range(first, last):
        largest[j] = uint32(0)
    for i in range(rows):
        words = pointer_to_uint32(x + 4 * columns * i)
        for j in range(first, last):
            magnitude = words[j] & uint32(0x7FFFFFFF)
            largest[j] = magnitude if magnitude > largest[j] else largest[j]
    all_finite = True
    for j in range(first, last):
        finite = largest[j] < uint32(0x7F800000)
        all_finite = all_finite & finite
        exponent = exponent_above(numpy_int64(largest[j])) if finite else 0
        factors[j] = power_of_two(exponent - bits) if finite else float64_nan
        ups[j] = power_of_two(bits - exponent)
    for i in range(rows):
        source = pointer_to_float32(x + 4 * columns * i)
        target = pointer_to_float64(out + 8 * columns * i)
        for j in range(first, last):
            target[j] = (float(source[j]) * ups[j] + {ROUND}) - {ROUND}
    if not all_finite:
        for j in range(first, last):
            if not factors[j] == factors[j]:
                for i in range(rows):
                    pointer_to_float64(out + 8 * columns * i)[j] = 0.0


def kernel(x, out, factors, columns, count, bits, rows, start, stop):
    """Slice columns start to stop, counted through all matrices."""
    for matrix in range(start // columns, (stop + columns - 1) // columns):
        first = max(start - matrix * columns, 0)
        last = min(stop - matrix * columns, columns)
        at = 8 * columns * matrix
        sliced(
            x + 4 * rows * columns * matrix, out + 8 * rows * columns * matrix, pointer_to_float64(factors + at), rows, columns,
            bits, first, last, pointer_to_float64(factors + 8 * count + at), pointer_to_uint32(factors + 16 * count + at // 2),
        )
'''

_RESCALED = '''"""Integer products scaled back and rounded to float32."""


def kernel(n, out, row_factors, columns, column_factors, rows, unused, start, stop):
    """Scale rows start to stop, counted through all matrices, back."""
    for row in range(start, stop):
        source = pointer_to_float64(n + 8 * columns * row)
        target = pointer_to_float32(out + 4 * columns * row)
        factor = pointer_to_float64(row_factors)[row]
        factors = pointer_to_float64(column_factors + 8 * columns * (row // rows))
        for j in range(columns):
            target[j] = float64_to_float32(((source[j] + 0.0) * factor) * factors[j])
'''

_GRAM = f'''"""Lower halves of integer products of matrices and their transposes, scaled back, rounded to float32, mirrored."""


def kernel(n, out, factors, rows, tiles, unused, unused_2, start, stop):
    """Scale rows of tiles start to stop, counted through all matrices, back."""
    for line in range(start, stop):
        matrix = line // tiles
        place = line - matrix * tiles
        # Short rows of tiles beside long ones: threads get as much to do.
        top = (place // 2 if place % 2 == 0 else tiles - 1 - place // 2) * {TILE}
        bottom = min(top + {TILE}, rows)
        source = pointer_to_float64(n + 8 * rows * rows * matrix)
        target = pointer_to_float32(out + 4 * rows * rows * matrix)
        factor = pointer_to_float64(factors + 8 * rows * matrix)
        whole = top if bottom - top == {TILE} else 0
        for left in range(0, whole, {TILE}):
            scale_tile(
                pointer_to_float64(n + 8 * (rows * rows * matrix + rows * top + left)),
                pointer_to_float64(factors + 8 * (rows * matrix + top)),
                pointer_to_float64(factors + 8 * (rows * matrix + left)),
                pointer_to_float32(out + 4 * (rows * rows * matrix + rows * top + left)),
                pointer_to_float32(out + 4 * (rows * rows * matrix + rows * left + top)),
                rows,
            )
        for i in range(top, bottom):
            for j in range(whole, i + 1):
                value = float64_to_float32(((source[rows * i + j] + 0.0) * factor[i]) * factor[j])
                target[rows * i + j] = value
                target[rows * j + i] = value
'''

_LEAST_IN_TILES = 1 << 14
"""Elements of the smallest array that is transposed in tiles: others stay in the processor's caches."""

_TRANSPOSED = f'''"""Matrices of numbers of four bytes, rows and columns exchanged."""


def kernel(x, out, unused, columns, rows, unused_2, unused_3, start, stop):
    """Write rows start to stop of the results, counted through all matrices."""
    for matrix in range(start // columns, (stop + columns - 1) // columns):
        first = max(start - matrix * columns, 0)
        last = min(stop - matrix * columns, columns)
        source = pointer_to_uint32(x + 4 * rows * columns * matrix)
        target = pointer_to_uint32(out + 4 * rows * columns * matrix)
        for j in range(first, last, {TILE}):
            for i in range(0, rows, {TILE}):
                for jj in range(j, min(j + {TILE}, last)):
                    for ii in range(i, min(i + {TILE}, rows)):
                        target[rows * jj + ii] = source[columns * ii + jj]
'''

_PART_SOURCE = '''"""One thread's part of a pass over matrices."""


def kernel():
    """Run the kernel on the lines that the record names."""
    address = first_argument()
    record = pointer_to_int64(address)
    call_lines(
        record[2], address, address, record[3], record[4], record[5], record[6], record[7], record[8], record[9],
        record[0], record[1],
    )
'''


@functools.cache
def _kernel(source: str) -> Any:
    return compile_function(source, "lines")


@functools.cache
def _part() -> Any:
    return compile_function(_PART_SOURCE, "part")


def rows_at_once(lines: int, elements: int) -> int:
    """Return how many lines, of altogether so many elements, one thread gets; the last one may get fewer."""
    least = ELEMENTS_PER_READY_THREAD if threads.is_ready() else ELEMENTS_PER_THREAD
    count = min(threads.most(), elements // least, lines)
    return lines if count < 2 else -(-lines // count)


def run(source: str, lines: int, elements: int, *values: int) -> None:
    """Call a kernel for so many lines of altogether so many elements, in threads if that is worth their while."""
    function = _kernel(source)
    size = rows_at_once(lines, elements)
    if size == lines:
        result = array("q", (0,))
        at = result.buffer_info()[0]
        function(at, at, *values, 0, lines)
        return
    address = threads.address_of(function)
    words = [word for start in range(0, lines, size) for word in (start, min(start + size, lines), address, *values)]
    threads.split(threads.address_of(_part()), array("q", words), threads.HEAD + 1 + len(values))


def slices(x: Any, axis: int) -> Slices:
    """Return the slices of a float32 array without subnormals, as `products.slices` does.

    Args:
        x: the operand, none of whose axes is empty.
        axis: -1 for a left operand, -2 for a right one.
    """
    if not x.flags.c_contiguous:
        flipped = x.mT
        if flipped.flags.c_contiguous:
            return slices(flipped, -3 - axis).transposed(np)
        x = np.ascontiguousarray(x)
    bits = slice_bits(x.shape[axis])
    rows, columns = x.shape[-2:]
    out = memory.empty(x.shape, np.float64)
    if axis == -1:
        lines = x.size // columns
        factors = np.empty((*x.shape[:-1], 1))
        run(
            _ROWS,
            lines,
            x.size,
            memory.address(x),
            memory.address(out),
            memory.address(factors),
            columns,
            lines,
            bits,
            0,
        )
        return Slices((out,), factors, axis, bits)
    lines = x.size // rows
    # Beside the factors, their inverses and the largest magnitudes.
    scratch = np.empty(lines * 2 + (lines + 1) // 2)
    run(
        _COLUMNS,
        lines,
        x.size,
        memory.address(x),
        memory.address(out),
        memory.address(scratch),
        columns,
        lines,
        bits,
        rows,
    )
    return Slices((out,), scratch[:lines].reshape((*x.shape[:-2], 1, columns)), axis, bits)


def rescaled(products: Sequence[Any], left: Slices, right: Slices) -> Any:
    """Return the float32 product, given the one integer product of two operands' slices."""
    integers = np.ascontiguousarray(products[0])
    rows, columns = integers.shape[-2:]
    lines = integers.size // columns
    batches = integers.shape[:-2]
    row_factors = np.ascontiguousarray(np.broadcast_to(left.factor, (*batches, rows, 1)))
    column_factors = np.ascontiguousarray(np.broadcast_to(right.factor, (*batches, 1, columns)))
    out = memory.empty(integers.shape, np.float32)
    addresses = (memory.address(integers), memory.address(out), memory.address(row_factors))
    run(_RESCALED, lines, integers.size, *addresses, columns, memory.address(column_factors), rows, 0)
    return out


def rescaled_gram(lower: Any, left: Slices) -> Any:
    """Return the float32 product of an operand and its transpose, given the lower half of the integer product of its slices."""
    rows = lower.shape[-1]
    integers, factors = np.ascontiguousarray(lower), np.ascontiguousarray(left.factor)
    out = memory.empty(integers.shape, np.float32)
    tiles = -(-rows // TILE)
    addresses = (memory.address(integers), memory.address(out), memory.address(factors))
    run(_GRAM, integers.size // (rows * rows) * tiles, integers.size, *addresses, rows, tiles, 0, 0)
    return out


def dense(x: Any) -> Any:
    """Return the array itself if it is C-contiguous, else a copy that is."""
    if x.flags.c_contiguous:
        return x
    if x.size < _LEAST_IN_TILES or x.ndim < 2 or x.itemsize != 4 or not x.mT.flags.c_contiguous:
        return np.ascontiguousarray(x)
    out = memory.empty(x.shape, x.dtype)
    rows, columns = x.shape[-2:]
    # The memory has the transposes, of as many rows as the array has columns.
    run(_TRANSPOSED, x.size // columns, x.size, memory.address(x), memory.address(out), 0, rows, columns, 0, 0)
    return out
