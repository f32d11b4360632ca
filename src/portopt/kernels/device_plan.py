"""Repeated steps on a GPU: what was found out in the last step is not found out again.

A device plan is to arrays on a GPU what `portopt.kernels.host.plan` is to those in host memory, and looks at them in the same
way. Its tables stay in the memory of the device. A step queues an upload of 8 bytes a parameter if a gradient is not where it
was, and the kernels; it waits for nothing, and in place it takes no memory. Where all arrays are others in each step, the
addresses of all of a kind of parameters are one upload.

New arrays are the library's own, made for the stream on which the step is queued, like those that its operations make. What the
caller gives up after the step may be given out again at once: by the library's allocator for the same stream, behind whose queue
whoever gets it stands.

Tables belong to the stream on which they are used, so that nothing of a plan is shared by two streams. Two steps on the same
parameters are ordered by the caller, whatever their streams, as all work on the same memory is.
"""

from __future__ import annotations

import itertools
import struct
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.arithmetic.dtypes import TINY_FLOAT32
from portopt.backend import Backend, Leaf
from portopt.kernels import launch
from portopt.kernels.cuda import driver, kernels
from portopt.kernels.cuda.library import Argument, CudaLibrary, Placed, packed, typed
from portopt.kernels.cuda.source import MOST_BLOCKS, THREADS
from portopt.kernels.cuda.tables import columns_of
from portopt.kernels.groups import grouped, positions
from portopt.kernels.host.compiler import default_flush
from portopt.kernels.host.kernel import Inputs, Work, host_kernel
from portopt.kernels.host.readers import ArrayReader
from portopt.kernels.host.repeated_step import UNKNOWN_CONTAINERS, RepeatedStep, Trees, parts_of
from portopt.kernels.host.results import Results
from portopt.kernels.host.watch import Call, Watch, size_of
from portopt.kernels.key import KernelKey
from portopt.kernels.names import SCALARS_OF_NORM, SUM_SQUARES, UPDATE
from portopt.kernels.norm_dependence import WORDS_OF_PART, GradientNorm, host_program, norm_dependence
from portopt.kernels.passes import passes_of
from portopt.nested import rates_of
from portopt.program import Kind, Op, Program
from portopt.protocols import Rule
from portopt.schedules import is_schedule
from portopt.state import OptimizerState

_MOST_STREAMS = 4
"""On how many streams the tables of a plan are kept."""


