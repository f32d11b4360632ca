"""The norm of all gradients together, the same bits in any order of summation.

Sums differ in the last bits between libraries, thread counts and shardings, because rounding depends on the order. Here
every addend is first rounded to a multiple of one quantum, so coarse that the sum of all is exact; an exact sum has no
order. What the rounding cut off goes through the same once more, for accuracy (Demmel & Nguyen, "Fast reproducible
floating-point summation", 2013; Rump, Ogita & Oishi, "Accurate floating-point summation", 2008).

Steps, all in float64 with a power of two `u` of the size of the largest |g|:

1. `M = max |g|` over all tensors, exact in any order; `u` is the largest power of two not above M.
2. `s = (g/u)**2`, at most 4. The quotient is exact; the square is exact for float32 and narrower gradients.
3. with `C = 1.5 * 2**(k + 4)`, `2**k >= count`: `q = (C + s) - C` is a multiple of `ulp(C)`, and the sum of all q is exact.
4. the same with `s - q` (exact) and `C * 2**(k - 51)`; its sum is exact too.
5. `norm = u * sqrt(sum of q + sum of q')`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from portopt.primitives import Primitives
from portopt.scalars import HOST


def rounding_constants(count: int) -> tuple[float, float]:
    """Return the constants of both passes for `count` addends of at most 4."""
    k = max(count - 1, 0).bit_length()
    first = 1.5 * 2.0 ** (k + 4)
    # |s - q| is at most half an ulp of the first constant, 2**(k + 4 - 52) / 2; room for 2**k of them, with their signs.
    second = 1.5 * 2.0 ** (k + 4 - 53 + k + 2)
    return first, second


def partial_sums(primitives: Primitives, x: Any, factors: tuple[Any, Any], constants: tuple[float, float]) -> list[Any]:
    """Return the exact sums of the leading and trailing parts of `(x / unit)**2` of one float64 array.

    `factors` are two powers of two whose product is `1 / unit`; one alone could be subnormal.
    """
    scaled = (x * factors[0]) * factors[1]
    square = primitives.multiply(scaled, scaled)
    first, second = constants
    leading = (square + first) - first
    trailing = ((square - leading) + second) - second
    return [primitives.xp.sum(leading), primitives.xp.sum(trailing)]


def host_norm(primitives: Primitives, gradients: Sequence[Any]) -> float:
    """Return the Euclidean norm of all gradients together as a Python float.

    Args:
        primitives: the operations of the gradients' library in float64.
        gradients: arrays in the compute dtype without subnormals, as `Primitives.load` gives them.

    Returns:
        The norm; NaN if an element is NaN, else infinite if one is.
    """
    xp = primitives.xp
    wide = [xp.astype(g, primitives.dtype) for g in gradients if math.prod(g.shape)]
    # Libraries disagree on the maximum of a NaN and an infinity.
    if any(bool(xp.any(xp.isnan(g))) for g in wide):
        return math.nan
    largest = max((float(xp.max(xp.abs(g))) for g in wide), default=0.0)
    if largest == 0.0 or math.isinf(largest):
        return largest
    exponent = math.frexp(largest)[1] - 1
    factors = (2.0 ** -(exponent // 2), 2.0 ** -(exponent - exponent // 2))
    constants = rounding_constants(sum(math.prod(g.shape) for g in wide))
    sums = [[float(part) for part in partial_sums(primitives, g, factors, constants)] for g in wide]
    leading, trailing = (math.fsum(parts) for parts in zip(*sums, strict=True))
    root = HOST.sqrt(HOST.add(leading, trailing))
    return float(HOST.multiply(HOST.multiply(root, 1 / factors[0]), 1 / factors[1]))
