"""`NativeOptimizer` for Keras on each of its backends, and for TensorFlow: what holds is in the module `native_on_keras`."""

from __future__ import annotations

import pytest
from support.case_names import cases_of
from support.elsewhere import Elsewhere

pytestmark = pytest.mark.needs("jax", "keras", "tensorflow", "torch")


@pytest.mark.parametrize(
    ("backend", "case"),
    [(b, case) for b in ("jax", "torch", "tensorflow", "numpy") for case in cases_of("native_on_keras", b)],
)
def test_case_holds(backend: str, case: str, elsewhere: Elsewhere) -> None:
    elsewhere.call("native_on_keras", case, KERAS_BACKEND=backend)
