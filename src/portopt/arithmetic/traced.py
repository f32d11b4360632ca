"""The contract's scalar arithmetic on values that a library knows only when its program runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NoReturn, TypeVar, cast

from portopt.arithmetic import elementary
from portopt.arithmetic.host import HOST
from portopt.arithmetic.protocol import UnknownValueError

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _on_host_if_known(method: _Method) -> _Method:
    """Make a method compute on the host what depends on Python numbers alone."""

    @functools.wraps(method)
    def operation(self: TracedArithmetic, *values: Any) -> Any:
        if all(isinstance(value, int | float) for value in values):
            return getattr(HOST, method.__name__)(*values)
        return method(self, *values)

    return cast(_Method, operation)


class TracedArithmetic:
    """The base of arithmetics on a library's traced values: integers, float64, and conditions.

    What an operation is made of is here. A subclass says what its library's numbers are, and how a product, a quotient and a
    root are computed where the library's own would not do.

    Args:
        library: a namespace with `sqrt`, `floor`, `where`, `less`, `less_equal` and `equal` of arrays.
        witness: a traced scalar of any dtype, which keeps compilers from knowing the values of constants.
    """

    place: ClassVar[str]
    """Where values are not known, in messages."""
    remedy: ClassVar[str] = ""
    """What a schedule may use besides `portopt.scalars`, in messages."""

    def __init__(self, library: Any, witness: Any) -> None:
        self._library = library
        self._witness = witness

    # What a library says

    def float64(self) -> AbstractContextManager[Any]:
        """Return a context in which the library has float64."""
        return contextlib.nullcontext()

    def as_float64(self, value: Any) -> Any:
        """Return a value or a Python number, the latter hidden from compilers, as float64."""
        raise NotImplementedError

    def is_integer(self, value: Any) -> bool:
        """Tell whether `value` is an exact integer rather than a float64."""
        raise NotImplementedError

    def is_condition(self, value: Any) -> bool:
        """Tell whether `value` is true or false, as a comparison gives it."""
        raise NotImplementedError

    def as_integers(self, *values: Any) -> tuple[Any, ...]:
        """Return integers in the form in which they are computed with."""
        return values

    def sum_of_integers(self, a: Any, b: Any) -> Any:
        """Return the sum of two integers in that form."""
        return a + b

    def quotient_of_integers(self, a: Any, b: Any) -> Any:
        """Return the quotient of two integers in that form, rounded down."""
        return a // b

    def flush(self, x: Any) -> Any:
        """Make subnormals zero, keeping the sign."""
        raise NotImplementedError

    def product(self, a: Any, b: Any) -> Any:
        """Return the product of two float64, subnormals as zero."""
        raise NotImplementedError

    def quotient(self, a: Any, b: Any) -> Any:
        """Return the quotient of two float64, subnormals as zero."""
        raise NotImplementedError

    def root(self, x: Any) -> Any:
        """Return the square root of a float64."""
        return self._library.sqrt(x)

    def exponent(self, x: Any) -> Any:
        """Return the largest integer `k`, as int64, with `2**k` at most a positive normal float64."""
        raise NotImplementedError

    def power_of_two(self, k: Any) -> Any:
        """Return `2**k` exactly, for an int64 in [-1022, 1023]."""
        raise NotImplementedError

    def power_by_squaring(self, base: Any, exponent: Any) -> Any:
        """Return `base**exponent` for an integer that is not known; `multiply` and `divide` do the arithmetic."""
        raise NotImplementedError

    # The operations

    def _integers(self, a: Any, b: Any) -> tuple[Any, ...] | None:
        return self.as_integers(a, b) if self.is_integer(a) and self.is_integer(b) else None

    @_on_host_if_known
    def add(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return self.sum_of_integers(*integers)
        with self.float64():
            return self.flush(self.as_float64(a) + self.as_float64(b))

    @_on_host_if_known
    def subtract(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return integers[0] - integers[1]
        with self.float64():
            return self.flush(self.as_float64(a) - self.as_float64(b))

    @_on_host_if_known
    def multiply(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return integers[0] * integers[1]
        with self.float64():
            return self.product(self.as_float64(a), self.as_float64(b))

    @_on_host_if_known
    def divide(self, a: Any, b: Any) -> Any:
        with self.float64():
            return self.quotient(self.as_float64(a), self.as_float64(b))

    @_on_host_if_known
    def floor_divide(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return self.quotient_of_integers(*integers)
        return self.floor(self.divide(a, b))

    @_on_host_if_known
    def negative(self, a: Any) -> Any:
        if self.is_integer(a):
            return -a
        with self.float64():
            return -self.as_float64(a)

    @_on_host_if_known
    def sqrt(self, a: Any) -> Any:
        with self.float64():
            return self.flush(self.root(self.as_float64(a)))

    @_on_host_if_known
    def floor(self, a: Any) -> Any:
        with self.float64():
            return self._library.floor(self.as_float64(a))

    @_on_host_if_known
    def less(self, a: Any, b: Any) -> Any:
        return self._compared(self._library.less, a, b)

    @_on_host_if_known
    def less_equal(self, a: Any, b: Any) -> Any:
        return self._compared(self._library.less_equal, a, b)

    @_on_host_if_known
    def equal(self, a: Any, b: Any) -> Any:
        return self._compared(self._library.equal, a, b)

    def _compared(self, comparison: Any, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return comparison(*integers)
        with self.float64():
            return comparison(self.as_float64(a), self.as_float64(b))

    @_on_host_if_known
    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, bool):
            return a if condition else b
        if self.is_condition(a) and self.is_condition(b):
            return self._library.where(condition, a, b)
        if integers := self._integers(a, b):
            return self._library.where(condition, *integers)
        with self.float64():
            return self._library.where(condition, self.as_float64(a), self.as_float64(b))

    @_on_host_if_known
    def integer_power(self, base: Any, exponent: Any) -> Any:
        with self.float64():
            base = self.as_float64(base)
            if not isinstance(exponent, int):
                return self.power_by_squaring(base, exponent)
            result, remaining = self.as_float64(1.0), abs(exponent)
            while remaining:
                if remaining & 1:
                    result = self.multiply(result, base)
                base = self.multiply(base, base)
                remaining >>= 1
            return self.divide(1.0, result) if exponent < 0 else result

    @_on_host_if_known
    def power(self, base: Any, exponent: Any) -> Any:
        return elementary.power(self, base, exponent)

    @_on_host_if_known
    def exp(self, a: Any) -> Any:
        return elementary.exp(self, a)

    @_on_host_if_known
    def log(self, a: Any) -> Any:
        return elementary.log(self, a)

    @_on_host_if_known
    def cos(self, a: Any) -> Any:
        return elementary.cos(self, a)

    @_on_host_if_known
    def sin(self, a: Any) -> Any:
        return elementary.sin(self, a)

    @_on_host_if_known
    def tanh(self, a: Any) -> Any:
        return elementary.tanh(self, a)

    @_on_host_if_known
    def cbrt(self, a: Any) -> Any:
        return elementary.cbrt(self, a)

    @_on_host_if_known
    def atan2(self, y: Any, x: Any) -> Any:
        return elementary.atan2(self, y, x)

    @_on_host_if_known
    def to_float(self, a: Any) -> Any:
        with self.float64():
            return self.flush(self.as_float64(a))

    def concrete(self, value: Any) -> NoReturn:
        raise UnknownValueError(
            f"a schedule asked for the value of the step inside {self.place}, where it is not known yet: use the functions of "
            f"portopt.scalars (where, minimum, maximum, floor, exp, cos) in place of `if`, int(), float() and math{self.remedy}"
        )
