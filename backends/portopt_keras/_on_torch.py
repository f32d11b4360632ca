"""The step on Keras' torch backend: in place, on the tensors of the variables."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import in_stateless_scope

from portopt.optimizer import OptimizerState


def tensor(value: Any) -> Any:
    """Return what a variable of Keras holds."""
    return keras.ops.convert_to_tensor(value)


def _not_compiled(function: Any) -> Any:
    """Keep a function out of `torch.compile`, which Keras applies to a whole training step: its bits would differ."""
    if keras.backend.backend() != "torch":
        # Torch's compiler, imported after TensorFlow, can end the process.
        return function
    import torch

    return torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # of torch


@_not_compiled
def update(
    optimizer: Any,
    variables: list[Any],
    gradients: list[Any],
    slots: dict[str, Any],
    scalars: dict[str, Any],
    inputs: dict[str, list[Any]],
    step: Any,
) -> None:
    params = [variable.value for variable in variables]
    gradients = [keras.ops.convert_to_tensor(g) for g in gradients]
    arrays = {name: [None if variable is None else variable.value for variable in of] for name, of in slots.items()}
    numbers = {name: _number(variable) for name, variable in scalars.items()}
    state = OptimizerState(int(optimizer.iterations), {**arrays, **numbers})
    given = {name: [None if x is None else tensor(x) for x in of] for name, of in inputs.items()}
    if in_stateless_scope():
        # There the tensors are the caller's own, who expects new ones.
        params, state = step(params, gradients, state, given)
        for variable, value in zip(variables, params, strict=True):
            variable.assign(value)
        for name, of in slots.items():
            for variable, value in zip(of, state.slots[name], strict=True):
                if variable is not None:
                    variable.assign(value)
    else:
        _, state = step(params, gradients, state, given, in_place=True)
    for name, variable in scalars.items():
        variable.assign(_words(state.slots[name]))


def _number(variable: Any) -> float:
    """Return the float64 that two words hold."""
    return float(keras.ops.convert_to_numpy(variable).astype(np.uint32).view(np.float64)[0])


def _words(number: float) -> Any:
    return np.float64(number).view((np.uint32, 2))