class DevicePlan(RepeatedStep):
    """One optimizer's step on one set of arrays on a device, or on all that are like one.

    Args:
        library: of the arrays.
        backend: of the arrays.
        programs: what the kernels do, each with the shape of a parameter that it is for.
        watch: knows the arrays.
        kinds: the parameters by kernel.
        state_type: of the states.
        further: names of further inputs.
        note_written: is told of all written arrays after a step.
        results: of steps that make new arrays; None for steps in place.
        same_arrays: whether all but what is read are the same arrays in each step.
    """

    def __init__(
        self,
        library: CudaLibrary,
        backend: Backend,
        programs: Mapping[Program, tuple[int, ...]],
        watch: Watch,
        kinds: Sequence[_Kind],
        device: int,
        further: tuple[str, ...],
        note_written: Callable[[list[Any]], object] | None,
        results: Results | None,
        *,
        same_arrays: bool,
    ) -> None:
        super().__init__(backend, programs, further, results)
        self._library = library
        self._same_arrays = same_arrays
        self._watch = watch
        self._kinds = kinds
        self._device = driver.device(device)
        self._note_written = note_written
        self._placed: dict[int, _Placed] = {}
        self._lock = threading.Lock()
        self._own_norm = GradientNorm(None, 0, _unknown)
        # Inputs of the last step, and the hyperparameters that were given for it, as text.
        self._kept: tuple[list[Mapping[str, Any]], str] | None = None

    def step(
        self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> tuple[Any, OptimizerState] | None:
        """Do a step and return parameters and the new state; None, with nothing done, if anything is not as it was."""
        if not self.is_for(state) or (split := self.split(grads, overrides)) is None:
            return None
        grads, overrides = split
        stream = self._library.stream(self._device.number)
        call = self._looked((params, grads, state.slots))
        if call is None:
            return None
        inputs = self._inputs_of(rule, state, overrides)
        # A schedule of a user's may have done anything to the arrays.
        if inputs is None or (self._kept is None and not self._watch.look(params, grads, state.slots, call=call)):
            return None
        new = None
        if self.results is not None:
            with self._library.on(self._device.number):
                new = self.results.new()
            if not self._watch.look(params, grads, state.slots, call=call, new=new):
                return None
        finished, new_scalars = state.step + 1, dict[str, float]()
        with self._lock, self._device.within():
            if self._device.driver.is_capturing(stream):
                return None
            placed = self._placed.get(stream) or self._place(stream, call)
            self._bring(call.table, placed, stream)
            norm = self._norm_of(inputs, placed, stream)
            for kind, at in zip(self._kinds, placed.kinds, strict=True):
                values = kind.scalars.values(inputs[kind.program], finished)
                new_scalars |= kind.scalars.of_state(values)
                results: tuple[int, ...] = ()
                if kind.scalars.results:
                    results = (at.results,)
                    given = kind.scalars.given(norm, values, at.results)
                    self._device.launch(kind.functions[SCALARS_OF_NORM], 1, THREADS, given, stream)
                for name, table in zip(kind.names, at.tables, strict=True):
                    if table.chunks:
                        arguments = kind.scalars.arguments(table.argument, values, results)
                        blocks = min(table.chunks, MOST_BLOCKS)
                        self._device.launch(kind.functions[name], blocks, THREADS, arguments, stream)
        if self._note_written is not None:
            self._note_written(call.written)
        self.was_used = True
        slots = state.slots
        if self.results is not None and new is not None:
            params, slots = self.results.trees(new, params, slots)
        if new_scalars:
            slots = {**slots, **new_scalars}
        return params, OptimizerState(finished, slots)

    def fits(self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]) -> bool:
        """Tell whether the plan would do a step, doing nothing."""
        if not self.is_for(state) or (split := self.split(grads, overrides)) is None:
            return False
        grads, overrides = split
        try:
            if self._inputs_of(rule, state, overrides) is None:
                return False
        except Exception:
            # The full check says so in its order.
            return False
        return self._looked((params, grads, state.slots)) is not None

    def _looked(self, trees: tuple[Any, Any, Any]) -> Call | None:
        """Return a call with the arrays, gradients copied that kernels cannot read as they lie; None if they do not fit."""
        call = self._watch.begin()
        if self._watch.look(*trees, call=call):
            return call
        mended = self._watch.mend(call, *trees)
        return mended if mended is not None and self._watch.look(*trees, call=mended) else None

    def _inputs_of(self, rule: Rule, state: Any, overrides: dict[str, Any]) -> list[Mapping[str, Any]] | None:
        """Return the scalar inputs of each program but the number of the step; None if this step needs others."""
        given = "" if not overrides else repr(overrides) if _are_numbers(overrides) else None
        if self._kept is not None and self._kept[1] == given:
            return self._kept[0]
        checked = self.checked(rule, overrides)
        if not self.does(rule, checked):
            return None
        scalars, _ = rule.step_scalars(
            self.backend, list(self.programs), state, checked, lambda name, scalars_of: self._own_norm
        )
        found = [of.inputs for of in scalars]
        if not all(self._is_usable(name, value) for inputs in found for name, value in inputs.items()):
            return None
        scheduled = any(map(is_schedule, rates_of(rule, checked)))
        self._kept = None if given is None or scheduled or self.program.scalar_outputs else (found, given)
        return found

    def _is_usable(self, name: str, value: Any) -> bool:
        if name in self.program.totals and self.program.totals[name].args:
            # A number would have to be looked at on the host.
            return isinstance(value, GradientNorm) and (
                value is self._own_norm or self._library.device(value.words) == self._device.number
            )
        return type(value) in (bool, int, float)

    # On the device --------------------------------------------------------------------------------------------------

    def _place(self, stream: int, call: Call) -> _Placed:
        """Put tables into the device's memory, for steps on a stream."""
        library, number = self._library, self._device.number
        with library.on(number):
            kinds = [
                kind.placed(addresses.tolist(), number)
                for kind, addresses in zip(self._kinds, self._addresses(call.table), strict=True)
            ]
            norm, at = library.workspace(WORDS_OF_PART * sum(kind.blocks_of_norm for kind in kinds), number)
        placed = _Placed(kinds, at, norm)
        while len(self._placed) >= _MOST_STREAMS:
            del self._placed[next(iter(self._placed))]
        self._placed[stream] = placed
        return placed

    def _addresses(self, table: array[int]) -> list[Any]:
        """Return the addresses of the arrays of each parameter, of each kind, one row a parameter."""
        words = np.frombuffer(table, np.int64)
        found = []
        for kind, offset in zip(self._kinds, self._watch.offsets, strict=True):
            size = kind.rows * len(kind.columns)
            found.append(words[offset // 8 : offset // 8 + size].reshape(kind.rows, -1))
        return found

    def _bring(self, table: array[int], placed: _Placed, stream: int) -> None:
        """Queue the upload of the addresses that are not what the device has."""
        if not self._same_arrays:
            for kind, at, addresses in zip(self._kinds, placed.kinds, self._addresses(table), strict=True):
                current = columns_of(addresses)
                if kind.rows:
                    self._device.upload(at.tables[0].argument[3], current, stream)
            return
        for kind, at, offset in zip(self._kinds, placed.kinds, self._watch.offsets, strict=True):
            width, start = len(kind.columns), offset // 8
            for column in kind.read:
                current = table[start + column : start + width * kind.rows : width]
                if at.known[column] != current:
                    at.known[column] = None
                    self._device.upload(at.tables[0].argument[3] + 8 * kind.rows * column, current, stream)
                    at.known[column] = current

    def _norm_of(self, inputs: Sequence[Mapping[str, Any]], placed: _Placed, stream: int) -> tuple[int, int]:
        """Return where the parts of the norm of the gradients are, and how many, if the scalars of a step need it."""
        if not any(kind.scalars.results for kind in self._kinds):
            return 0, 0
        norm = next(value for of in inputs for value in of.values() if isinstance(value, GradientNorm))
        if norm is not self._own_norm:
            return self._library.address(norm.words), norm.count
        count = 0
        for kind, at in zip(self._kinds, placed.kinds, strict=True):
            if at.blocks_of_norm:
                parts = Argument("Q", placed.norm + 8 * WORDS_OF_PART * count)
                arguments = packed([parts, typed(at.blocks_of_norm)], at.gradients.argument)
                self._device.launch(kind.functions[SUM_SQUARES], at.blocks_of_norm, THREADS, arguments, stream)
                count += at.blocks_of_norm
        return placed.norm, count


class _Scalars:
    """The scalars of a program, computed by a function that is compiled for the host, as arguments of its kernels.

    Attributes:
        results: how many are computed on the device, from the norm of the gradients.
    """

    def __init__(self, program: Program, real: str) -> None:
        split = norm_dependence(program)
        self.results = len(split.rounded_on_device)
        self._real = real
        of_host = host_program(split)
        # A kernel has a parameter; this one gets no row of any.
        load = Op("load", Kind.ARRAY, label="p")
        whole = Program(of_host.name, (*of_host.ops, load), {"p": len(of_host.ops)}, of_host.scalar_outputs)
        self._kernel = host_kernel(whole, KernelKey((("p", "float64"),), in_place=True, flush=default_flush()))
        place = {int(name): k for k, name in enumerate(of_host.scalar_outputs)}
        self._count = len(place)
        self._rounded = [place[j] for _, j in split.rounded_on_host]
        self._unrounded = [(place[j], split.program.ops[j].kind) for j in split.unrounded]
        self._given = [(place[j], split.program.ops[j].kind) for j in split.given]
        self._of_state = {name: place[i] for name, i in split.program.scalar_outputs.items()}
        kinds = "".join(_STRUCT[kind] for _, kind in self._unrounded)
        real_kinds = ("f" if real == "float32" else "d") * len(self._rounded)
        self._struct = struct.Struct(f"@6q{real_kinds}{kinds}{'Q' if self.results else ''}")
        self._struct_of_norm = struct.Struct(f"@Qq{''.join(_STRUCT[kind] for _, kind in self._given)}Q")

    def values(self, inputs: Mapping[str, Any], step: int) -> list[float]:
        """Return the scalars that kernels and the state need, given the program's inputs and the number of the step."""
        given = [inputs[name] for name in self._kernel.inputs]
        memory = array("d", [*given, *[0.0] * (self._count + 1)])
        at = memory.buffer_info()[0]
        outputs = at + 8 * len(given)
        self._kernel.function(at, at, at, at, 0, 0, 0, at, step, outputs)
        return memory[len(given) :].tolist()

    def of_state(self, values: Sequence[float]) -> dict[str, float]:
        """Return the new scalars of the state."""
        return {name: values[k] for name, k in self._of_state.items()}

    def arguments(self, table: Sequence[int], values: Sequence[float], results: Sequence[int]) -> bytes:
        """Return the arguments of a kernel of the step."""
        rounded = [values[k] for k in self._rounded]
        if self._real == "float32":
            # C rounds to nearest; what is tiny once it is rounded is zero.
            rounded = [
                x * 0.0 if abs(x) < TINY_FLOAT32 else y for x, y in zip(rounded, array("f", rounded), strict=True)
            ]
        return self._struct.pack(*table, *rounded, *[_TYPES[kind](values[k]) for k, kind in self._unrounded], *results)

    def given(self, norm: tuple[int, int], values: Sequence[float], results: int) -> bytes:
        """Return the arguments of the kernel that computes scalars from the norm."""
        return self._struct_of_norm.pack(*norm, *[_TYPES[kind](values[k]) for k, kind in self._given], results)


_STRUCT = {Kind.FLOAT: "d", Kind.INTEGER: "q", Kind.TRUTH: "?"}
_TYPES: Mapping[Kind, Callable[[float], Any]] = {Kind.FLOAT: float, Kind.INTEGER: int, Kind.TRUTH: bool}


class _Kind:
    """Parameters that one kernel updates.

    Attributes:
        program: the number of its program among those of the step.
        scalars: of the program.
        names: of the kernels, in order.
        functions: the kernels of all names, those of the norm too.
        columns: names of the arrays of a parameter.
        read: the columns of arrays that may be others in each step.
        rows: number of parameters.
    """

    def __init__(
        self, library: CudaLibrary, number: int, program: Program, key: KernelKey, leaves: Sequence[Leaf], device: int
    ) -> None:
        self.program = number
        self.scalars = _Scalars(program, key.compute_dtype)
        self.columns = key.columns(program)
        self.read = [k for k, name in enumerate(self.columns) if name == "g" or name in program.further_inputs]
        self._library = library
        self.rows = len(leaves)
        self._numbers = [leaf.place.number for leaf in leaves]
        sizes = [library.size(leaf["p"]) for leaf in leaves]
        self._passes = None if program.is_elementwise else passes_of(program)
        self._lengths: list[tuple[int, ...]] = []
        module, of_elements = library.module(program, key), (sizes, library.chunk)
        if self._passes is None:
            self.names, self._cut = [UPDATE], [of_elements]
        else:
            self._lengths = [self._passes.stages.lengths(tuple(leaf["p"].shape)) for leaf in leaves]
            self.names = [step.name for step in self._passes.passes]
            self._cut = [*launch.cuts(library, self._passes, self._lengths), of_elements]
        self.functions = {name: kernels.function(module, name, device) for name in self.names}
        if self.scalars.results:
            self.functions[SCALARS_OF_NORM] = kernels.function(module, SCALARS_OF_NORM, device)
            of_norm = library.norm_module(dict(key.dtypes)["g"])
            self.functions[SUM_SQUARES] = kernels.function(of_norm, SUM_SQUARES, device)

    def placed(self, addresses: Sequence[Sequence[int]], device: int) -> _PlacedKind:
        """Put tables into the memory of the current device, given the addresses of each parameter's arrays."""
        library, memory = self._library, None
        rows = addresses
        if self._passes is not None:
            words = [self._passes.words(lengths, library.chunk) for lengths in self._lengths]
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
        # The norm is of one column.
        chunks, argument, owner = tables[-1]
        gradients = Placed(
            chunks, [*argument[:3], argument[3] + 8 * len(rows) * self.columns.index("g"), *argument[4:]], owner
        )
        known = {column: array("q", [row[column] for row in addresses]) for column in self.read}
        blocks = library.blocks_of_norm(gradients, device) if self.scalars.results else 0
        owners = memory, results
        return _PlacedKind(tables[: len(self.names)], gradients, blocks, results_at, known, owners)


class _Placed(NamedTuple):
    """What the device has for steps on a stream.

    Attributes:
        kinds: of each kind of parameters.
        norm: where the parts of the norm of the gradients are put.
        owner: what keeps that memory alive.
    """

    kinds: Sequence[_PlacedKind]
    norm: int
    owner: Any


class _PlacedKind:
    """What the device has of parameters of a kind.

    Attributes:
        tables: of each kernel.
        gradients: the table of the kernel of the norm.
        blocks_of_norm: in how many blocks that runs; 0 if the step needs no norm.
        results: where the scalars are that are computed from the norm.
        known: the read columns as they are there, by number; None if that is not known.
    """

    def __init__(
        self,
        tables: Sequence[Placed],
        gradients: Placed,
        blocks_of_norm: int,
        results: int,
        known: dict[int, Any],
        owners: Any,
    ) -> None:
        self.tables = tables
        self.gradients = gradients
        self.blocks_of_norm = blocks_of_norm
        self.results = results
        self.known: dict[int, array[int] | None] = known
        self._owners = owners


class _Watched:
    """Stands for a kernel where arrays are only looked at."""

    address = 0
    inputs = ()
    stages = None
    program = Program("", (), {})

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns


def _unknown() -> Sequence[int]:
    raise AssertionError("the host does not ask for it")


def _are_numbers(overrides: Mapping[str, Any]) -> bool:
    return all(type(value) in (int, float) for value in overrides.values())


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
    """Return a plan for steps on C-contiguous arrays on a device, or why there is none.

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
    devices = {library.device(a) for leaf in arrays for a in leaf.values()}
    if len(devices) > 1:
        return "the arrays are on several devices"
    for program in set(programs):
        if (reason := _why_not_planned(program)) is not None:
            return reason
    parts = parts_of(backend, programs, trees, arrays, reader, "on their device")
    if isinstance(parts, str):
        return parts
    (device,) = devices
    arrays, members = parts.arrays, positions(programs)
    kinds, work = [], []
    for number, (program, chosen) in enumerate(members.items()):
        after = program.after_totals
        for key, _, places in grouped(after, [arrays[i].dtypes for i in chosen], in_place=in_place, flush="where"):
            those = [chosen[place] for place in places]
            kind = _Kind(library, number, after, key, [arrays[i] for i in those], device)
            # Other arrays have others, and new ones have none yet.
            addresses = [[reader.address(arrays[i][n]) if same_arrays else 0 for n in kind.columns] for i in those]
            sizes = np.array([size_of(arrays[i]["p"]) for i in those], np.int64)
            kinds.append(kind)
            table = np.array(addresses, np.int64)
            work.append(Work(_Watched(kind.columns), those, table, sizes, 0))  # type: ignore[arg-type]  # it is not run
    params, grads, state = trees
    results = None if in_place else parts.results(backend, reader, programs)
    watch = Watch(
        reader, (params, grads, state.slots), parts.scalar_slots, arrays, parts.still, work, Inputs(work),
        same_arrays=same_arrays, new=None if results is None else results.places, further=parts.further,
    )  # fmt: skip
    if not watch.is_possible:
        return UNKNOWN_CONTAINERS
    shapes = {program: tuple(arrays[chosen[0]]["p"].shape) for program, chosen in members.items()}
    return DevicePlan(
        library, backend, shapes, watch, kinds, device, parts.further, note_written if in_place else None, results,
        same_arrays=same_arrays,
    )  # fmt: skip


def _why_not_planned(program: Program) -> str | None:
    """Return why kernels cannot do a step for which the host need not wait for the device; None if they can."""
    after = program.after_totals
    if not launch.can_run(after):
        return "no kernel holds all of the program"
    split = norm_dependence(after)
    of_host = [*split.program.scalar_outputs.values(), *split.unrounded]
    norms = [op for op in program.totals.values() if op.args]
    of_gradients = all(op.name == "total_norm" and program.ops[op.args[0]].reads == "g" for op in norms)
    if of_gradients and len(norms) <= 1 and not any(map(split.needs_norm, of_host)):
        return None
    return "the host waits for totals over all parameters"
