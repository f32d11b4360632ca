"""Rows of matrices as integers, in vectors, as numba sees them. Imports numba: only the compiler imports this module.

LLVM would take vectors of half the length for these loops, and of a quarter for a maximum of words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from portopt.arithmetic.dtypes import TINY_FLOAT32
from portopt.kernels.host.llvm_support import DOUBLE, FLOAT, INT32, INT64, call, multiply_add, repeated
from portopt.kernels.host.product_constants import ROUND, TILE
from portopt.kernels.host.reduction_support import use_widest_vectors

_AT_ONCE = 32
"""Elements of a step of a loop, a multiple of the vectors' lengths."""


def _loops(builder: Any, count: Any, length: int) -> Iterator[tuple[Any, int]]:
    """Write two loops, first over vectors of so many elements, then over what remains; yield place and length of each vector."""
    rest = builder.and_(count, ir.Constant(INT64, -_AT_ONCE))
    start = ir.Constant(INT64, 0)
    with cgutils.for_range_slice(builder, start, rest, ir.Constant(INT64, _AT_ONCE), INT64) as (index, _):
        for k in range(0, _AT_ONCE, length):
            yield builder.add(index, ir.Constant(INT64, k)), length
    with cgutils.for_range_slice(builder, rest, count, ir.Constant(INT64, 1), INT64) as (index, _):
        yield index, 1


def _at(builder: Any, array: Any, index: Any, kind: Any, length: int) -> Any:
    return builder.bitcast(builder.gep(array, [index]), ir.VectorType(kind, length).as_pointer())


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def _magnitudes(builder: Any, words: Any, index: Any, length: int) -> Any:
    bits = builder.load(_at(builder, words, index, INT32, length), align=4)
    return builder.and_(bits, ir.Constant(bits.type, [0x7FFFFFFF] * length))


@intrinsic
def largest_magnitude(typing_context: Any, words: Any, count: Any) -> Any:
    """Return the largest of the bits of float32 magnitudes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, count = args
        length = 16
        kinds = {n: ir.VectorType(INT32, n) for n in (length, 1)}
        found = {n: cgutils.alloca_once_value(builder, ir.Constant(kind, [0] * n)) for n, kind in kinds.items()}
        for index, n in _loops(builder, count, length):
            magnitudes = _magnitudes(builder, words, index, n)
            builder.store(_larger(builder, magnitudes, builder.load(found[n])), found[n])
        largest = call(builder, f"vector.reduce.umax.v{length}i32", INT32, builder.load(found[length]))
        last = builder.extract_element(builder.load(found[1]), ir.Constant(INT32, 0))
        return builder.zext(_larger(builder, largest, last), INT64)

    return types.int64(types.CPointer(types.uint32), types.int64), codegen


@intrinsic
def raise_largest(typing_context: Any, words: Any, largest: Any, count: Any) -> Any:
    """Replace words by the bits of the float32 magnitudes beside them where these are larger."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, largest, count = args
        for index, n in _loops(builder, count, 16):
            place = _at(builder, largest, index, INT32, n)
            larger = _larger(builder, _magnitudes(builder, words, index, n), builder.load(place, align=4))
            builder.store(larger, place, align=4)
        return context.get_dummy_value()

    return types.none(types.CPointer(types.uint32), types.CPointer(types.uint32), types.int64), codegen


def _integers(factor_type: Any, factor_of: Callable[..., Any]) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, factor, count = args
        for index, n in _loops(builder, count, 8):
            single = builder.load(_at(builder, source, index, FLOAT, n), align=4)
            vector = ir.VectorType(DOUBLE, n)
            large = ir.Constant(vector, [ROUND] * n)
            # The product with a power of two is exact.
            rounded = multiply_add(builder, builder.fpext(single, vector), factor_of(builder, factor, index, n), large)
            builder.store(builder.fsub(rounded, large), _at(builder, target, index, DOUBLE, n), align=8)
        return context.get_dummy_value()

    typed = types.none(types.CPointer(types.float32), types.CPointer(types.float64), factor_type, types.int64)
    return typed, codegen


