"""Scalars of the arithmetic contract: float64 everywhere, one rounding per operation, subnormals are zero.

A rule's coefficients (bias corrections, learning rates) are scalars. The same Python code computes them on the
host, inside a JAX jit, and symbolically while a rule is traced, because a `Scalar` forwards each operator to the
`Arithmetic` it belongs to. Only `+ - * /`, `sqrt`, comparisons, `where` and `floor` are asked of an arithmetic; powers,
`exp`, `log` and `cos` are built from those in `elementary.py`, so they give the same bits everywhere.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from portopt.arithmetic import elementary

Number = float | int
"""A concrete scalar. An `int` counts (steps, exponents) and is exact; it becomes a float64 where it meets one."""

SMALLEST_NORMAL = 2.0**-1022

MOST_STEPS = 2**31 - 1
"""How many steps can be finished: as many as a JAX program can count, for a state may move from any library to any other."""


class UnknownValueError(TypeError):
    """The number behind a scalar was asked for where it is not known yet."""


class Arithmetic(Protocol):
    """Float64 operations on one kind of value: Python floats, traced JAX scalars, or nodes of a program.

    Values are of three kinds: integers (exact, for steps and exponents), float64, and truth values. Operators accept a
    Python number in place of a value. Each float64 result is rounded once, to nearest even, and a subnormal result
    becomes zero of the same sign.
    """

    def is_integer(self, value: Any) -> bool:
        """Tell whether `value` is an exact integer rather than a float64."""

    def add(self, a: Any, b: Any) -> Any: ...
    def subtract(self, a: Any, b: Any) -> Any: ...
    def multiply(self, a: Any, b: Any) -> Any: ...
    def divide(self, a: Any, b: Any) -> Any: ...
    def floor_divide(self, a: Any, b: Any) -> Any: ...
    def negative(self, a: Any) -> Any: ...
    def sqrt(self, a: Any) -> Any: ...
    def floor(self, a: Any) -> Any: ...
    def less(self, a: Any, b: Any) -> Any: ...
    def less_equal(self, a: Any, b: Any) -> Any: ...
    def equal(self, a: Any, b: Any) -> Any: ...
    def where(self, condition: Any, a: Any, b: Any) -> Any: ...
    def integer_power(self, base: Any, exponent: Any) -> Any: ...
    def power(self, base: Any, exponent: Any) -> Any: ...
    def exp(self, a: Any) -> Any: ...
    def log(self, a: Any) -> Any: ...
    def cos(self, a: Any) -> Any: ...
    def to_float(self, a: Any) -> Any: ...
    def concrete(self, value: Any) -> Number | bool:
        """Return the Python number behind `value`, or raise `UnknownValueError` where there is none yet."""


def flush(x: float) -> float:
    """Return `x`, or zero of the same sign where `x` is subnormal."""
    return x * 0.0 if -SMALLEST_NORMAL < x < SMALLEST_NORMAL else x


class HostArithmetic:
    """The contract on Python numbers."""

    def is_integer(self, value: Number) -> bool:
        return isinstance(value, int)

    def add(self, a: Number, b: Number) -> Number:
        return a + b if isinstance(a, int) and isinstance(b, int) else flush(float(a) + float(b))

    def subtract(self, a: Number, b: Number) -> Number:
        return a - b if isinstance(a, int) and isinstance(b, int) else flush(float(a) - float(b))

    def multiply(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        a, b = float(a), float(b)
        x = a * b
        # Tininess is decided after rounding, as processors do that flush in hardware: a product just below the smallest
        # normal number that only the coarser subnormal spacing rounds up to it is still flushed.
        if -SMALLEST_NORMAL <= x <= SMALLEST_NORMAL and abs((a * 2.0**512) * b) < 2.0**-510:
            return x * 0.0
        return x

    def divide(self, a: Number, b: Number) -> float:
        a, b = float(a), float(b)
        if b == 0.0:
            if a == 0.0 or a != a:
                return math.nan
            return math.copysign(math.inf, a) * math.copysign(1.0, b)
        x = a / b
        tiny = -SMALLEST_NORMAL <= x <= SMALLEST_NORMAL and abs((a * 2.0**512) / b) < 2.0**-510
        return x * 0.0 if tiny else x

    def floor_divide(self, a: Number, b: Number) -> Number:
        return a // b if isinstance(a, int) and isinstance(b, int) else self.floor(self.divide(a, b))

    def negative(self, a: Number) -> Number:
        return -a

    def sqrt(self, a: Number) -> float:
        a = float(a)
        return math.sqrt(a) if a >= 0.0 else math.nan

    def floor(self, a: Number) -> float:
        a = float(a)
        return float(math.floor(a)) if math.isfinite(a) and a != 0.0 else a

    def less(self, a: Number, b: Number) -> bool:
        return a < b

    def less_equal(self, a: Number, b: Number) -> bool:
        return a <= b

    def equal(self, a: Number, b: Number) -> bool:
        return a == b

    def where(self, condition: bool, a: Number, b: Number) -> Number:
        return a if condition else b

    def integer_power(self, base: Number, exponent: int) -> float:
        base, result = float(base), 1.0
        n = abs(exponent)
        while n:
            if n & 1:
                result = cast(float, self.multiply(result, base))
            n >>= 1
            if n:
                base = cast(float, self.multiply(base, base))
        return self.divide(1.0, result) if exponent < 0 else result

    def power(self, base: Number, exponent: Number) -> float:
        return cast(float, elementary.power(self, base, exponent))

    def exp(self, a: Number) -> float:
        return cast(float, elementary.exp(self, a))

    def log(self, a: Number) -> float:
        return cast(float, elementary.log(self, a))

    def cos(self, a: Number) -> float:
        return cast(float, elementary.cos(self, a))

    def to_float(self, a: Number) -> float:
        return flush(float(a))

    def concrete(self, value: Number) -> Number:
        return value


HOST = HostArithmetic()


class Scalar:
    """A scalar value together with the arithmetic that computes with it.

    Rules and schedules receive scalars and combine them, and Python numbers, with `+ - * / **`, comparisons, and the
    functions `sqrt`, `exp`, `log`, `cos`, `floor`, `minimum`, `maximum` and `where` of `portopt.scalars`. A scalar whose
    value is known (outside a jit) also converts to `int`, `float` and `bool`, so that `if step < 100` or `table[step]` work,
    and NumPy's functions take it as the number that it is.
    """

    __slots__ = ("arithmetic", "structural", "value")

    def __init__(self, value: Any, arithmetic: Arithmetic, *, structural: bool = False) -> None:
        self.value = value
        self.arithmetic = arithmetic
        self.structural = structural

    def _operate(self, operation: str, other: object, *, swapped: bool = False) -> Any:
        if isinstance(other, Scalar):
            other = other.value
        elif not isinstance(other, int | float | numbers.Real):
            return NotImplemented
        else:
            other = _number(other)
        function = getattr(self.arithmetic, operation)
        result = function(other, self.value) if swapped else function(self.value, other)
        return Scalar(result, self.arithmetic)

    def __add__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("add", other))

    def __radd__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("add", other, swapped=True))

    def __sub__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("subtract", other))

    def __rsub__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("subtract", other, swapped=True))

    def __mul__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("multiply", other))

    def __rmul__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("multiply", other, swapped=True))

    def __truediv__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("divide", other))

    def __rtruediv__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("divide", other, swapped=True))

    def __floordiv__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("floor_divide", other))

    def __rfloordiv__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("floor_divide", other, swapped=True))

    def __mod__(self, other: ScalarLike) -> Scalar:
        return self - self // other * other

    def __rmod__(self, other: ScalarLike) -> Scalar:
        return other - other // self * self

    def __pow__(self, other: ScalarLike) -> Scalar:
        return self._power(self.value, other.value if isinstance(other, Scalar) else _exponent(other))

    def __rpow__(self, other: Number) -> Scalar:
        return self._power(_number(other), self.value)

    def _power(self, base: Any, exponent: Any) -> Scalar:
        arithmetic = self.arithmetic
        if arithmetic.is_integer(exponent):
            return Scalar(arithmetic.integer_power(base, exponent), arithmetic)
        return Scalar(arithmetic.power(base, exponent), arithmetic)

    def __neg__(self) -> Scalar:
        return Scalar(self.arithmetic.negative(self.value), self.arithmetic)

    def __pos__(self) -> Scalar:
        return self

    def __abs__(self) -> Scalar:
        return cast(Scalar, where(self < 0, -self, self))

    def __lt__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("less", other))

    def __le__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("less_equal", other))

    def __gt__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("less", other, swapped=True))

    def __ge__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._operate("less_equal", other, swapped=True))

    def __eq__(self, other: object) -> Any:
        return self._operate("equal", other)

    def __ne__(self, other: object) -> Any:
        equal = self._operate("equal", other)
        return equal if equal is NotImplemented else where(equal, False, True)

    __hash__ = None  # type: ignore[assignment]  # equality may be symbolic, so a scalar cannot be a key

    def __bool__(self) -> bool:
        return True if self.structural else bool(self.arithmetic.concrete(self.value))

    def __float__(self) -> float:
        return float(self.arithmetic.concrete(self.value))

    def __int__(self) -> int:
        return int(self.arithmetic.concrete(self.value))

    def __index__(self) -> int:
        value = self.arithmetic.concrete(self.value)
        if not isinstance(value, int):
            raise TypeError(
                f"a scalar with the value {value!r} cannot be an index: only an integer can; use // or int()"
            )
        return value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        return np.asarray(self.arithmetic.concrete(self.value), dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Do what NumPy was asked for: an operator as the contract has it, and any other function on the plain number."""
        operation = _OPERATORS.get(ufunc.__name__) if method == "__call__" and not options else None
        if operation is not None:
            # NumPy compares its numbers as arrays of no dimension.
            operands = [x[()] if getattr(x, "ndim", None) == 0 else x for x in inputs]
            if not all(isinstance(x, Scalar | numbers.Real) for x in operands):
                return NotImplemented
            # The scalar's own operator has to be the one that is called, not NumPy's again.
            return operation(*(x if isinstance(x, Scalar) else _number(x) for x in operands))
        plain = (x.arithmetic.concrete(x.value) if isinstance(x, Scalar) else x for x in inputs)
        return getattr(ufunc, method)(*plain, **options)

    def __repr__(self) -> str:
        return f"Scalar({self.value!r})"


