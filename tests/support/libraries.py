"""The array libraries that the tests run on, and trees moved between NumPy and them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import optree
import pytest
from support.absent import ABSENT

import portopt
from portopt.backend import Backend, Mode

REQUIRED = tuple(name for name in ("numpy", "torch", "jax", "array_api_strict") if name not in ABSENT)
"""Libraries whose absence is an error, not a skip."""


@dataclass(frozen=True)
class Library:
    """One array library on one device."""

    name: str
    device: str

    def __str__(self) -> str:
        return self.name

    @property
    def backend(self) -> Backend:
        return portopt.get_backend(self.name)

    def precision(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which the library has `dtype`."""
        return self.backend.dtype_context(dtype)

    def arrays(self, tree: Any) -> Any:
        """Return a tree of NumPy arrays as one of this library's arrays."""
        return _map(lambda x: None if x is None else self.backend.from_numpy(x, self.device), tree)

    def numpy(self, tree: Any) -> Any:
        """Return a tree of this library's arrays as one of NumPy arrays."""
        return _map(lambda x: None if x is None else self.backend.to_numpy(x), tree)

    def numpy_state(self, state: portopt.OptimizerState, scalar_slots: Sequence[str] = ()) -> portopt.OptimizerState:
        """Return a state with NumPy arrays, an int, and Python floats for scalar slots."""
        slots = {
            name: float(self.backend.scalar(tree)) if name in scalar_slots else self.numpy(tree)
            for name, tree in state.slots.items()
        }
        return portopt.OptimizerState(int(state.step), slots)


def _map(function: Any, tree: Any) -> Any:
    return optree.tree_map(function, tree, none_is_leaf=True)


def _usable() -> list[Library]:
    found = []
    for name in dict.fromkeys([*REQUIRED, *portopt.backends()]):
        backend = portopt.get_backend(name)
        try:
            backend.version()
        except ImportError:
            if name in REQUIRED:
                raise
            continue
        device = next((device for device, reason in backend.devices().items() if reason is None), None)
        if device is not None:
            found.append(Library(name, device))
    return found


LIBRARIES = _usable()
"""Every installed library with a usable device, by way of `portopt.backends` and the generic backend."""
BY_NAME = {library.name: library for library in LIBRARIES}
IN_PLACE = [library for library in LIBRARIES if "apply_" in library.backend.modes]

PLANNED = [library for library in LIBRARIES if library.name in ("numpy", "torch")]
"""Those whose steps in place are planned."""

each_library = pytest.mark.parametrize("library", LIBRARIES, ids=str)
each_planned = pytest.mark.parametrize("library", PLANNED, ids=str)


@dataclass(frozen=True)
class Run:
    """One library in one of its modes."""

    library: Library
    mode_name: str

    def __str__(self) -> str:
        return f"{self.library.name}-{self.mode_name}"

    @property
    def mode(self) -> Mode:
        return self.library.backend.modes[self.mode_name]


RUNS = [Run(library, mode) for library in LIBRARIES for mode in library.backend.modes]


def steps(
    run: Run, optimizer: portopt.Optimizer, params: Any, gradients: Sequence[Any], dtype: str
) -> tuple[Any, portopt.OptimizerState]:
    """Run steps on NumPy data in one library and mode; return parameters and state as NumPy data."""
    library = run.library
    with library.precision(dtype):
        arrays = library.arrays(params)
        state = optimizer.init(arrays)
        arrays, state = run.mode.many(optimizer, arrays, [library.arrays(g) for g in gradients], state)
        return library.numpy(arrays), library.numpy_state(state, tuple(optimizer.scalar_slots))
