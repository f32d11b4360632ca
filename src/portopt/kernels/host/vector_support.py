"""Loops in vectors, as numba sees them. Imports numba: only the compiler imports this module.

They are written in vectors where LLVM would not find any, or shorter ones: sums of floats, of which it does not know that they
are exact, and loops with numbers of several lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from portopt.arithmetic.dtypes import SMALLEST_NORMAL
from portopt.kernels.host.llvm_support import (
    DOUBLE,
    DOUBLES_AT_ONCE,
    FLOAT,
    INT32,
    INT64,
    LINE,
    call,
    fetch,
    multiply_add,
    repeated,
)
from portopt.kernels.host.reduction_source import FIRST_BITS, SQUARES_AT_ONCE
from portopt.kernels.host.vector_source import LANES

_AHEAD = 4096
"""Elements between one that is added and one that is fetched.

A processor's own fetching ends at each page of 4 KiB, for which a loop over a single array has to wait.
"""
_LATER = 256
"""Elements between those that a loop over several arrays computes and those that it fetches.

A vector takes so many operations that a processor does not look far ahead by itself. To fetch a whole chunk's pages at its
beginning is worse on Zen 4: LAMB's first loop took 5.2 ms that way, and takes 4.4.
"""
_DOUBLES, _WORDS = ir.VectorType(DOUBLE, DOUBLES_AT_ONCE), ir.VectorType(INT64, DOUBLES_AT_ONCE)


def _total(builder: Any, vectors: list[Any]) -> Any:
    """Return the sum of all elements of vectors of integers."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = builder.add(total, vector)
    return call(builder, f"vector.reduce.add.v{DOUBLES_AT_ONCE}i64", INT64, total)


@intrinsic
def sums_of_squares(typing_context: Any, array: Any, first: Any, last: Any, start: Any, constant: Any) -> Any:
    """Add the squares of float32 numbers to `SQUARES_AT_ONCE` sums, which begin with `start`, and what that rounds to others.

    Returns:
        The sum of the bits of the sums; that of the bits of what they leave plus `constant`; and whether a sum has grown by
        `2**-(52 - FIRST_BITS)` of `start`, as it has if one of its squares is that large, or is NaN.
    """
    single = ir.VectorType(FLOAT, DOUBLES_AT_ONCE)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, first, last, start, constant = args
        starts, constants = repeated(builder, start, DOUBLES_AT_ONCE), repeated(builder, constant, DOUBLES_AT_ONCE)
        lanes = range(SQUARES_AT_ONCE // DOUBLES_AT_ONCE)
        sums = [cgutils.alloca_once_value(builder, starts) for _ in lanes]
        rests = [cgutils.alloca_once_value(builder, ir.Constant(_WORDS, [0] * DOUBLES_AT_ONCE)) for _ in lanes]
        step = ir.Constant(INT64, SQUARES_AT_ONCE)
        with cgutils.for_range_slice(builder, first, last, step, INT64) as (index, _):
            for k in range(0, SQUARES_AT_ONCE, LINE):
                fetch(builder, builder.gep(array, [builder.add(index, ir.Constant(INT64, _AHEAD + k))]))
            for k in lanes:
                place = builder.gep(array, [builder.add(index, ir.Constant(INT64, DOUBLES_AT_ONCE * k))])
                x = builder.fpext(builder.load(builder.bitcast(place, single.as_pointer()), align=4), _DOUBLES)
                before = builder.load(sums[k])
                after = multiply_add(builder, x, x, before)
                builder.store(after, sums[k])
                rest = builder.fadd(multiply_add(builder, x, x, builder.fsub(before, after)), constants)
                builder.store(builder.add(builder.load(rests[k]), builder.bitcast(rest, _WORDS)), rests[k])
        factor = ir.Constant(DOUBLE, 1.0 + 2.0 ** (FIRST_BITS - 52))
        limit = builder.fmul(starts, repeated(builder, factor, DOUBLES_AT_ONCE))
        outside = ir.Constant(ir.VectorType(ir.IntType(1), DOUBLES_AT_ONCE), [0] * DOUBLES_AT_ONCE)
        found = [builder.load(sums[k]) for k in lanes]
        for after in found:
            outside = builder.or_(outside, builder.fcmp_unordered(">=", after, limit))
        mask = builder.bitcast(outside, ir.IntType(DOUBLES_AT_ONCE))
        is_outside = builder.icmp_unsigned("!=", mask, ir.Constant(ir.IntType(DOUBLES_AT_ONCE), 0))
        results = [
            _total(builder, [builder.bitcast(after, _WORDS) for after in found]),
            _total(builder, [builder.load(rests[k]) for k in lanes]),
            builder.zext(is_outside, INT64),
        ]
        return context.make_tuple(builder, signature.return_type, results)

    real = types.float64
    return types.UniTuple(types.int64, 3)(types.CPointer(types.float32), types.int64, types.int64, real, real), codegen


# Vectors as values of a kernel's source ------------------------------------------------------------------------------


class _Vector(types.Type):  # type: ignore[misc]
    """A vector of `LANES` elements."""

    def __init__(self, name: str, element: Any) -> None:
        super().__init__(name=name)
        self.element = element
        self.vector = ir.VectorType(element, LANES)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.vector)


