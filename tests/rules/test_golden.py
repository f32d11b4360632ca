"""Keras 2.3.1's own trajectories, reproduced by NumPy in every mode, and in turns by every library in every mode.

Keras computed them in float64, in an order of operations that is nearly, not always exactly, ours. *Relative* means: the
difference from Keras, over the largest magnitude that this tensor has had up to this step. An element that passes through zero
carries the rounding errors of what it was before, so its own magnitude would be the wrong measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.bits import Array
from support.golden import TRAJECTORIES, Trajectory
from support.libraries import RUNS, Run
from support.turns import in_turn, in_turns

import portopt

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}

each_trajectory = pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=str)


def in_dtype(arrays: Sequence[Array], dtype: str) -> list[Array]:
    return [array.astype(dtype) for array in arrays]


def assert_reproduces(actual: Any, expected: Array, scale: float, tolerance: float, what: str) -> None:
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected))
    assert error <= tolerance * scale, f"{what}: off by {error / scale:.2g} relative, allowed {tolerance:g}"


def magnitude(*arrays: Array) -> float:
    return max(float(np.max(np.abs(array))) for array in arrays)


def one_by_one(
    run: Run, optimizer: portopt.Optimizer, arrays: Any, gradients: list[Any], state: Any
) -> list[tuple[Any, Any]]:
    if run.mode.run is not None:
        return [run.mode.many(optimizer, arrays, gradients, state)]
    step = run.mode.step(optimizer)
    results = []
    for gradient in gradients:
        arrays, state = step(arrays, gradient, state)
        results.append((run.library.numpy(arrays), state))
    return results


def test_all_seven_keras_rules_have_trajectories() -> None:
    assert len(TRAJECTORIES) == 18
    assert {t.class_name for t in TRAJECTORIES} == {
        rule.__name__ for rule in portopt.RULES if "keras2" in rule.dialects()
    }
    assert all(len(t.gradients) == len(t.params) == 30 and len(t.initial) == 4 for t in TRAJECTORIES)


@pytest.mark.parametrize(
    ("run", "trajectory", "dtype"),
    [
        (run, trajectory, dtype)
        for i, run in enumerate(RUNS)
        # The conformance suite compares the others with NumPy.
        for trajectory, dtype in in_turns(
            TRAJECTORIES if run.library.name == "numpy" else in_turn(TRAJECTORIES, i, 3), list(TOLERANCE), start=i
        )
    ],
    ids=str,
)
def test_trajectory_is_reproduced(run: Run, dtype: str, trajectory: Trajectory) -> None:
    """After every step; after the last one in modes that run all steps at once (`jax-scan`)."""
    library, optimizer, tolerance = run.library, trajectory.optimizer(), TOLERANCE[dtype]
    with library.precision(dtype):
        arrays = library.arrays(in_dtype(trajectory.initial, dtype))
        gradients = [library.arrays(in_dtype(step, dtype)) for step in trajectory.gradients]
        results = one_by_one(run, optimizer, arrays, gradients, optimizer.init(arrays))
        weights = optimizer.get_weights(results[-1][1])

    first_step = len(trajectory.params) - len(results)
    for number, (params, _) in enumerate(results, start=first_step):
        for j, expected in enumerate(trajectory.params[number]):
            scale = magnitude(trajectory.initial[j], *(step[j] for step in trajectory.params[: number + 1]))
            actual = library.backend.to_numpy(params[j]) if run.mode.run is not None else params[j]
            assert actual.dtype == dtype
            assert_reproduces(actual, expected, scale, tolerance, f"parameter {j} after step {number + 1}")

    assert [w.shape for w in weights] == [w.shape for w in trajectory.weights]
    for k, (actual, expected) in enumerate(zip(weights, trajectory.weights, strict=True)):
        assert_reproduces(actual, expected, magnitude(expected) or 1.0, tolerance, f"weight {k}")


@each_trajectory
def test_config_is_that_of_keras(trajectory: Trajectory) -> None:
    assert trajectory.optimizer().get_config() == trajectory.config


@each_trajectory
def test_config_of_keras_gives_the_same_optimizer(trajectory: Trajectory) -> None:
    described = portopt.deserialize({"class_name": trajectory.class_name, "config": trajectory.config})
    assert described == trajectory.optimizer()


@each_trajectory
def test_training_goes_on_from_the_weights_of_keras(trajectory: Trajectory) -> None:
    """The weights after all steps stand for all of the state: the next step agrees with an uninterrupted run."""
    optimizer = trajectory.optimizer()
    params, state = trajectory.initial, optimizer.init(trajectory.initial)
    for gradient in trajectory.gradients:
        params, state = optimizer.apply(params, gradient, state)
    resumed = optimizer.set_weights(optimizer.init(params), trajectory.weights)
    expected, _ = optimizer.apply(params, trajectory.gradients[0], state)
    actual, resumed = optimizer.apply(params, trajectory.gradients[0], resumed)
    assert resumed.step == 31
    for j, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_reproduces(a, b, magnitude(b), 1e-12, f"parameter {j}")
