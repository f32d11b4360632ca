"""Shapes of recorded arrays: each axis is as long as one of the parameter's, or has a length of its own."""

from __future__ import annotations

from collections.abc import Sequence

from portopt.program.builder import UnsupportedOperationError
from portopt.program.facts import Facts
from portopt.program.ir import Dim
from portopt.program.tracing.symbol import Recorder


def length(facts: Facts, dim: Dim) -> int:
    """Return the length of an axis."""
    if isinstance(dim, str):
        return int(dim)
    return 1 if dim == -1 else facts.shape[dim]


def all_dims(recorder: Recorder, index: int) -> tuple[Dim, ...]:
    """Return the shape of an operation's result, written out if it is the parameter's."""
    dims = recorder.ops[index].dims
    return tuple(range(recorder.facts.ndim)) if dims is None else dims


def shortened(recorder: Recorder, dims: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """Return a shape as operations have it: None if it is the parameter's."""
    return None if dims == tuple(range(recorder.facts.ndim)) else dims


def shape_of(recorder: Recorder, index: int) -> tuple[int, ...]:
    """Return the shape of an operation's result in numbers, which are fixed in the program from then on."""
    dims = recorder.ops[index].dims
    return recorder.facts.shape if dims is None else tuple(length(recorder.facts, dim) for dim in dims)


def shape_text(recorder: Recorder, dims: tuple[Dim, ...] | None) -> str:
    """Return a shape in words."""
    return "of the parameter" if dims is None else str(tuple(length(recorder.facts, dim) for dim in dims))


def common_dims(recorder: Recorder, name: str, operands: Sequence[int]) -> tuple[Dim, ...] | None:
    """Return the shape of what an operation makes of each element of arrays that broadcast to it."""
    arrays = [i for i in operands if recorder.ops[i].name not in ("round", "condition")]
    if all(recorder.ops[i].dims is None for i in arrays):
        return None
    shapes = [all_dims(recorder, i) for i in arrays]
    result: list[Dim] = []
    for position in range(-max(map(len, shapes)), 0):
        lengths = [dims[position] for dims in shapes if len(dims) >= -position]
        long = next((dim for dim in sorted(lengths, key=str) if dim != -1), -1)
        if any(
            dim not in (-1, long) and length(recorder.facts, dim) != length(recorder.facts, long) for dim in lengths
        ):
            described = " and ".join(str(shape_of(recorder, i)) for i in arrays)
            raise UnsupportedOperationError(
                f"a rule gave xp.{name} arrays of shapes {described}, which do not broadcast to each other"
            )
        result.append(next((dim for dim in lengths if isinstance(dim, int) and dim != -1), long))
    return shortened(recorder, tuple(result))
