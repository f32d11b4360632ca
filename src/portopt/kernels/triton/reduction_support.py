"""Reductions and random numbers in Triton. Imports Triton: only generated kernels import this module.

A block is reduced along its first axis, which stays, with length one; so lines of a block are reduced each by itself. The steps
are those of `portopt.program.bins` and `portopt.program.draws`.
"""

# Triton's dialect has no annotations, and what each function does is its name.
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
# ruff: noqa: D103

from __future__ import annotations

import triton  # type: ignore[import-untyped]  # it has no stubs
import triton.language as tl  # type: ignore[import-untyped]  # it has no stubs

from portopt.kernels.triton.support import (
    INFINITY_WORD,
    SCALING,
    UNSCALED,
    carry_of,
    exponent_from,
    power_of_two,
    product_float64,
    rest_of,
    scaling_of,
)
from portopt.program import bins

LOWEST_EXPONENT = tl.constexpr(bins.LOWEST)
TWO_WORDS = tl.constexpr(2.0**32)
ROUNDING, ROUNDING_WORD = tl.constexpr(1.5 * 2.0**52), tl.constexpr(0x4338000000000000)
NAN_WORD, MINUS_INFINITY_WORD = tl.constexpr(0x7FF8000000000000), tl.constexpr(-(1 << 52))
ABOVE, BELOW = tl.constexpr(2**63 - 1), tl.constexpr(-(2**63))
MULTIPLIER_0, MULTIPLIER_1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
STEP_0, STEP_1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
LOW_WORD, BIT = tl.constexpr(2**32 - 1), tl.constexpr(2.0**-53)


# Sums: five words, which are exponent, three integers and what is special (1: NaN, 2: infinity, 4: minus infinity).


@triton.jit
def exponent_above(word):
    """Return the smallest exponent of bins above a finite number that is not negative, given its bits."""
    return tl.maximum(exponent_from((word >> 52) - 1022), LOWEST_EXPONENT)


@triton.jit
def rounded_to_bin(rest):
    """Return a number rounded to an integer, as that and as a number; it stands in the bits once it is so large."""
    rounded = rest + ROUNDING
    return rounded.to(tl.int64, bitcast=True) - ROUNDING_WORD, rounded - ROUNDING


@triton.jit
def binned(x, largest, shift):
    exponent = exponent_above(largest)
    rest = x * power_of_two(31 - exponent)
    integers, number = rounded_to_bin(rest)
    first = tl.sum(integers, axis=0, keep_dims=True)
    rest = (rest - number) * TWO_WORDS
    integers, number = rounded_to_bin(rest)
    second = tl.sum(integers, axis=0, keep_dims=True)
    rest = (rest - number) * TWO_WORDS
    integers, number = rounded_to_bin(rest)
    return exponent + shift, first, second, tl.sum(integers, axis=0, keep_dims=True)


@triton.jit
def special_of(x, word, inside, is_positive):
    nan = tl.max(tl.where(inside & (x != x), 1, 0), axis=0, keep_dims=True)
    infinite = inside & (word == INFINITY_WORD)
    above = tl.max(tl.where(infinite & is_positive, 2, 0), axis=0, keep_dims=True)
    below = tl.max(tl.where(infinite & (is_positive == 0), 4, 0), axis=0, keep_dims=True)
    return (nan + above + below).to(tl.int64)


@triton.jit
def sum_of_block(x, inside):
    x = x.to(tl.float64)
    word = tl.abs(x).to(tl.int64, bitcast=True)
    finite = inside & (word < INFINITY_WORD)
    largest = tl.max(tl.where(finite, word, 0), axis=0, keep_dims=True)
    exponent, first, second, third = binned(tl.where(finite, x, 0.0), largest, 0)
    return exponent, first, second, third, special_of(x, word, inside, x > 0)


@triton.jit
def squares_of_block_float32(x, inside):
    x = x.to(tl.float64)
    word = tl.abs(x).to(tl.int64, bitcast=True)
    finite = inside & (word < INFINITY_WORD)
    numbers = tl.where(finite, x, 0.0)
    largest = tl.max(tl.where(finite, word, 0), axis=0, keep_dims=True).to(tl.float64, bitcast=True)
    exponent, first, second, third = binned(numbers * numbers, (largest * largest).to(tl.int64, bitcast=True), 0)
    return exponent, first, second, third, special_of(x, word, inside, inside)


