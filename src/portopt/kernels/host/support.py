"""The functions that generated kernels call, as numba sees them. Imports numba: only the compiler imports this module."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from portopt.arithmetic.dtypes import TINY_FLOAT32
from portopt.kernels.host.llvm_support import fetch
from portopt.kernels.host.translation_support import translatable

_inline = translatable(inline="never", forceinline=True)

TINY32, TINY64 = np.float32(2.0**-126), 2.0**-1022
_FLUSH_BITS = 0x8040
"""FTZ (bit 15) and DAZ (bit 6) of x86's MXCSR register."""


def _pointer_to(dtype: Any) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        pointer_type = types.CPointer(dtype)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(pointer_type))

        return pointer_type(types.int64), codegen

    return pointer


def _bitcast(source: Any, target: Any) -> Any:
    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), codegen

    return cast


float_bits = _bitcast(types.float32, types.uint32)
double_bits = _bitcast(types.float64, types.uint64)
float_of_bits = _bitcast(types.uint32, types.float32)
double_of_bits = _bitcast(types.uint64, types.float64)


def _select(kind: Any) -> Any:
    @intrinsic
    def select(typing_context: Any, condition: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.select(*args)

        return kind(types.boolean, kind, kind), codegen

    return select


def _chosen(sign: str) -> Any:
    @intrinsic
    def chosen(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.select(builder.icmp_signed(sign, *args), *args)

        if not all(isinstance(kind, types.Integer) and kind.signed for kind in (a, b)):
            return None
        return types.int64(types.int64, types.int64), codegen

    return chosen


def _unary(name: str) -> Any:
    @intrinsic
    def function(typing_context: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.call(builder.module.declare_intrinsic(f"llvm.{name}", [args[0].type]), args)

        return x(x), codegen

    return function


def _call(count: int, result: Any = types.int32) -> Any:
    """Return what calls a C function at an address with `count` 64-bit arguments."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(context.get_value_type(result), [ir.IntType(64)] * count)
        return builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])

    # numba reads the number of arguments off the signature.
    parameters = ", ".join(f"a{i}" for i in range(count + 1))
    namespace = {"typed": result(*[types.int64] * (count + 1)), "codegen": codegen}
    exec(f"def call(typing_context, {parameters}):\n    return typed, codegen", namespace)
    return intrinsic(namespace["call"])


@intrinsic
def first_argument(typing_context: Any) -> Any:
    """Return what the function was called with first, which numba takes for the address of the result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(builder.function.args[0], ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def second_argument(typing_context: Any) -> Any:
    """Return what the function was called with second, which numba takes for the address where errors go."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(builder.function.args[1], ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def add_for_all(typing_context: Any, address: Any, amount: Any) -> Any:
    """Add to the number at an address that several threads change; return what it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], ir.IntType(64).as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def read_of_all(typing_context: Any, address: Any) -> Any:
    """Return the number at an address that several threads change."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def fetch_line(typing_context: Any, address: Any) -> Any:
    """Fetch the line of the cache at an address, which need not be one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fetch(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@intrinsic
def differ(typing_context: Any, address: Any, other: Any, bits: Any, further: Any) -> Any:
    """Return whether any of eight words at an address, and eight so many bytes further, is not what it is at another one.

    What counts are the bits that are set at a third.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(64), 8)

        def found(places: Any) -> Any:
            one, two, mask = (builder.load(builder.inttoptr(at, vector.as_pointer()), align=8) for at in places)
            return builder.and_(builder.xor(one, two), mask)

        both = builder.or_(found(args[:3]), found([builder.add(at, args[3]) for at in args[:3]]))
        return builder.icmp_unsigned(
            "!=",
            builder.bitcast(builder.icmp_unsigned("!=", both, ir.Constant(vector, None)), ir.IntType(8)),
            ir.IntType(8)(0),
        )

    return types.boolean(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the processor that a thread waits for another one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def fail(typing_context: Any) -> Any:
    """Leave a function that is called from outside as one that has failed; numba's `raise` wants the interpreter.

    A `return` must follow.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.if_then(cgutils.true_bit):
            context.call_conv.return_user_exc(builder, ValueError, ())
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _read_control(typing_context: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        _call_sse(builder, "stmxcsr", slot)
        return builder.load(slot)

    return types.uint32(), codegen


@intrinsic
def _write_control(typing_context: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        builder.store(args[0], slot)
        _call_sse(builder, "ldmxcsr", slot)
        return context.get_dummy_value()

    return types.none(types.uint32), codegen


def _call_sse(builder: Any, name: str, slot: Any) -> None:
    byte_pointer = ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [byte_pointer])
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.sse.{name}")
    builder.call(function, [builder.bitcast(slot, byte_pointer)])


@_inline
def flush_subnormals() -> Any:
    control = _read_control()
    _write_control(np.uint32(control | np.uint32(_FLUSH_BITS)))
    return control


@_inline
def restore(control: Any) -> None:
    _write_control(control)


@_inline
def flush_float32(x: Any) -> Any:
    return x * np.float32(0.0) if abs(x) < TINY32 else x


@_inline
def flush_float64(x: Any) -> Any:
    return x * 0.0 if abs(x) < TINY64 else x


@_inline
def product_float32(a: Any, b: Any) -> Any:
    x = a * b
    tiny = abs((a * np.float32(2.0**64)) * b) < np.float32(2.0**-62)
    return x * np.float32(0.0) if tiny & (abs(x) <= TINY32) else x


@_inline
def product_float64(a: Any, b: Any) -> Any:
    x = a * b
    tiny = abs((a * 2.0**512) * b) < 2.0**-510
    return x * 0.0 if tiny & (abs(x) <= TINY64) else x


@_inline
def quotient_float32(a: Any, b: Any) -> Any:
    x = a / b
    tiny = abs((a * np.float32(2.0**64)) / b) < np.float32(2.0**-62)
    return x * np.float32(0.0) if tiny & (abs(x) <= TINY32) else x


@_inline
def quotient_float64(a: Any, b: Any) -> Any:
    numerator, denominator = float(a), float(b)
    x = numerator / denominator
    tiny = abs((numerator * 2.0**512) / denominator) < 2.0**-510
    return x * 0.0 if tiny & (abs(x) <= TINY64) else x


@_inline
def round_to_float32(x: Any) -> Any:
    return float64_to_float32(float(x))


@_inline
def round_to_float64(x: Any) -> Any:
    return float(x)


@_inline
def float64_to_float32(x: Any) -> Any:
    return np.float32(x * 0.0 if abs(x) < TINY_FLOAT32 else x)


@_inline
def float32_to_float64(x: Any) -> Any:
    bits = float_bits(x)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # A float32 subnormal is an integer number of 2**-149; a processor that flushes operands would convert it to zero.
    subnormal = float(np.int64(magnitude)) * 2.0**-149
    exact = -subnormal if bits != magnitude else subnormal
    return exact if magnitude < np.uint32(0x00800000) else float(x)


@_inline
def bfloat16_to_float64(word: Any) -> Any:
    return float32_to_float64(bfloat16_to_float32(word))


@_inline
def float16_to_float64(word: Any) -> Any:
    return float32_to_float64(float16_to_float32(word))


@_inline
def integer_power(base: Any, exponent: Any) -> Any:
    remaining = abs(exponent)
    result = 1.0
    while remaining:
        if remaining & 1:
            result = product_float64(result, base)
        base = product_float64(base, base)
        remaining >>= 1
    return flush_float64(1.0 / result) if exponent < 0 else result


@_inline
def bfloat16_to_float32(word: Any) -> Any:
    return float_of_bits(np.uint32(word) << np.uint32(16))


@_inline
def float32_to_bfloat16(x: Any) -> Any:
    bits = float_bits(x)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(rounded if x == x else np.uint32(0x7FC0))


@_inline
def float16_to_float32(word: Any) -> Any:
    magnitude = np.uint32(word) & np.uint32(0x7FFF)
    sign = (np.uint32(word) & np.uint32(0x8000)) << np.uint32(16)
    shifted = magnitude << np.uint32(13)
    normal = shifted + np.uint32(112 << 23)
    special = shifted + np.uint32(224 << 23)
    # A float16 subnormal is an integer number of 2**-24.
    subnormal = float_bits(np.float32(np.int32(magnitude)) * np.float32(2.0**-24))
    bits = special if magnitude >= np.uint32(0x7C00) else normal
    bits = subnormal if magnitude < np.uint32(0x0400) else bits
    return float_of_bits(bits | sign)


@_inline
def float32_to_float16(x: Any) -> Any:
    bits = float_bits(x)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = (magnitude + np.uint32(0xFFF) + odd - np.uint32(112 << 23)) >> np.uint32(13)
    # Adding 0.5 rounds to a multiple of 2**-24, the unit of float16 subnormals, into the low bits.
    subnormal = float_bits(abs(x) + np.float32(0.5)) - np.uint32(0x3F000000)
    result = subnormal if magnitude < np.uint32(0x38800000) else normal
    result = np.uint32(0x7C00) if magnitude >= np.uint32(0x477FF000) else result
    result = np.uint32(0x7E00) if x != x else result
    return np.uint16(result | sign)


NAMESPACE: dict[str, Any] = {
    "pointer_to_int64": _pointer_to(types.int64),
    "pointer_to_uint8": _pointer_to(types.uint8),
    "pointer_to_uint32": _pointer_to(types.uint32),
    "pointer_to_float32": _pointer_to(types.float32),
    "pointer_to_float64": _pointer_to(types.float64),
    "pointer_to_float16": _pointer_to(types.uint16),
    "pointer_to_bfloat16": _pointer_to(types.uint16),
    "float64_nan": np.nan,
    "float64_inf": np.inf,
    "float64_minus_inf": -np.inf,
    "select_float64": _select(types.float64),
    "select_int64": _select(types.int64),
    "float32_bits": float_bits,
    "float64_bits": double_bits,
    "float32_of_bits": float_of_bits,
    "float64_of_bits": double_of_bits,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "numpy_int64": np.int64,
    "numpy_float64": np.float64,
    "first_argument": first_argument,
    "second_argument": second_argument,
    "add_for_all": add_for_all,
    "read_of_all": read_of_all,
    "fail": fail,
    "pause": pause,
    "differ": differ,
    "fetch_line": fetch_line,
    "call_0": _call(0),
    "call_1": _call(1),
    "call_2": _call(2),
    "call_3": _call(3),
    "call_4": _call(4),
    "call_6": _call(6),
    "call_7": _call(7),
    "call_11": _call(11),
    "object_of_call_0": _call(0, types.int64),
    "object_of_call_1": _call(1, types.int64),
    "object_of_call_2": _call(2, types.int64),
    "call_kernel": _call(10),
    "call_stages": _call(14),
    "call_norm": _call(11),
    "call_lines": _call(11),
    # For integers; numba's own would be functions that it compiles.
    "max": _chosen(">"),
    "min": _chosen("<"),
    "int": np.int64,
    "sqrt": _unary("sqrt"),
    "floor": _unary("floor"),
    **{
        function.__name__: function
        for function in (
            flush_subnormals, restore, flush_float32, flush_float64, product_float32, product_float64,
            quotient_float32, quotient_float64, round_to_float32,
            round_to_float64, float64_to_float32, float32_to_float64, bfloat16_to_float64, float16_to_float64,
            integer_power, bfloat16_to_float32, float32_to_bfloat16, float16_to_float32, float32_to_float16,
        )
    },
}  # fmt: skip
"""Global names of a generated kernel."""

_addresses = types.CPointer(types.int64)
_values = types.CPointer(types.float64)
_count = types.int64

SIGNATURES = {
    # (table, sizes, count, start, stop, inputs, step, outputs)
    "kernel": types.void(_addresses, _addresses, _count, _count, _count, _values, _count, _values),
    # (table, sizes, count, start, stop, inputs, step, outputs, stage, workspace, part, parts)
    "stages": types.void(_addresses, _addresses, _count, _count, _count, _values, _count, _values, *[_count] * 4),
    # (table, columns, column, sizes, count, start, stop, stride, result)
    "norm": types.void(_addresses, _count, _count, _addresses, *[_count] * 5),
    # (table, sizes, kernels, groups, start, stop, result, stage, workspace, part, parts)
    "norm_stages": types.void(_count, _count, _addresses, _addresses, _count, _count, _values, *[_count] * 4),
    # (what the function keeps, its arguments); the result is an object
    "method": types.int64(_count, _count),
    # (given, table, inputs, step, with_totals)
    "numbers": types.void(*[_count] * 5),
    # (record, table, inputs, step)
    "queue": types.void(*[_count] * 4),
    # (values..., start, stop)
    "lines": types.void(*[_count] * 9),
    # (); the address of its record is the first argument, so that it can be the start of a thread
    "part": types.void(),
    # (job)
    "share": types.void(_count),
}
"""Types of the functions called `kernel`, by the name of their prototype."""
