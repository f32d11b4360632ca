"""Totals, which a program asks for over all parameters together; so far the norm, the same bits in any order of summation.

Sums differ in the last bits between libraries, thread counts and shardings, because rounding depends on the order. Here
every addend is first rounded to a multiple of one quantum, so coarse that the sum of all is exact; an exact sum has no
order. What the rounding cut off goes through the same twice more, for accuracy (Demmel & Nguyen, "Fast reproducible
floating-point summation", 2013; Rump, Ogita & Oishi, "Accurate floating-point summation", 2008).

Steps, all in float64, for at most `2**k` elements and with `u` the largest power of two not above the largest |g|:

1. `s = (g/u)**2`, at most 4. The quotient is exact; the square is exact for float32 and narrower gradients.
2. with `C = 1.5 * 2**(k + 4)`: `q = (C + s) - C` is a multiple of `ulp(C)`, and the sum of all q is exact in any order.
3. the same with `s - q` (exact) and `C * 2**(k - 51)`, and once more with what is left then; these sums are exact too.
4. `norm = u * sqrt(Q1 + (Q2 + Q3))` of the three sums.

What three passes leave is at most `2**(3k - 152)` per element, where the sum of squares is at least 1: the norm's relative
error is at most `2**(4k - 153) + 2**-52`, that is 2**-33 for 2**30 elements in the worst case.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from portopt.arithmetic import HOST
from portopt.arithmetic.traced import TracedArithmetic
from portopt.program.primitives import Primitives

GRADIENT_NORM = "gradient_norm"
"""The name of the total that clipping asks for: the norm of all gradients."""

PASSES = 3


def rounding_constants(count: int) -> tuple[float, ...]:
    """Return the constant of each pass for `count` addends of at most 4."""
    k = max(count - 1, 0).bit_length()
    # What a pass leaves is at most half an ulp of its constant, 2**(exponent - 53); the next constant has room for 2**k of
    # them with their signs, and two bits to spare.
    return tuple(1.5 * 2.0 ** (k + 4 + i * (k - 51)) for i in range(PASSES))


def partial_sums(primitives: Primitives, scaled: Any, constants: Sequence[Any]) -> list[Any]:
    """Return each pass's exact sum over the squares of one float64 array of numbers below 2."""
    rest = primitives.multiply(scaled, scaled)
    sums = []
    for constant in constants:
        rounded = (rest + constant) - constant
        sums.append(primitives.xp.sum(rounded))
        rest = rest - rounded
    return sums


def host_norm(primitives: Primitives, gradients: Sequence[Any]) -> float:
    """Return the Euclidean norm of all gradients together as a Python float.

    Args:
        primitives: the operations of the gradients' library in float64.
        gradients: arrays in the compute dtype without subnormals, as `Primitives.load` gives them.

    Returns:
        The norm; NaN if an element is NaN, else infinite if one is.
    """
    largest = largest_magnitude(primitives, gradients)
    scale = scaling(largest, sum(math.prod(g.shape) for g in gradients))
    if scale is None:
        return largest
    return norm_of_sums(scale, sums_of_parts(primitives, gradients, scale))


def largest_magnitude(primitives: Primitives, gradients: Sequence[Any]) -> float:
    """Return the largest |g| of all gradients; 0 if there is no element, NaN if an element is NaN."""
    xp = primitives.xp
    filled = [g for g in gradients if math.prod(g.shape)]
    # Libraries disagree on the maximum of a NaN and an infinity.
    if any(bool(xp.any(xp.isnan(g))) for g in filled):
        return math.nan
    return max((float(xp.max(xp.abs(g))) for g in filled), default=0.0)


class Scaling(NamedTuple):
    """What the addends are scaled by and rounded with.

    Attributes:
        factors: two powers of two whose product is `1 / unit`; one alone could be subnormal.
        constants: the constant of each pass.
    """

    factors: tuple[float, float]
    constants: tuple[float, ...]


def scaling(largest: float, count: int) -> Scaling | None:
    """Return the scaling for `count` elements of at most this magnitude; None where `largest` is the norm itself."""
    if largest == 0.0 or not math.isfinite(largest):
        return None
    exponent = math.frexp(largest)[1] - 1
    return Scaling((2.0 ** -(exponent // 2), 2.0 ** -(exponent - exponent // 2)), rounding_constants(count))


def sums_of_parts(primitives: Primitives, gradients: Sequence[Any], scale: Scaling) -> list[list[float]]:
    """Return each pass's exact sum over each gradient."""
    first, second = scale.factors
    wide = (primitives.xp.astype(g, primitives.dtype) for g in gradients if math.prod(g.shape))
    return [[float(part) for part in partial_sums(primitives, (g * first) * second, scale.constants)] for g in wide]


def norm_of_sums(scale: Scaling, sums: Sequence[Sequence[float]]) -> float:
    """Return the norm, given each pass's exact sum over each part of the elements."""
    first, second, third = (math.fsum(parts) for parts in zip(*sums, strict=True))
    root = HOST.sqrt(HOST.add(first, HOST.add(second, third)))
    return float(HOST.multiply(HOST.multiply(root, 1 / scale.factors[0]), 1 / scale.factors[1]))


def traced_norm(primitives: Primitives, wide: Sequence[Any], arithmetic_of: Callable[[Any], TracedArithmetic]) -> Any:
    """Return the norm of arrays whose elements are not known yet, by the same steps; where those branch, it chooses.

    Args:
        primitives: the operations of the arrays' library in float64.
        wide: gradients in float64 without subnormals, none of them empty; at least one.
        arithmetic_of: returns the arithmetic for scalars that are computed from the one that it is given.
    """
    xp = primitives.xp
    # Compilers may lose a NaN to an infinity in a maximum over many elements.
    has_nan = functools.reduce(xp.logical_or, [xp.any(xp.isnan(g)) for g in wide])
    largest = functools.reduce(xp.maximum, [xp.max(xp.abs(g)) for g in wide])
    arithmetic = arithmetic_of(largest)
    regular = (largest > 0.0) & (largest < math.inf)
    exponent = arithmetic.exponent(arithmetic.where(regular, largest, 1.0))
    half = exponent // 2
    first_factor, second_factor = map(arithmetic.power_of_two, (-half, half - exponent))
    # Compilers multiply the factors with each other first, if nothing stands between.
    scaled = [primitives.flush(g * first_factor) * second_factor for g in wide]
    constants = tuple(map(arithmetic.as_float64, rounding_constants(sum(math.prod(g.shape) for g in wide))))
    sums = [partial_sums(primitives, g, constants) for g in scaled]
    first, second, third = (functools.reduce(operator.add, parts) for parts in zip(*sums, strict=True))
    root = arithmetic.sqrt(arithmetic.add(first, arithmetic.add(second, third)))
    norm = functools.reduce(arithmetic.multiply, map(arithmetic.power_of_two, (half, exponent - half)), root)
    return arithmetic.where(has_nan, math.nan, arithmetic.where(regular, norm, largest))
