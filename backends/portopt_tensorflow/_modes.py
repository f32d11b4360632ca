"""Steps inside `tf.function`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from portopt.backend import Step
from portopt.optimizer import OptimizerState
from portopt_tensorflow._namespace import asarray

if TYPE_CHECKING:
    from portopt.optimizer import Optimizer


def in_graph(optimizer: Optimizer, *, jit_compile: bool) -> Step:
    """Return a step that is one function of TensorFlow."""

    @tf.function(autograph=False, jit_compile=jit_compile)  # type: ignore[untyped-decorator]  # tensorflow is untyped
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
    return asarray(value, dtype=tf.float64) if isinstance(value, int | float) else value
