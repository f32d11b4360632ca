"""What Keras asks of an optimizer, on each of its backends: see `keras_option_cases.py` and `keras_golden_cases.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.case_runner import outcomes


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_options_and_golden_values_hold_on_every_backend_of_keras(
    backend: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    found = outcomes("keras_option_cases", tmp_path, KERAS_BACKEND=backend)
    assert len(found) > 30
    for name, failure in found.items():
        with subtests.test(backend=backend, case=name):
            assert failure is None, failure
