"""The step on Keras' TensorFlow backend: in the graph of Keras' trainer, or eagerly; under a distribution strategy as well."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

import portopt_tensorflow  # noqa: F401  # makes portopt take the arrays of TensorFlow
from portopt.optimizer import OptimizerState


def tensor(value: Any) -> Any:
    """Return what a variable of Keras holds."""
    return tf.convert_to_tensor(_resource(value))


def update(
    optimizer: Any,
    variables: list[Any],
    gradients: list[Any],
    slots: dict[str, Any],
    scalars: dict[str, Any],
    inputs: dict[str, list[Any]],
    step: Any,
) -> None:
    variables = [_resource(variable) for variable in variables]
    pairs = optimizer._all_reduce_sum_gradients(list(zip(gradients, variables, strict=True)))
    params = [tensor(variable) for variable in variables]
    gradients = [_dense(gradient, p) for (gradient, _), p in zip(pairs, params, strict=True)]
    values = {name: [None if variable is None else tensor(variable) for variable in of] for name, of in slots.items()}
    numbers = {name: tf.bitcast(tensor(v), tf.float64) for name, v in scalars.items()}
    state = OptimizerState(tensor(optimizer.iterations), {**values, **numbers})
    given = {name: _summed(optimizer, of, variables, params) for name, of in inputs.items()}
    params, state = step(params, gradients, state, given)

    written = list(zip(variables, params, strict=True))
    for name, of in slots.items():
        pairs = zip(of, state.slots[name], strict=True)
        written += [(_resource(variable), value) for variable, value in pairs if variable is not None]
    for name, variable in scalars.items():
        # Without its type, a Python float would become a float32.
        words = tf.bitcast(tf.convert_to_tensor(state.slots[name], tf.float64), tf.uint32)
        written.append((_resource(variable), words))
    # Each replica has computed the same values from its own copies; only an update across all of them may write.
    strategy = optimizer._distribution_strategy
    tf.__internal__.distribute.interim.maybe_merge_call(_write, strategy, written)


def _summed(optimizer: Any, given: list[Any], variables: list[Any], params: list[Any]) -> list[Any]:
    """Return an input of each variable or None, added up over the replicas as gradients are."""
    pairs = optimizer._all_reduce_sum_gradients(
        [(x, v) for x, v in zip(given, variables, strict=True) if x is not None]
    )
    summed = iter(pairs)
    return [None if x is None else _dense(next(summed)[0], p) for x, p in zip(given, params, strict=True)]


def _write(strategy: Any, written: list[tuple[Any, Any]]) -> None:
    for variable, value in written:
        strategy.extended.update(variable, lambda own, new: own.assign(new), args=(value,), group=False)


def _resource(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _dense(gradient: Any, parameter: Any) -> Any:
    """Return a gradient as a tensor of the shape of its parameter: an embedding's has only the rows that were looked up."""
    return tf.ensure_shape(tf.convert_to_tensor(gradient), parameter.shape)
