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
def {SUM_SQUARES}(table, rows, constants, largest, sums, CHUNK: tl.constexpr):
{located}
    word = tl.load(largest)
    if (word > 0) & (word < INFINITY_WORD):
        g = {address(0, 1, dtype)}
        x = {element}.to(tl.float64)
        exponent = (word >> 52) - 1023
        first = exponent >> 1
        scaled = (x * power_of_two(-first)) * power_of_two(first - exponent)
        rest = product_float64(scaled, scaled)
        for k in tl.static_range(3):
            constant = tl.load(constants + k)
            rounded = (rest + constant) - constant
            tl.atomic_add(sums + k, tl.sum(rounded, axis=0))
            rest = rest - rounded
'''
