"""Float64 scalars inside a TensorFlow graph."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from portopt.arithmetic.dtypes import SMALLEST_NORMAL, TINY_FLOAT32
from portopt.arithmetic.traced import TracedArithmetic
from portopt_tensorflow import _namespace as xp


class GraphArithmetic(TracedArithmetic):
    """The contract on symbolic tensors: int64 integers, float64 scalars, conditions.

    Args:
        witness: a symbolic scalar, which keeps TensorFlow from knowing the values of constants: it would push a constant through
            a sum, or turn a division by it into a product.
    """

    place = "a tf.function"

    def __init__(self, witness: Any) -> None:
        super().__init__(tf, witness)

    @functools.cached_property
    def never(self) -> Any:
        """What hides constants from graph compilers; see the function of this name."""
        return xp.never(tf.cast(self._witness, tf.float32))

    def as_float64(self, value: Any) -> Any:
        if isinstance(value, int | float):
            return tf.where(self.never, tf.constant(1.0, tf.float64), xp.asarray(value, dtype=tf.float64))
        return tf.cast(value, tf.float64)

    def is_integer(self, value: Any) -> bool:
        return isinstance(value, int) or (not isinstance(value, float) and bool(value.dtype.is_integer))

    def is_condition(self, value: Any) -> bool:
        return isinstance(value, bool) or getattr(value, "dtype", None) == tf.bool

    def as_integers(self, *values: Any) -> tuple[Any, ...]:
        return tuple(tf.cast(value, tf.int64) for value in values)

    def flush(self, x: Any) -> Any:
        return xp.flush(x, SMALLEST_NORMAL["float64"])

    def product(self, a: Any, b: Any) -> Any:
        return multiply(a, b, SMALLEST_NORMAL["float64"], 2.0**512)

    def quotient(self, a: Any, b: Any) -> Any:
        return divide(a, b, SMALLEST_NORMAL["float64"], 2.0**512)

    def exponent(self, x: Any) -> Any:
        return tf.bitwise.right_shift(tf.bitcast(x, tf.int64), tf.constant(52, tf.int64)) - 1023

    def power_of_two(self, k: Any) -> Any:
        return tf.bitcast(tf.bitwise.left_shift(k + 1023, tf.constant(52, tf.int64)), tf.float64)

    def power_by_squaring(self, base: Any, exponent: Any) -> Any:
        exponent = tf.cast(exponent, tf.int64)

        def square_and_multiply(remaining: Any, base: Any, result: Any) -> tuple[Any, Any, Any]:
            taken = tf.equal(tf.bitwise.bitwise_and(remaining, tf.constant(1, tf.int64)), 1)
            halved = tf.bitwise.right_shift(remaining, tf.constant(1, tf.int64))
            return halved, self.multiply(base, base), tf.where(taken, self.multiply(result, base), result)

        start = (tf.abs(exponent), base, self.as_float64(1.0))
        _, _, result = tf.while_loop(lambda remaining, *_: remaining > 0, square_and_multiply, start)
        return tf.where(exponent < 0, self.divide(1.0, result), result)


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
        x = xp.flush(x, TINY_FLOAT32)
    return tf.cast(x, dtype)