_FLOATS = _Vector("floats", FLOAT)
_TRUTHS = _Vector("truths", ir.IntType(1))
_MAGNITUDES = _Vector("magnitudes", INT32)
_ARRAY = types.CPointer(types.float32)
_SUM = types.CPointer(types.float64)


def _operation(result: _Vector, write: Callable[..., Any]) -> Any:
    """Return an operation, given what writes it in terms of LLVM; a number as an operand stands for a vector of it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        operands = [arg if isinstance(arg.type, ir.VectorType) else repeated(builder, arg, LANES) for arg in args]
        return write(builder, *operands)

    def unary(typing_context: Any, a: Any) -> Any:
        return result(a), codegen

    def binary(typing_context: Any, a: Any, b: Any) -> Any:
        return result(a, b), codegen

    def ternary(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
        return result(a, b, c), codegen

    # numba reads the number of operands off the signature; the first argument is the builder.
    return intrinsic((unary, binary, ternary)[write.__code__.co_argcount - 2])


def _comparison(sign: str) -> Any:
    return _operation(_TRUTHS, lambda builder, a, b: builder.fcmp_ordered(sign, a, b))


def _absolute(builder: Any, x: Any) -> Any:
    return call(builder, f"fabs.v{LANES}f32", _FLOATS.vector, x)


def _flushed(builder: Any, x: Any) -> Any:
    tiny, zero = (repeated(builder, ir.Constant(FLOAT, value), LANES) for value in (SMALLEST_NORMAL["float32"], 0.0))
    return builder.select(builder.fcmp_ordered("<", _absolute(builder, x), tiny), builder.fmul(x, zero), x)


@intrinsic
def _load(typing_context: Any, array: Any, index: Any) -> Any:
    """Return the elements from an index on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(args[0], [args[1]])
        return builder.load(builder.bitcast(place, _FLOATS.vector.as_pointer()), align=4)

    return _FLOATS(_ARRAY, types.int64), codegen


@intrinsic
def _fetch_later(typing_context: Any, array: Any, index: Any) -> Any:
    """Fetch the line that is `_LATER` elements after an index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fetch(builder, builder.gep(args[0], [builder.add(args[1], ir.Constant(INT64, _LATER))]))
        return context.get_dummy_value()

    return types.none(_ARRAY, types.int64), codegen


@intrinsic
def _store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Store elements from an index on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, value = args
        value = value if isinstance(value.type, ir.VectorType) else repeated(builder, value, LANES)
        place = builder.gep(array, [index])
        builder.store(value, builder.bitcast(place, _FLOATS.vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(_ARRAY, types.int64, value), codegen


@intrinsic
def _no_magnitudes(typing_context: Any) -> Any:
    """Return what is less than all magnitudes of numbers, or that of zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_MAGNITUDES.vector, [0] * LANES)

    return _MAGNITUDES(), codegen


@intrinsic
def _larger_magnitudes(typing_context: Any, magnitudes: Any, x: Any) -> Any:
    """Return the larger ones of magnitudes and those of numbers, as the integers that they are in memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _MAGNITUDES.vector
        magnitudes, x = args
        mask = ir.Constant(kind, [0x7FFFFFFF] * LANES)
        those = builder.and_(builder.bitcast(x, kind), mask)
        return builder.select(builder.icmp_signed(">", magnitudes, those), magnitudes, those)

    return _MAGNITUDES(_MAGNITUDES, _FLOATS), codegen


@intrinsic
def _largest_magnitude(typing_context: Any, magnitudes: Any) -> Any:
    """Return the largest of magnitudes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call(builder, f"vector.reduce.smax.v{LANES}i32", INT32, args[0])

    return types.int32(_MAGNITUDES), codegen