@triton.jit
def squares_of_block_float64(x, inside):
    word = tl.abs(x).to(tl.int64, bitcast=True)
    finite = inside & (word < INFINITY_WORD)
    largest = tl.max(tl.where(finite, word, 0), axis=0, keep_dims=True)
    scaling = scaling_of(largest)
    factor = power_of_two(-scaling)
    scaled = tl.where(finite, x, 0.0) * factor
    largest = largest.to(tl.float64, bitcast=True) * factor
    word_of_largest = (largest * largest).to(tl.int64, bitcast=True)
    exponent, first, second, third = binned(scaled * scaled, word_of_largest, 2 * scaling)
    return exponent, first, second, third, special_of(x, word, inside, inside)


@triton.jit
def raised(exponent, first, second, third, higher):
    """Return the three integers in the bins of an exponent that is not lower."""
    moved = higher - exponent
    nothing = first * 0
    return (
        tl.where(moved == 0, first, nothing),
        tl.where(moved == 0, second, tl.where(moved == 32, first, nothing)),
        tl.where(moved == 0, third, tl.where(moved == 32, second, tl.where(moved == 64, first, nothing))),
    )


@triton.jit
def joined(exponent, first, second, third, special, exponent_2, first_2, second_2, third_2, special_2):
    higher = tl.maximum(exponent, exponent_2)
    first, second, third = raised(exponent, first, second, third, higher)
    first_2, second_2, third_2 = raised(exponent_2, first_2, second_2, third_2, higher)
    return higher, first + first_2, second + second_2, third + third_2, special | special_2


