"""Repeated steps on a GPU whose number lies on the device, outside of graphs: the launches of one are queued again.

Kernels compute there all that changes from step to step, so their arguments stay as they are: a plan has them, with the memory
that they name, and the tables. What may be elsewhere in each step are gradients, and further inputs. In the rows of a table these
are marks at first, from which it is known where a step has to put their addresses.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from portopt.backend import Backend, DeviceScalars, Leaf, Work
from portopt.backend.totals import Totals
from portopt.kernels import launch
from portopt.kernels.cuda import driver, kernels
from portopt.kernels.cuda.library import CudaLibrary, Placed
from portopt.kernels.cuda.tables import Cut
from portopt.kernels.device_queue import Column, Launch, OnDevice, Queue
from portopt.kernels.groups import grouped, positions
from portopt.kernels.host.given import same_numbers
from portopt.kernels.host.kernel import Inputs
from portopt.kernels.host.kernel import Work as Watched
from portopt.kernels.host.readers import ArrayReader
from portopt.kernels.host.repeated_step import UNKNOWN_CONTAINERS, Trees, parts_of
from portopt.kernels.host.step_inputs import HEAD
from portopt.kernels.host.watch import Watch, size_of
from portopt.kernels.queued_step import QueuedStep, StepTrees
from portopt.program import Program
from portopt.protocols import Rule
from portopt.schedules import is_ready_made, is_schedule
from portopt.state import OptimizerState

ScalarsOf = Callable[[Totals, Sequence[tuple[Program, Sequence[Leaf]]]], Sequence[DeviceScalars]]
"""Returns the scalars of a step for each of its programs, given what finds totals, and the programs with their parameters."""

_MARK = 1 << 62
"""No address is as large."""
_MOST_COLUMNS = 64
"""How many pieces of addresses that lie evenly are uploaded one by one."""


class RecordedPlan(QueuedStep):
    """One optimizer's step in place on one set of arrays on a device, the scalars of its state among them, on one stream.

    Args:
        library: of the arrays.
        backend: of the arrays.
        programs: what the kernels do, each with the shape of a parameter that it is for.
        watch: knows the arrays.
        queue: queues a step.
        state: whose number and scalars lie on the device.
        overrides: the hyperparameters that were given.
        place: number of the device, and the stream.
        further: names of further inputs.
        note_written: is told of all written arrays after a step.
        owners: what keeps the memory alive that the kernels use.
    """

    def __init__(
        self,
        library: CudaLibrary,
        backend: Backend,
        programs: Mapping[Program, tuple[int, ...]],
        watch: Watch,
        queue: Queue,
        state: OptimizerState,
        overrides: Mapping[str, Any],
        place: tuple[int, int],
        further: tuple[str, ...],
        note_written: Callable[[list[Any]], object] | None,
        owners: Any,
    ) -> None:
        super().__init__(backend, programs, watch, further, note_written, None)
        self.remarks = ("the device counts the steps",)
        self._library = library
        self._queue = queue
        self._number = state.step
        self._scalars = {n: x for n, x in state.slots.items() if n in self.program.scalar_outputs}
        self._overrides = overrides
        numbers = [state.step, *self._scalars.values(), *(x for x in overrides.values() if backend.owns(x))]
        self._numbers = [(x, library.address(x)) for x in numbers]
        self._place = place
        self._inputs = array("d", bytes(HEAD + 8))
        self._keep_alive = owners

    def is_for(self, state: Any) -> bool:
        if type(state) is not OptimizerState or state.step is not self._number:
            return False
        if any(state.slots.get(name) is not x for name, x in self._scalars.items()):
            return False
        # An array may be given other memory.
        if any(self._library.address(x) != at for x, at in self._numbers):
            return False
        return super().is_for(state._replace(step=0)) and self._library.stream(self._place[0]) == self._place[1]

    def step(
        self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> tuple[Any, OptimizerState] | None:
        """Do a step and return parameters and the new state; None, with nothing done, if anything is not as it was."""
        trees = self._trees(params, grads, state, overrides)
        if trees is None:
            return None
        with self.lock:
            at = self._inputs.buffer_info()[0] + HEAD
            is_done, call = self.queued(self._queue, trees, at, 1, self.begun(None))
            if not is_done:
                return None
            self.note(call)
        self.done()
        return params, state

    def fits(self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]) -> bool:
        """Tell whether the plan would do a step, doing nothing."""
        trees = self._trees(params, grads, state, overrides)
        if trees is None:
            return False
        with self.lock:
            return self.would_queue(trees)

    def _trees(self, params: Any, grads: Any, state: Any, overrides: dict[str, Any]) -> StepTrees | None:
        """Return what is looked at; None if the step is not one of the plan's."""
        if not self.is_for(state) or (split := self.split(grads, overrides)) is None:
            return None
        grads, others = split
        known = self._overrides
        if others.keys() != known.keys():
            return None
        numbers = [name for name, value in others.items() if value is not known[name]]
        if numbers and not same_numbers({n: others[n] for n in numbers}, {n: known[n] for n in numbers}):
            return None
        return params, grads, state.slots


