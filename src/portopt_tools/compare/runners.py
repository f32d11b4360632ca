"""What trains in a run: an optimizer of portopt on the arrays of one backend, in one mode."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from portopt.backend import Backend, Mode, prefer
from portopt.optimizer import Optimizer, OptimizerState
from portopt.trees import STANDARD_TREES
from portopt_tools.compare.digits import DEFINITION, Parameters


class Runner(Protocol):
    """One way to take optimizer steps."""

    backend: str
    """The name of the array library, or of the library's optimizers."""
    version: str
    """Its version."""
    device: str
    """Where the arrays are."""
    mode: str
    """How the steps are executed."""
    formula: str | None
    """What is computed instead of portopt's formula; None for portopt's own."""
    difference: str
    """How that formula differs, as far as it is known."""

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which everything else is called."""

    def start(self, parameters: Parameters) -> None:
        """Begin anew from these parameters."""

    def load(self, gradients: Parameters) -> Any:
        """Return gradients as arrays on the device."""

    def step(self, gradients: Any) -> None:
        """Take one step with what `load` returned."""

    def parameters(self) -> Sequence[npt.NDArray[Any]]:
        """Wait for the last step, and return a copy of the parameters on the host."""


def name_of(runner: Runner) -> str:
    """Return how messages and charts call a run."""
    device = "" if runner.device == "cpu" else f" {runner.device}"
    return f"{runner.backend}{device} {runner.mode}"


class BackendRunner:
    """portopt on one backend."""

    formula: str | None = None
    difference = ""

    def __init__(self, backend: Backend, device: str, mode: Mode, optimizer: Optimizer, dtype: str) -> None:
        self.backend, self.version, self.device, self.mode = backend.name, backend.version(), device, mode.name
        self._backend, self._mode, self._optimizer, self._dtype = backend, mode, optimizer, dtype
        self._params: Any = None
        self._state: OptimizerState | None = None

    def context(self) -> contextlib.AbstractContextManager[Any]:
        stack = contextlib.ExitStack()
        # Several backends may know the same type of array; this run is about one of them.
        stack.enter_context(prefer(self._backend))
        stack.enter_context(self._backend.dtype_context(self._dtype))
        return stack

    def start(self, parameters: Parameters) -> None:
        self._params = self.load(parameters)
        self._state = self._optimizer.init(self._params)
        self._step = self._mode.step(self._optimizer)

    def load(self, gradients: Parameters) -> Any:
        arrays = [self._backend.from_numpy(array, self.device) for array in gradients]
        return STANDARD_TREES.unflatten(DEFINITION, arrays)

    def step(self, gradients: Any) -> None:
        self._params, self._state = self._step(self._params, gradients, self._state)

    def parameters(self) -> Sequence[npt.NDArray[Any]]:
        return [self._backend.to_numpy(array) for array in STANDARD_TREES.flatten(self._params)[0]]
