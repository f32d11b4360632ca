"""What a product of matrices is made of, in CUDA C: the kernels of `products.cuh`, and of `multiplied.cuh` the product itself."""

from __future__ import annotations

import functools

from portopt.kernels.cuda.source import LANGUAGE, THREADS, common_source, defines, reductions_source, source_file
from portopt.kernels.passes import ACROSS
from portopt.program.products import SLICES

MULTIPLIED_TILE = 64
"""Rows, and columns, of a product that a block computes at once."""


@functools.cache
def multiplied_source() -> str:
    """Return the source of the kernel that multiplies matrices of integers."""
    constants = {"THREADS": THREADS, "TILE": MULTIPLIED_TILE}
    return "\n".join([*defines(constants), "", source_file("multiplied.cuh")])


@functools.cache
def products_source(compute_dtype: str) -> str:
    """Return the source of the kernels that slice operands of a compute dtype and scale their integer products back."""
    return "\n".join(
        [
            f"// Products of matrices in {compute_dtype}, beside the products of integers.",
            common_source(),
            f"#define ACROSS {ACROSS}",
            f"#define SLICES {SLICES[compute_dtype]}",
            f"typedef {LANGUAGE.storage[compute_dtype]} real;\n",
            reductions_source(),
            source_file("products.cuh"),
        ]
    )
