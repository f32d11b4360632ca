"""Steps on a GPU that a CUDA graph can repeat: their number, and the scalars of their state, lie in the device's memory.

Kernels compute there what changes from step to step: bias corrections, rates of schedules, the clipping factor. All that a
graph repeats of a step is the launches, so it allocates nothing that the graph would not own, and reads no memory of the host:
the tables that tell kernels where arrays lie come as kernels' arguments (`portopt.kernels.cuda.graphs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from portopt.backend import Backend, DeviceNumber, is_interpreted
from portopt.kernels import launch
from portopt.kernels.cuda.graphs import capture_error
from portopt.kernels.cuda.library import CudaLibrary
from portopt.kernels.cuda.source import NUMBERS
from portopt.kernels.rates import with_rates
from portopt.program import Program


class CudaGraphs:
    """Steps that CUDA graphs repeat, for a library of arrays; see `portopt.backend.Graphs`.

    Args:
        backend: of the library.
        library: returns what launches ask of the library.
        runs_kernels: tells whether an array is on a device that has kernels.
        is_captured: tells of arrays whether what is queued on their devices is being captured.
        assign: writes a number into an array of no axes.
    """

    def __init__(
        self,
        backend: Backend,
        library: Callable[[], CudaLibrary],
        runs_kernels: Callable[[Any], bool],
        is_captured: Callable[[Iterable[Any]], bool],
        assign: Callable[[Any, float], object],
    ) -> None:
        self._backend = backend
        self._library = library
        self._runs_kernels = runs_kernels
        self._is_captured = is_captured
        self._assign = assign

    def has_number(self, value: Any) -> bool:
        return self._backend.owns(value) and tuple(value.shape) == () and self._runs_kernels(value)

    def has_step(self, value: Any) -> bool:
        return self.has_number(value) and self._library().dtype(value) == "int64"

    def place(self, value: Any) -> DeviceNumber:
        library = self._library()
        dtype = library.dtype(value)
        if dtype not in NUMBERS:
            raise TypeError(f"a number on a device must be of dtype {', '.join(NUMBERS)}, but one of {dtype} was given")
        return DeviceNumber(library.address(value), dtype, value)

    def put(self, value: float, like: Any) -> Any:
        device = self._backend.describe(like).device
        if not self._runs_kernels(like):
            raise ValueError(
                f"capturable=True is for arrays on a CUDA device, whose graphs repeat steps, but an array on {device} was given"
            )
        self._library().prepare_graphs(self._library().device(like))
        return self._backend.from_numpy(np.asarray(value, np.int64 if type(value) is int else np.float64), device)

    def empty(self, like: Any) -> Any:
        library = self._library()
        with library.on(library.device(like)):
            return library.empty((), library.dtype(like), library.device(like))

    def assign(self, target: Any, value: float) -> None:
        self._assign(target, value)

    def why_not(self, programs: Sequence[tuple[Program, Sequence[Any]]], schedules: Iterable[Any]) -> str | None:
        parameters = [leaf for _, leaves in programs for leaf in leaves]
        if is_interpreted():
            return "it is inside portopt.interpreted(), where the host computes the scalars of a step"
        if not parameters:
            return "no parameter has a gradient"
        if any(leaf.is_part for leaf in parameters) and not all(program.is_elementwise for program, _ in programs):
            return "results depend on what other processes hold of the parameters"
        if not all(self._runs_kernels(leaf["p"]) for leaf in parameters):
            return "not all parameters are on a CUDA device"
        if len({self._library().device(leaf["p"]) for leaf in parameters}) > 1:
            return "the parameters are on several devices, but the number of the step is on one"
        for program, _ in programs:
            if not launch.can_run(program.after_totals):
                return f"no kernel holds all of the program of {program.name}"
        try:
            with_rates(programs[0][0], {str(k): schedule for k, schedule in enumerate(schedules)})
        except ValueError as error:
            return str(error)
        return None

    def refuse_capture(self, arrays: Iterable[Any], reason: str | None = None) -> None:
        if self._is_captured(arrays):
            raise capture_error(reason)

    def kept(self, owner: Any) -> AbstractContextManager[Any]:
        library = self._library()
        return library.kept(library.device(owner), owner)
