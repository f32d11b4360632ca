"""Parts of totals over all parameters, joined, in CUDA C: the kernels of `totals.cuh` and `total_of_parts.cuh`."""

from __future__ import annotations

import functools

from portopt.kernels.cuda.source import common_source, reductions_source, source_file


@functools.cache
def totals_source() -> str:
    """Return the source of the kernels that join parts of totals."""
    parts = ["// Parts of totals over all parameters.", common_source(), reductions_source()]
    return "\n".join([*parts, source_file("totals.cuh")])


@functools.cache
def total_of_parts_source(reduction: str, real: str = "float64") -> str:
    """Return the source of the kernel that makes a total of what blocks have found of it, one at least.

    Args:
        reduction: `"sum"`, `"norm"` or `"max"`.
        real: the dtype of what is reduced; sums are float64 in any case.
    """
    part, nothing, total = {
        "sum": ("Sum", "no_sum(LOWEST_OF_SQUARES)", "sum_of(whole)"),
        "norm": ("Sum", "no_sum(LOWEST_OF_SQUARES)", "root_of(whole)"),
        "max": ("Largest", "parts[0]", f"number_of_{real}(whole.word)"),
    }[reduction]
    macros = [f"#define NOTHING {nothing}", f"#define TOTAL {total}", f"typedef {part} Part;", ""]
    return "\n".join([common_source(), reductions_source(), *macros, source_file("total_of_parts.cuh")])