@triton.jit
def sum_of_parts(parts, count, LOWEST: tl.constexpr, CHUNK: tl.constexpr):
    """Return the five words of a sum, given the address of those of its parts."""
    k = tl.arange(0, CHUNK)
    exponent = tl.full((), LOWEST, tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < count:
        found = tl.load(parts + 5 * (start + k), mask=start + k < count, other=LOWEST)
        exponent = tl.maximum(exponent, tl.max(found, axis=0))
        start += CHUNK
    first = tl.full((), 0, tl.int64)
    second = tl.full((), 0, tl.int64)
    third = tl.full((), 0, tl.int64)
    special = tl.full((), 0, tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < count:
        at, inside = parts + 5 * (start + k), start + k < count
        own = tl.load(at, mask=inside, other=LOWEST)
        a, b, c = raised(
            own,
            tl.load(at + 1, mask=inside, other=0),
            tl.load(at + 2, mask=inside, other=0),
            tl.load(at + 3, mask=inside, other=0),
            exponent,
        )
        first += tl.sum(a, axis=0)
        second += tl.sum(b, axis=0)
        third += tl.sum(c, axis=0)
        found = tl.load(at + 4, mask=inside, other=0)
        special = special | tl.max(found & 1, axis=0) | tl.max(found & 2, axis=0) | tl.max(found & 4, axis=0)
        start += CHUNK
    return exponent, first, second, third, special


@triton.jit
def finished_sum(exponent, first, second, third, special, shift):
    """Return a sum times 2**-shift."""
    second = second + carry_of(third)
    first = first + carry_of(second)
    rest = rest_of(third) * (1 / TWO_WORDS / TWO_WORDS) + rest_of(second) * (1 / TWO_WORDS)
    value = (rest + first.to(tl.float64)) * power_of_two(exponent - 31 - shift)
    word = tl.where(special == 2, INFINITY_WORD, MINUS_INFINITY_WORD)
    word = tl.where(((special & 1) != 0) | (special == 6), NAN_WORD, word)
    return tl.where(special == 0, value, word.to(tl.float64, bitcast=True))


@triton.jit
def finished_root(exponent, first, second, third, special):
    is_large, is_small = exponent > 2 * UNSCALED, exponent <= -2 * UNSCALED
    half = tl.where(is_large, SCALING, tl.where(is_small, -SCALING, 0)).to(tl.int64)
    total = finished_sum(exponent, first, second, third, special, 2 * half)
    return product_float64(tl.sqrt(total), power_of_two(half))


# Extremes: numbers as integers in the same order, NaN beyond all others.


@triton.jit
def word_of_float32(x):
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def word_of_float64(x):
    bits = x.to(tl.int64, bitcast=True)
    return tl.where(bits < 0, bits ^ ABOVE, bits)


@triton.jit
def number_of_float32(word):
    """Return what a word stands for, in float64; a zero is positive."""
    bits = word.to(tl.int32)
    x = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True).to(tl.float64) + 0.0
    is_no_number = (word == ABOVE) | (word == BELOW)
    return tl.where(is_no_number, (word * 0 + NAN_WORD).to(tl.float64, bitcast=True), x)


@triton.jit
def number_of_float64(word):
    x = tl.where(word < 0, word ^ ABOVE, word).to(tl.float64, bitcast=True) + 0.0
    is_no_number = (word == ABOVE) | (word == BELOW)
    return tl.where(is_no_number, (word * 0 + NAN_WORD).to(tl.float64, bitcast=True), x)


@triton.jit
def largest_of_block(word, is_number, inside, START: tl.constexpr):
    word = tl.where(is_number, word, ABOVE)
    return tl.max(tl.where(inside, word, START), axis=0, keep_dims=True)


@triton.jit
def smallest_of_block(word, is_number, inside, START: tl.constexpr):
    word = tl.where(is_number, word, BELOW)
    return tl.min(tl.where(inside, word, START), axis=0, keep_dims=True)


@triton.jit
def largest_of_parts(parts, count, START: tl.constexpr, CHUNK: tl.constexpr):
    k = tl.arange(0, CHUNK)
    word = tl.full((), START, tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < count:
        word = tl.maximum(word, tl.max(tl.load(parts + start + k, mask=start + k < count, other=START), axis=0))
        start += CHUNK
    return word


@triton.jit
def smallest_of_parts(parts, count, START: tl.constexpr, CHUNK: tl.constexpr):
    k = tl.arange(0, CHUNK)
    word = tl.full((), START, tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < count:
        word = tl.minimum(word, tl.min(tl.load(parts + start + k, mask=start + k < count, other=START), axis=0))
        start += CHUNK
    return word


# Counts.


@triton.jit
def count_of_block(holds, inside):
    return tl.sum(tl.where(inside & holds, 1, 0).to(tl.int64), axis=0, keep_dims=True)


@triton.jit
def count_of_parts(parts, count, CHUNK: tl.constexpr):
    k = tl.arange(0, CHUNK)
    number = tl.full((), 0, tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < count:
        number += tl.sum(tl.load(parts + start + k, mask=start + k < count, other=0), axis=0)
        start += CHUNK
    return number


# Random numbers: 53 bits each of the first and the last two words.


@triton.jit
def high_and_low(x, MULTIPLIER: tl.constexpr):
    """Return the upper and the lower word of a word times a multiplier, halved so that nothing has more than 63 bits."""
    lower = x * (MULTIPLIER & 0xFFFF)
    upper = x * (MULTIPLIER >> 16) + (lower >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) + (lower & 0xFFFF)


@triton.jit
def drawn_bits(key, step, stream, number, element):
    c0, c1 = element & LOW_WORD, (element >> 32) | (stream << 16)
    c2, c3 = element * 0 + number, element * 0 + (step & LOW_WORD)
    k0, k1 = key & LOW_WORD, (key >> 32) & LOW_WORD
    for _ in tl.static_range(10):
        high_0, low_0 = high_and_low(c0, MULTIPLIER_0)
        high_1, low_1 = high_and_low(c2, MULTIPLIER_1)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + STEP_0) & LOW_WORD, (k1 + STEP_1) & LOW_WORD
    return (c0 << 21) + (c1 >> 11), (c2 << 21) + (c3 >> 11)


@triton.jit
def uniform_of(key, step, stream, number, element, MOST: tl.constexpr):
    """Return a number from the first bits; the largest one below 1 takes the place of what would round to 1."""
    bits, _ = drawn_bits(key, step, stream, number, element)
    return tl.minimum(bits, MOST).to(tl.float64) * BIT
