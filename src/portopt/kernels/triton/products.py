"""What a product of matrices is made of beside the product itself, as Triton kernels for a compute dtype."""

from __future__ import annotations

import functools

from portopt.kernels.names import COLUMNS_SLICED, RESCALED, ROWS_SLICED
from portopt.kernels.passes import ACROSS
from portopt.kernels.triton.source import IMPORTS
from portopt.program.products import SLICES

_INTEGERS = {"float32": ("n11",), "float64": ("n11", "n12", "n21", "n13", "n31", "n22")}


@functools.cache
def products_source(compute_dtype: str) -> str:
    """Return the source of the kernels that slice operands of a compute dtype and scale their integer products back."""
    lines, shape = "lines, count, beside, bits", "size, row_count, column_count, bits"
    integers = _INTEGERS[compute_dtype]
    loads = "\n".join(f"    {n} = tl.load({n} + i, mask=inside, other=0.0)" for n in integers)
    total = "n11" if len(integers) == 1 else f"total_of({', '.join(integers)}, bits)"
    kernels = [
        f"""\
@triton.jit(do_not_specialize={lines.split(", ")})
def {kernel}(x, integers, factors, {lines}, CHUNK: tl.constexpr):
    sliced(x, integers, factors, {lines}, {across}, {SLICES[compute_dtype]}, CHUNK)
"""
        for kernel, across in ((ROWS_SLICED, 1), (COLUMNS_SLICED, ACROSS))
    ]
    head = f'"""Products of matrices in {compute_dtype}, beside the products of integers."""\n\n{IMPORTS.rstrip()}'
    return "\n\n".join(
        [
            f"{head}\nfrom portopt.kernels.triton.product_support import *\n",
            *kernels,
            f"""\
@triton.jit(do_not_specialize={shape.split(", ")})
def {RESCALED}({", ".join(integers)}, rows, columns, results, {shape}, CHUNK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    inside = i < size
    row, column = factors_of(rows, columns, i, inside, row_count, column_count)
{loads}
    tl.store(results + i, scaled_back_{compute_dtype}({total}, row, column), mask=inside)
""",
        ]
    )
