"""The step on Keras' JAX backend: values in, values out, inside the jit of Keras' trainer or outside of any."""

from __future__ import annotations

from typing import Any

import keras

from portopt.optimizer import OptimizerState


def tensor(value: Any) -> Any:
    """Return what a variable of Keras holds."""
    return keras.ops.convert_to_tensor(value)


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
    gradients = [keras.ops.convert_to_tensor(g, sparse=False) for g in gradients]
    values = {name: [None if variable is None else variable.value for variable in of] for name, of in slots.items()}
    words = {name: variable.value for name, variable in scalars.items()}
    state = OptimizerState(tensor(optimizer.iterations), {**values, **words})
    given = {name: [None if x is None else tensor(x) for x in of] for name, of in inputs.items()}
    params, state = step(params, gradients, state, given)
    for variable, value in zip(variables, params, strict=True):
        variable.assign(value)
    for name, of in slots.items():
        for variable, value in zip(of, state.slots[name], strict=True):
            if variable is not None:
                variable.assign(value)
    for name, variable in scalars.items():
        variable.assign(state.slots[name])
