"""Float64 scalars inside a JAX computation, with x64 on or off."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
from jax import lax

from portopt.arithmetic.dtypes import COMPUTE_DTYPE, SMALLEST_NORMAL, TINY_FLOAT32
from portopt.arithmetic.traced import TracedArithmetic

_POWER_BITS = 31
_LARGEST_COUNT = 2**_POWER_BITS - 1
"""Exponents are steps, which JAX counts in int32 when x64 is off; beyond this one, they stay at it."""

_accelerated: ContextVar[bool | None] = ContextVar("portopt_jax_accelerated", default=None)


@contextlib.contextmanager
def lowering_for(*platforms: str) -> Iterator[None]:
    """Within it, what is traced is for these platforms, whatever devices this process has."""
    token = _accelerated.set(platforms != ("cpu",))
    try:
        yield
    finally:
        _accelerated.reset(token)


def accelerated() -> bool:
    """Tell whether what is traced may run on another processor than the host's."""
    known = _accelerated.get()
    return any(name != "cpu" for name in jax.extend.backend.backends()) if known is None else known


@jax.custom_jvp
def _zero_where(tiny: Any, x: Any) -> Any:
    """Return zero of the sign of `x` where it is tiny, else `x`; its derivative is that of `x`, at zero too."""
    return jnp.where(tiny, x * 0.0, x)


