"""Repeated steps on GPUs: what was found out in the last step is not found out again.

A device plan is to arrays on a GPU what `portopt.kernels.host.plan` is to those in host memory, and looks at them in the same
way. Its tables stay in the memory of the device. A step queues an upload of 8 bytes a parameter if a gradient is not where it
was, and the kernels; it waits for nothing, and in place it takes no memory. Where all arrays are others in each step, the
addresses of all of a kind of parameters are one upload.

New arrays are the library's own, made for the stream on which the step is queued, like those that its operations make. What the
caller gives up after the step may be given out again at once: by the library's allocator for the same stream, behind whose queue
whoever gets it stands.

Arrays may lie on several devices: each does its part on the stream that is its current one, and the parts of totals go from one
to the other there (`portopt.kernels.device_queue`).

Tables belong to the stream on which they are used, so that nothing of a plan is shared by two streams. Two steps on the same
parameters are ordered by the caller, whatever their streams, as all work on the same memory is.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.backend import Backend, Leaf
from portopt.kernels import launch
from portopt.kernels.cuda import driver, kernels
from portopt.kernels.cuda.library import CudaLibrary, Fetch, Placed
from portopt.kernels.cuda.tables import Cut
from portopt.kernels.device_queue import (
    COUNT_OF_NORM,
    FINDING,
    JOINING,
    NORM,
    WORD,
    Column,
    Launch,
    OnDevice,
    Queue,
    ScalarKernel,
)
from portopt.kernels.device_totals import (
    DeviceTotals,
    PlacedTotals,
    Rows,
    TotalOfKind,
    can_be_found,
    reduced,
    reduction_of,
)
from portopt.kernels.groups import grouped, positions
from portopt.kernels.host import threads
from portopt.kernels.host.given import Schedules, changing
from portopt.kernels.host.kernel import Inputs, Work
from portopt.kernels.host.readers import ArrayReader
from portopt.kernels.host.repeated_step import UNKNOWN_CONTAINERS, Trees, parts_of
from portopt.kernels.host.results import Results
from portopt.kernels.host.step_inputs import HEAD, StepInputs
from portopt.kernels.host.watch import Call, Watch, size_of
from portopt.kernels.host_scalars import HostScalars
from portopt.kernels.key import KernelKey
from portopt.kernels.names import SCALARS_OF_NORM, SUM_SQUARES, UPDATE
from portopt.kernels.norm_dependence import WORDS_OF_PART, GradientNorm, norm_dependence, with_given_totals
from portopt.kernels.passes import passes_of
from portopt.kernels.queued_step import QueuedStep, StepTrees
from portopt.program import Program
from portopt.protocols import Rule
from portopt.state import OptimizerState

_MOST_STREAMS = 4
"""On how many streams the tables of a plan are kept."""


class DevicePlan(QueuedStep):
    """One optimizer's step on one set of arrays on a device, or on all that are like one.

    Args:
        library: of the arrays.
        backend: of the arrays.
        programs: what the kernels do, each with the shape of a parameter that it is for.
        watch: knows the arrays.
        kinds: the parameters by kernel and device.
        inputs: where the inputs and outputs are of what computes the scalars.
        further: names of further inputs.
        note_written: is told of all written arrays after a step.
        results: of steps that make new arrays; None for steps in place.
        totals: over all parameters, for which the host waits; None if there are none.
    """

    def __init__(
        self,
        library: CudaLibrary,
        backend: Backend,
        programs: Mapping[Program, tuple[int, ...]],
        watch: Watch,
        kinds: Sequence[_Kind],
        inputs: Inputs,
        further: tuple[str, ...],
        note_written: Callable[[list[Any]], object] | None,
        results: Results | None,
        totals: DeviceTotals | None,
    ) -> None:
        super().__init__(backend, programs, watch, further, note_written, results)
        if totals is not None:
            self.remarks = ("the host waits for totals over all parameters",)
        self._totals = totals
        self._library = library
        self._kinds = kinds
        self._is_small = threads.is_small(sum(kind.elements for kind in kinds))
        self._inputs = inputs
        self._schedules = Schedules(programs, inputs.length)
        self._devices = tuple(dict.fromkeys(kind.device for kind in kinds))
        self._placed: dict[tuple[int, ...], _Placed] = {}
        self._own_norm = GradientNorm({}, 0, _unknown)
        self._needs_norm = any(kind.scalars.results for kind in kinds)
        scalars = kinds[0].scalars
        first = 1 + inputs.places[0][1] // 8
        self._of_state = {name: first + k for name, k in scalars.of_state.items()}

    def step(
        self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> tuple[Any, OptimizerState] | None:
        """Do a step and return parameters and the new state; None, with nothing done, if anything is not as it was."""
        if not self.is_for(state) or (split := self.split(grads, overrides)) is None:
            return None
        grads, overrides = split
        trees, finished = (params, grads, state.slots), state.step + 1
        call, new = None, None
        if self.results is not None:
            # Not much memory is asked for before it is known that the step will fill it.
            if not self._is_small:
                with self.lock:
                    call = self.looked(trees)
                if call is None:
                    return None
            new = self.results.new()
        streams, slots = tuple(map(self._library.stream, self._devices)), state.slots
        with self.lock:
            found = self._step_inputs(rule, trees, state, overrides)
            if found is None:
                return None
            if not self._queue(trees, found, finished, streams, call, new):
                return None
        self.done()
        if self.results is not None and new is not None:
            params, slots = self.results.trees(new, params, slots)
        if self._of_state:
            slots = {**slots, **{name: found.inputs[k] for name, k in self._of_state.items()}}
        return params, OptimizerState(finished, slots)

    def fits(self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]) -> bool:
        """Tell whether the plan would do a step, doing nothing."""
        if not self.is_for(state) or (split := self.split(grads, overrides)) is None:
            return False
        grads, overrides = split
        with self.lock:
            if not self.would_do(rule, overrides):
                return False
            trees = params, grads, state.slots
            return self.would_queue(trees)

    # The inputs of a step -------------------------------------------------------------------------------------------

    def _step_inputs(self, rule: Rule, trees: StepTrees, state: Any, overrides: dict[str, Any]) -> _Given | None:
        """Return what a step is given; None if this plan cannot do the step."""
        found = self.inputs_from_last(state.slots, overrides)
        if found is not None:
            return _Given(found[1])
        try:
            return self._new_inputs(rule, trees, state, overrides)
        except Exception:
            # Of several things that are wrong, the full check has an order of its own.
            if self.watch.look(*trees):
                raise
            return None

    def _new_inputs(self, rule: Rule, trees: StepTrees, state: Any, overrides: dict[str, Any]) -> _Given | None:
        checked = self.checked(rule, overrides)
        if not self.does(rule, checked):
            return None
        scheduled = self._schedules.of(rule, checked)
        # No schedule of a user's is called for a step that another plan does.
        if not scheduled.is_all and self.looked(trees) is None:
            return None
        unknown: Any = self._own_norm if self._totals is None else 1.0
        scalars, _ = rule.step_scalars(self.backend, list(self.programs), state, checked, lambda *_: unknown)
        names = [name for name, total in self.program.totals.items() if total.args]
        norms = [of.inputs[name] for of in scalars for name in names if name in of.inputs]
        if self._totals is not None:
            norms = []
        if not all(map(self._is_usable, norms)):
            return None
        values = self._inputs.values([of.inputs for of in scalars])
        if not all(type(v) in (bool, int, float) for v in values):
            return None
        norm = next((norm for norm in norms if norm is not self._own_norm), None)
        given = StepInputs(
            self._inputs,
            values,
            scheduled.script,
            {},
            outputs=tuple(self._of_state),
            state=tuple(rule.scalar_slots),
            given=changing(rule, overrides) if scheduled.is_all else {},
        )
        known = frozenset(names).intersection(checked)
        self.kept = (given, overrides) if scheduled.is_all and not known else None
        return _Given(given.first(), norm, known)

    def _is_usable(self, norm: Any) -> bool:
        # A number would have to be looked at on the host.
        return isinstance(norm, GradientNorm) and (norm is self._own_norm or norm.words.keys() >= set(self._devices))

    # On the devices -------------------------------------------------------------------------------------------------

    def _queue(
        self,
        trees: StepTrees,
        given: _Given,
        step: int,
        streams: tuple[int, ...],
        call: Call | None,
        new: list[Any] | None,
    ) -> bool:
        """Queue a step; return whether all was as it was, else nothing was queued.

        Args:
            trees: of the step.
            given: what it is given.
            step: its number.
            streams: where to queue it, of each device.
            call: that of a look that found all as it was, if there was one.
            new: the arrays that the step fills, where it makes new ones.
        """
        call, placed = self.begun(call), self._placed.get(streams)
        if placed is None:
            if any(map(self._library.is_capturing, self._devices)) or (call := self.looked(trees)) is None:
                return False
            placed = self._place(streams, call)
        inputs, norm, known = given
        at = inputs.buffer_info()[0] + HEAD

        for totals in placed.totals:
            if known.issuperset(totals.names):
                continue
            is_done, call = self.queued(totals.queue, trees, at, step, call)
            if not is_done:
                return False
            for name, value in totals.values(self._library).items():
                for k in () if name in known else self._inputs.numbers_of(name):
                    inputs[1 + k] = value
        if self._needs_norm:
            address = self._library.address
            placed.queue.set_norm(
                None if norm is None else [(address(norm.words[number]), norm.count) for number in self._devices]
            )
        is_done, call = self.queued(placed.queue, trees, at, step, call, new)
        if is_done:
            self.note(call)
        return is_done

    def _place(self, streams: tuple[int, ...], call: Call) -> _Placed:
        """Put tables into the devices' memory, for steps on streams of theirs."""
        library, placed, norms = self._library, [], {}
        for kind, addresses in zip(self._kinds, self._addresses(call.table), strict=True):
            with library.on(kind.device):
                placed.append(kind.placed(addresses))
        count = sum(of.blocks_of_norm for of in placed)
        for number in self._devices:
            with library.on(number):
                norms[number] = library.workspace(WORDS_OF_PART * count, number)
        words = np.frombuffer(call.table, np.int64)
        of_devices, totals = dict(zip(self._devices, streams, strict=True)), list[PlacedTotals]()
        if self._totals is not None:
            totals = self._totals.placed(of_devices, words, self._inputs)
        at = {number: place for number, (_, place) in norms.items()}
        found = _Placed(self._queue_of(of_devices, placed, at), placed, norms, totals)
        while len(self._placed) >= _MOST_STREAMS:
            del self._placed[next(iter(self._placed))]
        self._placed[streams] = found
        return found

    def _addresses(self, table: array[int]) -> list[Any]:
        """Return the addresses of the arrays of each parameter, of each kind."""
        words = np.frombuffer(table, np.int64)
        found = []
        for kind, offset in zip(self._kinds, self.watch.offsets, strict=True):
            size = kind.rows * len(kind.columns)
            found.append(words[offset // 8 : offset // 8 + size].reshape(kind.rows, -1).tolist())
        return found

    def _queue_of(self, streams: Mapping[int, int], placed: Sequence[_PlacedKind], norms: Mapping[int, int]) -> Queue:
        """Return what queues steps.

        Args:
            streams: of each device.
            placed: what the devices have of each kind.
            norms: where each device has the parts of the norm.
        """
        programs = {
            kind.program: ScalarKernel(kind.scalars.address, *self._inputs.places[kind.program]) for kind in self._kinds
        }
        columns = {number: list[Column]() for number in streams}
        of_norm, launches = ({number: list[Launch]() for number in streams} for _ in range(2))
        count, found = 0, dict[int, range]()
        phase = JOINING if self._needs_norm and len(streams) > 1 else FINDING
        for number in streams:
            first = count
            for kind, at, offset in zip(self._kinds, placed, self.watch.offsets, strict=True):
                if kind.device != number:
                    continue
                for (column, width), known in zip(kind.changing, at.known, strict=True):
                    place = at.tables[0].argument[3] + 8 * kind.rows * column
                    columns[number].append(Column(offset + 8 * column, 8 * len(kind.columns), known, place, width))
                outputs, scalars, results = self._inputs.places[kind.program][1], kind.scalars, tuple[int, ...]()
                if at.gradients is not None and at.blocks_of_norm:
                    parts = norms[number] + 8 * WORDS_OF_PART * count
                    of_parts = [*at.gradients.argument, parts, at.blocks_of_norm]
                    of_norm[number].append(
                        Launch(
                            kind.functions[SUM_SQUARES], at.blocks_of_norm, of_parts, (), (), outputs, is_of_norm=True
                        )
                    )
                    count += at.blocks_of_norm
                if scalars.results:
                    results = (at.results,)
                    given = [(WORD, NORM), (WORD, COUNT_OF_NORM), *scalars.given]
                    launches[number].append(
                        Launch(kind.functions[SCALARS_OF_NORM], 1, (), given, results, outputs, phase=phase)
                    )
                launches[number] += [
                    Launch(
                        kind.functions[name],
                        table.chunks,
                        table.argument,
                        scalars.arguments,
                        results,
                        outputs,
                        phase=phase,
                    )
                    for name, table in zip(kind.names, at.tables, strict=True)
                    if table.chunks
                ]
            found[number] = range(first, count)
        return Queue(
            list(programs.values()),
            [
                OnDevice(
                    driver.device(number), stream, columns[number], [*of_norm[number], *launches[number]],
                    _fetches(number, norms, found), (norms[number], count),
                )
                for number, stream in streams.items()
            ],
        )  # fmt: skip


def _fetches(number: int, norms: Mapping[int, int], found: Mapping[int, range]) -> list[Fetch]:
    """Return what a device fetches of the parts of the norm.

    Args:
        number: of the device.
        norms: where each device has the parts.
        found: which of them each device finds.
    """
    fetches = []
    for other, parts in found.items():
        if other != number and parts:
            first, size = 8 * WORDS_OF_PART * parts.start, 8 * WORDS_OF_PART * len(parts)
            fetches.append(Fetch(number, norms[number] + first, other, norms[other] + first, size))
    return fetches


class _Kind:
    """Parameters that one kernel updates, on one device.

    Attributes:
        device: the number of the device.
        program: the number of its program among those of the step.
        scalars: of the program.
        names: of the kernels, in order.
        functions: the kernels of all names, those of the norm too.
        columns: names of the arrays of a parameter.
        changing: the columns of arrays that may be others in each step, as the first and the number of some beside each other.
        rows: number of parameters.
        elements: of all of them.
    """

    def __init__(
        self,
        library: CudaLibrary,
        number: int,
        program: Program,
        key: KernelKey,
        leaves: Sequence[Leaf],
        device: int,
        *,
        same_arrays: bool,
    ) -> None:
        self.device = device
        self.program = number
        self.scalars = HostScalars(program, key.compute_dtype)
        self.columns = key.columns(program)
        self.changing = [(0, len(self.columns))]
        if same_arrays:
            read = ("g", *program.further_inputs)
            self.changing = [(k, 1) for k, name in enumerate(self.columns) if name in read]
        self._library = library
        self.rows = len(leaves)
        self._numbers = [leaf.place.number for leaf in leaves]
        sizes = [library.size(leaf["p"]) for leaf in leaves]
        self._passes = None if program.is_elementwise else passes_of(program)
        self._lengths: list[tuple[int, ...]] = []
        self.elements = sum(sizes)
        module = library.module(program, key)
        if self._passes is None:
            self.names = [UPDATE]
            self._cut: list[Cut] = [(sizes, library.chunk)]
        else:
            self._lengths = [self._passes.stages.lengths(tuple(leaf["p"].shape)) for leaf in leaves]
            self.names = [step.name for step in self._passes.passes]
            self._cut = launch.cuts(self._passes, self._lengths)
        self.functions = {name: kernels.function(module, name, device) for name in self.names}
        if self.scalars.results:
            self.functions[SCALARS_OF_NORM] = kernels.function(module, SCALARS_OF_NORM, device)
            self._cut.append((sizes, library.reduced_chunk))
            of_norm = library.norm_module(dict(key.dtypes)["g"])
            self.functions[SUM_SQUARES] = kernels.function(of_norm, SUM_SQUARES, device)

    def placed(self, addresses: Sequence[Sequence[int]]) -> _PlacedKind:
        """Put tables into the memory of the device, which is the current one, given the addresses of each parameter's arrays."""
        library, device, memory = self._library, self.device, None
        rows = addresses
        if self._passes is not None:
            words = [self._passes.words(lengths, library.reduced_chunk) for lengths in self._lengths]
            starts = list(itertools.accumulate(words, initial=0))
            memory, at = library.workspace(starts[-1], device)
            rows = [
                [*own, *lengths, at + 8 * start, number]
                for own, lengths, start, number in zip(
                    addresses, self._lengths, starts[:-1], self._numbers, strict=True
                )
            ]
        tables = library.tables(rows, self._cut, device)
        results, results_at = library.workspace(self.scalars.results, device)
        of_norm = self._of_norm(tables[-1]) if self.scalars.results else None
        known = [
            array("q", [row[first + k] for k in range(width) for row in addresses]) for first, width in self.changing
        ]
        blocks = library.blocks_of_norm(of_norm, device) if of_norm is not None else 0
        owners = memory, results
        return _PlacedKind(tables[: len(self.names)], of_norm, blocks, results_at, known, owners)

    def _of_norm(self, table: Placed) -> Placed:
        """Return a table of all columns as one of the gradients, of which the norm is."""
        chunks, argument, owner = table
        gradients = argument[3] + 8 * self.rows * self.columns.index("g")
        return Placed(chunks, [*argument[:3], gradients, *argument[4:]], owner)


class _Given(NamedTuple):
    """What a step is given.

    Attributes:
        inputs: the memory of its inputs.
        norm: the norm of the gradients on the device, if that is given.
        known: the names of totals that are given.
    """

    inputs: array[float]
    norm: GradientNorm | None = None
    known: frozenset[str] = frozenset()


class _Placed(NamedTuple):
    """What devices have for steps on a stream of each.

    Attributes:
        queue: queues a step.
        kinds: of each kind of parameters.
        norms: memory of the parts of the norm of the gradients.
        totals: those for which the host waits, in order.
    """

    queue: Queue
    kinds: Sequence[_PlacedKind]
    norms: Any
    totals: Sequence[PlacedTotals]


class _PlacedKind:
    """What the device has of parameters of a kind.

    Attributes:
        tables: of each kernel.
        gradients: the table of the kernel of the norm; None if the step needs no norm.
        blocks_of_norm: in how many blocks that runs.
        results: where the scalars are that are computed from the norm.
        known: the changing columns as they are there.
    """

    def __init__(
        self,
        tables: Sequence[Placed],
        gradients: Placed | None,
        blocks_of_norm: int,
        results: int,
        known: Sequence[array[int]],
        owners: Any,
    ) -> None:
        self.tables = tables
        self.gradients = gradients
        self.blocks_of_norm = blocks_of_norm
        self.results = results
        self.known = known
        self._owners = owners


class _Watched:
    """Stands for a kernel where arrays are only looked at: what there is to compute are the scalars."""

    address = 0
    stages = None

    def __init__(self, columns: Sequence[str], scalars: HostScalars) -> None:
        self.columns = columns
        self.inputs = scalars.kernel.inputs
        self.program = scalars.kernel.program


def _unknown() -> Sequence[int]:
    raise AssertionError("the host does not ask for it")


def make_device_plan(
    library: CudaLibrary,
    backend: Backend,
    programs: Sequence[Program],
    trees: Trees,
    arrays: Sequence[Leaf],
    reader: ArrayReader,
    note_written: Callable[[list[Any]], object] | None = None,
    *,
    in_place: bool,
    same_arrays: bool,
) -> DevicePlan | str:
    """Return a plan for steps on C-contiguous arrays on devices, or why there is none.

    Args:
        library: of the arrays.
        backend: of the arrays.
        programs: what the steps run on each parameter.
        trees: a step's parameters, gradients and state; where there are further inputs, a tuple of gradients and these.
        arrays: of each parameter that has a gradient, in the order of the tree.
        reader: how arrays are read.
        note_written: a function that, given a list of all written arrays after a step, notes that they were written.
        in_place: whether the steps are.
        same_arrays: whether they are on the same parameters and slots, or on any that are like them.
    """
    if not all(launch.can_run(program.after_totals) for program in set(programs)):
        return "no kernel holds all of the program"
    waits = any(map(_host_waits, set(programs)))
    if waits and not can_be_found(programs):
        return "no kernel computes a total over all parameters"
    parts = parts_of(backend, programs, trees, arrays, reader, "on their device")
    if isinstance(parts, str):
        return parts
    arrays, members = parts.arrays, positions(programs)
    kinds, work = [], []
    for number, (program, chosen) in enumerate(members.items()):
        after = with_given_totals(program.after_totals) if waits else program.after_totals
        dtypes, devices = [arrays[i].dtypes for i in chosen], [library.device(arrays[i]["p"]) for i in chosen]
        for key, device, places in grouped(after, dtypes, in_place=in_place, flush="where", devices=devices):
            those = [chosen[place] for place in places]
            leaves = [arrays[i] for i in those]
            kind = _Kind(library, number, after, key, leaves, device, same_arrays=same_arrays)
            # Other arrays have others, and new ones have none yet.
            addresses = [[reader.address(arrays[i][n]) if same_arrays else 0 for n in kind.columns] for i in those]
            sizes = np.array([size_of(arrays[i]["p"]) for i in those], np.int64)
            kinds.append(kind)
            table, watched = np.array(addresses, np.int64), _Watched(kind.columns, kind.scalars)
            work.append(Work(watched, those, table, sizes, 0, number))  # type: ignore[arg-type]  # it is not run
    params, grads, state = trees
    totals = _totals(library, list(members), work, kinds, arrays, same_arrays=same_arrays) if waits else {}
    if isinstance(totals, str):
        return totals
    of_totals = [
        Work(_Watched(kind.columns, kind.scalars), (), None, None, 0, kind.number)  # type: ignore[arg-type]  # it is not run
        for _, kinds_of_total in totals.values()
        for kind in kinds_of_total
    ]
    inputs = Inputs([*work, *of_totals])
    results = None if in_place else parts.results(backend, reader, programs)
    watch = Watch(
        reader, (params, grads, state.slots), parts.scalar_slots, arrays, parts.still, work, inputs, same_arrays=same_arrays,
        new=None if results is None else results.places, note_written=note_written if in_place else None, further=parts.further,
    )  # fmt: skip
    if not watch.is_possible:
        return UNKNOWN_CONTAINERS
    shapes = {program: tuple(arrays[chosen[0]]["p"].shape) for program, chosen in members.items()}
    return DevicePlan(
        library, backend, shapes, watch, kinds, inputs, parts.further, note_written, results,
        DeviceTotals(library, totals) if waits else None,
    )  # fmt: skip


def _totals(
    library: CudaLibrary,
    programs: Sequence[Program],
    work: Sequence[Work],
    kinds: Sequence[_Kind],
    arrays: Sequence[Leaf],
    *,
    same_arrays: bool,
) -> dict[str, tuple[str, list[TotalOfKind]]] | str:
    """Return what finds each total, by name, as `DeviceTotals` has it, or why nothing does.

    Args:
        library: of the arrays.
        programs: of the step.
        work: the parameters of each kind.
        kinds: of parameters.
        arrays: of each parameter.
        same_arrays: whether all but what is read are the same arrays in each step.
    """
    rows, offset = list[Rows](), 0
    for item, kind in zip(work, kinds, strict=True):
        changing = [kind.columns[k] for first, width in kind.changing for k in range(first, first + width)]
        rows.append(Rows(offset, kind.columns, changing, [arrays[i] for i in item.members]))
        offset += 8 * kind.rows * len(kind.columns)
    found: dict[str, tuple[str, list[TotalOfKind]]] = {}
    numbers = itertools.count(len(programs))
    for name in dict.fromkeys(name for program in programs for name in program.totals):
        of_programs = {i: (next(numbers), reduced(program, program.totals[name])) for i, program in enumerate(programs)}
        own = []
        for kind, of in zip(kinds, rows, strict=True):
            number, program = of_programs[kind.program]
            own.append(TotalOfKind(library, number, program, of, kind.device))
            if not set(own[-1].columns) <= set(kind.columns):
                return "no kernel reads an array of which a total over all parameters is"
        found[name] = reduction_of(programs[0].totals[name]), own
    return found


def _host_waits(program: Program) -> bool:
    """Tell whether the host needs a total that only the device knows."""
    split = norm_dependence(program.after_totals)
    of_host = [*split.program.scalar_outputs.values(), *split.unrounded]
    norms = [op for op in program.totals.values() if op.args]
    of_gradients = all(op.name == "total_norm" and program.ops[op.args[0]].reads == "g" for op in norms)
    return not of_gradients or len(norms) > 1 or any(map(split.needs_norm, of_host))
