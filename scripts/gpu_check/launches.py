"""What a step asks of CUDA's driver, and the time that it takes on the host, counted by a driver that is played."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import portopt
from gpu_check.checkout import ROOT
from gpu_check.options import Options
from gpu_check.workers import Keep, last_line, run_worker

_TENSORS = (1, 200, 1000)
_ELEMENTS = 8
_WARMING = 3
_ROUNDS = 15


def run(options: Options) -> Mapping[str, Any]:
    """Return how many rows there are; they stand in `launches.json`."""
    result = run_worker(options, "launches", {}, 60)
    rows = result.get("rows", [])
    (options.out / "launches.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for row in rows:
        counts = ", ".join(f"{row[name]} {name}" for name in ("launches", "uploads", "bytes", "waits"))
        print(f"  {row['tensors']:5} tensors, {row['step']}: {counts}; Python {row['python_us']:.1f} us", flush=True)
    if "text" not in result:
        return {"rows": len(rows)}
    # What plays the driver needs pytest and a C++ compiler.
    print(f"  NOT RUN: {last_line(result['text'])}", flush=True)
    return {"rows": len(rows), "skipped": f"NOT RUN: {last_line(result['text'])}"}


def work(options: Options, argument: Mapping[str, Any], keep: Keep) -> None:
    """Count what steps on torch's tensors ask for, and time them."""
    sys.path.insert(0, str(ROOT / "tests"))
    on_host = importlib.import_module("support.torch_on_host")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, on_host.host_torch(Path(folder)) as (library, recording):
        library.may_wait = True
        for count in _TENSORS:
            for name, make in _STEPS.items():
                if options.chosen(f"launches {name}"):
                    rows.append(
                        {
                            "step": name,
                            "tensors": count,
                            "library": "torch",
                            **_counted(make(count), library, recording),
                        }
                    )
                    keep({"rows": rows})


def _counted(step: Callable[[], object], library: Any, recording: Any) -> dict[str, Any]:
    recording.play()
    for _ in range(_WARMING):
        step()
    recording.clear()
    waits = library.waits
    step()
    kinds = [entry.kind for entry in recording.entries()]
    found = {
        "launches": kinds.count("launch"),
        "uploads": kinds.count("upload"),
        "bytes": recording.uploaded(),
        "waits": library.waits - waits,
    }
    recording.play(running=False)
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
        recording.clear()
    return {**found, "python_us": statistics.median(times) * 1e6}


def _tensors(count: int) -> list[Any]:
    torch = importlib.import_module("torch")
    return [torch.full((_ELEMENTS,), 0.5) for _ in range(count)]


def _step(count: int, optimizer: portopt.Optimizer, *, moving: bool = False) -> Callable[[], object]:
    params, gradients = _tensors(count), (_tensors(count), _tensors(count))
    state = optimizer.init(params)

    def step() -> None:
        nonlocal state
        state = optimizer.apply_(params, gradients[state.step % 2 if moving else 0], state)

    return step


def _pure_step(count: int, optimizer: portopt.Optimizer) -> Callable[[], object]:
    params, gradients = _tensors(count), _tensors(count)
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = optimizer.apply(params, gradients, state)

    return step


def _adapter(count: int) -> Callable[[], object]:
    torch = importlib.import_module("torch")
    parameters = [torch.nn.Parameter(tensor) for tensor in _tensors(count)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    step: Callable[[], object] = (
        importlib.import_module("portopt_torch").TorchOptimizer(parameters, portopt.Adam()).step
    )
    return step


_STEPS: Mapping[str, Callable[[int], Callable[[], object]]] = {
    "Adam, apply_": lambda count: _step(count, portopt.Adam()),
    "Adam, apply_, other gradients each time": lambda count: _step(count, portopt.Adam(), moving=True),
    "Adam with clipnorm, apply_": lambda count: _step(count, portopt.Adam(clipnorm=1.0)),
    "Adam, apply": lambda count: _pure_step(count, portopt.Adam()),
    "Adam with clipnorm, apply": lambda count: _pure_step(count, portopt.Adam(clipnorm=1.0)),
    "Prodigy, apply_": lambda count: _step(count, portopt.Prodigy()),
    "Adam, TorchOptimizer": _adapter,
}
