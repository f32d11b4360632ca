"""Running the scripts of this folder in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
LIMIT = 900
"""Seconds after which a process is taken to hang, even on a busy machine."""


def run_script(name: str, *arguments: str, **environment: str) -> str:
    """Run a script with what this process can import; return what it printed. Its failure is one of the test."""
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    result = subprocess.run(
        [sys.executable, str(TESTS / name), *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert result.returncode == 0, f"{name} {' '.join(arguments)} ended with {result.returncode}:\n{result.stderr}"
    return result.stdout