def make_recorded_plan(
    library: CudaLibrary,
    backend: Backend,
    programs: Sequence[Program],
    trees: Trees,
    arrays: Sequence[Leaf],
    overrides: Mapping[str, Any],
    scalars_of: ScalarsOf,
    reader: ArrayReader,
    note_written: Callable[[list[Any]], object] | None,
) -> RecordedPlan | str:
    """Return a plan for further steps in place like one whose number lies on the device, or why there is none.

    Args:
        library: of the arrays.
        backend: of the arrays.
        programs: what the step runs on each parameter.
        trees: a step's parameters, gradients and state; where there are further inputs, a tuple of gradients and these.
        arrays: of each parameter that has a gradient, in the order of the tree; all on one device.
        overrides: the hyperparameters that are given for the step alone.
        scalars_of: computes the scalars of the step.
        reader: how arrays are read.
        note_written: a function that, given a list of all written arrays after a step, notes that they were written.
    """
    if not all(launch.can_run(program.after_totals) for program in set(programs)):
        return "no kernel holds all of the program"
    if not all(isinstance(value, int | float) or _is_kept(backend, value) for value in overrides.values()):
        return "what is given for a step is neither a number, nor a number on the device, nor a ready-made schedule"
    parts = parts_of(backend, programs, trees, arrays, reader, "on their device")
    if isinstance(parts, str):
        return parts
    arrays, number = parts.arrays, library.device(arrays[0]["p"])
    read, marks = ("g", *parts.further), itertools.count(_MARK)
    marked: list[Leaf] = list(arrays)
    work, members = list[Watched](), positions(programs)
    for program, chosen in members.items():
        for key, _, places in grouped(program, [arrays[i].dtypes for i in chosen], in_place=True, flush="where"):
            columns, those = key.columns(program), [chosen[place] for place in places]
            for i in those:
                # Numbered as the table of the look has them, word by word.
                own = {name: next(marks) for name in columns}
                marked[i] = arrays[i].like(
                    {name: _Marked(a, own[name]) if name in read else a for name, a in arrays[i].items()}
                )
            table = np.array([[reader.address(arrays[i][name]) for name in columns] for i in those], np.int64)
            sizes = np.array([size_of(arrays[i]["p"]) for i in those], np.int64)
            work.append(Watched(_Looked(columns), those, table, sizes, 0, len(work)))  # type: ignore[arg-type]  # it is not run
    recorder = _Recorder(library, number)
    of_programs = [(program, [marked[i] for i in chosen]) for program, chosen in members.items()]
    with library.on(number):
        try:
            scalars = scalars_of(recorder, of_programs)
        except _NotOnDevice:
            return "the host finds totals over all parameters"
        if not all(is_ready_made(schedule) for schedule in scalars[0].schedules.values()):
            return "a schedule is a function of its own, which is asked in each step"
        works = [Work(of.program, of, leaves) for of, (_, leaves) in zip(scalars, of_programs, strict=True)]
        launch.update(recorder, works, _nothing, in_place=True)
    if len(recorder.columns) > _MOST_COLUMNS:
        return "the kinds of its parameters take turns in their tree too often"
    state, inputs = trees[2], Inputs(work)
    watch = Watch(
        reader, (trees[0], trees[1], state.slots), parts.scalar_slots, arrays, parts.still, work, inputs, same_arrays=True,
        note_written=note_written, further=parts.further,
    )  # fmt: skip
    if not watch.is_possible:
        return UNKNOWN_CONTAINERS
    place = number, library.stream(number)
    queue = Queue([], [OnDevice(driver.device(number), place[1], recorder.columns, recorder.launches)])
    shapes = {program: tuple(arrays[chosen[0]]["p"].shape) for program, chosen in members.items()}
    return RecordedPlan(
        library, backend, shapes, watch, queue, state, dict(overrides), place, parts.further, note_written,
        (recorder.used, scalars),
    )  # fmt: skip


