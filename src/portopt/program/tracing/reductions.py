"""Reductions, whole and along axes."""

from __future__ import annotations

import operator
from typing import Any

from portopt.program.builder import Node, UnsupportedOperationError
from portopt.program.ir import Kind
from portopt.program.tracing.shapes import all_dims, shortened
from portopt.program.tracing.symbol import array_argument, index_of, is_mask, recorder_of
from portopt.scalars import Scalar


def reduced(function: str, name: str, x: Any, axis: Any, keepdims: Any, kind: Kind) -> Any:
    """Record a reduction; a whole one gives a scalar, one along axes an array in which these have length one."""
    x = array_argument(function, x)
    recorder, index = recorder_of(x), index_of(x)
    takes_mask = name in ("any", "all", "count")
    given_mask = is_mask(x)
    if given_mask is not takes_mask:
        remedy = (
            "use xp.count_nonzero, xp.any or xp.all" if given_mask else f"compare it first, as in xp.{function}(g > 0)"
        )
        raise UnsupportedOperationError(
            f"a rule gave xp.{function} {'a mask, the result of a comparison' if given_mask else 'an array that is no mask'}: "
            f"{remedy}"
        )
    if axis is None and not keepdims:
        return Scalar(Node(recorder.record(name, kind, index)), recorder)
    if not keepdims:
        raise UnsupportedOperationError(
            f"a rule called xp.{function} with axis={axis!r} and without keepdims=True: give keepdims=True, so that the result "
            "broadcasts with the parameter"
        )
    dims = all_dims(recorder, index)
    axes = tuple(range(len(dims))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(operator.index(a) for a in axes)
    if wrong := [a for a in axes if not -len(dims) <= a < len(dims)]:
        raise UnsupportedOperationError(
            f"a rule called xp.{function} along axis {wrong[0]} of an array of {len(dims)} axes, which it does not have: "
            "ask p.ndim first, as in `if p.ndim >= 2`"
        )
    summed = tuple(sorted({a % len(dims) for a in axes}))
    kept = tuple(-1 if k in summed else dim for k, dim in enumerate(dims))
    along = Kind.MASK if kind is Kind.TRUTH else Kind.ARRAY
    return type(x)(recorder, recorder.record(name, along, index, label=summed, dims=shortened(recorder, kept)))
