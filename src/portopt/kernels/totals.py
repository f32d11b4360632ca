"""Totals over all parameters as programs whose result is a reduction: what kernels find of parts combines exactly."""

from __future__ import annotations

import functools

from portopt.kernels.passes import can_pass, passes_of
from portopt.program import Kind, Op, Program


@functools.lru_cache(maxsize=512)
def reducing(part: Program, name: str) -> Program:
    """Return the program that reduces an array.

    Args:
        part: computes the array, `"x"`.
        name: of the reduction: `"sum"`, `"norm"`, `"max"` or `"min"`.
    """
    index = len(part.ops)
    reduced = Op(name, Kind.FLOAT, (part.array_outputs["x"],))
    return Program(part.name, (*part.ops, reduced), {}, {"x": index})


@functools.lru_cache(maxsize=512)
def can_total(program: Program) -> bool:
    """Tell whether kernels of a GPU can reduce the arrays of all parameters together, given what `reducing` returned.

    They leave the parts of all parameters in one row, so there is room for nothing else of a parameter.
    """
    if not can_pass(program):
        return False
    passes = passes_of(program)
    kinds = [step.kind for step in passes.passes]
    return kinds == ["chunks", "scalars"] and len(passes.scalar_places) == 1 and not passes.stored