@intrinsic
def write_integers(typing_context: Any, source: Any, target: Any, factor: Any, count: Any) -> Any:
    """Write float32 numbers times a power of two, rounded to integers, as float64 numbers."""
    return _integers(types.float64, lambda builder, factor, index, n: repeated(builder, factor, n))


@intrinsic
def write_integers_by(typing_context: Any, source: Any, target: Any, factors: Any, count: Any) -> Any:
    """Write float32 numbers times powers of two, rounded to integers, as float64 numbers."""
    return _integers(
        types.CPointer(types.float64),
        lambda builder, factors, index, n: builder.load(_at(builder, factors, index, DOUBLE, n), align=8),
    )


def _write_transposed(builder: Any, rows: Sequence[Any], target: Any, stride: Any) -> None:
    """Write the columns of a tile of as many rows as each has elements, each that far behind the one before."""
    rows, length = list(rows), len(rows)
    step = length // 2
    # Exchange, bit by bit, the number of a row with that of an element in it.
    while step:
        masks = [
            [k if not k & step else length + k - step for k in range(length)],
            [k + step if not k & step else length + k for k in range(length)],
        ]
        chosen = [ir.Constant(ir.VectorType(INT32, length), mask) for mask in masks]
        for i in range(length):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = (builder.shuffle_vector(a, b, mask) for mask in chosen)
        step //= 2
    for i, row in enumerate(rows):
        place = builder.gep(target, [builder.mul(stride, ir.Constant(INT64, i))])
        builder.store(row, builder.bitcast(place, row.type.as_pointer()), align=4)


@intrinsic
def scale_tile(
    typing_context: Any, source: Any, factor: Any, factors: Any, target: Any, mirrored: Any, stride: Any
) -> Any:
    """Scale `TILE` rows of as many integers back, round them to float32, and write them and their transpose."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, factor, factors, target, mirrored, stride = args
        half = TILE // 2
        vector = ir.VectorType(DOUBLE, half)
        zero, tiny = (ir.Constant(vector, [value] * half) for value in (0.0, TINY_FLOAT32))
        of_columns = [
            builder.load(_at(builder, factors, ir.Constant(INT64, k), DOUBLE, half), align=8) for k in (0, half)
        ]
        joined = ir.Constant(ir.VectorType(INT32, TILE), list(range(TILE)))
        rows = []
        for i in range(TILE):
            start = builder.mul(stride, ir.Constant(INT64, i))
            of_row = repeated(builder, builder.load(builder.gep(factor, [ir.Constant(INT64, i)]), align=8), half)
            halves = []
            for k, of_column in zip((0, half), of_columns, strict=True):
                integers = builder.load(
                    _at(builder, source, builder.add(start, ir.Constant(INT64, k)), DOUBLE, half), align=8
                )
                scaled = builder.fmul(builder.fmul(builder.fadd(integers, zero), of_row), of_column)
                is_tiny = builder.fcmp_ordered("<", call(builder, f"fabs.v{half}f64", vector, scaled), tiny)
                scaled = builder.select(is_tiny, builder.fmul(scaled, zero), scaled)
                halves.append(builder.fptrunc(scaled, ir.VectorType(FLOAT, half)))
            row = builder.shuffle_vector(*halves, joined)
            builder.store(row, _at(builder, target, start, FLOAT, TILE), align=4)
            rows.append(row)
        _write_transposed(builder, rows, mirrored, stride)
        return context.get_dummy_value()

    single, double = types.CPointer(types.float32), types.CPointer(types.float64)
    return types.none(double, double, double, single, single, types.int64), codegen


NAMESPACE: dict[str, Any] = {
    function.__name__: function
    for function in (
        use_widest_vectors, largest_magnitude, raise_largest, write_integers, write_integers_by, scale_tile,
    )
}  # fmt: skip
"""Global names of kernels of lines of matrices."""
