"""Keras 3's optimizers on every setting that it has a class for, in float64.

For JAX with x64, the only one of its backends that keeps float64 where float64 is asked for.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import keras
import numpy as np
from support.dialect_settings import APART, gradients, parameters, rate_at, settings


def class_of(rule: str) -> Any:
    """Return the class of Keras that has a rule's name, whatever its case; None if there is none."""
    return next((value for name, value in vars(keras.optimizers).items() if name.lower() == rule.lower()), None)


def trajectory(rule: str, arguments: dict[str, Any]) -> list[list[Any]]:
    """Return the parameters after each step, as nested lists."""
    optimizer = class_of(rule)(**arguments)
    rate = float(optimizer.learning_rate)
    variables = [keras.Variable(p, dtype="float64") for p in parameters()]
    optimizer.build(variables)
    found = []
    for step, gradient in enumerate(gradients()):
        optimizer.learning_rate = rate_at(step, arguments.get("learning_rate", rate))
        optimizer.apply([keras.ops.convert_to_tensor(g, "float64") for g in gradient], variables)
        found.append([np.asarray(v.value).tolist() for v in variables])
    return found


def defaults(rule: str) -> dict[str, Any]:
    signature = inspect.signature(class_of(rule))
    return {name: p.default for name, p in signature.parameters.items() if isinstance(p.default, bool | float)}


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Return means in the dtype of `x`; Keras takes them in float32, of float64 too."""
    return jax.numpy.mean(keras.ops.convert_to_tensor(x), axis=axis, keepdims=keepdims)


def results() -> dict[str, Any]:
    """Return the defaults of each optimizer, and its trajectory on each setting."""
    keras.backend.set_floatx("float64")
    keras.src.backend.numpy.mean = mean
    chosen = [setting for setting in settings("keras3") if setting[0] not in APART and class_of(setting[0]) is not None]
    return {
        "defaults": {rule: defaults(rule) for rule, _, _ in chosen},
        "trajectories": {f"{r}/{n}": trajectory(r, dict(given)) for r, n, given in chosen},
    }
