"""What a product of matrices is made of beside the product itself, in Triton. Imports Triton: only generated kernels import this.

The steps are those of `portopt.program.products`.
"""

# Triton's dialect has no annotations, and what each function does is its name.
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
# ruff: noqa: D103

from __future__ import annotations

import triton  # type: ignore[import-untyped]  # it has no stubs
import triton.language as tl  # type: ignore[import-untyped]  # it has no stubs

from portopt.kernels.triton.support import INFINITY_WORD, flush_float64, power_of_two, product_float64, round_to_float32

LOWEST_POWER = tl.constexpr(-961)
ROUNDING = tl.constexpr(1.5 * 2.0**52)
LARGE_FACTOR, SMALL_FACTOR = tl.constexpr(2.0**256), tl.constexpr(2.0**-256)
HIGH_FACTOR, LOW_FACTOR = tl.constexpr(2.0**510), tl.constexpr(2.0**-510)


@triton.jit
def sliced(
    x, integers, factors, lines, count, beside, bits,
    ACROSS: tl.constexpr, SLICES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Slice neighbouring lines, rows or columns: `count` numbers, each `beside` after the one before."""
    line = tl.program_id(0).to(tl.int64) * ACROSS + tl.arange(0, ACROSS)[None, :]
    is_line = line < lines
    start = line + (line // beside) * beside * (count - 1)
    depth = tl.arange(0, CHUNK // ACROSS)[:, None]
    word = tl.zeros((1, ACROSS), tl.int64)
    first = tl.full((), 0, tl.int64)
    while first < count:
        j = first + depth
        own = tl.load(x + (start + j * beside), mask=is_line & (j < count), other=0).to(tl.float64)
        own_word = tl.abs(own).to(tl.int64, bitcast=True)
        word = tl.maximum(word, tl.max(own_word, axis=0, keep_dims=True))
        first += CHUNK // ACROSS
    finite = word < INFINITY_WORD
    exponent = tl.where(finite, tl.maximum((word >> 52) - 1023, LOWEST_POWER), 0).to(tl.int64)
    up = power_of_two(bits - 1 - exponent)
    further = power_of_two(exponent * 0 + (bits + 1))
    tl.store(factors + line, tl.where(finite, power_of_two(exponent + 1 - bits), float("nan")), mask=is_line)
    all_lines = lines.to(tl.int64) * count
    first = tl.full((), 0, tl.int64)
    while first < count:
        j = first + depth
        at = start + j * beside
        inside = is_line & (j < count)
        rest = tl.where(finite, tl.load(x + at, mask=inside, other=0).to(tl.float64) * up, 0.0)
        for k in tl.static_range(SLICES):
            rounded = (rest + ROUNDING) - ROUNDING
            tl.store(integers + (k * all_lines + at), rounded, mask=inside)
            rest = (rest - rounded) * further
        first += CHUNK // ACROSS


@triton.jit
def factors_of(rows, columns, i, inside, row_count, column_count):
    row = i // column_count
    column = i - row * column_count + (row // row_count) * column_count
    return tl.load(rows + row, mask=inside, other=0.0), tl.load(columns + column, mask=inside, other=0.0)


@triton.jit
def scaled_back_float32(total, row, column):
    # -0 becomes +0.
    return round_to_float32((total + 0.0) * row * column)


@triton.jit
def total_of(n11, n12, n21, n13, n31, n22, bits):
    below = power_of_two(-bits.to(tl.int64) - 1)
    third = flush_float64(flush_float64(n13 + n31) + n22) * (below * below)
    return flush_float64(n11 + flush_float64(flush_float64(n12 + n21) * below + third))


@triton.jit
def parts_of(factor):
    """Return two powers of two with this product, the second 1 or one so large or small that the first is neither."""
    large, small = factor >= LARGE_FACTOR, factor <= SMALL_FACTOR
    one = factor * 0 + 1
    down = tl.where(large, one * LOW_FACTOR, tl.where(small, one * HIGH_FACTOR, one))
    return factor * down, tl.where(large, one * HIGH_FACTOR, tl.where(small, one * LOW_FACTOR, one))


@triton.jit
def scaled_back_float64(total, row, column):
    # The product of the two factors may be out of range where the result is not.
    low_row, high_row = parts_of(row)
    low_column, high_column = parts_of(column)
    scaled = flush_float64(flush_float64((total + 0.0) * low_row) * low_column)
    return product_float64(scaled, high_row * high_column)
