"""How many Python functions a step calls: what a training loop waits for, and unlike times the same on a busy machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

import portopt
from portopt.kernels.host import compiler

SHAPES = ((32, 16), (16,), (16, 8), (8,))


def calls_of(function: Callable[[], object]) -> list[str]:
    """Return the names of the Python functions that are called, generators each time that they go on."""
    names: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            names.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names[1:]


def tree() -> dict[str, Any]:
    return {f"w{i}": np.ones(shape, np.float32) for i, shape in enumerate(SHAPES)}


@pytest.mark.needs("numba")
def test_cold_step_calls_few_functions() -> None:
    # The second of two equal ones, which another test has had anyway: it shares the first one's kernels.
    for optimizer in (portopt.Adam(), portopt.Adam()):
        params, grads = tree(), tree()
        state = optimizer.init(params)
        optimizer.apply(params, grads, state)
    assert compiler.available()
    found = calls_of(lambda: optimizer.apply(params, grads, state))
    assert len(found) < 218, found


COSINE = portopt.schedules.CosineDecay(0.1, 100, warmup_steps=10)


@pytest.mark.needs("numba")
@pytest.mark.parametrize(
    ("make", "most"),
    [
        (portopt.Adam, 8),
        (lambda: portopt.Adam(clipnorm=1.0), 9),
        (lambda: portopt.Adam(COSINE), 9),
        (lambda: portopt.Nadam(COSINE, clipnorm=1.0), 10),
    ],
    ids=["plain", "clipnorm", "schedule", "scalars of the state"],
)
def test_planned_step_calls_few_functions(make: Callable[[], portopt.Optimizer], most: int) -> None:
    optimizer, params, grads = make(), tree(), tree()
    state = optimizer.init(params)
    for _ in range(4):
        state = optimizer.apply_(params, grads, state)
    found = calls_of(lambda: optimizer.apply_(params, grads, state))
    # Neither the constructor of a named tuple, which is generated code, nor a generator within one of them is counted.
    assert len([name for name in found if "<" not in name]) <= most, found


@pytest.mark.needs("numba")
@pytest.mark.parametrize("copies", [1, 50])
def test_planned_pure_step_calls_as_many_functions_however_many_arrays_there_are(copies: int) -> None:
    params, grads = [tree() for _ in range(copies)], [tree() for _ in range(copies)]
    optimizer = portopt.Adam()
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.apply(params, grads, state)
    found = calls_of(lambda: optimizer.apply(params, grads, state))
    # As many again for the new arrays and their trees.
    assert len([name for name in found if "<" not in name]) <= 15, found


@pytest.mark.needs("numba", "torch")
@pytest.mark.parametrize("copies", [1, 50])
@pytest.mark.parametrize(("of_group", "most"), [(4, 40), (2, 80)], ids=["one group", "two groups"])
def test_step_of_an_optimizer_of_torch_calls_as_many_functions_however_many_parameters_there_are(
    copies: int, of_group: int, most: int
) -> None:
    import torch

    from portopt_torch import TorchOptimizer

    params = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES for _ in range(copies)]
    for p in params:
        p.grad = torch.ones_like(p)
    size = of_group * copies
    groups = [{"params": params[k : k + size], "lr": 0.5**k} for k in range(0, len(params), size)]
    optimizer = TorchOptimizer(groups, portopt.Nadam())
    for _ in range(4):
        optimizer.step()
    found = calls_of(optimizer.step)
    assert len([name for name in found if "<" not in name]) <= most, (len(found), found)
