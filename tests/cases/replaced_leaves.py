"""Gradients that are replaced, and so freed, while steps run.

By another thread all the time, or by the schedule, which runs after the norm of the gradients.
"""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import numpy as np

import portopt
from portopt.kernels.host import threads


def ones(library: str, size: int) -> Any:
    array = np.ones(size, np.float32)
    if library == "numpy":
        return array
    import torch

    return torch.from_numpy(array)


def by_thread(library: str, size: int, steps: int) -> None:
    sys.setswitchinterval(1e-6)
    portopt.set_num_threads(2)
    optimizer = portopt.SGD(1.0)
    params = {"w": ones(library, size) * 0, "v": ones(library, 1) * 0}
    grads = {"w": ones(library, size), "v": ones(library, 1)}
    state = optimizer.init(params)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            grads["w"], grads["v"] = ones(library, size), ones(library, 1)
            np.full(size, 9, np.float32)  # takes the memory of what was replaced, if nobody holds it

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(steps):
            state = optimizer.apply_(params, grads, state)
    finally:
        stop.set()
        thread.join()
    assert state.step == steps
    assert all((np.asarray(p) == -steps).all() for p in params.values())


def by_schedule(library: str) -> None:
    size = 3 * threads.ELEMENTS_PER_THREAD
    grads: dict[str, Any] = {}
    garbage: list[Any] = []

    def schedule(step: Any) -> float:
        grads["w"] = ones(library, size) * 7
        gc.collect()
        garbage[:] = [ones(library, size) * 9 for _ in range(3)]
        return 1.0

    def run() -> Any:
        optimizer = portopt.SGD(schedule, clipnorm=1e6)
        params = {"w": ones(library, size) * 0}
        state = optimizer.init(params)
        for _ in range(6):
            grads["w"] = ones(library, size)
            state = optimizer.apply_(params, grads, state)
        return np.asarray(params["w"])

    assert (run() == -6).all(), run()


def run(library: str, what: str) -> str:
    if what == "schedule":
        by_schedule(library)
    else:
        by_thread(library, *((1, 20_000) if what == "small" else (4 * threads.ELEMENTS_PER_THREAD, 60)))
    return "right"
