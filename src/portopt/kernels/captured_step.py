"""Steps on a GPU that a CUDA graph can repeat: their number, and the scalars of their state, lie in the device's memory.

Kernels compute there what changes from step to step: bias corrections, rates of schedules, the clipping factor. All that a
graph repeats of a step is the launches, so it allocates nothing that the graph would not own, and reads no memory of the host:
the tables that tell kernels where arrays lie come as kernels' arguments (`portopt.kernels.cuda.graphs`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from portopt.backend import Backend, DeviceNumber, DeviceScalars, Leaf, Work, is_interpreted
from portopt.kernels import launch
from portopt.kernels.cuda.graphs import capture_error
from portopt.kernels.cuda.library import CudaLibrary
from portopt.kernels.cuda.source import NUMBERS
from portopt.kernels.cuda.totals import total_of_parts_source
from portopt.kernels.device_arithmetic import DeviceOperations
from portopt.kernels.host import compiler
from portopt.kernels.host.readers import ArrayReader
from portopt.kernels.names import TOTAL_OF_PARTS
from portopt.kernels.norm_dependence import STEP, GradientNorm, with_given_totals
from portopt.kernels.rates import with_rates
from portopt.kernels.recorded_plan import RecordedPlan, ScalarsOf, make_recorded_plan
from portopt.program import Kind, Program
from portopt.program.interpreter import StepScalars
from portopt.program.ir import pruned


class _Known(StepScalars):
    """Scalars that are known."""

    def __init__(self, program: Program, arithmetic: Any, inputs: Any, values: list[Any]) -> None:
        super().__init__(program, arithmetic, inputs)
        self._values = values


@functools.lru_cache(maxsize=512)
def _asked(program: Program) -> tuple[int, ...]:
    """Return the scalars of a step that its arrays, scalars of its parameters, and its state need."""
    ops, of_parameter = program.ops, program.parameter_scalars
    users = [op for i, op in enumerate(ops) if not op.kind.is_scalar or i in of_parameter]
    needed = {j for op in users for j in op.args} | {*program.scalar_outputs.values()}
    return tuple(i for i in sorted(needed - of_parameter) if ops[i].kind.is_scalar and ops[i].name != "constant")


class CudaGraphs:
    """Steps that CUDA graphs repeat, for a library of arrays; see `portopt.backend.Graphs`.

    Args:
        backend: of the library.
        library: returns what launches ask of the library.
        runs_kernels: tells whether an array is on a device that has kernels.
        is_captured: tells of arrays whether what is queued on their devices is being captured.
        assign: writes a number into an array of no axes.
        operations: returns a backend like this one, for which the host waits for no scalar.
        reader: returns how the compiled look reads arrays on the device of one, or why it cannot.
        note_written: returns what is told of all written arrays after a planned step; None if nobody needs to know.
    """

    def __init__(
        self,
        backend: Backend,
        library: Callable[[], CudaLibrary],
        runs_kernels: Callable[[Any], bool],
        is_captured: Callable[[Iterable[Any]], bool],
        assign: Callable[[Any, float], object],
        operations: Callable[[], DeviceOperations],
        reader: Callable[[Any], ArrayReader | str],
        note_written: Callable[[], Callable[[list[Any]], object] | None],
    ) -> None:
        self._backend = backend
        self._library = library
        self._runs_kernels = runs_kernels
        self._is_captured = is_captured
        self._assign = assign
        self._operations = functools.cache(operations)
        self._reader = reader
        self._note_written = note_written

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
                f"capturable=True is for arrays on a CUDA device, whose graphs repeat steps, but an array on {device} was given; "
                "it takes a state on the host, capturable=False"
            )
        self._library().prepare_graphs(self._library().device(like))
        return self._backend.from_numpy(np.asarray(value, np.int64 if type(value) is int else np.float64), device)

    def empty(self, like: Any) -> Any:
        library = self._library()
        with library.on(library.device(like)):
            return library.empty((), library.dtype(like), library.device(like))

    def assign(self, target: Any, value: float) -> None:
        self._assign(target, value)

    def why_not(
        self, programs: Sequence[tuple[Program, Sequence[Any]]], schedules: Iterable[Any], numbers: Mapping[str, Any]
    ) -> str | None:
        parameters = [leaf for _, leaves in programs for leaf in leaves]
        if is_interpreted():
            return "it is inside portopt.interpreted(), where the host computes the scalars of a step"
        if not parameters:
            return "no parameter has a gradient"
        if any(leaf.is_part for leaf in parameters) and not all(program.is_elementwise for program, _ in programs):
            return "results depend on what other processes hold of the parameters"
        if not all(self._runs_kernels(leaf["p"]) for leaf in parameters):
            return "not all parameters are on a CUDA device"
        devices = {self._library().device(leaf["p"]) for leaf in parameters}
        if len(devices) > 1:
            return "the parameters are on several devices, but the number of the step is on one"
        for name, number in numbers.items():
            if self._library().device(number) not in devices:
                return f"{name} is not on the device of the parameters"
        for program, _ in programs:
            totals = [op for op in program.totals.values() if not program.is_given_or_gradient_norm(op)]
            if totals and not launch.can_run(program.after_totals):
                return f"no kernel holds all of the program of {program.name}, which has totals over all parameters"
        try:
            with_rates(programs[0][0], {str(k): schedule for k, schedule in enumerate(schedules)})
        except ValueError as error:
            return str(error)
        return None

    def plan(
        self,
        programs: Sequence[Program],
        trees: tuple[Any, Any, Any],
        parameters: Sequence[Leaf],
        overrides: Mapping[str, Any],
        scalars_of: ScalarsOf,
    ) -> RecordedPlan | str:
        if is_interpreted() or not compiler.available():
            return "not all of the step is done by kernels"
        if not parameters:
            return "no parameter has a gradient"
        if self._is_captured([leaf["p"] for leaf in parameters]):
            return "it is being captured in a CUDA graph"
        reader = self._reader(parameters[0]["p"])
        if isinstance(reader, str):
            return reader
        given = self._library(), self._backend, programs, trees, parameters, overrides, scalars_of, reader
        return make_recorded_plan(*given, self._note_written())

    def refuse_capture(self, arrays: Iterable[Any], reason: str | None = None) -> None:
        if self._is_captured(arrays):
            raise capture_error(reason)

    def kept(self, owner: Any) -> AbstractContextManager[Any]:
        library = self._library()
        return library.kept(library.device(owner), owner)

    # Steps that are done operation by operation ---------------------------------------------------------------------

    def results(self, works: Sequence[Work]) -> list[dict[str, Any]]:
        """Return what works make of their parameters, operation by operation, with scalars that stay on the device."""
        return self._operations().results(
            [work._replace(scalars=self._values(work.scalars)) for work in works], in_place=False
        )

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        """Do a whole step so, its number and the scalars of its state too."""
        operations = self._operations()
        results = self.results(works)
        scalars = works[0].scalars
        assert isinstance(scalars, DeviceScalars)
        values = self._values(scalars)
        with operations.quiet():
            new = {STEP: values.inputs[STEP], **values.outputs()}
            for name, value in new.items():
                operations.assign(scalars.written[name].owner, value)
            if not in_place:
                return results
            parameters = [arrays for work in works for arrays in work.parameters]
            for arrays, outputs in zip(parameters, results, strict=True):
                for name, value in outputs.items():
                    operations.assign(arrays[name], value)
        return [{name: arrays[name] for name in outputs} for arrays, outputs in zip(parameters, results, strict=True)]

    def _values(self, scalars: Any) -> StepScalars:
        """Return the scalars of a step as arrays of the device."""
        assert isinstance(scalars, DeviceScalars)
        operations, step, library = self._operations(), scalars.places[STEP].owner, self._library()
        arithmetic, program = operations.arithmetic([step]), with_given_totals(scalars.program)
        of_host, places = dict(scalars.inputs), dict(scalars.places)
        with operations.quiet():
            for name, value in scalars.inputs.items():
                if isinstance(value, GradientNorm):
                    places[name] = self.place(self._norm(value))
                    del of_host[name]
            inputs = {**of_host, STEP: arithmetic.add(step, 1)}
            asked = pruned(program.name, list(program.ops), {}, {str(i): i for i in _asked(program)})
            asked = with_rates(asked, scalars.schedules)
            found = launch.scalars_on_device(library, asked, of_host, places, library.device(step))
            values: list[Any] = [op.label if op.name == "constant" else None for op in program.ops]
            for name, value in found.items():
                kind = program.ops[int(name)].kind
                if isinstance(value, bool | int | float) or kind is Kind.FLOAT:
                    values[int(name)] = value
                else:
                    whole = operations.xp.astype(value, operations.xp.int64)
                    values[int(name)] = value != 0.0 if kind is Kind.TRUTH else whole
        return _Known(program, arithmetic, inputs, values)

    def norm_of(self, x: Any) -> Any:
        """Return the norm of all elements of an array, as an array of no axes, by kernels."""
        found = launch.gradient_norm(self._library(), [x])
        assert found is not None  # of one array, on one device
        return self._norm(found)

    def _norm(self, norm: GradientNorm) -> Any:
        library = self._library()
        ((device, words),) = norm.words.items()
        with library.on(device):
            found = library.empty((1,), "float64", device)
            library.call(total_of_parts_source("norm"), TOTAL_OF_PARTS, 1, [words, norm.count, found], device)
        return found.reshape(())
