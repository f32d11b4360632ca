"""`portopt_keras` on each backend of Keras: what holds there is in the modules `keras_cases`, `keras_option_cases` and
`keras_golden_cases`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.case_names import KERAS_BACKENDS as BACKENDS
from support.case_names import cases_in_turns
from support.elsewhere import Elsewhere
from support.processes import run_python

pytestmark = pytest.mark.needs("jax", "keras", "tensorflow", "torch")

MODULES = ("keras_cases", "keras_option_cases", "keras_golden_cases")
ON_ALL = (
    "case_rules_have_the_bits_of_numpy",
    "case_rules_of_each_kind_have_the_bits_of_numpy",
    "case_single_steps_have_the_values_of_keras",
    "case_training_goes_on_after_averages_became_the_weights",
)
"""Cases of which each backend of Keras may fail in its own way."""


@pytest.mark.parametrize(
    ("backend", "module", "case"),
    cases_in_turns(MODULES, BACKENDS, in_all=ON_ALL),
)
def test_case_holds(backend: str, module: str, case: str, elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.call(module, case, tmp_path, KERAS_BACKEND=backend)


@pytest.fixture(scope="module")
def saved(
    request: pytest.FixtureRequest, elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, object]:
    """Return the file of a model that was saved on a backend of Keras, and the weights in it."""
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    return path, elsewhere.call("keras_cases", "save_trained_model", path, KERAS_BACKEND=request.param)


@pytest.mark.parametrize("saved", BACKENDS, indirect=True)
@pytest.mark.parametrize("backend", BACKENDS)
def test_model_saved_on_one_backend_goes_on_with_the_same_bits_on_another(
    saved: tuple[Path, object], backend: str, elsewhere: Elsewhere
) -> None:
    elsewhere.call("keras_cases", "go_on_with_saved_model", *saved, KERAS_BACKEND=backend)


def test_a_backend_of_keras_that_does_not_train_is_refused(tmp_path: Path) -> None:
    code = """
import keras, numpy as np, portopt_keras, pytest
variable = keras.Variable(np.ones(2))
optimizer = portopt_keras.Adam()
optimizer.build([variable])
with pytest.raises(Exception) as caught:
    optimizer.apply([np.ones(2)], [variable])
print(caught.value)
"""
    printed = run_python(code, KERAS_BACKEND="numpy", KERAS_HOME=str(tmp_path))
    assert "trains on Keras' jax, torch and tensorflow backends, but Keras runs on 'numpy'" in printed


def test_importing_the_package_registers_the_classes_and_its_native_sibling_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, portopt_keras_native; assert 'keras' not in sys.modules; import portopt_keras, keras;"
        "print(type(keras.optimizers.get('portopt>adam')).__module__)"
    )
    assert run_python(code, KERAS_BACKEND="jax", KERAS_HOME=str(tmp_path)).strip() == "portopt_keras"