@intrinsic
def _begin_sum(typing_context: Any, start: Any) -> Any:
    """Return a sum of no vectors, given what float64 sums begin with."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = cgutils.alloca_once(builder, ir.ArrayType(DOUBLE, 2 * LANES))
        for k in range(0, LANES, DOUBLES_AT_ONCE):
            builder.store(repeated(builder, args[0], DOUBLES_AT_ONCE), _part(builder, memory, k, _DOUBLES), align=8)
            builder.store(
                ir.Constant(_WORDS, [0] * DOUBLES_AT_ONCE), _part(builder, memory, LANES + k, _WORDS), align=8
            )
        return builder.bitcast(memory, DOUBLE.as_pointer())

    return _SUM(types.float64), codegen


def _part(builder: Any, memory: Any, k: int, kind: Any) -> Any:
    if isinstance(memory.type.pointee, ir.ArrayType):
        memory = builder.bitcast(memory, DOUBLE.as_pointer())
    return builder.bitcast(builder.gep(memory, [ir.Constant(INT64, k)]), kind.as_pointer())


def _adding(*, squared: bool) -> Any:
    @intrinsic
    def add(typing_context: Any, memory: Any, x: Any, constant: Any) -> Any:
        """Add numbers, or their squares, to a sum; what that rounds, plus `constant`, is added as integers."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            memory, numbers, constant = args
            constants = repeated(builder, constant, DOUBLES_AT_ONCE)
            for k in range(0, LANES, DOUBLES_AT_ONCE):
                places = ir.Constant(ir.VectorType(INT32, DOUBLES_AT_ONCE), list(range(k, k + DOUBLES_AT_ONCE)))
                x = builder.fpext(builder.shuffle_vector(numbers, numbers, places), _DOUBLES)
                sums, rests = _part(builder, memory, k, _DOUBLES), _part(builder, memory, LANES + k, _WORDS)
                before = builder.load(sums, align=8)
                after = multiply_add(builder, x, x, before) if squared else builder.fadd(before, x)
                builder.store(after, sums, align=8)
                rounded = builder.fsub(before, after)
                rest = multiply_add(builder, x, x, rounded) if squared else builder.fadd(x, rounded)
                bits = builder.bitcast(builder.fadd(rest, constants), _WORDS)
                builder.store(builder.add(builder.load(rests, align=8), bits), rests, align=8)
            return context.get_dummy_value()

        return types.none(_SUM, _FLOATS, types.float64), codegen

    return add


@intrinsic
def _found_sums(typing_context: Any, memory: Any) -> Any:
    """Return the sum of the bits of float64 sums, and that of the integers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        results = []
        for first in (0, LANES):
            parts = [_part(builder, args[0], first + k, _WORDS) for k in range(0, LANES, DOUBLES_AT_ONCE)]
            results.append(_total(builder, [builder.load(part, align=8) for part in parts]))
        return context.make_tuple(builder, signature.return_type, results)

    return types.UniTuple(types.int64, 2)(_SUM), codegen


def _sqrt(builder: Any, x: Any) -> Any:
    return call(builder, f"sqrt.v{LANES}f32", _FLOATS.vector, x)


OPERATIONS: dict[str, Any] = {
    "add_vectors": _operation(_FLOATS, lambda builder, a, b: builder.fadd(a, b)),
    "subtract_vectors": _operation(_FLOATS, lambda builder, a, b: builder.fsub(a, b)),
    "multiply_vectors": _operation(_FLOATS, lambda builder, a, b: builder.fmul(a, b)),
    "divide_vectors": _operation(_FLOATS, lambda builder, a, b: builder.fdiv(a, b)),
    "negative_vector": _operation(_FLOATS, lambda builder, a: builder.fneg(a)),
    "absolute_vector": _operation(_FLOATS, _absolute),
    "sqrt_vector": _operation(_FLOATS, _sqrt),
    "less_vectors": _comparison("<"),
    "less_equal_vectors": _comparison("<="),
    "equal_vectors": _comparison("=="),
    "and_vectors": _operation(_TRUTHS, lambda builder, a, b: builder.and_(a, b)),
    "or_vectors": _operation(_TRUTHS, lambda builder, a, b: builder.or_(a, b)),
    "not_vector": _operation(_TRUTHS, lambda builder, a: builder.not_(a)),
    "where_vectors": _operation(_FLOATS, lambda builder, a, b, c: builder.select(a, b, c)),
    "flush_vector": _operation(_FLOATS, _flushed),
    "load_vector": _load,
    "store_vector": _store,
    "fetch_later": _fetch_later,
    "no_magnitudes": _no_magnitudes,
    "larger_magnitudes": _larger_magnitudes,
    "largest_magnitude": _largest_magnitude,
    "begin_sum": _begin_sum,
    "add_vector": _adding(squared=False),
    "add_squares_of_vector": _adding(squared=True),
    "found_sums": _found_sums,
}
"""What loops in vectors call."""
NAMESPACE: dict[str, Any] = {"sums_of_squares": sums_of_squares}
"""Global names of the kernel that computes norms."""
