"""The counts of parameters' states, their numbers of finished steps and scalars, where those lie on the device for CUDA graphs.

Parameters that move together share the tensors of their counts, which a step overwrites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from portopt import Optimizer, OptimizerState
from portopt_torch._backend import backend
from portopt_torch._saved_state import finished_steps, number_of


def is_count(value: Any) -> bool:
    """Tell whether a number of a state lies on a device, where steps count."""
    return isinstance(value, torch.Tensor) and backend.graphs.has_number(value)


def count(name: str, value: Any, *, capturable: bool) -> Any:
    """Return a count of a state: the tensor that steps overwrite, or a number."""
    if capturable and is_count(value):
        return value
    return finished_steps("the state", value) if name == "step" else number_of("the state", name, value)


def put_on_device(rule: Optimizer, states: Iterable[tuple[Any, dict[str, Any]]]) -> None:
    """Put the counts of states that are on the host on the device, those of parameters alike in one tensor.

    Args:
        rule: the optimizer.
        states: of parameters, each with its parameter.

    Raises:
        ValueError: a parameter is not on a CUDA device.
    """
    made: dict[Any, Mapping[str, Any]] = {}
    for p, state in states:
        if "step" not in state or is_count(state["step"]):
            continue
        counts = {name: count(name, state[name], capturable=False) for name in ("step", *rule.scalar_slots)}
        key = (*counts.values(), p.device, p.dtype)
        if key not in made:
            scalars = {name: counts[name] for name in rule.scalar_slots}
            placed = rule.to_capturable([p.detach()], OptimizerState(counts["step"], scalars))
            made[key] = {"step": placed.step, **{name: placed.slots[name] for name in scalars}}
        state.update(made[key])


def separate(rule: Optimizer, parts: Sequence[Sequence[dict[str, Any]]], others: Iterable[Mapping[str, Any]]) -> None:
    """Give each part of the parameters that move counts of its own, which no state of another parameter has.

    Args:
        rule: the optimizer.
        parts: the states of those that move, by what takes a step together.
        others: the states of those that do not move.

    Raises:
        RuntimeError: a count is to be separated while a graph is captured.
    """
    taken = {id(state.get("step")) for state in others}
    for states in parts:
        step = states[0]["step"]
        if id(step) in taken:
            reason = "the parameters that have gradients are others than before, so their step is counted apart from now on: do "
            backend.graphs.refuse_capture(
                [step], f"{reason}a step with these gradients before the capture, as a warm-up"
            )
            own = {name: states[0][name].clone() for name in ("step", *rule.scalar_slots)}
            for state in states:
                state.update(own)
        taken.add(id(states[0]["step"]))
