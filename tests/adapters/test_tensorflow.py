"""`portopt_tensorflow`: what holds is in the module `tensorflow_cases`, as TensorFlow takes long to import."""

from __future__ import annotations

import pytest
from support.case_names import cases_of
from support.elsewhere import Elsewhere
from support.processes import run_python

pytestmark = pytest.mark.needs("tensorflow")


@pytest.mark.parametrize("case", cases_of("tensorflow_cases", "tensorflow"))
def test_case_holds(case: str, elsewhere: Elsewhere) -> None:
    elsewhere.call("tensorflow_cases", case, KERAS_BACKEND="tensorflow")


def test_importing_the_backend_imports_no_tensorflow() -> None:
    assert run_python("import sys, portopt_tensorflow; print('tensorflow' in sys.modules)").strip() == "False"
