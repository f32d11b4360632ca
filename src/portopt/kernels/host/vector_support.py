"""Sums of squares in vectors, as numba sees them. Imports numba: only the compiler imports this module."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from portopt.kernels.host.reduction_source import FIRST_BITS, SQUARES_AT_ONCE

_VECTOR = 8
"""Elements of a vector: as many float64 as the widest registers hold; LLVM takes several where they are shorter."""
_AHEAD = 4096
"""Elements between one that is added and one that is fetched: a processor's own fetching ends at each page of 4 KiB."""
_LINE = 16
"""Elements of a line of the cache."""


@intrinsic
def sums_of_squares(typing_context: Any, array: Any, first: Any, last: Any, start: Any, constant: Any) -> Any:
    """Add the squares of float32 numbers to `SQUARES_AT_ONCE` sums, which begin with `start`, and what that rounds to others.

    It is written in vectors because LLVM does not know that these sums of floats are exact, and so would do one at a time.

    Returns:
        The sum of the bits of the sums; that of the bits of what they leave plus `constant`; and whether a sum has grown by
        `2**-(52 - FIRST_BITS)` of `start`, as it has if one of its squares is that large, or is NaN.
    """
    double, word = ir.DoubleType(), ir.IntType(64)
    vector, words = ir.VectorType(double, _VECTOR), ir.VectorType(word, _VECTOR)
    single = ir.VectorType(ir.FloatType(), _VECTOR)

    def repeated(builder: Any, value: Any) -> Any:
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _VECTOR), [0] * _VECTOR)
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), everywhere)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, first, last, start, constant = args
        # Fused where the processor can: squares of float32 numbers are exact, so it is the same.
        name = f"llvm.fmuladd.v{_VECTOR}f64"
        multiply_add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        starts, constants = repeated(builder, start), repeated(builder, constant)
        lanes = range(SQUARES_AT_ONCE // _VECTOR)
        sums = [cgutils.alloca_once_value(builder, starts) for _ in lanes]
        rests = [cgutils.alloca_once_value(builder, ir.Constant(words, [0] * _VECTOR)) for _ in lanes]
        step = ir.Constant(word, SQUARES_AT_ONCE)
        bytes_, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        fetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [bytes_, number, number, number]), "llvm.prefetch.p0"
        )
        with cgutils.for_range_slice(builder, first, last, step, word) as (index, _):
            for k in range(0, SQUARES_AT_ONCE, _LINE):
                # Also beyond the end: fetching cannot fail.
                place = builder.gep(array, [builder.add(index, ir.Constant(word, _AHEAD + k))])
                how = [ir.Constant(number, k) for k in (0, 3, 1)]  # to read, into all caches, data
                builder.call(fetch, [builder.bitcast(place, bytes_), *how])
            for k in lanes:
                place = builder.gep(array, [builder.add(index, ir.Constant(word, _VECTOR * k))])
                x = builder.fpext(builder.load(builder.bitcast(place, single.as_pointer()), align=4), vector)
                before = builder.load(sums[k])
                after = builder.call(multiply_add, [x, x, before])
                builder.store(after, sums[k])
                rounded = builder.fsub(before, after)
                rest = builder.fadd(builder.call(multiply_add, [x, x, rounded]), constants)
                builder.store(builder.add(builder.load(rests[k]), builder.bitcast(rest, words)), rests[k])
        limit = builder.fmul(starts, repeated(builder, ir.Constant(double, 1.0 + 2.0 ** (FIRST_BITS - 52))))
        add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(word, [words]), f"llvm.vector.reduce.add.v{_VECTOR}i64"
        )
        total, total_of_rests = ir.Constant(words, [0] * _VECTOR), ir.Constant(words, [0] * _VECTOR)
        outside = ir.Constant(ir.VectorType(ir.IntType(1), _VECTOR), [0] * _VECTOR)
        for k in lanes:
            after = builder.load(sums[k])
            total = builder.add(total, builder.bitcast(after, words))
            total_of_rests = builder.add(total_of_rests, builder.load(rests[k]))
            outside = builder.or_(outside, builder.fcmp_unordered(">=", after, limit))
        mask = builder.bitcast(outside, ir.IntType(_VECTOR))
        found = builder.icmp_unsigned("!=", mask, ir.Constant(ir.IntType(_VECTOR), 0))
        results = [builder.call(add, [total]), builder.call(add, [total_of_rests]), builder.zext(found, word)]
        return context.make_tuple(builder, signature.return_type, results)

    real = types.float64
    return types.UniTuple(types.int64, 3)(types.CPointer(types.float32), types.int64, types.int64, real, real), codegen


NAMESPACE: dict[str, Any] = {"sums_of_squares": sums_of_squares}
"""Global names of the kernel that computes norms."""
