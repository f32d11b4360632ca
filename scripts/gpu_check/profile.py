"""Where the time of a step goes on the host: Python, look, packing, calls of the driver; with warm caches and with cold ones.

Where there is a GPU the steps are on it, elsewhere on the driver that is played. The parts are timed one by one, each as often as
the whole, so that they add up to it roughly. What an optimizer of torch finds out besides is timed as the groups' values, the
containers, and the counts that it writes into the states. The driver's calls are timed where portopt's compiled code makes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import portopt
from gpu_check.checkout import ROOT
from gpu_check.options import Options
from gpu_check.targets import synchronize, torch_device
from gpu_check.workers import Keep, failure, last_line, run_worker

_TENSORS = (1, 200, 1000)
_ELEMENTS = 8
_WARMING = 6
_ROUNDS = {"warm": 31, "cold": 9}
_FLUSHED = 64 << 20
"""Bytes that are written between two cold steps: more than most caches hold."""
_SECONDS = 40

Step = Callable[[], object]
Parts = Mapping[str, Step]
"""What is timed, by name: `step` is the whole. What is begun as `before` does is not timed."""


def run(options: Options) -> Mapping[str, Any]:
    """Return how many rows there are; they stand in `profile.json`."""
    result = run_worker(options, "profile", {}, _SECONDS)
    rows = result.get("rows", [])
    (options.out / "profile.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for row in rows:
        print(f"  {row['tensors']:5} tensors, {row['step']}, {row['caches']}: {_short(row)}", flush=True)
    broken = [row for row in rows if "error" in row]
    if "text" not in result:
        return {"rows": len(rows), "wrong": len(broken)}
    print(f"  NOT RUN: {last_line(result['text'])}", flush=True)
    return {"rows": len(rows), "wrong": len(broken), "skipped": f"NOT RUN: {last_line(result['text'])}"}


def _short(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return "error: " + last_line(row["error"])[:120]
    parts = (f"{name.replace('_', ' ')} {us:.1f}" for name, us in row["us"].items())
    calls = (f"{name} {us:.1f}" for name, us in row["driver_us"].items())
    return f"{', '.join(parts)} us; driver {', '.join(calls) or 'not asked'} us"


def work(options: Options, argument: Mapping[str, Any], keep: Keep) -> None:
    """Time the parts of steps, few tensors first."""
    rows: list[dict[str, Any]] = []
    if not importlib.import_module("torch").cuda.is_available():
        options = dataclasses.replace(options, device="cpu")
    end = time.monotonic() + argument["limit"]
    with _driver(options) as clear:
        for count in _TENSORS[: 2 if options.small else None]:
            for name, make in _cases(options).items():
                if time.monotonic() > end:
                    return
                if options.chosen(f"profile {name}"):
                    rows += _profiled(options, name, count, make, clear)
                    keep({"rows": rows})


@contextlib.contextmanager
def _driver(options: Options) -> Iterator[Callable[[], object]]:
    """Have a driver; yields what forgets what was asked of it, where it is played."""
    if options.on_gpu:
        yield lambda: synchronize(options)
        return
    sys.path.insert(0, str(ROOT / "tests"))
    on_host = importlib.import_module("support.torch_on_host")
    with tempfile.TemporaryDirectory() as folder, on_host.host_torch(Path(folder)) as (_, recording):
        # What is timed is not what kernels do.
        recording.play(running=False)
        yield recording.clear


def _cases(options: Options) -> dict[str, Callable[[Options, int], Parts]]:
    cases: dict[str, Callable[[Options, int], Parts]] = {}
    if "torch" in options.backends:
        cases["torch apply_"] = lambda options, count: _planned(_tensors(options, count), _tensors(options, count))
        cases["TorchOptimizer"] = lambda options, count: _adapter(options, count, after_backward=False)
        cases["TorchOptimizer after a backward pass"] = lambda options, count: _adapter(
            options, count, after_backward=True
        )
        cases["torch apply"] = _pure
    if "cupy" in options.backends and options.on_gpu:
        cases["cupy apply_"] = lambda options, count: _planned(_cupy_arrays(count), _cupy_arrays(count))
    return cases


def _profiled(
    options: Options, name: str, count: int, make: Callable[[Options, int], Parts], clear: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    """Yield a row for warm and one for cold caches."""
    try:
        with _timed_driver() as spent:
            parts = make(options, count)
            # The plan of a step calls the functions that were there when it was made.
            of_driver = {caches: _of_driver(parts, caches, spent, clear) for caches in _ROUNDS}
        parts = make(options, count)
        for caches, rounds in _ROUNDS.items():
            us = {part: _median_us(parts, part, caches, rounds, clear) for part in parts if part != "before"}
            if "look and queue" in us and "step" in us:
                us["packing"] = us["look and queue"] - us["look"] - sum(of_driver[caches].values())
            yield {"step": name, "tensors": count, "caches": caches, "us": us, "driver_us": of_driver[caches]}
    except Exception:
        yield {"step": name, "tensors": count, "caches": "", "error": failure()}


def _median_us(parts: Parts, name: str, caches: str, rounds: int, clear: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds):
        _prepare(parts, caches, clear)
        begin = time.perf_counter()
        parts[name]()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def _prepare(parts: Parts, caches: str, clear: Callable[[], object]) -> None:
    clear()
    if "before" in parts:
        parts["before"]()
        clear()
    if caches == "cold":
        _FLUSH.__iadd__(1)


_FLUSH: Any = np.zeros(_FLUSHED // 8)


def _of_driver(parts: Parts, caches: str, spent: dict[str, list[int]], clear: Callable[[], object]) -> dict[str, float]:
    """Return the microseconds of a step in each of the driver's functions."""
    found = dict[str, list[float]]()
    for _ in range(_ROUNDS[caches]):
        _prepare(parts, caches, clear)
        for times in spent.values():
            times.clear()
        parts["step"]()
        for name, times in spent.items():
            found.setdefault(name, []).append(sum(times) / 1e3)
    return {name: us for name, times in found.items() if (us := statistics.median(times)) > 0}


