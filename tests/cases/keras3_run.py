"""Runs Keras 3's optimizers on every setting and prints the trajectories as JSON: a process of its own, as Keras has one backend.

Rules that have no class of their name there are left out. The backend is JAX with x64, the only one of Keras 3 that keeps
float64 where float64 is asked for.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import Any

os.environ.update(KERAS_BACKEND="jax", JAX_ENABLE_X64="1", JAX_PLATFORMS="cpu")

import keras
import numpy as np
from support.dialect_settings import gradients, parameters, rate_at, settings


def trajectory(rule: str, arguments: dict[str, Any]) -> list[list[Any]]:
    """Return the parameters after each step, as nested lists."""
    optimizer = getattr(keras.optimizers, rule)(**arguments)
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
    signature = inspect.signature(getattr(keras.optimizers, rule))
    return {name: p.default for name, p in signature.parameters.items() if isinstance(p.default, bool | float)}


def main() -> None:
    keras.backend.set_floatx("float64")
    chosen = [setting for setting in settings("keras3") if hasattr(keras.optimizers, setting[0])]
    json.dump(
        {
            "defaults": {rule: defaults(rule) for rule, _, _ in chosen},
            "trajectories": {f"{r}/{n}": trajectory(r, dict(given)) for r, n, given in chosen},
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