@_zero_where.defjvp
def _zero_where_jvp(values: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    # JAX asks for it where it differentiates, outside of the context in which a float64 was computed.
    with jax.enable_x64(True):
        return _zero_where(*values), tangents[1]


def flush(x: Any, smallest_normal: float) -> Any:
    """Make subnormals zero. It also keeps XLA from contracting `a * b + c`: the product is not an operand of the sum."""
    return _zero_where(jnp.abs(x) < smallest_normal, x)


def load(x: Any, compute_dtype: str) -> Any:
    """Return an array of another dtype in the compute dtype, subnormals as zero."""
    name = str(x.dtype)
    if (name, compute_dtype) == ("float64", "float32"):
        with jax.enable_x64(True):
            return round_traced(x, compute_dtype)
    if compute_dtype == "float64" and name in ("float32", "bfloat16"):
        return _widened(x)
    return flush(x.astype(compute_dtype), SMALLEST_NORMAL[compute_dtype])


@jax.custom_jvp
def rint(x: Any) -> Any:
    """Round float64 values to integers, halves to even; the derivative is that of `x`, for products are made of it."""
    return jnp.round(x)


def multiply_matrices(a: Any, b: Any) -> Any:
    """Do `jnp.matmul`, of which a derivative that is asked for where float64 is off is computed in float32."""
    batches = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (x if x.shape[:-2] == batches else jnp.broadcast_to(x, (*batches, *x.shape[-2:])) for x in (a, b))
    ahead = tuple(range(len(batches)))
    return lax.dot_general(a, b, (((a.ndim - 1,), (b.ndim - 2,)), (ahead, ahead)))


def leading_exponent(x: Any) -> Any:
    """Return the largest integer `k` with `2**k` at most a positive normal float64; -1023 for a smaller one."""
    return (lax.bitcast_convert_type(x, jnp.int64) >> 52) - 1023


def power_of_two(k: Any) -> Any:
    """Return `2**k` in float64, for an int64 between -1022 and 1023."""
    return lax.bitcast_convert_type((k + 1023) << 52, jnp.float64)


@jax.custom_jvp
def without_negative_zero(x: Any) -> Any:
    """Return `x` in float64, each zero as +0; the derivative is that of `x`, at zero too."""
    return jnp.where(x != 0.0, x, 0.0)


def _like_its_operand(function: Any) -> None:
    def jvp(values: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        with jax.enable_x64(True):
            return function(*values), tangents[0]

    function.defjvp(jvp)


_like_its_operand(rint)
_like_its_operand(without_negative_zero)


def plain_load(x: Any, compute_dtype: str) -> Any:
    """Do `load` where the processor flushes operands, so that only a conversion is left to do."""
    return x.astype(compute_dtype) if COMPUTE_DTYPE[str(x.dtype)] == compute_dtype else load(x, compute_dtype)


def _widened(x: Any) -> Any:
    """Return float32 or bfloat16 as float64, exactly: the processor's conversion may take subnormals for zero."""
    with jax.enable_x64(True):
        if x.dtype == "bfloat16":
            bits = lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
        else:
            bits = lax.bitcast_convert_type(x, jnp.uint32)
        magnitude = bits & 0x7FFFFFFF
        exact = magnitude.astype(jnp.float64) * 2.0**-149
        exact = jnp.where(bits == magnitude, exact, -exact)
        wide = x.astype(jnp.float64)
        # As a sum, for the derivative to be that of the conversion.
        subnormal = (magnitude > 0) & (magnitude < 0x00800000)
        return jnp.where(subnormal, wide + lax.stop_gradient(exact - wide), wide)


@jax.custom_jvp
def constant_at_zero(x: Any) -> Any:
    """Return `x`; its derivative is zero where `x` is zero.

    There a quotient by it and its root have an infinite derivative, which backpropagation multiplies by the zero of a `where`
    that took another branch: that is NaN.
    """
    return x


@constant_at_zero.defjvp
def _constant_at_zero_jvp(values: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    with jax.enable_x64(True):
        return values[0], jnp.where(values[0] == 0.0, 0.0, tangents[0])


def never(witness: Any) -> Any:
    """Return a truth value that is always false, though XLA does not know: that a traced number is both NaN and zero.

    XLA rewrites arithmetic with operands that it knows: `(x + c) - c` becomes `x`, and `x + 0.0` too.
    """
    return (witness != witness) & (witness == 0.0)


def hidden_divisor(a: Any, b: Any) -> Any:
    """Return `b`, elementwise, in a way that keeps XLA from turning `a / b` into a product with `1 / b`.

    It does so where it knows that `b` is the same for all elements.
    """
    return jnp.where(never(a), 1.0, b)


def step_number(count: Any) -> Any:
    """Return an integer as int32, the largest one in place of what is larger; must be called with x64 enabled."""
    if _largest(count) > _LARGEST_COUNT:
        count = jnp.minimum(count, _LARGEST_COUNT)
    return count.astype(jnp.int32)


def _counted_on(count: Any, more: int) -> Any:
    """Return `count + more`; the largest integer of the type in place of what is larger, which would be a negative one."""
    largest = _largest(count)
    return jnp.where(count > largest - more, largest, count + more) if 0 < more <= largest else count + more


def _largest(count: Any) -> int:
    return int(np.iinfo(count.dtype).max)


class JaxArithmetic(TracedArithmetic):
    """The contract on traced values: int32 (or int64) integers, float64 scalars, conditions.

    Float64 operations run with x64 enabled, whatever the user's setting is.

    Args:
        witness: a traced scalar of any dtype, which keeps XLA from knowing the values of constants.
    """

    place = "a JAX transformation"
    remedy = ", or those of jax.numpy in place of NumPy's"

    def __init__(self, witness: Any) -> None:
        super().__init__(jnp, witness)

    @functools.cached_property
    def never(self) -> Any:
        """What hides constants from XLA; see the function of this name."""
        return never(jnp.ravel(self._witness)[0].astype(jnp.float32))

    def float64(self) -> AbstractContextManager[Any]:
        return cast(AbstractContextManager[Any], jax.enable_x64(True))

    def as_float64(self, value: Any) -> Any:
        if isinstance(value, int | float):
            return jnp.where(self.never, 1.0, jnp.asarray(float(value), jnp.float64))
        if hasattr(value, "words"):
            return from_words(value.words)
        return value.astype(jnp.float64)

    def is_integer(self, value: Any) -> bool:
        if isinstance(value, int | float):
            return isinstance(value, int)
        return bool(jnp.issubdtype(value.dtype, jnp.integer))

    def is_condition(self, value: Any) -> bool:
        return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"

    def sum_of_integers(self, a: Any, b: Any) -> Any:
        return _counted_on(a, b) if isinstance(b, int) else a + b

    def quotient_of_integers(self, a: Any, b: Any) -> Any:
        # XLA makes many operations of a division, and one of a shift.
        return a >> (b.bit_length() - 1) if isinstance(b, int) and b > 0 and b & (b - 1) == 0 else a // b

    def flush(self, x: Any) -> Any:
        return flush(x, SMALLEST_NORMAL["float64"])

    def product(self, a: Any, b: Any) -> Any:
        return flush_product(a, b, SMALLEST_NORMAL["float64"], 2.0**512)

    def quotient(self, a: Any, b: Any) -> Any:
        return flush_quotient(a, hidden_divisor(a, constant_at_zero(b)), SMALLEST_NORMAL["float64"], 2.0**512)

    def root(self, x: Any) -> Any:
        return jnp.sqrt(constant_at_zero(x))

    def exponent(self, x: Any) -> Any:
        return leading_exponent(x)

    def power_of_two(self, k: Any) -> Any:
        return power_of_two(k)

    def power_by_squaring(self, base: Any, exponent: Any) -> Any:
        result, magnitude = self.as_float64(1.0), step_number(jnp.abs(exponent))

        def square_and_multiply(bit: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            result, base = carry
            taken = (magnitude >> bit) & 1 == 1
            return jnp.where(taken, self.multiply(result, base), result), self.multiply(base, base)

        if accelerated():
            # Each round of a loop would be kernels of their own, of one thread each; written out, all is fused into one.
            for bit in range(_POWER_BITS):
                result, base = square_and_multiply(bit, (result, base))
            return jnp.where(exponent < 0, self.divide(1.0, result), result)

        # What goes into the loop must have the type of what comes out, so it depends on all that the loop reads: it has
        # the shape of both and, inside shard_map, differs between devices wherever one of them does.
        hidden = self.never | (magnitude != magnitude)
        start = (jnp.where(hidden, base, result), jnp.where(hidden, result, base))
        result, _ = lax.fori_loop(0, _POWER_BITS, square_and_multiply, start)
        return jnp.where(exponent < 0, self.divide(1.0, result), result)


def flush_product(a: Any, b: Any, smallest_normal: float, scale: float) -> Any:
    """Return `a * b` with tininess decided after rounding, on processors that flush and on those that do not.

    XLA's CPU code flushes in hardware, which decides after rounding by itself; the comparison then only has to be there to
    separate the product from a following sum.
    """
    product = a * b
    if not accelerated():
        return _zero_where(jnp.abs(product) < smallest_normal, product)
    return _zero_where(jnp.abs((a * scale) * b) < smallest_normal * scale, product)


def flush_quotient(a: Any, b: Any, smallest_normal: float, scale: float) -> Any:
    """Return `a / b` with tininess decided after rounding; see `flush_product`."""
    if accelerated() and jnp.result_type(a, b) == jnp.float32:
        return _quotient_of_float32(a, b)
    quotient = a / b
    scaled, bound = (a * scale, smallest_normal * scale) if accelerated() else (a, smallest_normal)
    return _zero_where(jnp.abs(scaled / b) < bound, quotient)


def square_root(x: Any) -> Any:
    """Return the root of `x`, correctly rounded."""
    return _root_of_float32(x) if accelerated() and x.dtype == jnp.float32 else jnp.sqrt(x)


@jax.custom_jvp
def _quotient_of_float32(a: Any, b: Any) -> Any:
    """Return `a / b`, flushed, computed in float64: what XLA's GPU compiler makes of a float32 quotient is a few ulp off.

    A float64 quotient that is rounded to float32 is as good as one rounded once. The flush stands before that rounding: right
    after one another, LLVM takes the two for a float32 quotient.
    """
    with jax.enable_x64(True):
        return round_traced(a.astype(jnp.float64) / b.astype(jnp.float64), "float32")


@_quotient_of_float32.defjvp
def _quotient_jvp(values: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    quotient = _quotient_of_float32(*values)
    return quotient, (tangents[0] - quotient * tangents[1]) / values[1]


@jax.custom_jvp
def _root_of_float32(x: Any) -> Any:
    """Return the root of `x`, computed in float64; see `_quotient_of_float32`."""
    with jax.enable_x64(True):
        return narrowed(jnp.sqrt(x.astype(jnp.float64)), "float32")


@_root_of_float32.defjvp
def _root_jvp(values: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    root = _root_of_float32(*values)
    return root, tangents[0] / (root + root)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def narrowed(x: Any, dtype: str) -> Any:
    """Return `x` rounded to a narrower dtype in a way that XLA cannot leave out when the result is converted back.

    It may keep excess precision, and on a GPU it does: of two conversions, one there and one back, nothing stays. It does not
    look through operations on the bits.
    """
    narrow = x.astype(dtype)
    if not accelerated():
        return narrow
    bits = lax.bitcast_convert_type(narrow, f"uint{8 * narrow.dtype.itemsize}")
    return lax.bitcast_convert_type(bits | never(x).astype(bits.dtype), dtype)


@narrowed.defjvp
def _narrowed_jvp(dtype: str, values: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return narrowed(*values, dtype), tangents[0].astype(dtype)


def round_traced(x: Any, compute_dtype: str) -> Any:
    """Do `portopt.arithmetic.dtypes.round_scalar` on traced float64 values; must be called with x64 enabled."""
    if compute_dtype == "float64":
        return x.astype(compute_dtype)
    return narrowed(_zero_where(jnp.abs(x) < TINY_FLOAT32, x), compute_dtype)


def to_words(x: Any) -> Any:
    """Return a float64 scalar as two uint32 words, the lower first, which a state can hold with x64 on or off.

    By shifts: XLA's GPU compiler ends the process where a loop makes two words of one by a bitcast.
    """
    with jax.enable_x64(True):
        bits = lax.bitcast_convert_type(jnp.asarray(x, jnp.float64), jnp.uint64)
        return jnp.stack([bits.astype(jnp.uint32), (bits >> 32).astype(jnp.uint32)], axis=-1)


def from_words(words: Any) -> Any:
    """Return the float64 scalar of two uint32 words."""
    with jax.enable_x64(True):
        lower, upper = words[..., 0].astype(jnp.uint64), words[..., 1].astype(jnp.uint64)
        return lax.bitcast_convert_type(lower | (upper << 32), jnp.float64)
