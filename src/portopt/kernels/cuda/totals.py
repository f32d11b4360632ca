"""Parts of totals over all parameters, joined, in CUDA C: the kernels of `totals.cuh`."""

from __future__ import annotations

import functools

from portopt.kernels.cuda.source import common_source, reductions_source, source_file


@functools.cache
def totals_source() -> str:
    """Return the source of the kernels that join parts of totals."""
    parts = ["// Parts of totals over all parameters.", common_source(), reductions_source()]
    return "\n".join([*parts, source_file("totals.cuh")])
