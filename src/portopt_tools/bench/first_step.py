"""The first step of a process: tracing, compiling and running, without the imports of the array library.

Each time is that of a process of its own, because everything is cached inside one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from portopt.backend import get_backend
from portopt_tools.bench import cases
from portopt_tools.bench.contenders import DONATED, Inputs, portopt_contenders
from portopt_tools.bench.shapes import SHAPE_SETS

_SHAPES = "mlp-digits"
# What JAX keeps on disk, if the user asked for it, would make a cold start warm.
_LIBRARY_CACHES = ("JAX_COMPILATION_CACHE_DIR",)


@dataclass(frozen=True)
class FirstStep:
    """Seconds of a first step.

    Attributes:
        backend: the backend.
        mode: the mode.
        cold: with an empty cache directory.
        cached: in a later process with the same cache directory; None if nothing was kept there.
    """

    backend: str
    mode: str
    cold: float
    cached: float | None


def preferred_mode(modes: Sequence[str]) -> str:
    """Return the mode that a training loop would use: in place, or donated, or the only one."""
    return next((mode for mode in ("apply_", DONATED) if mode in modes), modes[0])


def measure(rule: str, backend: str, repeats: int) -> FirstStep:
    """Return the median of each time over `repeats` pairs of processes; `rule` is a text that `cases.read` reads."""
    mode = preferred_mode([c.mode for c in portopt_contenders(get_backend(backend), interpreted=False)])
    cold, cached = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="portopt-bench-") as folder:
            cold.append(_in_new_process(rule, backend, mode, folder))
            if any(Path(folder).iterdir()):
                cached.append(_in_new_process(rule, backend, mode, folder))
    return FirstStep(backend, mode, _median(cold), _median(cached) if cached else None)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _in_new_process(rule: str, backend: str, mode: str, cache: str) -> float:
    environment: Mapping[str, str] = {
        **{name: value for name, value in os.environ.items() if name not in _LIBRARY_CACHES},
        "PORTOPT_CACHE_DIR": cache,
    }
    command = [sys.executable, "-m", __name__, rule, backend, mode]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{result.stderr}")
    seconds: float = json.loads(result.stdout.splitlines()[-1])
    return seconds


def main(rule: str, backend_name: str, mode: str) -> None:
    """Print the seconds of one first step."""
    backend = get_backend(backend_name)
    inputs = Inputs(cases.read(rule).optimizer, SHAPE_SETS[_SHAPES])
    contender = next(c for c in portopt_contenders(backend, interpreted=True) if c.mode == mode)
    # Imports the library and makes the arrays.
    step = contender.prepare(inputs)
    start = time.perf_counter()
    step()
    print(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main(*sys.argv[1:])
