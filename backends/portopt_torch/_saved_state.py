"""The state of one parameter as a `state_dict` holds it: checked, and kept from torch's conversions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch

from portopt import Optimizer
from portopt.arithmetic.dtypes import slot_dtypes
from portopt.program import Dim
from portopt.program.facts import Facts
from portopt.program.interpreter import shape_of
from portopt.slot import slot_dims, slots_of_shape
from portopt_torch._backend import backend
from portopt_torch._sharded import placement


class SealedState:
    """A parameter's state on its way through torch's `load_state_dict`, which would cast tensors to the parameter's dtype."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry


def checked_state(
    rule: Optimizer, entry: Mapping[str, Any], parameter: Any, current: Mapping[str, Any], key: object
) -> dict[str, Any]:
    """Return a copy of a saved state of one parameter.

    Args:
        rule: the optimizer.
        entry: the saved state.
        parameter: what it belongs to.
        current: the state that the parameter has now. Tensors that both hold are not copied.
        key: the name of the saved state, for errors.

    Raises:
        ValueError: names, shapes, placement or step count do not fit.
        TypeError: a dtype does not fit.
    """
    where = f"state[{key!r}] of the state_dict"
    shape = tuple(parameter.shape)
    expected = {"step", *rule.scalar_slots, *slots_of_shape(rule, shape)}
    # A feature that a group switched off meanwhile leaves its slots.
    allowed = expected.union(current)
    if not expected <= set(entry) <= allowed:
        raise ValueError(
            f"{where} has {', '.join(sorted(map(str, entry)))}, but {type(rule).__name__} with these options has "
            f"{', '.join(sorted(expected))}: load it into the optimizer that it was saved from"
        )
    scalars = {name: number_of(where, name, entry[name]) for name in rule.scalar_slots}
    slots = {
        name: _checked_slot(
            f"{where}: {name!r}",
            tensor_of(where, name, slot),
            parameter,
            slot_dims(rule, name, Facts(type(rule).__name__, shape)) if name in expected else None,
            current.get(name),
        )
        for name, slot in entry.items()
        if name != "step" and name not in scalars
    }
    return {"step": finished_steps(where, entry["step"]), **scalars, **slots}


def finished_steps(where: str, step: Any) -> int:
    """Return the `step` of a parameter's state, which may be a tensor, as an int; raise an error if it is no such number."""
    if type(step) is int and step >= 0:
        return step
    finished = number_of(where, "step", step)
    if not math.isfinite(finished) or finished < 0 or finished != int(finished):
        raise ValueError(f"{where}: 'step' must be a number of finished steps, 0 or more, but {step!r} was given")
    return int(step)


def number_of(where: str, name: str, value: Any) -> float:
    """Return a number of a parameter's state, which may be a tensor of one element, as a float."""
    is_one = isinstance(value, torch.Tensor) and value.numel() == 1
    if not is_one and (not isinstance(value, numbers.Real) or isinstance(value, bool)):
        raise TypeError(
            f"{where}: {name!r} must be a number, but {value!r:.80} of type {type(value).__name__} was given"
        )
    return float(value)


def tensor_of(where: str, name: str, value: Any) -> torch.Tensor:
    """Return a slot of a parameter's state, which must be a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{where}: {name!r} must be a tensor, but {value!r:.80} of type {type(value).__name__} was given"
        )
    return value


def _checked_slot(where: str, slot: Any, parameter: Any, dims: tuple[Dim, ...] | None, current: Any) -> Any:
    of_parameter = tuple(parameter.shape)
    shape = of_parameter if dims is None else shape_of(tuple(d for d in dims if d != -1), of_parameter)
    if slot.shape != shape:
        wanted = of_parameter if shape == of_parameter else f"{of_parameter}, whose slot of that name has {shape}"
        raise ValueError(f"{where} has shape {tuple(slot.shape)}, but its parameter has {wanted}")
    allowed = slot_dtypes(backend.dtype_name(parameter))
    if backend.dtype_name(slot) not in allowed:
        raise TypeError(
            f"{where} has dtype {slot.dtype}, but slots of a {parameter.dtype} parameter are {' or '.join(allowed)}"
        )
    if placement(slot) != placement(parameter, dims):
        raise ValueError(
            f"{where} is placed as {placement(slot)}, but its parameter as {placement(parameter)}: load it with "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, which distributes it"
        )
    if slot is current and slot.device == parameter.device:
        return slot
    return slot.detach().to(parameter.device, copy=True)
