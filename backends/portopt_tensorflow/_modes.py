"""Steps inside `tf.function`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portopt.backend import Mode, Step
from portopt.optimizer import OptimizerState

if TYPE_CHECKING:
    from portopt.optimizer import Optimizer


def _in_graph(optimizer: Optimizer) -> Step:
    @tf.function(autograph=False)
    def graph(params: Any, grads: Any, slots: Any, step: Any, hyperparameters: Any) -> Any:
        params, state = optimizer.apply(params, grads, OptimizerState(step, slots), **hyperparameters)
        return params, state.slots, state.step

    def step(params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any) -> tuple[Any, OptimizerState]:
        slots = {name: _symbolic(value) for name, value in state.slots.items()}
        given = {name: _symbolic(value) for name, value in hyperparameters.items()}
        params, slots, finished = graph(params, grads, slots, tf.cast(state.step, tf.int64), given)
        return params, OptimizerState(finished, slots)

    return step


def _symbolic(value: Any) -> Any:
    return tf.constant(np.float64(value)) if isinstance(value, int | float) else value


FUNCTION = Mode("function", _in_graph, compiled=True)
