"""Segments of programs with products, run by compiled kernels on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portopt.arithmetic import HOST
from portopt.kernels.host import kernel, memory, products
from portopt.program import Program
from portopt.program.interpreter import StepScalars

_LEAST_IN_THREADS = 1 << 23
"""Elements of the smallest arrays that threads share: for fewer, compiling what they do is not worth its while."""


def run(
    program: Program, compute_dtype: str, arrays: Sequence[Any], dtypes: Sequence[str], scalars: Sequence[float]
) -> list[Any]:
    """Return the results of a segment.

    Args:
        program: the segment's.
        compute_dtype: the dtype of the arithmetic, and of the results.
        arrays: the segment's, of one shape; they may show their bits as integers of the size of their dtypes.
        dtypes: names of the arrays' dtypes.
        scalars: the segment's.
    """
    names = tuple(program.array_outputs)
    outputs = {name: memory.empty(arrays[0].shape, compute_dtype) for name in names}
    # Kernels have places for a parameter and a gradient, and for what each result replaces; a segment reads none of them.
    unread = dict.fromkeys(("p", "g", *names), outputs[names[0]])
    given = {f"x{k}": products.dense(array) for k, array in enumerate(arrays)}
    of = {**dict.fromkeys(unread, compute_dtype), **dict(zip(given, dtypes, strict=True))}
    inputs = StepScalars(program, HOST, {f"s{k}": value for k, value in enumerate(scalars)})
    in_this_thread = arrays[0].size < _LEAST_IN_THREADS
    job = kernel.Job(program, inputs, [of], [{**unread, **given}], [outputs])
    kernel.update([job], in_this_thread=in_this_thread)
    return list(outputs.values())
