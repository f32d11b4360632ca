"""`portopt_tensorflow`: what holds is in `tensorflow_cases.py`, as TensorFlow takes long to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.case_runner import outcomes

pytestmark = pytest.mark.needs("tensorflow")


def test_every_case_holds(tmp_path: Path, subtests: pytest.Subtests) -> None:
    found = outcomes("tensorflow_cases", tmp_path)
    assert len(found) >= 10
    for name, failure in found.items():
        with subtests.test(case=name):
            assert failure is None, failure


def test_importing_the_backend_imports_no_tensorflow() -> None:
    code = "import sys, portopt_tensorflow; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
