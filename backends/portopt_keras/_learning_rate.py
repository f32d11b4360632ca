from __future__ import annotations

from typing import Any

import keras
import numpy as np

from portopt.backend import find_backend
from portopt.scalars import Scalar


class ScheduleOfSteps(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras is untyped
    """A portopt schedule as Keras sees it: for callbacks, logs and Keras' weight decay.

    The step itself evaluates the portopt schedule, in float64.
    """

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        step = keras.ops.convert_to_tensor(step)
        backend = find_backend(step)
        assert backend is not None
        arithmetic = backend.arithmetic([step])
        rate = self.schedule(Scalar(backend.scalar(step), arithmetic))
        return keras.ops.cast(rate.value if isinstance(rate, Scalar) else rate, keras.config.floatx())


def nearest(rate: float) -> float:
    """Return the value that Keras' learning-rate variable holds for a number."""
    floatx = keras.config.floatx()
    if floatx == "bfloat16":
        import ml_dtypes

        return float(ml_dtypes.bfloat16(rate))
    return float(np.dtype(floatx).type(rate))
