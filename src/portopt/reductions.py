"""The norm of all gradients together, the same bits in any order of summation.

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

import math
from collections.abc import Sequence
from typing import Any

from portopt.primitives import Primitives
from portopt.scalars import HOST

PASSES = 3


def rounding_constants(count: int) -> tuple[float, ...]:
    """Return the constant of each pass for `count` addends of at most 4."""
    k = max(count - 1, 0).bit_length()
    # What a pass leaves is at most half an ulp of its constant, 2**(exponent - 53); the next constant has room for 2**k of
    # them with their signs, and two bits to spare.
    return tuple(1.5 * 2.0 ** (k + 4 + i * (k - 51)) for i in range(PASSES))


def partial_sums(primitives: Primitives, x: Any, factors: tuple[Any, Any], constants: tuple[float, ...]) -> list[Any]:
    """Return each pass's exact sum over `(x / unit)**2` of one float64 array.

    `factors` are two powers of two whose product is `1 / unit`; one alone could be subnormal.
    """
    scaled = (x * factors[0]) * factors[1]
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
    count = sum(math.prod(g.shape) for g in gradients)
    return norm_of_sums(largest, exact_sums(primitives, gradients, largest, count))


def largest_magnitude(primitives: Primitives, gradients: Sequence[Any]) -> float:
    """Return the largest |g|, 0 if there is no element; NaN if an element is NaN. Arguments are those of `host_norm`."""
    xp = primitives.xp
    filled = _filled(gradients)
    # Libraries disagree on the maximum of a NaN and an infinity.
    if any(bool(xp.any(xp.isnan(g))) for g in filled):
        return math.nan
    return max((float(xp.max(xp.abs(g))) for g in filled), default=0.0)


def exact_sums(primitives: Primitives, gradients: Sequence[Any], largest: float, count: int) -> tuple[float, ...]:
    """Return each pass's sum, which added to those of other gradients in any order gives the sum of all.

    Args:
        primitives: the operations of the gradients' library in float64.
        gradients: some of the gradients, as for `host_norm`.
        largest: the largest |g| of all gradients. If it is 0, infinite or NaN, the sums are 0.
        count: the number of elements of all gradients.
    """
    if not 0.0 < largest < math.inf:
        return (0.0,) * PASSES
    factors, constants = _factors(largest), rounding_constants(count)
    wide = (primitives.xp.astype(g, primitives.dtype) for g in _filled(gradients))
    sums = [[float(part) for part in partial_sums(primitives, g, factors, constants)] for g in wide]
    return tuple(math.fsum(parts) for parts in zip(*sums, strict=True)) or (0.0,) * PASSES


def norm_of_sums(largest: float, sums: Sequence[float]) -> float:
    """Return the norm, from the largest |g| and the sums of `exact_sums` over all gradients."""
    if not 0.0 < largest < math.inf:
        return largest
    factors = _factors(largest)
    first, second, third = sums
    root = HOST.sqrt(HOST.add(first, HOST.add(second, third)))
    return float(HOST.multiply(HOST.multiply(root, 1 / factors[0]), 1 / factors[1]))


def _filled(gradients: Sequence[Any]) -> list[Any]:
    return [g for g in gradients if math.prod(g.shape)]


def _factors(largest: float) -> tuple[float, float]:
    exponent = math.frexp(largest)[1] - 1
    return 2.0 ** -(exponent // 2), 2.0 ** -(exponent - exponent // 2)
