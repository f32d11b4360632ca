"""The norm of all gradients together, as Triton kernels for gradients of a dtype."""

from __future__ import annotations

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.names import LARGEST_GRADIENT, SUM_SQUARES
from portopt.kernels.triton.source import IMPORTS, LANGUAGE, address, locate


def norm_source(dtype: str) -> str:
    """Return the source of the kernels that reduce gradients of a dtype to what their norm is computed from."""
    element = LANGUAGE.loaded(dtype, COMPUTE_DTYPE[dtype], "tl.load(g + i, mask=inside, other=0)")
    located = "\n".join(f"    {line}" for line in locate(1))
    return f'''"""The norm of gradients in {dtype}."""

{IMPORTS}
@triton.jit
def {LARGEST_GRADIENT}(table, rows, largest, CHUNK: tl.constexpr):
{located}
    g = {address(0, 1, dtype)}
    x = {element}.to(tl.float64)
    tl.atomic_max(largest, tl.max(tl.abs(x).to(tl.int64, bitcast=True), axis=0))


@triton.jit
def {SUM_SQUARES}(table, rows, largest, sums, CHUNK: tl.constexpr):
{located}
    word = tl.load(largest)
    if (word > 0) & (word < INFINITY_WORD):
        g = {address(0, 1, dtype)}
        x = {element}.to(tl.float64)
        scaled = x * power_of_two(-scaling_of(word))
        rest = scaled * scaled
        # Adding a number to one that is so large rounds it to a multiple of the unit of the last bit, which is that of a bin.
        constant = 1.5 * power_of_two(bins_of(word) - 31 + 52)
        for k in tl.static_range(3):
            rounded = rest + constant
            integers = rounded.to(tl.int64, bitcast=True) - constant.to(tl.int64, bitcast=True)
            tl.atomic_add(sums + k, tl.sum(integers, axis=0))
            rest = rest - (rounded - constant)
            constant = constant * HALF_WORD
'''
