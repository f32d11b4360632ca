"""The functions of the array API that portopt's array operations need, over TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from portopt.arithmetic.dtypes import TINY_FLOAT32

abs = tf.abs
where = tf.where
logical_and = tf.logical_and
logical_or = tf.logical_or
logical_not = tf.logical_not
int64 = tf.int64
sum = tf.reduce_sum
any = tf.reduce_any
all = tf.reduce_all
min = tf.reduce_min
maximum = tf.maximum
isnan = tf.math.is_nan
sqrt = tf.sqrt
floor = tf.floor
reshape = tf.reshape
permute_dims = tf.transpose
zeros_like = tf.zeros_like
broadcast_to = tf.broadcast_to
round = tf.round
matmul = tf.matmul
matrix_transpose = tf.linalg.matrix_transpose


def max(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    return tf.reduce_max(x, axis, keepdims)


def bitwise_right_shift(x: Any, bits: int) -> Any:
    return tf.bitwise.right_shift(x, tf.constant(bits, x.dtype))


def full_like(x: Any, value: Any) -> Any:
    return tf.fill(x.shape, tf.constant(value, x.dtype))


def astype(x: Any, dtype: Any, *, copy: bool = True) -> Any:
    return tf.cast(x, dtype)


def asarray(x: Any, *, dtype: Any, device: Any = None) -> Any:
    with tf.device(device):
        # TensorFlow keeps tensors of Python numbers for reuse, and takes the one of 0.0 for -0.0.
        return tf.constant(np.asarray(x, dtype.as_numpy_dtype))


def zero_of_sign(x: Any) -> Any:
    """Return +0 or -0, elementwise, of the sign of `x`.

    A product with zero would not do: TensorFlow's graph optimizer replaces it by +0.
    """
    integers, sign_bit = (tf.int32, -(2**31)) if x.dtype == tf.float32 else (tf.int64, -(2**63))
    bits = tf.bitwise.bitwise_and(tf.bitcast(x, integers), tf.constant(sign_bit, integers))
    return tf.bitcast(bits, x.dtype)


def flush(x: Any, smallest_normal: float) -> Any:
    """Make subnormals zero. It also keeps graph compilers from contracting or rewriting what comes before with what follows."""
    return tf.where(tf.abs(x) < smallest_normal, zero_of_sign(x), x)


def converted(x: Any, dtype: Any) -> Any:
    """Return an array in a compute dtype, rounded as scalars are, or exactly."""
    if (x.dtype, dtype) == (tf.float64, tf.float32):
        return tf.cast(flush(x, TINY_FLOAT32), dtype)
    if dtype != tf.float64 or x.dtype not in (tf.float32, tf.bfloat16):
        return tf.cast(x, dtype)
    # TensorFlow has the processor take subnormals for zero when it converts them.
    if x.dtype == tf.bfloat16:
        bits = tf.bitwise.left_shift(tf.cast(tf.bitcast(x, tf.uint16), tf.int32), 16)
    else:
        bits = tf.bitcast(x, tf.int32)
    magnitude = tf.bitwise.bitwise_and(bits, 0x7FFFFFFF)
    exact = tf.cast(magnitude, tf.float64) * 2.0**-149
    subnormal = tf.logical_and(magnitude > 0, magnitude < 0x00800000)
    return tf.where(subnormal, tf.where(bits < 0, -exact, exact), tf.cast(x, tf.float64))


def never(witness: Any) -> Any:
    """Return a truth value that is always false, though no graph compiler knows: that a number is below -1 and above 1."""
    return tf.logical_and(witness < -1.0, witness > 1.0)
