"""A process whose children save a checkpoint over an older one and are killed while they do."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import portopt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_line(number: int) -> Callable[[], None]:
    """Return what makes the process die before it runs line `number` of the modules that write."""

    def arrange() -> None:
        left = number

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.endswith(("portopt/files.py", "checkpoints/file_format.py")):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    kill()
            return trace

        sys.settrace(trace)

    return arrange


def kill_half_written() -> None:
    """Arrange that the library dies in the middle of the file."""
    original = safetensors.numpy.save_file

    def save_file(tensors: Any, path: Any, **options: Any) -> None:
        original(tensors, path, **options)
        os.truncate(path, Path(path).stat().st_size // 2)
        kill()

    vars(safetensors.numpy)["save_file"] = save_file


def fill_the_disk() -> None:
    """Arrange that no file can be longer than 1000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def child(arrange: Callable[[], None], save: Callable[[], None]) -> str:
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(OSError):
            arrange()
            save()
            status = 0
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return ("done", "refused")[os.WEXITSTATUS(status)]


def killed(folder: Path) -> list[dict[str, Any]]:
    """Return for each child where it was to stop, whether it was killed, and the step of the checkpoint that is there then."""
    found: list[dict[str, Any]] = []
    path = folder / "run.safetensors"
    optimizer = portopt.Adam()
    params = {"w": np.ones((30, 5))}
    old = optimizer.init(params)
    _, new = optimizer.apply(params, params, old)

    def attempt(what: str, arrange: Callable[[], None]) -> str:
        portopt.save(path, optimizer, params, old)
        files = len(list(folder.iterdir()))
        how = child(arrange, lambda: portopt.save(path, optimizer, params, new))
        step = portopt.load(path)[2].step
        found.append({"what": what, "how": how, "step": step, "left": len(list(folder.iterdir())) - files})
        return how

    attempt("half written", kill_half_written)
    attempt("disk full", fill_the_disk)
    number = 1
    while attempt(f"line {number}", kill_at_line(number)) == "SIGKILL":
        number += 1
    return found
