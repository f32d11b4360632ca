"""Processes that tests start. How long they may take is what pytest's `timeout` leaves them: a busy machine is no failure."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def import_path() -> dict[str, str]:
    """Return the environment variable with which another Python can import what this process can."""
    return {"PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)}


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """Run a program, and return what it printed. Its failure is one of the test."""
    result = started_python(code, *arguments, **environment)
    assert result.returncode == 0, f"the program ended with {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


def started_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may fail. It can import what this process can."""
    [result] = side_by_side([[sys.executable, "-c", textwrap.dedent(code), *arguments]], [import_path() | environment])
    return result


def side_by_side(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run commands at the same time and return what each did; none is left running, whatever is raised meanwhile.

    Args:
        commands: the arguments of each process.
        environments: for each process, what is set beside the variables that are.
    """
    with contextlib.ExitStack() as stack:

        def file() -> IO[str]:
            # Not a pipe: a process that waits for another one, which waits for its pipe to be read, would wait for ever.
            return stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))

        running = []
        for command, environment in zip(commands, environments or [{}] * len(commands), strict=True):
            out, err = file(), file()
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=err, text=True)
            # A process is waited for when its context is left, so it is killed before that.
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append((process, out, err))
        for process, _, _ in running:
            process.wait()
        return [
            subprocess.CompletedProcess(process.args, process.returncode, _content(out), _content(err))
            for process, out, err in running
        ]


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
