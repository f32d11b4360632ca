"""Parts of totals over all parameters, joined, in CUDA C: the kernels of `totals.cuh`."""

from __future__ import annotations

import functools

from portopt.kernels.cuda.source import bins_source, common_source, source_file


@functools.cache
def totals_source() -> str:
    """Return the source of the kernels that join parts of totals."""
    files = ("reductions.cuh", "totals.cuh")
    heads = ["// Parts of totals over all parameters.", common_source(), bins_source()]
    return "\n".join([*heads, *map(source_file, files)])
