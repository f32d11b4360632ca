"""A process that forks while another thread compiles, or while another thread is in a large step; the child then does steps.

The child ends by an alarm if it hangs. Its process must not be used again: nobody can tell how its threads are.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from typing import Any

import numpy as np

import portopt
from portopt.kernels.host import compiler, threads

SIZE = 4 * threads.ELEMENTS_PER_THREAD
PATIENCE = 240
"""Seconds after which a child hangs."""


def step(dtype: str, size: int = 5, steps: int = 1) -> Any:
    optimizer, w = portopt.SGD(1.0), np.zeros(size, dtype)
    state = optimizer.init(w)
    for _ in range(steps):
        state = optimizer.apply_(w, np.ones(size, dtype), state)
    return w


def fork_and_step(dtype: str, size: int) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        done = step(dtype, size, steps=3)
        os._exit(0 if (done == -3).all() else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"


def while_compiling() -> None:
    begun = threading.Event()
    compile_now = compiler._compile

    def compile_slowly(source: str, prototype: str) -> bytes:
        begun.set()
        time.sleep(0.5)
        return compile_now(source, prototype)

    compiler._compile = compile_slowly
    thread = threading.Thread(target=step, args=("float32",))
    thread.start()
    begun.wait()
    fork_and_step("float64", 5)
    thread.join()


def while_stepping() -> None:
    portopt.set_num_threads(2)
    step("float32", SIZE, steps=3)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            step("float32", SIZE, steps=3)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            fork_and_step("float32", SIZE)
    finally:
        stop.set()
        thread.join()


def run(busy: str) -> None:
    # Python warns of forks where there are threads, which is what is tested.
    warnings.simplefilter("ignore", DeprecationWarning)
    {"compiling": while_compiling, "stepping": while_stepping}[busy]()
