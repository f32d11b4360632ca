"""The norm of all gradients together, in CUDA C: the kernels of `norm_kernels.cuh` for gradients of a dtype."""

from __future__ import annotations

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.cuda.source import LANGUAGE, bins_source, common_source, source_file


def norm_source(dtype: str) -> str:
    """Return the source of the kernels that reduce gradients of a dtype to what their norm is computed from."""
    loaded = LANGUAGE.loaded(dtype, COMPUTE_DTYPE[dtype], "g")
    return "\n".join(
        [
            f"// The norm of gradients in {dtype}.",
            common_source(),
            bins_source(),
            f"typedef {LANGUAGE.storage[dtype]} gradient;",
            "",
            f"__device__ __forceinline__ double load(gradient g) {{ return (double){loaded}; }}",
            "",
            source_file("norm_kernels.cuh"),
        ]
    )
