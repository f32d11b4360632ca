"""Times of a step: of the device, and of Python until the call returns; kernels as CUPTI sees them."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from gpu_check.options import Options
from gpu_check.targets import synchronize

Step = Callable[[], object]
_WARMING = 3
_ROUNDS = 3
_SECONDS = 0.12
"""What one round takes, roughly."""


def measure(options: Options, step: Step, wait: Callable[[], object] | None = None) -> dict[str, Any]:
    """Return the median milliseconds of a step, and the microseconds until its call returns.

    Args:
        options: of the check.
        step: does a step.
        wait: waits for it; without one the device's events are used where there is a GPU.
    """
    finish = wait or (lambda: synchronize(options))
    begin = time.perf_counter()
    for _ in range(_WARMING):
        step()
    finish()
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    step()
    finish()
    count = max(3, min(60, int(_SECONDS / max(time.perf_counter() - begin, 1e-6))))
    device, python = [], []
    for _ in range(_ROUNDS):
        finish()
        events = _events() if options.on_gpu and wait is None else None
        begin = time.perf_counter()
        for _ in range(count):
            step()
        python.append((time.perf_counter() - begin) / count)
        if events is not None:
            device.append(events() / count / 1e3)
        else:
            finish()
            device.append((time.perf_counter() - begin) / count)
    times = {"ms": statistics.median(device) * 1e3, "python_us": statistics.median(python) * 1e6}
    return {**times, "first_s": first, "steps": count}


def _events() -> Callable[[], float]:
    """Begin to time what is started on the device; the function that is returned ends it, and gives milliseconds.

    CuPy's and torch's default stream are both the legacy one, so torch's events time both.
    """
    cuda = importlib.import_module("torch").cuda
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()

    def finish() -> float:
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return finish


def kernels_of(step: Step, wait: Callable[[], object]) -> dict[str, Any]:
    """Return how many kernels and copies one step starts, how often it waits, and the kernels' own microseconds."""
    profiler = importlib.import_module("torch").profiler
    kinds = [profiler.ProfilerActivity.CUDA, profiler.ProfilerActivity.CPU]
    step()
    wait()
    with profiler.profile(activities=kinds) as profile:
        with profiler.record_function("PORTOPT_ONE_STEP"):
            step()
        wait()
    events = list(profile.events())
    mark = next(e.time_range for e in events if e.name == "PORTOPT_ONE_STEP" and not _is_on_device(e))
    found: dict[str, Any] = {"kernels": 0, "copies": 0, "fills": 0, "waits": 0, "kernel_us": 0.0}
    for event in events:
        if not _is_on_device(event):
            inside = mark.start <= event.time_range.start <= mark.end
            found["waits"] += bool(event.name.startswith("cu") and "Synchronize" in event.name and inside)
        elif not event.name.startswith(("Optimizer.", "ProfilerStep", "PORTOPT")):
            kind = {"Memcpy": "copies", "Memset": "fills"}.get(event.name.split()[0], "kernels")
            found[kind] += 1
            found["kernel_us"] += event.time_range.elapsed_us()
    return found


def _is_on_device(event: Any) -> bool:
    return str(event.device_type).endswith("CUDA")
