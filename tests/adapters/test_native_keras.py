"""`NativeOptimizer` for Keras on each of its backends, and for TensorFlow: what holds is in the module `native_on_keras`."""

from __future__ import annotations

import pytest
from support.case_names import cases_in_turns
from support.elsewhere import Elsewhere

pytestmark = pytest.mark.needs("jax", "keras", "tensorflow", "torch")


@pytest.mark.parametrize(
    ("backend", "module", "case"),
    cases_in_turns(["native_on_keras"], ["jax", "torch", "tensorflow", "numpy"], in_all=()),
)
def test_case_holds(backend: str, module: str, case: str, elsewhere: Elsewhere) -> None:
    elsewhere.call(module, case, KERAS_BACKEND=backend)
