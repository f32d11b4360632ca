"""Operations on each element of arrays, and what may take part in them."""

from __future__ import annotations

from typing import Any

from portopt.program.builder import Builder, Node, UnsupportedOperationError
from portopt.program.ir import Kind
from portopt.program.tracing.shapes import common_dims
from portopt.program.tracing.symbol import Symbol, index_of, recorder_of
from portopt.scalars import Scalar


def record(name: str, *values: Any, kind: Kind = Kind.ARRAY) -> Any:
    """Record an operation on each element and return its result."""
    symbol = next((v for v in values if isinstance(v, Symbol)), None)
    if symbol is None:
        raise UnsupportedOperationError(
            f"xp.{name} was called without an array: on scalars use the functions of portopt.scalars"
        )
    recorder = recorder_of(symbol)
    operands = []
    for position, value in enumerate(values):
        takes_mask = name.startswith("logical") or (name == "where" and position == 0)
        i = _mask_operand(recorder, value) if takes_mask else operand(recorder, value)
        operands.append(i)
        a_mask = recorder.ops[i].kind is Kind.MASK
        if a_mask and not takes_mask:
            raise UnsupportedOperationError(
                f"a rule gave xp.{name} a mask, the result of a comparison, which only xp.where and & | ~ take: "
                "use xp.where(mask, a, b)"
            )
        if takes_mask and not a_mask:
            raise UnsupportedOperationError(
                f"a rule gave xp.{name} an array that is no mask: compare it first, as in xp.where(g > 0, a, b)"
            )
    return type(symbol)(recorder, recorder.record(name, kind, *operands, dims=common_dims(recorder, name, operands)))


def power(base: Any, exponent: Any) -> Any:
    """Record a power: an integer one as repeated products."""
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    if isinstance(exponent, float | Scalar) and isinstance(base, Symbol):
        return record("power", base, exponent)
    if not isinstance(exponent, int) or isinstance(exponent, bool) or exponent < 1:
        raise UnsupportedOperationError(
            f"a rule raised an array to the power {exponent!r}: allowed are positive integers, as repeated products, and real "
            "numbers that are no integers; use a division for a negative integer power"
        )
    result = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return result


def checked(builder: Builder, value: Any) -> Any:
    """Return what may be combined with an array, or raise an error."""
    operand(builder, value)
    return value


def operand(builder: Builder, value: Any) -> int:
    """Return the index of what takes part in operations on arrays: an array, or a scalar, which is rounded."""
    if isinstance(value, Symbol):
        return index_of(value)
    if isinstance(value, Scalar):
        value = value.value
    if isinstance(value, Node):
        number = builder.where(value, 1.0, 0.0) if builder.is_condition(value) else value
        return builder.record("round", Kind.ARRAY, number.index)
    if isinstance(value, int | float):
        return builder.rounded_constant(float(value))
    raise UnsupportedOperationError(
        f"a rule combined an array with {value!r} of type {type(value).__name__}: allowed are the parameter, its gradient and "
        "slots, coefficients, hyperparameters and Python numbers"
    )


def _mask_operand(builder: Builder, value: Any) -> int:
    """Return the index of a mask; a condition of scalars becomes one that is the same for all elements."""
    plain = value.value if isinstance(value, Scalar) else value
    if builder.is_condition(plain):
        return builder.record("condition", Kind.MASK, builder.scalar(plain))
    return operand(builder, value)
