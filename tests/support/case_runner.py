"""Cases that need a process of their own: run there, and reported to the test that started it.

A module of cases has functions whose names start with `case_`, each of one argument, a folder that they may share, and ends with
a call of `run_cases` when it is run as a script.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.processes import import_path

_MARK = "case: "


def run_cases(module: Mapping[str, Any], folder: Path) -> None:
    """Call the cases of a module in order; a line of standard output for each says how it went."""
    for name, case in list(module.items()):
        if not name.startswith("case_"):
            continue
        failure, printed = None, io.StringIO()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
                warnings.simplefilter("error")
                # Variables of Keras do not know NumPy 2's argument yet.
                warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword")
                case(folder)
        except Exception:
            failure = traceback.format_exc() + printed.getvalue()
        print(_MARK + json.dumps([name.removeprefix("case_"), failure]), flush=True)


def outcomes(module: str, folder: Path, **environment: str) -> dict[str, str | None]:
    """Run a module of the folder `cases` in a process; return for each case what went wrong, or None."""
    settings = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_HOME": str(folder / "keras")}
    done = subprocess.run(
        [sys.executable, "-m", f"cases.{module}", str(folder)],
        env={**os.environ, **import_path(), **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK))
    return dict(json.loads(line) for line in lines)
