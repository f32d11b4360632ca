"""Parts of totals over all parameters, joined, as Triton kernels."""

from __future__ import annotations

import functools

from portopt.kernels.names import LARGEST_JOINED, SUMS_JOINED
from portopt.kernels.triton.source import IMPORTS
from portopt.program.bins import LOWEST_OF_SQUARES


@functools.cache
def totals_source() -> str:
    """Return the source of the kernels that join parts of totals: an instance takes `each` of them and leaves one.

    Parts follow a word for the result.
    """
    return f'''"""Parts of totals over all parameters."""

{IMPORTS.rstrip()}
from portopt.kernels.triton.reduction_support import *


@triton.jit(do_not_specialize=["count", "each"])
def {SUMS_JOINED}(memory, results, count, each, CHUNK: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    start = block * each
    number = tl.minimum(count - start, each)
    exponent, first, second, third, special = sum_of_parts(memory + (1 + 5 * start), number, {LOWEST_OF_SQUARES}, CHUNK)
    at = results + (1 + 5 * block)
    tl.store(at, exponent)
    tl.store(at + 1, first)
    tl.store(at + 2, second)
    tl.store(at + 3, third)
    tl.store(at + 4, special)


@triton.jit(do_not_specialize=["count", "each"])
def {LARGEST_JOINED}(memory, results, count, each, CHUNK: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    start = block * each
    number = tl.minimum(count - start, each)
    tl.store(results + (1 + block), largest_of_parts(memory + (1 + start), number, BELOW, CHUNK))
'''
