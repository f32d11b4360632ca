"""Segments beside products, row by row: a kernel scales products back, computes the segment, and slices what it made.

Each row is read once from memory: its integer products are scaled back where the segment reads them, and its slices are written
while it is in the cache. The columns of a result can be sliced only when all rows are known; their largest magnitudes are found
on the way.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portopt.kernels.host import memory, products
from portopt.kernels.host.compiler import default_flush
from portopt.kernels.host.source import LANGUAGES, functions_source, step_scalars_source
from portopt.kernels.key import Flush, KernelKey
from portopt.kernels.writer import Writer
from portopt.program import Program
from portopt.program.expansion import expand_elementary, loads_to_flush
from portopt.program.products import Sliced, Slices, Unscaled, slice_bits
from portopt.program.segments import Segment

_ROWS, _COLUMNS = -1, -2
_NONE = np.empty(0)

_COLUMNS_SLICED = f'''"""Columns of a float32 matrix as integers in float64, given their largest magnitudes."""

{products.POWERS}

def kernel(x, out, scratch, columns, rows_at_once, bits, words, start, stop):
    """Slice rows start to stop."""
    part = start // rows_at_once
    factors = pointer_to_float64(scratch + 16 * columns * part)
    ups = pointer_to_float64(scratch + 16 * columns * part + 8 * columns)
    largest = pointer_to_uint32(words)
    all_finite = True
    for j in range(columns):
        finite = largest[j] < uint32(0x7F800000)
        all_finite = all_finite & finite
        exponent = exponent_above(numpy_int64(largest[j])) if finite else 0
        factors[j] = power_of_two(exponent - bits) if finite else float64_nan
        ups[j] = power_of_two(bits - exponent)
    for i in range(start, stop):
        write_integers_by(pointer_to_float32(x + 4 * columns * i), pointer_to_float64(out + 8 * columns * i), ups, columns)
    if not all_finite:
        for j in range(columns):
            if not factors[j] == factors[j]:
                for i in range(start, stop):
                    pointer_to_float64(out + 8 * columns * i)[j] = 0.0
'''


def run(
    segment: Segment, arrays: Sequence[Any], scalars: Sequence[float]
) -> list[tuple[Any, Mapping[int, Any]]] | None:
    """Return the results of a segment of float32 matrices, each with what returns its slices, by the axis; None if it cannot.

    Args:
        segment: what to compute.
        arrays: the segment's, NumPy arrays or products of such.
        scalars: the segment's.
    """
    is_product = tuple(isinstance(x, Unscaled) for x in arrays)
    shape = (arrays[0].integers[0] if is_product[0] else arrays[0]).shape
    if len(shape) != 2 or 0 in shape or not all(map(_can_take, arrays)):
        return None
    rows, columns = shape
    rows_at_once = products.rows_at_once(rows, rows * columns)
    parts = -(-rows // rows_at_once)
    given = [part for x in arrays for part in _parts_of(x)]
    # Columns are sliced later; what nobody reads otherwise is one row at a time, in a cache.
    is_kept = tuple(is_read or _COLUMNS in of for is_read, of in zip(segment.is_read, segment.sliced, strict=True))
    line = None if all(is_kept) else np.empty((parts, columns), np.float32)
    results = [memory.empty(shape, np.float32) if of else None for of in is_kept]
    found: list[tuple[Any, Mapping[int, Any]]] = []
    words = [part.ctypes.data for part in given]
    for result, axes in zip(results, segment.sliced, strict=True):
        slices: dict[int, Callable[[], Slices]] = {}
        out, factors, largest = None, None, None
        if _ROWS in axes:
            out, factors = memory.empty(shape, np.float64), np.empty((rows, 1))
            slices[_ROWS] = functools.partial(Slices, (out,), factors, _ROWS, slice_bits(columns))
        if _COLUMNS in axes:
            largest = np.empty((parts, columns), np.uint32)
            slices[_COLUMNS] = functools.partial(_columns_sliced, result, largest)
        parts_of = (line if result is None else result, out, factors, largest)
        words += [0 if x is None else x.ctypes.data for x in parts_of]
        found.append((Sliced(shape) if result is None else result, slices))
    table, values = array("q", words), array("d", [*scalars, 0.0])
    source = _source(segment.program, is_product, is_kept, segment.sliced, default_flush())
    values_at = values.buffer_info()[0]
    products.run(
        source,
        rows,
        rows * columns,
        table.buffer_info()[0],
        columns,
        rows_at_once,
        slice_bits(columns),
        values_at,
        0,
        0,
    )
    return found


def _can_take(x: Any) -> bool:
    if isinstance(x, Unscaled):
        return len(x.integers) == 1 and x.integers[0].ndim == 2
    return bool(x.dtype == np.float32)


def _parts_of(x: Any) -> list[Any]:
    """Return an array, or integer products with the factors of their rows and columns."""
    if isinstance(x, Unscaled):
        return [np.ascontiguousarray(part) for part in (x.integers[0], x.left.factor, x.right.factor)]
    return [products.dense(x), _NONE, _NONE]


def _columns_sliced(x: Any, largest: Any) -> Slices:
    rows, columns = x.shape
    rows_at_once = products.rows_at_once(rows, x.size)
    largest = np.ascontiguousarray(np.max(largest, axis=0) if len(largest) > 1 else largest[0])
    out, bits = memory.empty(x.shape, np.float64), slice_bits(rows)
    # For each thread, the factors and their inverses.
    scratch = np.empty((-(-rows // rows_at_once), 2, columns))
    addresses = (x.ctypes.data, out.ctypes.data, scratch.ctypes.data)
    products.run(_COLUMNS_SLICED, rows, x.size, *addresses, columns, rows_at_once, bits, largest.ctypes.data)
    return Slices((out,), scratch[0, :1], _COLUMNS, bits)


@functools.lru_cache(maxsize=512)
def _source(
    program: Program,
    is_product: tuple[bool, ...],
    is_kept: tuple[bool, ...],
    sliced: tuple[tuple[int, ...], ...],
    flush: Flush,
) -> str:
    """Return the source of the kernel of a segment.

    Args:
        program: the segment's.
        is_product: for each array, whether it is an integer product.
        is_kept: for each result, whether all of it is kept.
        sliced: for each result, of which axes something is found.
        flush: how subnormals become zero.
    """
    program = expand_elementary(program)
    dtypes = [("p", "float32"), *((f"x{k}", "float64" if given else "float32") for k, given in enumerate(is_product))]
    key = KernelKey((*dtypes, *((name, "float32") for name in program.array_outputs)), True, flush)
    flushed_loads = None if flush == "where" else loads_to_flush(program)
    writer = Writer(LANGUAGES[flush], program, key, flushed_loads)
    product = "(({0}[i] + 0.0) * factor_of_{0}) * factors_of_{0}[i]"
    rounded = [writer.names[i] for i, _ in program.rounded_scalars]
    parameters, given = ["columns"], ["columns"]
    for k, of_product in enumerate(is_product):
        name = writer.array(f"x{k}")
        at = f"arrays[{3 * k}]"
        if of_product:
            parameters += [name, f"factor_of_{name}", f"factors_of_{name}"]
            given.append(f"pointer_to_float64({at} + 8 * columns * line)")
            given.append(f"pointer_to_float64(arrays[{3 * k + 1}])[line]")
            given.append(f"pointer_to_float64(arrays[{3 * k + 2}])")
        else:
            parameters.append(name)
            given.append(f"pointer_to_float32({at} + 4 * columns * line)")
    elements = []
    for i, op in program.array_ops():
        of_product = op.name == "load" and is_product[int(str(op.label)[1:])]
        elements.append(writer.assigned(i, writer.array_expression(i, product if of_product else None)))
    after: list[str] = []
    before: list[str] = []
    for k, (name, i) in enumerate(program.array_outputs.items()):
        place = 3 * len(is_product) + 4 * k
        line = "line" if is_kept[k] else "part"
        parameters.append(writer.array(name))
        given.append(f"pointer_to_float32(arrays[{place}] + 4 * columns * {line})")
        elements.append(f"{writer.array(name)}[i] = {writer.names[i]}")
        at = f"arrays[{place}] + 4 * columns * {line}"
        if _ROWS in sliced[k]:
            out, factor = f"arrays[{place + 1}] + 8 * columns * line", f"arrays[{place + 2}] + 8 * line"
            after.append(f"sliced_row({at}, {out}, {factor}, columns, bits)")
        if _COLUMNS in sliced[k]:
            largest = f"arrays[{place + 3}] + 4 * columns * part"
            before += [
                f"largest_{k} = pointer_to_uint32({largest})",
                "for j in range(columns):",
                f"    largest_{k}[j] = uint32(0)",
            ]
            after.append(f"raise_largest(pointer_to_uint32({at}), largest_{k}, columns)")
    lines = [
        f'"""{program.name} on rows of float32 matrices; subnormals flushed by {flush}."""',
        "",
        *(products.POWERS.splitlines() if any(_ROWS in axes for axes in sliced) else ()),
        *(products.SLICED_ROW.splitlines() if any(_ROWS in axes for axes in sliced) else ()),
        "",
        *functions_source(writer),
        f"def computed_row({', '.join([*parameters, *rounded])}):",
        '    """Compute a row."""',
        "    use_widest_vectors()",
        "    for i in range(columns):",
        *(f"        {line}" for line in elements),
        "",
        "",
        "def kernel(table, columns, rows_at_once, bits, values, unused, unused_2, start, stop):",
        '    """Compute rows start to stop."""',
        *(["    control = flush_subnormals()"] if flush == "register" else []),
        "    arrays = pointer_to_int64(table)",
        "    inputs = pointer_to_float64(values)",
        "    part = start // rows_at_once",
        *(f"    {line}" for line in step_scalars_source(writer)),
        *(f"    {line}" for line in before),
        "    for line in range(start, stop):",
        f"        computed_row({', '.join([*given, *rounded])})",
        *(f"        {line}" for line in after),
        *(["    restore(control)"] if flush == "register" else []),
    ]
    return "\n".join(lines) + "\n"
