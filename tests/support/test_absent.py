"""A run may do without a library only if it says so, and then leaves out what needs it and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import absent
from support.places import ROOT, TESTS

MODULES = {
    "test_whole.py": "import no_such_library\ndef test_in_a_module_that_imports_it(): pass\n",
    "test_parts.py": (
        "import pytest\n"
        "@pytest.mark.needs('no_such_library')\n"
        "def test_that_needs_it(): import no_such_library\n"
        "def test_that_does_not(): pass\n"
    ),
}


def run_pytest(folder: Path, without: str) -> str:
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PORTOPT_TESTS_WITHOUT": without}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_what_needs_an_absent_library_is_left_out(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, " ".join([*absent.ABSENT, "no_such_library"]))
    assert re.search(r"\b1 passed, 2 skipped in", printed), printed
    assert printed.count("needs no_such_library, which this run does without") == 2


def test_a_library_that_is_missing_without_a_word_is_an_error(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, " ".join(absent.ABSENT))
    assert "No module named 'no_such_library'" in printed
    assert re.search(r"\b1 error in", printed), printed


def test_a_library_that_is_there_cannot_be_named_as_absent(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, "numpy no_such_library")
    assert "PORTOPT_TESTS_WITHOUT names libraries that are installed: numpy" in printed


@pytest.mark.parametrize(
    ("module", "library"), [("core/test_in_place", "torch"), ("adapters/test_torch_sharded", "torch")]
)
def test_imports_are_found_in_a_module_and_in_its_helpers(module: str, library: str) -> None:
    assert library in absent.imports(TESTS / f"{module}.py")
    assert library not in absent.imports(TESTS / "backends/test_backends.py")
