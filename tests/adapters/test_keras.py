"""`portopt_keras` on each backend of Keras: what holds there is in `keras_cases.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.case_runner import outcomes

pytestmark = pytest.mark.needs("jax", "keras", "tensorflow", "torch")


def test_every_case_holds_on_every_backend_of_keras(tmp_path: Path, subtests: pytest.Subtests) -> None:
    # In one test and in this order: models saved on one backend are loaded on those after it.
    for backend in ("jax", "torch", "tensorflow"):
        found = outcomes("keras_cases", tmp_path, KERAS_BACKEND=backend)
        assert len(found) > 20
        for name, failure in found.items():
            with subtests.test(backend=backend, case=name):
                assert failure is None, failure


def test_a_backend_of_keras_that_does_not_train_is_refused(tmp_path: Path) -> None:
    code = """
import keras, numpy as np, portopt_keras
variable = keras.Variable(np.ones(2))
optimizer = portopt_keras.Adam()
optimizer.build([variable])
optimizer.apply([np.ones(2)], [variable])
"""
    environment = {"KERAS_BACKEND": "numpy", "KERAS_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "trains on Keras' jax, torch and tensorflow backends, but Keras runs on 'numpy'" in done.stderr


def test_importing_the_package_registers_the_classes_and_its_native_sibling_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, portopt_keras_native; assert 'keras' not in sys.modules; import portopt_keras, keras;"
        "print(type(keras.optimizers.get('portopt>adam')).__module__)"
    )
    environment = {"KERAS_BACKEND": "jax", "KERAS_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "portopt_keras", done.stderr
