"""`NativeOptimizer` for Keras on each of its backends, and for TensorFlow; the checks are in `native_on_keras.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from native_on_keras import checks_for

SCRIPT = Path(__file__).with_name("native_on_keras.py")
BACKENDS = ("jax", "torch", "tensorflow", "numpy")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, str | None]]:
    """Return what the checks on each backend found; the processes run side by side."""
    processes = {
        backend: subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend in BACKENDS
    }
    found: dict[str, dict[str, str | None]] = {}
    for backend, process in processes.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found[backend] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("backend", "check"),
    [(backend, check.__name__) for backend in BACKENDS for check in checks_for(backend)],
)
def test_native_optimizers(backend: str, check: str, results: dict[str, dict[str, str | None]]) -> None:
    problem = results[backend][check]
    assert problem is None, problem
