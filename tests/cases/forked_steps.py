"""A process that does large steps in its threads, forks, and does them again in the child and in the parent.

Run as `python forked_steps.py numpy|torch`; prints a digest of the bits of each of the three results.
"""

from __future__ import annotations

import hashlib
import os
import sys
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


def steps(w: Any, g: Any, state: Any) -> None:
    for _ in range(3):
        state = OPTIMIZER.apply_(w, g, state)
    print(hashlib.sha256(np.asarray(w).tobytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    runs = [run(sys.argv[1]) for _ in range(3)]
    portopt.set_num_threads(3)
    steps(*runs[0])
    child = os.fork()
    if child == 0:
        steps(*runs[1])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    steps(*runs[2])
