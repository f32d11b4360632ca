"""Taking times: contenders in turns, so that what disturbs the machine for a while disturbs all of them."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

Step = Callable[[], object]

WARM_UP_STEPS = 4
"""Steps before the first that counts: kernels are compiled, plans made, and memory touched."""


def steps_per_sample(step: Step, seconds: float) -> int:
    """Warm a contender up, and return how many of its steps take about `seconds`."""
    for _ in range(WARM_UP_STEPS - 1):
        step()
    start = time.perf_counter()
    step()
    duration = time.perf_counter() - start
    return max(1, min(10_000, int(seconds / max(duration, 1e-9))))


def alternate(
    steps: Sequence[Step],
    counts: Sequence[int],
    repeats: int,
    advance: Step,
    before: Sequence[Step | None] = (),
) -> list[list[float]]:
    """Return `repeats` samples of the seconds per step of each contender, taken in turns.

    Args:
        steps: what to time, warmed up.
        counts: how many steps make one sample of each.
        repeats: how many samples to take of each.
        advance: called after each sample.
        before: what is done before each step of each contender, and not timed.
    """
    samples: list[list[float]] = [[] for _ in steps]
    with _no_garbage_collection():
        for repeat in range(repeats):
            # Each goes first in its turn, so nobody always follows the same neighbour's leavings in the caches.
            for offset in range(len(steps)):
                i = (repeat + offset) % len(steps)
                step, count = steps[i], counts[i]
                if count > 1:
                    step()  # brings back into the caches what the others drove out
                first = before[i] if before else None
                samples[i].append(_seconds(step, count) if first is None else _seconds_after(first, step, count))
                advance()
    return samples


def _seconds(step: Step, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def _seconds_after(first: Step, step: Step, count: int) -> float:
    total = 0.0
    for _ in range(count):
        first()
        start = time.perf_counter()
        step()
        total += time.perf_counter() - start
    return total / count


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Stream:
    """One pass over NumPy arrays far larger than the caches: the bandwidth that a step could reach.

    Args:
        size: bytes of each array.
        threads: how many threads work at once, each on its part.
        in_place: whether one array is read and written back, else one is copied to another. A copy also has to read what it
            overwrites, on most processors, which does not count here; so a step in place can have a higher rate.
    """

    def __init__(self, size: int, threads: int, *, in_place: bool = False) -> None:
        self.bytes_moved = 2 * size
        self.threads = threads
        self.in_place = in_place
        # Ones, because pages that were never written are all the same one.
        source = np.ones(size // 4, np.float32)
        target = source if in_place else np.ones_like(source)
        self._parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))

    def step(self) -> None:
        """Pass over the arrays once."""
        function = np.negative if self.in_place else _copy
        others = [threading.Thread(target=function, args=part) for part in self._parts[1:]]
        for thread in others:
            thread.start()
        function(*self._parts[0])
        for thread in others:
            thread.join()


def _copy(source: object, target: object) -> None:
    np.copyto(target, source)  # type: ignore[arg-type]  # both are arrays


_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def memory_method() -> str:
    """Return how `extra_memory` measures here: by the process's resident memory, or by what Python and NumPy allocate."""
    return "peak resident memory" if os.access(_CLEAR_REFS, os.W_OK) and _STATUS.exists() else "tracemalloc"


def extra_memory(step: Step) -> int:
    """Return by how many bytes the memory in use grows at most during one step, which must not be the first."""
    gc.collect()
    if memory_method() == "tracemalloc":
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            step()
            return max(0, tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()
    # Writing 5 resets the peak; see proc(5).
    _CLEAR_REFS.write_text("5")
    before = _resident("VmRSS")
    step()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no line {field}")


def median(samples: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(samples)