@contextlib.contextmanager
def _timed_driver() -> Iterator[dict[str, list[int]]]:
    """Let compiled code call the driver through functions that note how many nanoseconds each call took."""
    known = importlib.import_module("portopt.kernels.cuda.driver").driver().addresses
    original, spent, kept = dict(known), dict[str, list[int]](), []

    # What a function in C is given too much it does not look at.
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * _MOST_ARGUMENTS)

    nothing = kind(ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value or 0)

    def timed(name: str) -> int:
        function, times = kind(original[name]), spent.setdefault(name, [])

        def call(*given: int) -> int:
            before = time.perf_counter_ns()
            nothing(*given)
            begin = time.perf_counter_ns()
            status: int = function(*given)
            # Without what Python takes for a call.
            times.append(time.perf_counter_ns() - begin - (begin - before))
            return status

        kept.append(kind(call))
        return ctypes.cast(kept[-1], ctypes.c_void_p).value or 0

    try:
        known |= {name: timed(name) for name in original}
        yield spent
    finally:
        known.clear()
        known.update(original)
        # Plans that were made meanwhile may still be there.
        _KEPT.extend(kept)


_KEPT: list[Any] = []
_MOST_ARGUMENTS = 11
"""Of a function of the driver: those of `cuLaunchKernel`."""


# Steps ------------------------------------------------------------------------------------------------------------------


def _tensors(options: Options, count: int) -> list[Any]:
    torch = importlib.import_module("torch")
    device = torch_device(options)
    return [torch.full((_ELEMENTS,), 0.5, device=device) for _ in range(count)]


def _cupy_arrays(count: int) -> list[Any]:
    cupy = importlib.import_module("cupy")
    return [cupy.full(_ELEMENTS, 0.5, "float32") for _ in range(count)]


def _planned(params: list[Any], gradients: list[Any]) -> Parts:
    optimizer = portopt.Adam()
    state = optimizer.init(params)

    def step() -> None:
        nonlocal state
        state = optimizer.apply_(params, gradients, state)

    for _ in range(_WARMING):
        step()
    return {"step": step, **_looks(optimizer, params, gradients, state)}


def _looks(optimizer: portopt.Optimizer, params: Any, gradients: Any, state: portopt.OptimizerState) -> Parts:
    """Return the look of the plan of the last step, without and with what it queues."""
    plan: Any = optimizer._cache.plans[0]
    (placed,) = plan._placed.values()
    _, inputs = plan.inputs_from_last(state.slots, {})
    trees = params, gradients, state.slots
    at = inputs.buffer_info()[0] + importlib.import_module("portopt.kernels.host.step_inputs").HEAD

    def look() -> None:
        assert plan.watch.look(*trees)

    def look_and_queue() -> None:
        assert inputs
        assert plan.watch.look(*trees, at, state.step + 1, None, None, placed.queue.address)

    return {"look": look, "look and queue": look_and_queue}


def _pure(options: Options, count: int) -> Parts:
    params, gradients, optimizer = _tensors(options, count), _tensors(options, count), portopt.Adam()
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = optimizer.apply(params, gradients, state)

    for _ in range(_WARMING):
        step()
    plan: Any = optimizer._cache.pure_plans[0]
    return {"step": step, "new arrays": plan.results.new}


def _adapter(options: Options, count: int, *, after_backward: bool) -> Parts:
    torch = importlib.import_module("torch")
    parameters = [torch.nn.Parameter(tensor) for tensor in _tensors(options, count)]
    ones = [torch.ones_like(p) for p in parameters]
    optimizer: Any = importlib.import_module("portopt_torch").TorchOptimizer(parameters, portopt.Adam())

    def backward() -> None:
        for p in parameters:
            p.grad = None
        torch.autograd.backward([p * 2.0 for p in parameters], ones)

    for _ in range(_WARMING):
        backward()
        optimizer.step()
    repeated, (batch,) = optimizer._repeated, optimizer._batches[0].batches
    readers = importlib.import_module("portopt.kernels.host.readers")
    put = importlib.import_module("portopt_torch._repeated").put
    parts: dict[str, Step] = {
        "step": optimizer.step,
        "groups": optimizer._known_work,
        "containers": lambda: repeated.is_as_it_was(optimizer.param_groups, optimizer.state),
        "counts": lambda: put(batch.states, batch.counted, batch.counts(), batch.versions),
        **_looks(batch._rule, batch._leaves, readers.OWN_GRADIENTS, batch._state()),
    }
    return {**parts, "before": backward} if after_backward else parts
