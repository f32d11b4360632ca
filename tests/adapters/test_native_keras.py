"""`NativeOptimizer` for Keras on each of its backends, and for TensorFlow; the checks are in `native_on_keras.py`."""

from __future__ import annotations

import json
import sys

import pytest
from cases.native_on_keras import checks_for
from support.processes import import_path, side_by_side

pytestmark = pytest.mark.needs("jax", "keras", "tensorflow", "torch")

BACKENDS = ("jax", "torch", "tensorflow", "numpy")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, str | None]]:
    """Return what the checks on each backend found; the processes run side by side."""
    environments = [{**import_path(), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"} for backend in BACKENDS]
    done = side_by_side([[sys.executable, "-m", "cases.native_on_keras"]] * len(BACKENDS), environments)
    for process in done:
        assert process.returncode == 0, process.stderr
    return {
        backend: json.loads(process.stdout.splitlines()[-1]) for backend, process in zip(BACKENDS, done, strict=True)
    }


@pytest.mark.parametrize(
    ("backend", "check"),
    [(backend, check.__name__) for backend in BACKENDS for check in checks_for(backend)],
)
def test_native_optimizers(backend: str, check: str, results: dict[str, dict[str, str | None]]) -> None:
    problem = results[backend][check]
    assert problem is None, problem
