"""A process that does large steps in its threads, forks, and does them again in the child and in the parent."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

import portopt
from portopt.kernels.host import threads

SIZE = 4 * threads.ELEMENTS_PER_THREAD + 1
OPTIMIZER = portopt.Adam(0.1)


def run(library: str) -> tuple[Any, Any, Any]:
    """Return parameter, gradient and state, made by the library before the fork."""
    w: Any = np.linspace(-1, 1, SIZE, dtype=np.float32)
    g: Any = np.linspace(2, -3, SIZE, dtype=np.float32)
    if library == "torch":
        import torch

        # The threads of torch's OpenMP run when the process forks; torch's own large operations then hang in the child.
        torch.set_num_threads(2)
        assert torch.ones(1_000_000).sum() == 1_000_000
        w, g = torch.from_numpy(w), torch.from_numpy(g)
    return w, g, OPTIMIZER.init(w)


def steps(w: Any, g: Any, state: Any) -> str:
    for _ in range(3):
        state = OPTIMIZER.apply_(w, g, state)
    return hashlib.sha256(np.asarray(w).tobytes()).hexdigest()


def digests(library: str) -> list[str]:
    """Return a digest of the bits of each of the three results."""
    runs = [run(library) for _ in range(3)]
    portopt.set_num_threads(3)
    before = steps(*runs[0])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, steps(*runs[1]).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    return [before, os.read(read, 1000).decode(), steps(*runs[2])]
