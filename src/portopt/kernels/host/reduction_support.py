"""The functions of reductions, as numba sees them. Imports numba: only the compiler imports this module."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from portopt.kernels.host import block_support
from portopt.kernels.host.reduction_source import BLOCK, LINES

_INTEGERS = {types.float32: types.int32, types.float64: types.int64}


def _bits(source: Any, target: Any) -> Any:
    @intrinsic
    def bits(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), codegen

    return bits


def _buffer(real: Any, count: int) -> Any:
    @intrinsic
    def buffer(typing_context: Any) -> Any:
        """Return memory of the function that calls this."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = context.get_value_type(real)
            return builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(element, count)), element.as_pointer())

        return types.CPointer(real)(), codegen

    return buffer


def _part_of(real: Any) -> Any:
    @intrinsic
    def part(typing_context: Any, array: Any, first: Any) -> Any:
        """Return the rest of an array."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.gep(args[0], [args[1]])

        return types.CPointer(real)(types.CPointer(real), types.int64), codegen

    return part


@intrinsic
def use_widest_vectors(typing_context: Any) -> Any:
    """Have the function that calls this use vectors of 512 bits where the processor has them."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite's own `add` takes only attributes without a value.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def compile_once(typing_context: Any) -> Any:
    """Have LLVM not write out the function that calls this where it is called, and look at all of it again there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), codegen


# numba makes integers of 32 bits longer in each operation, so these are written without it.
def _magnitude(real: Any) -> Any:
    integer = _INTEGERS[real]

    @intrinsic
    def magnitude(typing_context: Any, value: Any) -> Any:
        """Return a number that is larger the larger the magnitude is, and largest for NaN."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(integer)
            bits = builder.bitcast(args[0], kind)
            return builder.and_(bits, ir.Constant(kind, (1 << (integer.bitwidth - 1)) - 1))

        return integer(real), codegen

    return magnitude


def _order(real: Any) -> Any:
    integer = _INTEGERS[real]

    @intrinsic
    def order(typing_context: Any, value: Any, of_nan: Any) -> Any:
        """Return a number that is larger the larger the value is; `of_nan` for NaN."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(integer)
            bits = builder.bitcast(args[0], kind)
            sign = builder.ashr(bits, ir.Constant(kind, integer.bitwidth - 1))
            ordered = builder.xor(bits, builder.lshr(sign, ir.Constant(kind, 1)))
            nan = builder.fcmp_unordered("uno", args[0], args[0])
            chosen = args[1] if args[1].type == kind else builder.trunc(args[1], kind)
            return builder.select(nan, chosen, ordered)

        return integer(real, types.int64), codegen

    return order


def _chosen(integer: Any, comparison: str) -> Any:
    @intrinsic
    def chosen(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.select(builder.icmp_signed(comparison, *args), *args)

        return integer(integer, integer), codegen

    return chosen


def _integer(integer: Any) -> Any:
    @intrinsic
    def converted(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(integer)
            return args[0] if args[0].type == kind else builder.trunc(args[0], kind)

        return integer(types.int64), codegen

    return converted


def _extreme(real: Any) -> Any:
    integer = _INTEGERS[real]

    @intrinsic
    def extreme(typing_context: Any, number: Any) -> Any:
        """Undo `order`; a zero is positive."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(integer)
            ordered = args[0] if args[0].type == kind else builder.trunc(args[0], kind)
            sign = builder.ashr(ordered, ir.Constant(kind, integer.bitwidth - 1))
            bits = builder.xor(ordered, builder.lshr(sign, ir.Constant(kind, 1)))
            value = builder.bitcast(bits, context.get_value_type(real))
            wide = value if real is types.float64 else builder.fpext(value, ir.DoubleType())
            nan = builder.fcmp_unordered("uno", wide, wide)
            positive = builder.fadd(wide, ir.Constant(ir.DoubleType(), 0.0))
            return builder.select(nan, ir.Constant(ir.DoubleType(), float("nan")), positive)

        return types.float64(types.int64), codegen

    return extreme


def _for(real: Any) -> dict[str, Any]:
    name, integer = str(real), _INTEGERS[real]
    return {
        f"buffer_{name}": _buffer(real, BLOCK),
        f"part_of_{name}": _part_of(real),
        f"magnitude_{name}": _magnitude(real),
        f"magnitude_to_{name}": _bits(integer, real),
        f"order_{name}": _order(real),
        f"integer_{name}": _integer(integer),
        f"larger_{name}": _chosen(integer, ">"),
        f"smaller_{name}": _chosen(integer, "<"),
        f"extreme_{name}": _extreme(real),
    }


NAMESPACE: dict[str, Any] = {
    **_for(types.float32),
    **_for(types.float64),
    **block_support.NAMESPACE,
    "lines_float32": _buffer(types.float32, LINES * BLOCK),
    "magnitudes_float32": _buffer(types.float32, LINES),
    "part_of_int64": _part_of(types.int64),
    "use_widest_vectors": use_widest_vectors,
    "compile_once": compile_once,
    "int64_of_bits": _bits(types.float64, types.int64),
    "float64_of_bits": _bits(types.int64, types.float64),
    "float64": np.float64,
    "real_float32": np.float32,
    "real_float64": np.float64,
}
"""Global names of a generated kernel with reductions."""
