"""torch's own threads, for what a step does between two of torch's products: they wait for work on every processor."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from portopt.kernels.host.threads import Team, address_of


def team() -> Team | None:
    """Return the threads that torch multiplies with; None where it has one only, or an OpenMP runtime that is not known."""
    parallel, size = _parallel(), torch.get_num_threads()
    return Team(parallel, size) if parallel and size > 1 and os.getpid() == _process else None


# The threads of a runtime do not survive a fork, and GNU's does not notice.
_process = os.getpid()


@functools.cache
def _parallel() -> int:
    try:
        # What the library of torch's operations is linked with, whichever other runtimes there are in the process.
        return address_of(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel)
    except (AttributeError, OSError):
        return 0
