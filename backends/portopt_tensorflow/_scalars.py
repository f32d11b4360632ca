"""Float64 scalars inside a TensorFlow graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import tensorflow as tf

from portopt.arithmetic import HOST, UnknownValueError, elementary
from portopt.arithmetic.dtypes import SMALLEST_NORMAL
from portopt_tensorflow import _namespace as xp

_Method = TypeVar("_Method", bound=Callable[..., Any])

_SCALE = 2.0**512


def _on_host_if_known(method: _Method) -> _Method:
    @functools.wraps(method)
    def operation(self: GraphArithmetic, *values: Any) -> Any:
        if all(isinstance(value, int | float) for value in values):
            return getattr(HOST, method.__name__)(*values)
        return method(self, *values)

    return cast(_Method, operation)


class GraphArithmetic:
    """The contract on symbolic tensors: integers, float64 scalars, truth values.

    What depends on Python numbers alone is computed on the host.

    Args:
        witness: a symbolic scalar, which keeps TensorFlow from knowing the values of constants: it would push a constant through
            a sum, or turn a division by it into a product.
    """

    def __init__(self, witness: Any) -> None:
        self._witness = witness

    @functools.cached_property
    def never(self) -> Any:
        """What hides constants from graph compilers; see the function of this name."""
        return xp.never(tf.cast(self._witness, tf.float32))

    def is_integer(self, value: Any) -> bool:
        return isinstance(value, int) or (not isinstance(value, float) and bool(value.dtype.is_integer))

    def is_condition(self, value: Any) -> bool:
        return isinstance(value, bool) or getattr(value, "dtype", None) == tf.bool

    def _float(self, value: Any) -> Any:
        if isinstance(value, int | float):
            return tf.where(self.never, tf.constant(1.0, tf.float64), xp.asarray(value, dtype=tf.float64))
        return tf.cast(value, tf.float64)

    def _integers(self, a: Any, b: Any) -> tuple[Any, Any] | None:
        if not (self.is_integer(a) and self.is_integer(b)):
            return None
        return tf.cast(a, tf.int64), tf.cast(b, tf.int64)

    @_on_host_if_known
    def add(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return integers[0] + integers[1]
        return xp.flush(self._float(a) + self._float(b), SMALLEST_NORMAL["float64"])

    @_on_host_if_known
    def subtract(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return integers[0] - integers[1]
        return xp.flush(self._float(a) - self._float(b), SMALLEST_NORMAL["float64"])

    @_on_host_if_known
    def multiply(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return integers[0] * integers[1]
        return multiply(self._float(a), self._float(b), SMALLEST_NORMAL["float64"], _SCALE)

    @_on_host_if_known
    def divide(self, a: Any, b: Any) -> Any:
        return divide(self._float(a), self._float(b), SMALLEST_NORMAL["float64"], _SCALE)

    @_on_host_if_known
    def floor_divide(self, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return integers[0] // integers[1]
        return self.floor(self.divide(a, b))

    @_on_host_if_known
    def negative(self, a: Any) -> Any:
        return -a

    @_on_host_if_known
    def sqrt(self, a: Any) -> Any:
        return xp.flush(tf.sqrt(self._float(a)), SMALLEST_NORMAL["float64"])

    @_on_host_if_known
    def floor(self, a: Any) -> Any:
        return tf.floor(self._float(a))

    def _compare(self, comparison: Any, a: Any, b: Any) -> Any:
        if integers := self._integers(a, b):
            return comparison(*integers)
        return comparison(self._float(a), self._float(b))

    @_on_host_if_known
    def less(self, a: Any, b: Any) -> Any:
        return self._compare(tf.less, a, b)

    @_on_host_if_known
    def less_equal(self, a: Any, b: Any) -> Any:
        return self._compare(tf.less_equal, a, b)

    @_on_host_if_known
    def equal(self, a: Any, b: Any) -> Any:
        return self._compare(tf.equal, a, b)

    @_on_host_if_known
    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, bool):
            return a if condition else b
        if self._is_truth(a) and self._is_truth(b):
            return tf.where(condition, a, b)
        if integers := self._integers(a, b):
            return tf.where(condition, *integers)
        return tf.where(condition, self._float(a), self._float(b))

    def _is_truth(self, value: Any) -> bool:
        return isinstance(value, bool) or getattr(value, "dtype", None) == tf.bool

    @_on_host_if_known
    def integer_power(self, base: Any, exponent: Any) -> Any:
        exponent = tf.cast(exponent, tf.int64)

        def square_and_multiply(remaining: Any, base: Any, result: Any) -> tuple[Any, Any, Any]:
            taken = tf.equal(tf.bitwise.bitwise_and(remaining, tf.constant(1, tf.int64)), 1)
            halved = tf.bitwise.right_shift(remaining, tf.constant(1, tf.int64))
            return halved, self.multiply(base, base), tf.where(taken, self.multiply(result, base), result)

        start = (tf.abs(exponent), self._float(base), self._float(1.0))
        _, _, result = tf.while_loop(lambda remaining, *_: remaining > 0, square_and_multiply, start)
        return tf.where(exponent < 0, self.divide(1.0, result), result)

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
    def to_float(self, a: Any) -> Any:
        return xp.flush(self._float(a), SMALLEST_NORMAL["float64"])

    def concrete(self, value: Any) -> NoReturn:
        raise UnknownValueError(
            "a schedule asked for the value of the step inside a tf.function, where it is not known yet: use the functions of "
            "portopt.scalars (where, minimum, maximum, floor, exp, cos) in place of `if`, int(), float() and math"
        )


def multiply(a: Any, b: Any, smallest_normal: float, scale: float) -> Any:
    """Return `a * b` with tininess decided after rounding, whether or not the processor flushes."""
    product = a * b
    tiny = tf.abs((a * scale) * b) < smallest_normal * scale
    return tf.where(tiny, xp.zero_of_sign(product), product)


def divide(a: Any, b: Any, smallest_normal: float, scale: float) -> Any:
    """Return `a / b`; see `multiply`."""
    quotient = a / b
    tiny = tf.abs((a * scale) / b) < smallest_normal * scale
    return tf.where(tiny, xp.zero_of_sign(quotient), quotient)


def round_symbolic(x: Any, dtype: Any) -> Any:
    """Do `portopt.arithmetic.dtypes.round_scalar` on a symbolic float64."""
    if dtype == tf.float32:
        x = tf.where(tf.abs(x) < 2.0**-126 * (1 - 2.0**-25), xp.zero_of_sign(x), x)
    return tf.cast(x, dtype)
