"""Cases in other processes: functions of the modules in `cases`, called there when a test asks for them.

Some libraries must be alone in their process, or can be set up only once in it, as Keras and its backend. Loading them takes
seconds, so a process is kept for all cases that want the same environment.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.processes import import_path

KEPT = 3
"""Processes that are kept. One in which Keras has trained on TensorFlow holds two gigabytes."""


class Elsewhere:
    """The processes of a run of tests. A failure there is the failure of the test that asked, with what was printed."""

    def __init__(self, home: Path) -> None:
        self._settings = {
            **import_path(),
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_HOME": str(home),
        }
        self._kept: dict[frozenset[tuple[str, str]], _Process] = {}

    def call(self, module: str, function: str, *arguments: Any, **environment: str) -> Any:
        """Call a function of a module in `cases`, in the process that has this environment, and return what it returned."""
        return self.call_in_each([environment], module, function, *arguments)[0]

    def call_in_each(
        self, environments: Sequence[Mapping[str, str]], module: str, function: str, *arguments: Any
    ) -> list[Any]:
        """Call a function in several processes at the same time, and return what each returned."""
        keys = [frozenset(environment.items()) for environment in environments]
        for key in keys:
            # What was used last stands last.
            kept = self._kept.pop(key) if key in self._kept else _Process({**self._settings, **dict(key)})
            self._kept[key] = kept
        try:
            results = _call([self._kept[key] for key in keys], module, function, *arguments)
        except BaseException:
            # Nobody knows in which state the case has left its process.
            for key in keys:
                self._kept.pop(key).close()
            raise
        for key in list(self._kept)[:-KEPT]:
            self._kept.pop(key).close()
        return results

    def call_alone(self, module: str, function: str, *arguments: Any, **environment: str) -> Any:
        """Call a function in a process that does nothing else."""
        with contextlib.closing(_Process({**self._settings, **environment})) as process:
            return _call([process], module, function, *arguments)[0]

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1].close()


class _Process:
    """A Python that calls what it is asked to, one function after the other."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "support.serve_cases"],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
        )

    def ask(self, *question: Any) -> None:
        self._begin = os.fstat(self._printed.fileno()).st_size
        assert self._process.stdin is not None
        # A process that has ended says so when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(question, self._process.stdin)
            self._process.stdin.flush()

    def answer(self) -> tuple[str | None, Any]:
        """Return what went wrong, or None and what the function returned."""
        assert self._process.stdout is not None
        try:
            failure, result = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            failure, result = f"the process ended with {self._process.wait()}\n", None
        if failure is not None:
            # The position belongs to the process as well, which writes where it stands.
            failure += os.pread(self._printed.fileno(), 1 << 20, self._begin).decode(errors="replace")
        return failure, result

    def close(self) -> None:
        self._process.kill()
        for file in (self._process.stdin, self._process.stdout, self._printed):
            assert file is not None
            # What was not written yet is for nobody.
            with contextlib.suppress(BrokenPipeError):
                file.close()
        self._process.wait()


def _call(processes: Sequence[_Process], module: str, function: str, *arguments: Any) -> list[Any]:
    for process in processes:
        process.ask(module, function, arguments)
    answers = [process.answer() for process in processes]
    failures = [failure for failure, _ in answers if failure is not None]
    if failures:
        pytest.fail("\n".join([f"cases.{module}.{function}:", *failures]), pytrace=False)
    return [result for _, result in answers]
