"""The state as the flat list of arrays of Keras 2.3.1's `get_weights`, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from portopt.backend import find_backend
from portopt.dialects import Dialect
from portopt.leaves import leaves_of_slot
from portopt.state import OptimizerState

DIALECT: Dialect = "keras2"
"""The dialect whose lists these are."""


class KerasRule(Protocol):
    """What the lists of Keras depend on."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that the rule keeps for each parameter."""

    @property
    def scalar_slots(self) -> Mapping[str, float]:
        """Names of the scalars that it keeps for all parameters together."""

    @property
    def keras_placeholder_slots(self) -> tuple[str, ...]:
        """Slots that Keras lists after `slots` as zeros."""

    @property
    def keras_short_list(self) -> tuple[int, float] | None:
        """Index and value of the weight that the lists of Keras 2.2.4 lack."""

    def dialects(self) -> tuple[str, ...]:
        """Return the names of the dialects that it can have."""


def has_keras_weights(optimizer: KerasRule) -> bool:
    """Tell whether an optimizer has Keras 2's list of weights: in its dialect, and without any dialect."""
    return getattr(optimizer, "dialect", DIALECT) == DIALECT


def get_weights(optimizer: KerasRule, state: OptimizerState) -> list[npt.NDArray[Any]]:
    """Return the state as Keras 2.3.1's list; see `Optimizer.get_weights`."""
    if not has_keras_weights(optimizer):
        dialect = getattr(optimizer, "dialect", None)
        choice = f", or choose dialect={DIALECT!r}" if DIALECT in optimizer.dialects() else ""
        raise ValueError(
            f"get_weights and set_weights are about the lists of Keras 2, but the dialect of this {type(optimizer).__name__} is "
            f"{dialect!r}: keep the state itself{choice}"
        )
    weights = [np.asarray(int(state.step), np.int64)]
    weights += [np.asarray(_concrete_scalar(state.slots[name]), np.float64) for name in optimizer.scalar_slots]
    count = 0
    for name in _held(optimizer, state):
        backend, leaves, _ = leaves_of_slot(state.slots[name])
        arrays = [backend.to_numpy(leaf) for leaf in leaves if leaf is not None]
        weights += arrays
        count = len(arrays)
    return weights + [np.zeros(1, np.float32) for _ in optimizer.keras_placeholder_slots for _ in range(count)]


def _held(optimizer: KerasRule, state: OptimizerState) -> list[str]:
    """Return the names of the slots that some parameter has."""
    return [str(name) for name in optimizer.slots if name in state.slots]


def _concrete_scalar(value: Any) -> float:
    backend = find_backend(value)
    return float(value if backend is None else backend.scalar(value))


def set_weights(optimizer: KerasRule, state: OptimizerState, weights: Sequence[object]) -> OptimizerState:
    """Return `state` with the values of such a list; see `Optimizer.set_weights`."""
    expected = get_weights(optimizer, state)
    values = [np.asarray(w) for w in weights]
    if optimizer.keras_short_list is not None and len(values) == len(expected) - 1:
        index, missing = optimizer.keras_short_list
        values.insert(index, np.asarray(missing))
    if len(values) != len(expected):
        raise ValueError(
            f"{type(optimizer).__name__} has {len(expected)} weights for these parameters, but a list of {len(weights)} was "
            "given; it must come from get_weights of the same optimizer with parameters of the same shapes"
        )
    for i, (new, old) in enumerate(zip(values, expected, strict=True)):
        if new.shape != old.shape:
            raise ValueError(f"weight {i} must have shape {old.shape}, but an array of shape {new.shape} was given")
    remaining = iter(values)
    step = _step_number(next(remaining))
    slots: dict[str, Any] = {}
    for name in optimizer.scalar_slots:
        slots[name] = _like_stored(state.slots[name], float(next(remaining)))
    for name in _held(optimizer, state):
        backend, leaves, definition = leaves_of_slot(state.slots[name])
        new_leaves = []
        for leaf in leaves:
            if leaf is not None:
                info = backend.describe(leaf)
                dtype = backend.to_numpy(leaf).dtype
                leaf = backend.from_numpy(next(remaining).astype(dtype), info.device)
            new_leaves.append(leaf)
        slots[name] = backend.trees.unflatten(definition, new_leaves)
    return type(state)(step, slots)


def _step_number(weight: npt.NDArray[Any]) -> int:
    value = float(weight)
    if not math.isfinite(value) or value < 0 or value != int(value):
        raise ValueError(f"weight 0 is the number of finished steps, an integer of at least 0, but {value} was given")
    return int(weight)


def _like_stored(stored: Any, value: float) -> Any:
    backend = find_backend(stored)
    return value if backend is None else backend.stored_scalar(value)
