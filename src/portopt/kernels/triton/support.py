"""The arithmetic contract in Triton. Imports Triton: only generated kernels import this module.

Compile with `enable_fp_fusion=False`. A block has no cheap branch for the few elements whose product may be tiny, so all are
looked at; the operations cost nothing beside the memory that an update moves.
"""

# Triton's dialect has no annotations, and what each function does is its name.
# mypy: allow-untyped-defs, allow-untyped-decorators
# ruff: noqa: D103

from __future__ import annotations

import triton  # type: ignore[import-untyped]  # it has no stubs
import triton.language as tl  # type: ignore[import-untyped]  # it has no stubs

from portopt.program import bins

TINY32, TINY64 = tl.constexpr(2.0**-126), tl.constexpr(2.0**-1022)
SCALE32, SCALE64 = tl.constexpr(2.0**64), tl.constexpr(2.0**512)
SCALED_TINY32, SCALED_TINY64 = tl.constexpr(2.0**-62), tl.constexpr(2.0**-510)
ROUNDED_TINY32 = tl.constexpr(2.0**-126 * (1 - 2.0**-25))
LARGE, SMALL = tl.constexpr(2.0**bins.UNSCALED), tl.constexpr(2.0**-bins.UNSCALED)
SCALING, UNSCALED = tl.constexpr(bins.SCALING), tl.constexpr(bins.UNSCALED)
WIDTH, OFFSET = tl.constexpr(bins.WIDTH), tl.constexpr(bins.OFFSET)
HALF_WORD = tl.constexpr(2.0**-32)
INFINITY_WORD = tl.constexpr(0x7FF0000000000000)


@triton.jit
def zero_float32(x):
    return (x.to(tl.uint32, bitcast=True) & 0x80000000).to(tl.float32, bitcast=True)


@triton.jit
def zero_float64(x):
    return (x.to(tl.uint64, bitcast=True) & 0x8000000000000000).to(tl.float64, bitcast=True)


# Some versions of Triton compile `-x` to `0 - x`, whose zero has another sign.
@triton.jit
def opposite_float32(x):
    return (x.to(tl.uint32, bitcast=True) ^ 0x80000000).to(tl.float32, bitcast=True)


@triton.jit
def opposite_float64(x):
    return (x.to(tl.uint64, bitcast=True) ^ 0x8000000000000000).to(tl.float64, bitcast=True)


@triton.jit
def flush_float32(x):
    return tl.where(tl.abs(x) < TINY32, zero_float32(x), x)


@triton.jit
def flush_float64(x):
    return tl.where(tl.abs(x) < TINY64, zero_float64(x), x)


@triton.jit
def product_float32(a, b):
    x = a * b
    return tl.where(tl.abs((a * SCALE32) * b) < SCALED_TINY32, zero_float32(x), x)


@triton.jit
def product_float64(a, b):
    x = a * b
    return tl.where(tl.abs((a * SCALE64) * b) < SCALED_TINY64, zero_float64(x), x)


@triton.jit
def quotient_float32(a, b):
    x = tl.div_rn(a, b)
    return tl.where(tl.abs(tl.div_rn(a * SCALE32, b)) < SCALED_TINY32, zero_float32(x), x)


@triton.jit
def quotient_float64(a, b):
    x = a / b
    return tl.where(tl.abs((a * SCALE64) / b) < SCALED_TINY64, zero_float64(x), x)


@triton.jit
def square_root_float32(x):
    return tl.sqrt_rn(x)


@triton.jit
def square_root_float64(x):
    return tl.sqrt(x)


@triton.jit
def bfloat16_to_float32(word):
    return (word.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def float32_to_bfloat16(x):
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x == x, rounded, 0x7FC0).to(tl.uint16)


@triton.jit
def round_to_float32(x):
    narrow = x.to(tl.float32)
    return tl.where(tl.abs(x) < ROUNDED_TINY32, zero_float32(narrow), narrow)


@triton.jit
def round_to_float64(x):
    return x


@triton.jit
def power_of_two(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def scaling_of(largest):
    """Return the exponent of what numbers are divided by before they are squared, as portopt.program.bins does."""
    magnitude = largest.to(tl.float64, bitcast=True)
    return tl.where(magnitude >= LARGE, SCALING, tl.where(magnitude < SMALL, -SCALING, 0)).to(tl.int64)


@triton.jit
def exponent_from(least):
    """Return the smallest exponent of bins that is not below an integer."""
    return ((least - OFFSET + WIDTH - 1) & -WIDTH) + OFFSET


@triton.jit
def bins_of(largest):
    """Return the exponent of the bins of squares, once they are scaled."""
    scaled = largest.to(tl.float64, bitcast=True) * power_of_two(-scaling_of(largest))
    return exponent_from(((scaled * scaled).to(tl.int64, bitcast=True) >> 52) - 1022)


@triton.jit
def carry_of(integer):
    return (integer + 0x80000000) >> 32


@triton.jit
def rest_of(integer):
    return (integer - (carry_of(integer) << 32)).to(tl.float64)


@triton.jit
def norm_of(largest, sums):
    """Return the norm from the bits of max |g| and the address of the sums of integers, as portopt.program.bins does."""
    third = tl.load(sums + 2)
    second = tl.load(sums + 1) + carry_of(third)
    first = tl.load(sums) + carry_of(second)
    rest = rest_of(third) * (HALF_WORD * HALF_WORD) + rest_of(second) * HALF_WORD
    total = (rest + first.to(tl.float64)) * power_of_two(bins_of(largest) - 31)
    norm = product_float64(tl.sqrt(total), power_of_two(scaling_of(largest)))
    known = (largest == 0) | (largest >= INFINITY_WORD)
    return tl.where(known, largest.to(tl.float64, bitcast=True), norm)


@triton.jit
def integer_power(base, exponent):
    one = tl.full((), 1.0, tl.float64)
    result = one
    remaining = tl.abs(exponent)
    while remaining > 0:
        result = tl.where((remaining & 1) == 1, product_float64(result, base), result)
        base = product_float64(base, base)
        remaining = remaining >> 1
    return tl.where(exponent < 0, quotient_float64(one, result), result)


@triton.jit
def floor_divide(a, b):
    quotient = a // b
    rest = a - quotient * b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), quotient - 1, quotient)
