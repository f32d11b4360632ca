"""Products of matrices, and arrays seen in other shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from portopt.program.builder import UnsupportedOperationError
from portopt.program.ir import Dim, Kind
from portopt.program.tracing.shapes import all_dims, length, shortened
from portopt.program.tracing.symbol import Recorder, array_argument, index_of, recorder_of


def matmul(a: Any, b: Any) -> Any:
    """Record a product of matrices."""
    left, right = (array_argument("matmul", x) for x in (a, b))
    recorder = recorder_of(left)
    indices = [index_of(x) for x in (left, right)]
    first, second = (all_dims(recorder, i) for i in indices)
    if any(recorder.ops[i].kind is Kind.MASK for i in indices):
        raise UnsupportedOperationError("a rule gave @ a mask, the result of a comparison: use xp.where(mask, a, b)")
    if min(len(first), len(second)) < 2:
        raise UnsupportedOperationError(
            f"a rule used @ on arrays of {len(first)} and {len(second)} axes, but it takes matrices, of two axes or more: ask "
            "p.ndim first, as in `if p.ndim >= 2`; the product of two vectors is xp.sum(a * b)"
        )
    facts = recorder.facts
    if first[-1] != second[-2] and length(facts, first[-1]) != length(facts, second[-2]):
        raise UnsupportedOperationError(
            f"a rule used @ on arrays of shapes {left.shape} and {right.shape}: the last axis of the first must be as long as "
            "the last but one of the second"
        )
    shapes = [first[:-2], second[:-2]]
    batch: list[Dim] = []
    for position in range(-max(map(len, shapes)), 0):
        lengths = [dims[position] for dims in shapes if len(dims) >= -position]
        long = next((dim for dim in lengths if dim != -1), -1)
        if any(dim not in (-1, long) and length(facts, dim) != length(facts, long) for dim in lengths):
            raise UnsupportedOperationError(
                f"a rule used @ on arrays of shapes {left.shape} and {right.shape}, whose leading axes do not broadcast"
            )
        batch.append(long)
    dims = shortened(recorder, (*batch, first[-2], second[-1]))
    return type(left)(recorder, recorder.record("matmul", Kind.ARRAY, *indices, dims=dims))


def identity(recorder: Recorder, rows: Any, columns: Any, offset: Any) -> int:
    """Record an identity matrix and return the index of the operation."""
    try:
        count = operator.index(rows)
    except TypeError:
        raise UnsupportedOperationError(
            f"a rule called xp.eye with {rows!r:.80} rows, but the number is fixed in the program: give it an integer, such as "
            "one of p.shape"
        ) from None
    if count < 0 or columns not in (None, count) or offset != 0:
        raise UnsupportedOperationError(
            f"a rule called xp.eye({count}, {columns!r:.80}, k={offset!r:.80}), but programs can hold square matrices with "
            "ones on the main diagonal, xp.eye(n), of 0 rows or more"
        )
    # As long as an axis of the parameter, if that is fixed in the program anyway: operands of one shape are computed together.
    axes = recorder.facts.asked.get("shape", ())
    dim: Dim = -1 if count == 1 else axes.index(count) if count in axes else str(count)
    dims, label = (dim, dim), (str(count), str(count))
    # A number that compilers do not know: one that they know is simplified with others as if arithmetic were exact.
    return recorder.record("eye", Kind.ARRAY, recorder.rounded_constant(1.0), label=label, dims=dims)


def permuted(x: Any, axes: Sequence[int]) -> Any:
    """Record another order of axes."""
    x = array_argument("permute_dims", x)
    recorder, index = recorder_of(x), index_of(x)
    dims, order = all_dims(recorder, index), tuple(operator.index(a) for a in axes)
    if sorted(order) != list(range(len(dims))):
        raise UnsupportedOperationError(
            f"a rule called xp.permute_dims with the axes {order} on an array of {len(dims)} axes: each must be given once"
        )
    permuted = shortened(recorder, tuple(dims[a] for a in order))
    return type(x)(recorder, recorder.record("transpose", recorder.ops[index].kind, index, label=order, dims=permuted))


def matrix_transpose(x: Any) -> Any:
    """Record the exchange of the last two axes."""
    ndim = array_argument("matrix_transpose", x).ndim
    if ndim < 2:
        raise UnsupportedOperationError(
            f"a rule used .mT on an array of {ndim} axes, but only matrices, of two axes or more, have it: ask p.ndim first"
        )
    return permuted(x, (*range(ndim - 2), ndim - 1, ndim - 2))


def reshaped(x: Any, shape: Any) -> Any:
    """Record another shape of the same elements."""
    x = array_argument("reshape", x)
    recorder, index = recorder_of(x), index_of(x)
    lengths = [operator.index(n) for n in (shape if isinstance(shape, tuple | list) else (shape,))]
    known = math.prod(n for n in lengths if n != -1)
    if lengths.count(-1) == 1 and known and x.size % known == 0:
        lengths[lengths.index(-1)] = x.size // known
    if math.prod(lengths) != x.size or min(lengths, default=0) < 0:
        raise UnsupportedOperationError(
            f"a rule called xp.reshape with the shape {shape!r} on an array of shape {x.shape}: the number of elements must stay"
        )
    if tuple(lengths) == recorder.facts.shape:
        dims: tuple[Dim, ...] | None = None
        label: tuple[Dim, ...] = tuple(range(len(lengths)))
    else:
        dims = label = tuple(str(n) if n != 1 else -1 for n in lengths)
    return type(x)(recorder, recorder.record("reshape", recorder.ops[index].kind, index, label=label, dims=dims))
