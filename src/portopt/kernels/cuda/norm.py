"""The norm of all gradients together, in CUDA C: the kernel of `norm.cuh` for gradients of a dtype."""

from __future__ import annotations

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.cuda.source import LANGUAGE, common_source, reductions_source, source_file


def norm_source(dtype: str, words: int | None = None) -> str:
    """Return the source of the kernel that reduces gradients of a dtype to what their norm is computed from.

    Args:
        dtype: of the gradients.
        words: how many the table has in a launch's arguments; None if it lies in the device's memory.
    """
    real = COMPUTE_DTYPE[dtype]
    loaded = LANGUAGE.loaded(dtype, real, "g")
    return "\n".join(
        [
            f"// The norm of gradients in {dtype}.",
            common_source(words),
            reductions_source(),
            f"typedef {LANGUAGE.storage[dtype]} gradient;",
            f"typedef {LANGUAGE.storage[real]} real;",
            "",
            f"__device__ __forceinline__ real load(gradient g) {{ return {loaded}; }}",
            "",
            source_file("norm.cuh"),
        ]
    )
