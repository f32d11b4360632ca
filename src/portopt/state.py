"""`OptimizerState`: what an optimizer carries from step to step."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

from portopt.scalars import MOST_STEPS


class OptimizerState(NamedTuple):
    """What an optimizer carries from step to step.

    Attributes:
        step: number of finished steps, a Python int (a traced or concrete 0-d integer array under JAX's transformations); at
            most 2**31 - 1.
        slots: slot name to a tree shaped like the parameters, its arrays in the compute dtype. Scalars of the state, such
            as Nadam's `m_schedule`, are Python floats (two uint32 words that hold the float64 under JAX).
    """

    step: Any
    slots: dict[str, Any]


def finished_steps(step: Any, *, further: int = 0) -> int:
    """Return the number of finished steps, after checking that `further` ones can be counted."""
    try:
        finished = operator.index(step)
    except TypeError:
        raise TypeError(
            f"state.step must be an integer, the number of finished steps, but {step!r} was given"
        ) from None
    if finished < 0:
        raise ValueError(f"state.step must be at least 0, but {finished} was given")
    if finished > MOST_STEPS - further:
        given = finished if finished < 2**128 else "a number of more than 128 bits"
        raise ValueError(
            f"state.step must be at most {MOST_STEPS - further}{' before a step' * bool(further)}, but {given} was given: "
            f"portopt counts {MOST_STEPS} steps, the most that every library can; begin anew with the state from init"
        )
    return finished
