"""What steps that make new arrays are compared with: copying what they make, and Adam written in NumPy's operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portopt.backend import Backend
from portopt.optimizer import Optimizer
from portopt.rules import Adam
from portopt_tools.bench.contenders import Contender, Inputs, portopt_contenders
from portopt_tools.bench.measuring import Step

MODE = "apply"
"""portopt's mode that makes new arrays."""


def pure_contenders(optimizer: Optimizer, backend: Backend) -> list[Contender]:
    """Return the steps of portopt's that make new arrays on a backend, and what they are compared with."""
    own = [c for c in portopt_contenders(backend, interpreted=False) if c.mode == MODE]
    if own and optimizer == Adam() and backend.owns(np.empty(0, np.float32)):
        own.append(Contender("NumPy", backend.name, "by hand", _by_hand))
    return (
        [*own, Contender(f"copying {backend.name}", backend.name, "parameters and slots", _copying(backend))]
        if own
        else []
    )


def adam_by_hand(p: Any, g: Any, m: Any, v: Any, step: int) -> tuple[Any, Any, Any]:
    """Return a parameter and its moments after a step of Adam on float32 arrays."""
    rate = 0.001 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    m = np.float32(0.9) * m + np.float32(0.1) * g
    v = np.float32(0.999) * v + np.float32(0.001) * (g * g)
    return p - np.float32(rate) * m / (np.sqrt(v) + np.float32(1e-7)), m, v


def _by_hand(inputs: Inputs) -> Step:
    params = inputs.host_arrays(0)
    grads, moments, squares = inputs.host_arrays(1), *([np.zeros_like(p) for p in params] for _ in range(2))
    # Like portopt's, each step starts from the same arrays.
    return lambda: [adam_by_hand(*arrays, 1) for arrays in zip(params, grads, moments, squares, strict=True)]


def _copying(backend: Backend) -> Callable[[Inputs], Step]:
    def prepare(inputs: Inputs) -> Step:
        parameters, state = inputs.shared(backend)
        arrays: Sequence[Any] = [
            *parameters,
            *(a for tree in state.slots.values() if isinstance(tree, list) for a in tree),
        ]
        copies = [array.clone if hasattr(array, "clone") else array.copy for array in arrays]
        return lambda: [copy() for copy in copies]

    return prepare
