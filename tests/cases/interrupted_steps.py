"""A process that interrupts large steps again and again, and each time looks whether all or nothing was written."""

from __future__ import annotations

import contextlib
import ctypes
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import portopt
from portopt.kernels.host import threads

SIZE = 2 * threads.ELEMENTS_PER_THREAD + 1
INTERRUPTS = 20


class Interrupt(BaseException):
    """What is raised from outside."""


def _raise(*_: object) -> None:
    raise Interrupt


@contextlib.contextmanager
def interrupting(how: str, delay: float) -> Iterator[None]:
    """Raise `Interrupt` after a delay, by a signal handler or from another thread."""
    if how == "signal":
        signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, delay)
        yield
        return
    target = ctypes.c_ulong(threading.get_ident())

    def strike() -> None:
        time.sleep(delay)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(Interrupt))

    striker = threading.Thread(target=strike)
    striker.start()
    yield


def new_arrays(library: str, kind: str) -> dict[str, Any]:
    dtypes = ["float32", "float64"] if kind == "mixed" else ["float32", "float32"]
    arrays = {str(i): np.zeros(SIZE + i, dtype) for i, dtype in enumerate(dtypes)}
    if kind == "strided":
        arrays = {name: np.zeros(2 * len(a), a.dtype)[::2] for name, a in arrays.items()}
    if library == "numpy":
        return arrays
    import torch

    return {
        name: torch.zeros(2 * len(a))[::2] if kind == "strided" else torch.from_numpy(a) for name, a in arrays.items()
    }


def value(array: Any) -> float:
    """Return the value that all elements have."""
    elements = np.asarray(array)
    assert (elements == elements[0]).all(), f"elements of one array differ: {np.unique(elements)}"
    return float(elements[0])


def run(library: str, kind: str, how: str) -> str:
    """Interrupt steps planned, unplanned, strided, mixed or interpreted, by a signal or from a thread."""
    portopt.set_num_threads(2)
    optimizer = portopt.SGD(1.0, momentum=1.0) if kind != "strided" else portopt.SGD(1.0)
    params = new_arrays(library, kind)
    grads = {name: a * 0 + 1 for name, a in params.items()}
    state = optimizer.init(params)

    def new_optimizer() -> portopt.Optimizer:
        return optimizer.replace() if kind == "unplanned" else optimizer

    context: Callable[[], Any] = portopt.interpreted if kind == "interpreted" else contextlib.nullcontext
    for _ in range(3):
        state = optimizer.apply_(params, grads, state)  # compiles and plans
    started = time.perf_counter()
    with context():
        state = new_optimizer().apply_(params, grads, state)
    duration = time.perf_counter() - started
    delays = random.Random(1)
    interrupted = 0
    while interrupted < INTERRUPTS:
        stepping = new_optimizer()
        try:
            with interrupting(how, max(1e-6, duration * delays.random() * 3)), context():
                while True:
                    state = stepping.apply_(params, grads, state)
        except Interrupt:
            interrupted += 1
        for tree in (params, state.slots["moment"]):
            before = [value(a) for a in tree.values()]
            assert len(set(before)) == 1, f"arrays are not at the same step: {before}"
        time.sleep(0.002)
        for tree in (params, state.slots["moment"]):
            assert len({value(a) for a in tree.values()}) == 1, "something was written later"
    return "whole"
