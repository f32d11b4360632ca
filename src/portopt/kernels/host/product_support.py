"""Rows of matrices as integers, in vectors, as numba sees them. Imports numba: only the compiler imports this module.

LLVM would take vectors of half the length for these loops, and of a quarter for a maximum of words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from portopt.kernels.host.reduction_support import use_widest_vectors

_ROUND = 1.5 * 2.0**52
"""A number below 2**51 is rounded to an integer, halves to even, by adding it and subtracting it again."""
_AT_ONCE = 32
"""Elements of a step of a loop, a multiple of the vectors' lengths."""
_WORD, _LONG, _FLOAT, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()


def _loops(builder: Any, count: Any, length: int) -> Iterator[tuple[Any, int]]:
    """Write two loops, first over vectors of so many elements, then over what remains; yield place and length of each vector."""
    rest = builder.and_(count, ir.Constant(_LONG, -_AT_ONCE))
    start = ir.Constant(_LONG, 0)
    with cgutils.for_range_slice(builder, start, rest, ir.Constant(_LONG, _AT_ONCE), _LONG) as (index, _):
        for k in range(0, _AT_ONCE, length):
            yield builder.add(index, ir.Constant(_LONG, k)), length
    with cgutils.for_range_slice(builder, rest, count, ir.Constant(_LONG, 1), _LONG) as (index, _):
        yield index, 1


def _at(builder: Any, array: Any, index: Any, kind: Any, length: int) -> Any:
    return builder.bitcast(builder.gep(array, [index]), ir.VectorType(kind, length).as_pointer())


def _repeated(builder: Any, value: Any, length: int) -> Any:
    kind = ir.VectorType(value.type, length)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_WORD, 0))
    everywhere = ir.Constant(ir.VectorType(_WORD, length), [0] * length)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def _magnitudes(builder: Any, words: Any, index: Any, length: int) -> Any:
    bits = builder.load(_at(builder, words, index, _WORD, length), align=4)
    return builder.and_(bits, ir.Constant(bits.type, [0x7FFFFFFF] * length))


@intrinsic
def largest_magnitude(typing_context: Any, words: Any, count: Any) -> Any:
    """Return the largest of the bits of float32 magnitudes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, count = args
        length = 16
        kinds = {n: ir.VectorType(_WORD, n) for n in (length, 1)}
        found = {n: cgutils.alloca_once_value(builder, ir.Constant(kind, [0] * n)) for n, kind in kinds.items()}
        for index, n in _loops(builder, count, length):
            magnitudes = _magnitudes(builder, words, index, n)
            builder.store(_larger(builder, magnitudes, builder.load(found[n])), found[n])
        name = f"llvm.vector.reduce.umax.v{length}i32"
        reduced = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORD, [kinds[length]]), name)
        largest = builder.call(reduced, [builder.load(found[length])])
        last = builder.extract_element(builder.load(found[1]), ir.Constant(_WORD, 0))
        return builder.zext(_larger(builder, largest, last), _LONG)

    return types.int64(types.CPointer(types.uint32), types.int64), codegen


@intrinsic
def raise_largest(typing_context: Any, words: Any, largest: Any, count: Any) -> Any:
    """Replace words by the bits of the float32 magnitudes beside them where these are larger."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, largest, count = args
        for index, n in _loops(builder, count, 16):
            place = _at(builder, largest, index, _WORD, n)
            larger = _larger(builder, _magnitudes(builder, words, index, n), builder.load(place, align=4))
            builder.store(larger, place, align=4)
        return context.get_dummy_value()

    return types.none(types.CPointer(types.uint32), types.CPointer(types.uint32), types.int64), codegen


def _integers(factor_type: Any, factor_of: Callable[..., Any]) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, factor, count = args
        for index, n in _loops(builder, count, 8):
            single = builder.load(_at(builder, source, index, _FLOAT, n), align=4)
            vector = ir.VectorType(_DOUBLE, n)
            # Fused where the processor can: the product with a power of two is exact, so it is the same.
            name = f"llvm.fmuladd.v{n}f64"
            multiply_add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            large = ir.Constant(vector, [_ROUND] * n)
            rounded = builder.call(
                multiply_add, [builder.fpext(single, vector), factor_of(builder, factor, index, n), large]
            )
            builder.store(builder.fsub(rounded, large), _at(builder, target, index, _DOUBLE, n), align=8)
        return context.get_dummy_value()

    typed = types.none(types.CPointer(types.float32), types.CPointer(types.float64), factor_type, types.int64)
    return typed, codegen


@intrinsic
def write_integers(typing_context: Any, source: Any, target: Any, factor: Any, count: Any) -> Any:
    """Write float32 numbers times a power of two, rounded to integers, as float64 numbers."""
    return _integers(types.float64, lambda builder, factor, index, n: _repeated(builder, factor, n))


@intrinsic
def write_integers_by(typing_context: Any, source: Any, target: Any, factors: Any, count: Any) -> Any:
    """Write float32 numbers times powers of two, rounded to integers, as float64 numbers."""
    return _integers(
        types.CPointer(types.float64),
        lambda builder, factors, index, n: builder.load(_at(builder, factors, index, _DOUBLE, n), align=8),
    )


NAMESPACE: dict[str, Any] = {
    function.__name__: function
    for function in (use_widest_vectors, largest_magnitude, raise_largest, write_integers, write_integers_by)
}
"""Global names of kernels of lines of matrices."""
