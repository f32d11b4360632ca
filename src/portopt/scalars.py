"""Scalars of the arithmetic contract: float64 everywhere, one rounding per operation, subnormals are zero.

A rule's coefficients (bias corrections, learning rates) are scalars. The same Python code computes them on the
host, inside a JAX jit, and symbolically while a rule is traced, because a `Scalar` forwards each operator to the
`Arithmetic` it belongs to. Only `+ - * /`, `sqrt`, comparisons, `where` and `floor` are asked of an arithmetic; powers
and elementary functions are built from those in `elementary.py`, so they give the same bits everywhere.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

from portopt.arithmetic.host import HOST, flush
from portopt.arithmetic.protocol import Arithmetic, Number

MOST_STEPS = 2**31 - 1
"""How many steps can be finished: as many as a JAX program can count, for a state may move from any library to any other."""


class Scalar:
    """A scalar value together with the arithmetic that computes with it.

    Rules and schedules receive scalars and combine them, and Python numbers, with `+ - * / **`, comparisons, `& | ~` on
    the results of comparisons, and the functions of `portopt.scalars`: `sqrt`, `cbrt`, `exp`, `log`, `cos`, `sin`, `tanh`,
    `atan2`, `floor`, `minimum`, `maximum` and `where`. A scalar whose value is known (outside a jit) also converts to `int`,
    `float` and `bool`, so that `if step < 100` or `table[step]` work, and NumPy's functions take it as the number that it is.
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
        return equal if equal is NotImplemented else ~equal

    def _condition(self, value: Any, operator: str) -> Any:
        if isinstance(value, Scalar):
            value = value.value
        if not self.arithmetic.is_condition(value):
            example = "~(x > 0)" if operator == "~" else f"(x > 0) {operator} (y > 0)"
            raise TypeError(
                f"{operator} was used on a scalar that is a number, but only conditions, the results of comparisons, can be "
                f"combined so: compare it first, as in {example}"
            )
        return value

    def _combined(self, other: object, operator: str) -> Any:
        """Return a condition made of two by way of numbers, as every arithmetic has `where` of those."""
        if not isinstance(other, Scalar | bool):
            if isinstance(other, numbers.Real):
                self._condition(other, operator)
            return NotImplemented
        a, b, ar = self._condition(self, operator), self._condition(other, operator), self.arithmetic
        second = ar.where(b, 1.0, 0.0)
        either = ar.where(a, second, 0.0) if operator == "&" else ar.where(a, 1.0, second)
        return Scalar(ar.less(0.0, either), ar)

    def __and__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._combined(other, "&"))

    def __or__(self, other: ScalarLike) -> Scalar:
        return cast(Scalar, self._combined(other, "|"))

    # Either order gives the same truth value.
    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> Scalar:
        ar = self.arithmetic
        return Scalar(ar.less(ar.where(self._condition(self, "~"), 1.0, 0.0), 1.0), ar)

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
        operation = OPERATORS.get(ufunc.__name__) if method == "__call__" and not options else None
        if operation is not None:
            # NumPy compares its numbers as arrays of no dimension.
            operands = [x[()] if getattr(x, "ndim", None) == 0 else x for x in inputs]
            if not all(isinstance(x, Scalar | numbers.Real) for x in operands):
                return NotImplemented
            # The scalar's own operator has to be the one that is called, not NumPy's again.
            return operation(*(x if isinstance(x, Scalar) else _number(x) for x in operands))
        try:
            plain = [x.arithmetic.concrete(x.value) if isinstance(x, Scalar) else x for x in inputs]
        except TypeError as error:
            raise type(error)(
                f"numpy.{ufunc.__name__} was called on a scalar: {_instead_of(ufunc.__name__)}; {error}"
            ) from None
        return getattr(ufunc, method)(*plain, **options)

    def __repr__(self) -> str:
        return f"Scalar({self.value!r})"


ScalarLike = Scalar | float | int


OPERATORS: Mapping[str, Callable[..., Any]] = {
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


_FUNCTIONS = (
    *("sqrt", "cbrt", "exp", "log", "cos", "sin", "tanh", "atan2", "floor"),
    *("minimum", "maximum", "where"),
)


def _instead_of(name: str) -> str:
    """Return what to use in place of one of NumPy's functions."""
    if name == "absolute":
        return "use abs()"
    if name in _FUNCTIONS:
        return f"use portopt.scalars.{name}"
    return f"scalars have the operators + - * / ** // % abs(), comparisons, & | ~ and portopt.scalars.{', '.join(_FUNCTIONS)}"


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
    try:
        if arithmetic is None:
            return getattr(HOST, operation)(*values)
        plain = [v.value if isinstance(v, Scalar) else _number(v) for v in values]
    except TypeError as error:
        if any(hasattr(v, "__array_namespace__") for v in values):
            raise type(error)(
                f"portopt.scalars.{operation} was called on an array, but it is a function of scalars: use xp.{operation}, of "
                "`update`'s argument `xp`, if programs can hold it"
            ) from None
        raise
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


def sin(x: ScalarLike) -> Any:
    """Return the sine of a scalar in radians, within 2 ulp for |x| <= 100 and 3 to 1e5, from contract operations only."""
    return _call("sin", x)


def tanh(x: ScalarLike) -> Any:
    """Return the hyperbolic tangent of a scalar, within 1.5 ulp, from contract operations only."""
    return _call("tanh", x)


def cbrt(x: ScalarLike) -> Any:
    """Return the cube root of a scalar, within 1 ulp, from contract operations only; that of a negative one is negative."""
    return _call("cbrt", x)


def atan2(y: ScalarLike, x: ScalarLike) -> Any:
    """Return the angle of the point (x, y) in radians, from -pi to pi, within 2 ulp, from contract operations only."""
    return _call("atan2", y, x)


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
