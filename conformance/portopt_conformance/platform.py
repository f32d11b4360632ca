"""What a case runs on: a backend, one of its devices, one of its modes, one of its library's settings."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from portopt import ArrayAPIBackend, Backend, Optimizer, OptimizerState
from portopt.backend import Mode, Step, prefer
from portopt_conformance.words import Words
from portopt_numpy import NumpyBackend

_KEPT_STEPS = 4


class UnusableDeviceError(ValueError):
    """The backend's library is there, but the device that was asked for is not."""


@dataclass(frozen=True)
class Platform:
    """A backend on one device, in one mode.

    Attributes:
        setting: name of one of the backend's settings to run under; empty for the library's present one.
    """

    backend: Backend
    device: str
    mode: Mode
    setting: str = ""
    _steps: dict[Optimizer, Step] = field(default_factory=dict, compare=False, repr=False)

    @property
    def mode_name(self) -> str:
        """The mode, and the setting if there is one, as an identifier."""
        return "+".join([self.mode.name, *([self.setting.replace(" ", "-")] if self.setting else [])])

    @contextlib.contextmanager
    def active(self, dtype: str | None) -> Iterator[None]:
        """Make optimizers use this backend for its arrays, where arrays of `dtype` can be made."""
        setting: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
        if self.setting:
            setting = self.backend.settings[self.setting]
        with prefer(self.backend), setting(), self.backend.dtype_context(dtype or "float32"):
            yield

    def array(self, array: Words) -> Any:
        """Return a NumPy array as an array of the backend on the device."""
        return self.backend.from_numpy(array, self.device)

    def to_numpy(self, array: Any) -> Words:
        """Return an array of the backend as a NumPy array."""
        return np.asarray(self.backend.to_numpy(array))

    def step(self, optimizer: Optimizer) -> Step:
        """Return the mode's function for one step, the same one each time, so that it is compiled once."""
        if optimizer not in self._steps:
            # Only the latest are kept: what they were compiled to takes memory, and cases of one optimizer follow each other.
            for oldest in list(self._steps)[: len(self._steps) - _KEPT_STEPS + 1]:
                del self._steps[oldest]
            self._steps[optimizer] = self.mode.step(optimizer)
        return self._steps[optimizer]

    def step_number(self, finished: int) -> Any:
        """Return a number of finished steps as a state holds it.

        Where a step is compiled it is an array, as in the state that a step returns: a function compiled for a Python number
        would be compiled again for that.
        """
        compiles_steps = self.mode.compiled and self.mode.run is None
        return self.array(np.asarray(finished, np.int32)) if compiles_steps else finished

    def many(
        self, optimizer: Optimizer, params: Any, gradients: Sequence[Any], state: OptimizerState
    ) -> tuple[Any, OptimizerState]:
        """Do one step for each element of `gradients`."""
        if self.mode.run is not None:
            return self.mode.run(optimizer, params, gradients, state)
        step = self.step(optimizer)
        for gradient in gradients:
            params, state = step(params, gradient, state)
        return params, state


def choose_device(backend: Backend, device: str | None) -> str:
    """Return the name of a usable device: the first one if none is asked for, `cuda:0` for `cuda`.

    Raises:
        UnusableDeviceError: there is no such device, or it cannot be used.
    """
    known = backend.devices()
    usable = [name for name, reason in known.items() if reason is None]
    if device is None:
        if usable:
            return usable[0]
        raise UnusableDeviceError(f"{backend.name} has no usable device: {_reasons(known)}")
    for name in (device, *(name for name in usable if name.startswith(f"{device}:"))):
        if name in usable:
            return name
    reason = known.get(device) or f"it has {', '.join(usable) or _reasons(known)}"
    raise UnusableDeviceError(f"{backend.name} cannot use the device {device!r}: {reason}")


def _reasons(known: Mapping[str, str | None]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in known.items()) or "the library names none"


class ReferenceBackend(NumpyBackend):
    """The interpreter on NumPy, operation by operation, whatever else the NumPy backend may do."""

    primitives = ArrayAPIBackend.primitives
    update = ArrayAPIBackend.update
    gradient_norm = ArrayAPIBackend.gradient_norm
    total = ArrayAPIBackend.total
    plan = ArrayAPIBackend.plan


@functools.cache
def reference() -> Platform:
    """Return the platform from which the committed vectors come."""
    backend = ReferenceBackend()
    return Platform(backend, "cpu", backend.modes["apply"])
