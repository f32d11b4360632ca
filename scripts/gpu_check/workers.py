"""Processes of the check's own: what may crash, hang or fill the memory runs in one, which keeps what it has found."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_check.options import Options

GRACE = 25
"""Seconds beyond its limit that a worker has to import what it needs."""
_STOPPED = 124
_RESTARTS = 4
_KEPT = 60_000
"""Characters of what a process printed."""

Keep = Callable[[Any], None]
Work = Callable[[Options, Mapping[str, Any], Keep], None]
"""Does a worker's work: is given its argument, and a function that keeps its result so far."""


def work(options: Options) -> None:
    """Be the worker that the options name."""
    from gpu_check import bits, conformance, launches, profile, semantics, timings

    works: Mapping[str, Work] = {
        "bits": bits.work,
        "conformance": conformance.work,
        "launches": launches.work,
        "profile": profile.work,
        "semantics": semantics.work,
        "timings": timings.work,
    }
    result = Path(options.argument["result"])

    def keep(found: Any) -> None:
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(found, default=str), encoding="utf-8")
        partial.replace(result)

    works[options.worker](options, options.argument, keep)


def run_worker(options: Options, worker: str, argument: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """Run a worker and return what it kept; if it failed, also `exit`, and as `text` all that it printed.

    One that ran on after its time is ended. It has `stopped` too if it began what it was doing, as its `began` says in seconds,
    in the second half of its time: then that was too short. What began before hangs.

    Args:
        options: of this check.
        worker: its name.
        argument: what it is given, next to `limit`.
        limit: seconds after which it is to stop by itself; less where the check has less left.
    """
    limit = min(limit, options.left())
    if limit < 1:
        return {"skipped": "NOT RUN: no time was left"}
    with tempfile.TemporaryDirectory(prefix="portopt_worker_") as folder:
        result, printed = Path(folder, "result.json"), Path(folder, "printed")
        given = json.dumps({**argument, "result": str(result), "limit": limit})
        script = Path(__file__).resolve().parents[1] / "check_gpu.py"
        command = [sys.executable, "-X", "faulthandler", str(script), *options.command()]
        command += [f"--worker={worker}", f"--argument={given}"]
        with printed.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
            try:
                code = process.wait(limit + GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = _STOPPED
        found: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(result.read_text(encoding="utf-8"))
        if code:
            text = printed.read_text(encoding="utf-8", errors="replace")[-_KEPT:]
            found |= {"exit": code, "text": text}
        if code == _STOPPED:
            found["text"] += "\nit was stopped: it ran on after its time"
            if found.get("began", 0.0) > limit / 2:
                found["stopped"] = True
        return found


def run_cases(options: Options, worker: str, argument: Mapping[str, Any], limit: float) -> Iterator[dict[str, Any]]:
    """Run a worker on its cases; where one ends the process, another process goes on after it. Yield what each kept.

    Args:
        options: of this check.
        worker: its name. It is given as `skip` how many cases are not its any more; it keeps as `run` how many it has done, and
            the name of the one that it does as `running`.
        argument: what it is given besides.
        limit: seconds for all of its processes.
    """
    end, skip = time.monotonic() + limit, 0
    for _ in range(_RESTARTS):
        result = run_worker(options, worker, {**argument, "skip": skip}, max(1.0, end - time.monotonic()))
        yield result
        if "exit" not in result or "running" not in result or end - time.monotonic() < 1:
            return
        skip += result["run"] + 1


def last_line(text: str) -> str:
    """Return what a text says first of all: of a traceback, and of what a process printed, that is its last line.

    A process that C++ aborted says why before the frames of its stack.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [
        line for line in lines if "Check failed" in line or line.startswith(("Fatal Python error", "terminate called"))
    ]
    return (fatal[:1] or lines[-1:] or [""])[0]


def failure() -> str:
    """Return the traceback of the exception that is being handled."""
    return traceback.format_exc()
