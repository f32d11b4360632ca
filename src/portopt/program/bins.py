"""Sums without an order: integers in bins at fixed exponents (after Demmel & Nguyen, "Parallel reproducible summation", 2015).

A float64 sum depends on the order of its additions, since each is rounded. An integer sum does not. So every addend is written
as `(k1 + k2 2**-32 + k3 2**-64) 2**(T-31)` with integers of at most `2**31`, and each of the three is summed in an integer:

- `T` is the smallest number `32 k + 16`, at least -912, with every `|x| < 2**T`; infinities and NaN are left out of all this.
- `y = x 2**(31-T)`; `k1` is the integer nearest to `y`, ties to even; `k2` that nearest to `(y - k1) 2**32`, and `k3` again of
  what that leaves. In float64 all of it is exact but for the last remainder, at most `2**(T-96)`, which is dropped. An addend
  so small that a product with a power of two is not exact has no bit in any bin.
- The sum depends on the integer `S1 2**64 + S2 2**32 + S3` alone. With carries moved until `S2` and `S3` are in
  `[-2**31, 2**31)`, it is `((S3 2**-64 + S2 2**-32) + S1) 2**(T-31)`, each integer converted to float64 first.

Raising `T` by 32 moves every bin down by one and drops the last, which gives exactly the integers that the larger `T` would have
given. So parts of the elements, each with the `T` of its own largest, combine to what all elements together give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from portopt.arithmetic import HOST, Arithmetic

WIDTH = 32
OFFSET = 16
"""What exponents of bins leave when divided by `WIDTH`: not 0, since the largest magnitudes of many arrays are about 1.

Those of normalized updates are, and those of many weights. Numbers just below 1 and just above, and their squares, have one
exponent of bins. So parts of a sum seldom differ in it, which takes loops in vectors a second pass.
"""
LOWEST = -912
"""The smallest exponent of bins: what is below 2**-1008 counts as zero."""
HIGHEST = 1040
"""The largest, that of the largest float64 numbers."""

SCALING = 608
"""Before they are squared, numbers are multiplied by 2**-SCALING or its inverse if the largest is very large or very small.

Twice this is a multiple of `WIDTH`, so that bins of scaled squares are bins of the squares, as if exponents had no bounds.
"""
UNSCALED = 392
"""Numbers whose largest magnitude is in [2**-UNSCALED, 2**UNSCALED) are not scaled.

Twice this, and minus that, are exponents of bins, so that those of a sum of squares tell whether numbers were scaled.
"""
LOWEST_OF_SQUARES = LOWEST - 2 * SCALING
"""The exponent of the bins of squares that are all zero, below that of any others."""


class Bins(NamedTuple):
    """The sum of some numbers, not rounded yet; of Python numbers, or of a graph's values.

    Attributes:
        exponent: the `T` of the largest magnitude.
        sums: the sums of `k1`, `k2` and `k3`.
        special: the sum of the infinite and NaN elements alone; zero if there are none.
    """

    exponent: Any
    sums: tuple[Any, Any, Any]
    special: Any


NONE = Bins(LOWEST, (0, 0, 0), 0.0)
"""The bins of a sum of nothing."""
NO_SQUARES = Bins(LOWEST_OF_SQUARES, (0, 0, 0), 0.0)
"""The bins of the squares of nothing."""


def exponent_from(least: int) -> int:
    """Return the smallest exponent of bins that is not below an integer."""
    return -(-(least - OFFSET) // WIDTH) * WIDTH + OFFSET


def combined(parts: Sequence[Bins]) -> Bins:
    """Return the bins of all numbers together, given those of parts of them, of Python numbers; there is at least one part."""
    exponent = max(part.exponent for part in parts)
    sums = [0] * 3
    for part in parts:
        moved = (exponent - part.exponent) // WIDTH
        for i, integer in enumerate(part.sums[: max(3 - moved, 0)]):
            sums[i + moved] += integer
    return Bins(exponent, (sums[0], sums[1], sums[2]), sum(part.special for part in parts))


def sum_of(bins: Bins) -> float:
    """Return the sum: NaN if an element is NaN or infinities of both signs occur, else the infinity that occurs."""
    if bins.special != 0.0:
        return float(bins.special)
    return float(HOST.multiply(significand(HOST, bins), 2.0 ** (bins.exponent - 31)))


def root_of(bins: Bins) -> float:
    """Return the root of a sum of squares."""
    if bins.special != 0.0:
        return float(bins.special)
    half = scaling_of_squares(bins.exponent)
    scaled = HOST.multiply(significand(HOST, bins), 2.0 ** (bins.exponent - 2 * half - 31))
    return float(HOST.multiply(HOST.sqrt(scaled), 2.0**half))


def scaling_of_squares(exponent: int) -> int:
    """Return the exponent of the power of two by which the root of squares is to be multiplied, given that of their bins."""
    if exponent > 2 * UNSCALED:
        return SCALING
    return -SCALING if exponent <= -2 * UNSCALED else 0


def significand(arithmetic: Arithmetic, bins: Bins) -> Any:
    """Return the sum in units of `2**(T-31)`, in any arithmetic."""
    first, second, third = bins.sums
    carry, third = _carried(arithmetic, third)
    carry, second = _carried(arithmetic, arithmetic.add(second, carry))
    low = arithmetic.multiply(arithmetic.to_float(third), 2.0**-64)
    small = arithmetic.add(low, arithmetic.multiply(arithmetic.to_float(second), 2.0**-32))
    return arithmetic.add(small, arithmetic.to_float(arithmetic.add(first, carry)))


def _carried(arithmetic: Arithmetic, integer: Any) -> tuple[Any, Any]:
    """Return an integer as multiple of `2**WIDTH` and a rest between minus and plus half of that."""
    carry = arithmetic.floor_divide(arithmetic.add(integer, 2 ** (WIDTH - 1)), 2**WIDTH)
    return carry, arithmetic.subtract(integer, arithmetic.multiply(carry, 2**WIDTH))
