"""Time Adam against a rule with the same arrays and hardly any arithmetic, and torch's fused Adam, in turns.

    python scripts/measure_memory_limit.py [PARAMETERS]

What a rule of one addition per array takes is what the memory takes: no implementation of Adam can be faster on these arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch  # noqa: TID253  # this script is about it

import portopt
from portopt_tools.bench.measuring import alternate, median

REPEATS, STEPS = 25, 2
"""Samples of each, and how many steps are one sample."""
ARRAYS_MOVED = 7
"""Parameter, gradient and two slots are read; all but the gradient are written."""


class Additions(portopt.Optimizer):
    """A rule that reads and writes what Adam does."""

    slots = ("m", "v")

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p + g, {"m": slots.m + g, "v": slots.v + g}


def stepper(optimizer: portopt.Optimizer, params: Any, grads: Any) -> Callable[[], object]:
    """Return a function that does one step in place."""
    state = optimizer.init(params)

    def step() -> None:
        nonlocal state
        state = optimizer.apply_(params, grads, state)

    return step


def main(count: int) -> None:
    """Print a line for each."""
    parameter = torch.nn.Parameter(torch.full((count,), 0.5))
    parameter.grad = torch.full((count,), 0.5)
    steps: dict[str, Callable[[], object]] = {"torch.optim.Adam, fused": torch.optim.Adam([parameter], fused=True).step}
    for library, full in (
        ("numpy", lambda: np.full(count, 0.5, np.float32)),
        ("torch", lambda: torch.full((count,), 0.5)),
    ):
        for optimizer in (portopt.Adam(), Additions()):
            steps[f"{type(optimizer).__name__}, {library}"] = stepper(optimizer, full(), full())
    samples = alternate(list(steps.values()), [STEPS] * len(steps), REPEATS, lambda: None)
    for name, taken in zip(steps, samples, strict=True):
        seconds = median(taken)
        print(f"{name:24} {1e3 * seconds:7.2f} ms  {4e-9 * ARRAYS_MOVED * count / seconds:6.1f} GB/s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000)