def _is_kept(backend: Backend, value: Any) -> bool:
    """Tell whether a hyperparameter is the same as long as it is the same object, or where kernels read it anew."""
    if is_schedule(value):
        return is_ready_made(value)
    return backend.graphs is not None and backend.graphs.has_number(value)


def _nothing(works: Sequence[Work]) -> Sequence[Mapping[str, Any]]:
    raise AssertionError("kernels do all of it")


class _NotOnDevice(Exception):
    """Something of a step is not found by the device alone."""


class _Looked:
    """Stands for a kernel where arrays are only looked at."""

    address = 0
    stages = None
    inputs: tuple[str, ...] = ()
    program = Program("nothing", (), {})

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns


class _Marked(NamedTuple):
    """An array that may be another one in each step, and what stands for its address."""

    array: Any
    mark: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(self.array.shape)


class _Recorder(CudaLibrary):
    """A library that launches nothing: what it would launch is kept.

    Args:
        library: the library.
        device: number of the device.

    Attributes:
        launches: in order.
        columns: where addresses of marked arrays are.
        used: memory of the launches.
    """

    def __init__(self, library: CudaLibrary, device: int) -> None:
        self._library, self._device = library, device
        self.launches: list[Launch] = []
        self.columns: list[Column] = []
        self.used: list[Any] = []

    def device(self, array: Any) -> int:
        return self._device

    def dtype(self, array: Any) -> str:
        return self._library.dtype(_own(array))

    def size(self, array: Any) -> int:
        return self._library.size(_own(array))

    def address(self, array: Any) -> int:
        return array.mark if isinstance(array, _Marked) else self._library.address(array)

    def memory(self, array: Any) -> tuple[str, int, int]:
        return ("", 0, 0) if isinstance(array, _Marked) else self._library.memory(array)

    def dense(self, array: Any) -> Any:
        return array

    def is_dense(self, array: Any) -> bool:
        return True

    def copied(self, array: Any) -> Any:
        raise AssertionError("the look tells whether gradients lie in memory that is written")

    def empty_like(self, array: Any, dtype: str | None = None) -> Any:
        raise AssertionError("steps in place make no arrays")

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        self.used.append(self._library.empty(shape, dtype, device))
        return self.used[-1]

    def assign(self, target: Any, value: Any) -> None:
        raise AssertionError("kernels write into the arrays themselves")

    def on(self, device: int) -> AbstractContextManager[Any]:
        return self._library.on(device)

    def words(self, memory: Any, count: int) -> list[int]:
        raise _NotOnDevice

    def stream(self, device: int) -> int:
        return self._library.stream(device)

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        """Record what finds the norm of gradients."""
        return launch.gradient_norm(self, gradients)

    def total(self, name: str, works: Sequence[Work]) -> Any:
        """Record what finds another total."""
        found = launch.total(self, name.removeprefix("total_"), works)
        if found is None:
            raise _NotOnDevice
        return found

    def tables(self, rows: Sequence[Sequence[int]], cut: Sequence[Cut], device: int) -> list[Placed]:
        placed = super().tables(rows, cut, device)
        if rows and placed:
            addresses = placed[0].argument[3]
            for k, column in enumerate(zip(*rows, strict=True)):
                self._note(column, addresses + 8 * k * len(rows))
        return placed

    def _note(self, column: Sequence[int], at: int) -> None:
        """Note where marks stand in a column at an address, those together that lie evenly in the look's table."""
        first = 0
        while first < len(column):
            if column[first] < _MARK:
                first += 1
                continue
            end, stride = first + 1, 0
            while end < len(column) and column[end] >= _MARK:
                further = column[end] - column[end - 1]
                if end > first + 1 and further != stride:
                    break
                stride, end = further, end + 1
            known = array("q", column[first:end])
            self.columns.append(Column(8 * (column[first] - _MARK), 8 * stride, known, at + 8 * first, 1))
            first = end

    def _launch(self, module: str, kernel: str, blocks: int, arguments: bytes, device: int) -> None:
        words = array("q", arguments + bytes(-len(arguments) % 8))
        function = kernels.function(module, kernel, device)
        self.launches.append(Launch(function, blocks, words, (), (), 0, size=len(arguments)))


def _own(array: Any) -> Any:
    return array.array if isinstance(array, _Marked) else array
