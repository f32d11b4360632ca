from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import keras
import numpy as np

from portopt.backend import find_backend
from portopt.scalars import Scalar
from portopt.schedules import configuration_of, rate_at


class ScheduleOfSteps(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras is untyped
    """A portopt schedule as Keras sees it: for callbacks, logs and Keras' weight decay.

    The step itself evaluates the portopt schedule, in float64.
    """

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        return keras.ops.cast(rate_at(self.schedule, scalar_of(step)), keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        """Return the schedule as `portopt` serialises it."""
        return configuration_of(self.schedule)


def on_keras_backend() -> ModuleType:
    """Return the module for the backend that Keras runs on."""
    name = keras.backend.backend()
    if name not in ("jax", "torch", "tensorflow"):
        raise ValueError(
            f"portopt_keras trains on Keras' jax, torch and tensorflow backends, but Keras runs on {name!r}: set the environment "
            "variable KERAS_BACKEND before Keras is imported"
        )
    return importlib.import_module(f"portopt_keras._on_{name}")


def scalar_of(value: Any) -> Scalar:
    """Return a number that a variable or tensor of Keras holds, known now or not, with the arithmetic for it."""
    tensor = on_keras_backend().tensor(value)
    backend = find_backend(tensor)
    assert backend is not None
    return Scalar(backend.scalar(tensor), backend.arithmetic([tensor]))


def nearest(rate: float) -> float:
    """Return the value that Keras' learning-rate variable holds for a number."""
    floatx = keras.config.floatx()
    if floatx == "bfloat16":
        import ml_dtypes

        return float(ml_dtypes.bfloat16(rate))
    return float(np.dtype(floatx).type(rate))