ScalarLike = Scalar | float | int


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "power": operator.pow,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
}
"""The operators by the names of the functions that NumPy's numbers call for them."""


def _number(x: Any) -> Any:
    """Return a number as scalars read it: truth values and integers of any type count, and a subnormal is zero."""
    is_integer = not isinstance(x, float) and isinstance(x, int | numbers.Integral)
    return int(x) if is_integer else flush(float(x))


def _exponent(x: Any) -> Any:
    """Return a literal exponent, one like 2.0 as the integer that it is."""
    number = _number(x)
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**31 else number


def _arithmetic_of(*values: object) -> Arithmetic | None:
    return next((v.arithmetic for v in values if isinstance(v, Scalar)), None)


def _call(operation: str, *values: Any) -> Any:
    arithmetic = _arithmetic_of(*values)
    if arithmetic is None:
        return getattr(HOST, operation)(*values)
    plain = [v.value if isinstance(v, Scalar) else _number(v) for v in values]
    return Scalar(getattr(arithmetic, operation)(*plain), arithmetic)


def sqrt(x: ScalarLike) -> Any:
    """Return the square root of a scalar, correctly rounded; NaN for a negative one."""
    return _call("sqrt", x)


def exp(x: ScalarLike) -> Any:
    """Return the exponential of a scalar, within 1.2 ulp, from contract operations only."""
    return _call("exp", x)


def log(x: ScalarLike) -> Any:
    """Return the natural logarithm of a scalar, within 2 ulp, from contract operations only."""
    return _call("log", x)


def cos(x: ScalarLike) -> Any:
    """Return the cosine of a scalar in radians, within 2 ulp for |x| <= 100 and 3 to 1e5, from contract operations only."""
    return _call("cos", x)


def floor(x: ScalarLike) -> Any:
    """Return the largest integral float64 not above a scalar."""
    return _call("floor", x)


def where(condition: Any, a: ScalarLike, b: ScalarLike) -> Any:
    """Return `a` where `condition` holds, else `b`; works when the condition is only known at run time."""
    return _call("where", condition, a, b)


def minimum(a: ScalarLike, b: ScalarLike) -> Any:
    """Return the smaller of two scalars; the first one of equals, and NaN only if the first one is."""
    return where(b < a, b, a)


def maximum(a: ScalarLike, b: ScalarLike) -> Any:
    """Return the larger of two scalars; the first one of equals, and NaN only if the first one is."""
    return where(a < b, b, a)
