"""Steps by fused kernels on GPUs: all parameters of a kind in few launches, the host never waiting.

What differs between libraries of arrays is said in a `CudaLibrary`.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import round_scalar
from portopt.backend import DeviceNumber, DeviceScalars, Leaf, Work
from portopt.kernels.cuda import kernels
from portopt.kernels.cuda.library import Argument, CudaLibrary, Fetch, Placed, real_numbers, typed
from portopt.kernels.cuda.source import NUMBERS
from portopt.kernels.cuda.staged_source import cut
from portopt.kernels.cuda.tables import Cut
from portopt.kernels.groups import grouped, positions
from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.names import LARGEST_JOINED, SUM_SQUARES, SUMS_JOINED, UPDATE
from portopt.kernels.norm_dependence import STEP, GradientNorm, NormDependence, norm_dependence, with_given_totals
from portopt.kernels.passes import Pass, Passes, can_pass, number_of_parts, passes_of, words_of
from portopt.kernels.rates import with_rates
from portopt.kernels.totals import can_total, reducing
from portopt.program import Program
from portopt.program.bins import Bins
from portopt.program.interpreter import StepScalars
from portopt.program.ir import pruned
from portopt.program.reductions import of_numbers

Arrays = Mapping[str, Any]
JOINED = 1024
"""How many parts of a total one block combines."""


def gradient_norm(library: CudaLibrary, gradients: Sequence[Any]) -> GradientNorm | None:
    """Return the norm of all gradients, arrays of any dtypes, left on their devices; None if there are none."""
    launches, counts = list[tuple[int, str, Placed, int]](), dict[int, int]()
    for device, of_device in positions(map(library.device, gradients)).items():
        counts[device] = 0
        with library.on(device):
            dense = [library.dense(gradients[i]) for i in of_device]
            for dtype, members in positions(map(library.dtype, dense)).items():
                addresses = [[library.address(dense[i])] for i in members]
                (table,) = library.tables(
                    addresses, [([library.size(dense[i]) for i in members], library.reduced_chunk)], device
                )
                launches.append((device, library.norm_module(dtype), table, library.blocks_of_norm(table, device)))
                counts[device] += launches[-1][-1]
    if not counts:
        return None
    norm, first = library.new_norm(counts), 0
    for device, module, table, blocks in launches:
        with library.on(device):
            library.launch(module, SUM_SQUARES, table, library.parts_of(norm, device, first, blocks), device, blocks)
        first += blocks
    if len(counts) > 1:
        library.join_norm(norm, counts)
    return norm


def squares(library: CudaLibrary, array: Any) -> Bins | None:
    """Return the bins of the squares of all elements, for which the host waits."""
    norm = gradient_norm(library, [array])
    return None if norm is None else norm.squares


@functools.lru_cache(maxsize=512)
def can_run(program: Program) -> bool:
    """Tell whether kernels can run a program, wherever the norm of the gradients is."""
    return program.is_elementwise or can_pass(program)


def update(
    library: CudaLibrary,
    works: Sequence[Work],
    interpreted: Callable[[Sequence[Work]], Sequence[Arrays]],
    *,
    in_place: bool,
) -> list[dict[str, Any]] | None:
    """Do a step by fused kernels; None if there are none for any of the works.

    Args:
        library: of the arrays.
        works: what to do; the scalars of the state are put into their scalars if the norm of the gradients is on the device.
        interpreted: does works for which there are no kernels in another way, not in place.
        in_place: write the results into the given arrays.
    """
    jobs = {k: job for k, work in enumerate(works) if (job := _Job.of(library, work)) is not None}
    if not jobs:
        return None
    others = [work for k, work in enumerate(works) if k not in jobs]
    further = iter(interpreted(others) if others else ())
    for job in jobs.values():
        if job.split.rounded_on_device and not job.split.on_device:
            job.scalars.provide(job.split.state_scalars(job.scalars.inputs))
    if in_place:
        of_jobs = [(arrays, job.split.program) for job in jobs.values() for arrays in job.dense]
        for i, name in overwritten(of_jobs, library.memory):
            of_jobs[i][0][name] = library.copied(of_jobs[i][0][name])
    results: list[dict[str, Any]] = []
    # What lies on the device is read by all kernels before it is written.
    writing = next((k for k in reversed(jobs) if jobs[k].dense), None)
    for k, work in enumerate(works):
        names = tuple(work.program.array_outputs)
        if k in jobs:
            outputs: Sequence[Arrays] = jobs[k].run(library, in_place=in_place, writes_state=k == writing)
        else:
            outputs = [next(further) for _ in work.parameters]
        if in_place:
            for original, written in zip(work.parameters, outputs, strict=True):
                for name in names:
                    if written[name] is not original[name]:
                        library.assign(original[name], written[name])
            outputs = work.parameters
        results += [{name: arrays[name] for name in names} for arrays in outputs]
    return results


def total(library: CudaLibrary, name: str, works: Sequence[Work]) -> float | DeviceNumber | None:
    """Return a total over all parameters, by a launch for each kind of them and few more; None if there are no kernels for it.

    Each block leaves what it finds in one row of memory, where one block combines it, or some before it if there is much of it.
    The host waits for the result, but not in a step whose scalars lie on the device: there it stays.

    Args:
        library: of the arrays.
        name: of the reduction.
        works: programs that compute the array `"x"`, which is reduced, of each of their parameters.
    """
    reduced = [Work(reducing(program, name), scalars, parameters) for program, scalars, parameters in works]
    jobs = [
        _Job.of(library, work._replace(scalars=work.scalars.of(work.program)))
        for work in reduced
        if isinstance(work.scalars, StepScalars) and can_total(work.program)
    ]
    found = [job for job in jobs if job is not None]
    if len(found) < len(works) or not any(job.dense for job in found):
        return None
    launches = [launch for job in found for launch in job.launches(library, job.dense, in_place=True)]
    # Of sums, parts in all dtypes are alike.
    kinds = positions(launch.real if name == "max" else None for launch in launches)
    places = [_total_of(library, [launches[i] for i in members]) for members in kinds.values()]
    if len(places) == 1 and all(isinstance(job.scalars, DeviceScalars) for job in found):
        memory, at = places[0]
        return DeviceNumber(at, "float64", memory)
    values = [struct.unpack("d", struct.pack("q", *library.words(memory, 1)))[0] for memory, _ in places]
    return of_numbers(name, values) if len(values) > 1 else float(values[0])


def scalars_on_device(
    library: CudaLibrary, program: Program, inputs: Mapping[str, Any], places: Mapping[str, DeviceNumber], device: int
) -> dict[str, Any]:
    """Return a program's scalar outputs by name: numbers where the host knows them, else arrays of no axes, float64.

    Args:
        library: of the device.
        program: computes scalars.
        inputs: those of its inputs that the host knows.
        places: where the others are, the number of the last step as `STEP` among them.
        device: number of the device.
    """
    split = norm_dependence(program, frozenset(places))
    dependent = {name: i for name, i in program.scalar_outputs.items() if _is_of_device(split, name)}
    values = split.host_scalars(inputs)
    found = {name: values[i] for name, i in split.program.scalar_outputs.items() if name not in dependent}
    if not dependent:
        return found
    program = pruned(program.name, list(program.ops), {}, dependent)
    split = norm_dependence(program, frozenset(places))
    with library.on(device):
        memory = library.empty((len(dependent),), "float64", device)
        at, aside = library.address(memory), library.room(1, "int64", device)
        written = {name: DeviceNumber(at + 8 * k, "float64", memory) for k, name in enumerate(split.state_outputs)}
        written[STEP] = DeviceNumber(aside.value, "int64", aside.owner)
        scalars = DeviceScalars(program, inputs, places, {}, written)
        values = split.host_scalars(inputs)
        arguments = [*_places(library, scalars, split, device, writes=True), *(typed(values[i]) for i in split.given)]
        library.compute_scalars(kernels.scalars_source(program, split.on_device), arguments, device)
    return found | {name: memory[k : k + 1].reshape(()) for k, name in enumerate(split.state_outputs)}


def _is_of_device(split: NormDependence, name: str) -> bool:
    return split.needs_norm(split.program.scalar_outputs[name])


def segment(
    library: CudaLibrary,
    program: Program,
    compute_dtype: str,
    arrays: Sequence[Any],
    scalars: Sequence[float | DeviceNumber],
) -> list[Any]:
    """Return the results of a segment of a program with products.

    Args:
        library: of the arrays.
        program: the segment's.
        compute_dtype: the dtype of the arithmetic, and of the results.
        arrays: the segment's, of one shape.
        scalars: the segment's; of those that lie on the device, where.
    """
    # Kernels have places for a parameter and a gradient, and for what each result replaces; a segment reads none of them.
    unread = library.empty_like(arrays[0], compute_dtype)
    given = {f"x{k}": array for k, array in enumerate(arrays)}
    named = {f"s{k}": value for k, value in enumerate(scalars)}
    places = {name: value for name, value in named.items() if isinstance(value, DeviceNumber)}
    inputs = StepScalars(program, HOST, {name: value for name, value in named.items() if name not in places})
    if places:
        device = library.device(arrays[0])
        with library.on(device):
            # What computes scalars there takes the number of a step as well, which nothing of a segment needs.
            memory, at = library.workspace(1, device)
        inputs = DeviceScalars(program, inputs.inputs, {STEP: DeviceNumber(at, "int64", memory), **places}, {}, {})
    work = Work(program, inputs, [{**dict.fromkeys(("p", "g", *program.array_outputs), unread), **given}])
    job = _Job.of(library, work)
    assert job is not None  # a segment is elementwise
    (results,) = job.run(library, in_place=False)
    return [results[name] for name in program.array_outputs]


class _Job:
    """What kernels do of a step: the parameters that one program is for."""

    def __init__(
        self, library: CudaLibrary, work: Work, scalars: StepScalars, split: NormDependence, norm: Any
    ) -> None:
        self.scalars = scalars
        self.split = split
        self._program = work.program
        self._norm = norm
        self.dense = [{name: library.dense(array) for name, array in arrays.items()} for arrays in work.parameters]
        self._numbers = [arrays.place.number if isinstance(arrays, Leaf) else 0 for arrays in work.parameters]
        self._shapes = [tuple(arrays["p"].shape) for arrays in work.parameters]

    @classmethod
    def of(cls, library: CudaLibrary, work: Work) -> _Job | None:
        """Return what kernels do; None if there are none."""
        program, scalars, parameters = work
        if not isinstance(scalars, StepScalars) or not can_run(program):
            return None
        if isinstance(scalars, DeviceScalars):
            return cls._repeated(library, work, scalars)
        split = norm_dependence(program)
        norm = split.norm(scalars.inputs)
        if not split.rounded_on_device and not split.unrounded_on_device:
            return cls(library, work, scalars, split, norm)
        on_device = (
            isinstance(norm, GradientNorm)
            # The device keeps one, and has what is made of it in the compute dtype only.
            and sum(bool(op.args) for op in program.totals.values()) == 1
            and not any(map(split.needs_norm, [*split.program.scalar_outputs.values(), *split.unrounded_on_device]))
            and all(library.device(arrays["p"]) in norm.words for arrays in parameters)
        )
        if on_device:
            return cls(library, work, scalars, split, norm)
        # The host waits for the norm.
        program = with_given_totals(program)
        inputs = {name: float(value) if value is norm else value for name, value in scalars.inputs.items()}
        scalars = StepScalars(program, scalars.arithmetic, inputs)
        return cls(library, Work(program, scalars, parameters), scalars, norm_dependence(program), None)

    @classmethod
    def _repeated(cls, library: CudaLibrary, work: Work, scalars: DeviceScalars) -> _Job:
        """Return what kernels do of a step whose number lies on the device."""
        program = with_rates(work.program, scalars.schedules)
        norm = norm_dependence(program).norm(scalars.inputs)
        if not isinstance(norm, GradientNorm):
            program, norm = with_given_totals(program), None
        split = norm_dependence(program, frozenset({STEP, *scalars.places}))
        return cls(library, work._replace(program=program), scalars, split, norm)

    def run(self, library: CudaLibrary, *, in_place: bool, writes_state: bool = False) -> list[dict[str, Any]]:
        """Launch the kernels; returns the arrays with the results.

        Args:
            library: of the arrays.
            in_place: write the results into the given arrays.
            writes_state: write what of the state lies on the device; before, all kernels have read it.
        """
        program, dense = self._program, self.dense
        outputs = dense
        if not in_place:
            names = tuple(program.array_outputs)
            outputs = [{name: library.empty_like(arrays[name]) for name in names} for arrays in dense]
        for of in self.launches(library, outputs, in_place=in_place, writes_state=writes_state):
            with library.on(of.device):
                if of.passes is None:
                    sizes = [library.size(dense[i]["p"]) for i in of.members]
                    (table,) = library.tables(of.addresses, [(sizes, library.chunk)], of.device)
                    library.launch(of.module, UPDATE, table, of.arguments, of.device)
                else:
                    _run_passes(library, of, of.passes)
        return outputs

    def launches(
        self, library: CudaLibrary, outputs: Sequence[Arrays], *, in_place: bool, writes_state: bool = False
    ) -> Iterator[_Launches]:
        """Yield what is launched for each kind of parameters."""
        program, split, dense = self._program, self.split, self.dense
        values = split.host_scalars(self.scalars.inputs)
        groups = list(
            grouped(
                program,
                ({name: library.dtype(array) for name, array in arrays.items()} for arrays in dense),
                in_place=in_place,
                flush="where",
                devices=(library.device(arrays["p"]) for arrays in dense),
            )
        )
        for number, (key, device, members) in enumerate(groups, 1):
            module, real = library.module(program, key, split.on_device), key.compute_dtype
            rounded = [round_scalar(float(values[j]), real) for _, j in split.rounded_on_host]
            with library.on(device):
                arguments = real_numbers(rounded, real)
                if not program.is_elementwise:
                    arguments += [typed(values[i]) for i in split.unrounded]
                is_last = number == len(groups)
                arguments += self._on_device(library, module, key, values, device, writes=writes_state and is_last)
                columns = key.columns(program)
                addresses = [_addresses(library, columns, dense[i], outputs[i]) for i in members]
            passes = None if program.is_elementwise else passes_of(program)
            lengths = [] if passes is None else [passes.stages.lengths(self._shapes[i]) for i in members]
            numbers = [self._numbers[i] for i in members]
            yield _Launches(module, real, device, members, addresses, arguments, passes, lengths, numbers)

    def _on_device(
        self,
        library: CudaLibrary,
        module: str,
        key: KernelKey,
        values: Mapping[int, Any],
        device: int,
        *,
        writes: bool,
    ) -> list[Argument]:
        """Launch the kernel that computes scalars on the device, if there are any; return where kernels read them."""
        split, norm = self.split, self._norm
        found = []
        if split.rounded_on_device:
            found.append(library.room(len(split.rounded_on_device), key.compute_dtype, device))
        if split.unrounded_on_device:
            found.append(library.room(len(split.unrounded_on_device), "float64", device))
        if not found and not (writes and split.on_device):
            return []
        arguments = [] if norm is None else library.parts_of(norm, device, 0, norm.count)
        if isinstance(self.scalars, DeviceScalars):
            arguments += _places(library, self.scalars, split, device, writes=writes)
        arguments += [typed(values[i]) for i in split.given]
        library.compute_scalars(module, [*arguments, *found], device)
        return found


def _places(
    library: CudaLibrary, scalars: DeviceScalars, split: NormDependence, device: int, *, writes: bool
) -> list[Argument]:
    """Return where numbers on the device are, and where those of the new state are put: aside if it is not to be written yet."""
    outputs, aside = split.state_outputs, library.room(1, "int64", device)
    new = scalars.written if writes else dict.fromkeys((STEP, *outputs), DeviceNumber(aside.value, "", aside.owner))
    found = [_address(scalars.places[STEP]), _address(new[STEP])]
    for name in split.numbers_on_device:
        found += [_address(scalars.places[name]), typed(NUMBERS.index(scalars.places[name].dtype))]
    return found + [_address(new[name]) for name in outputs]


def _address(number: DeviceNumber) -> Argument:
    return Argument("Q", number.address, number.owner)


class _Launches(NamedTuple):
    """What is launched for parameters of one kind.

    Attributes:
        module: the kernels.
        real: the compute dtype.
        device: of the parameters.
        members: the parameters.
        addresses: of their arrays, in the order of the kernels' columns.
        arguments: of the kernels, their table apart.
        passes: the kernels in order; None if there is one.
        lengths: of the parameters, as the passes have them.
        numbers: of the parameters in their tree.
    """

    module: str
    real: str
    device: int
    members: Sequence[int]
    addresses: Sequence[Sequence[int]]
    arguments: Sequence[Argument]
    passes: Passes | None
    lengths: Sequence[Sequence[int]]
    numbers: Sequence[int]


def _run_passes(library: CudaLibrary, of: _Launches, passes: Passes) -> None:
    words = [passes.words(lengths, library.reduced_chunk) for lengths in of.lengths]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(words)]).tolist()
    memory, at = library.workspace(starts[-1], of.device)
    rows = [
        [*own, *lengths, at + 8 * start, number]
        for own, lengths, start, number in zip(of.addresses, of.lengths, starts[:-1], of.numbers, strict=True)
    ]
    tables = library.tables(rows, cuts(passes, of.lengths), of.device)
    for step, table in zip(passes.passes, tables, strict=True):
        library.launch(of.module, step.name, table, of.arguments, of.device)
    del memory


def cuts(passes: Passes, lengths: Sequence[Sequence[int]]) -> list[Cut]:
    """Return for how many elements of each parameter each pass has something to do, and how many are a chunk."""
    return [cut(passes, step, lengths) for step in passes.passes]


def _run_pass(
    library: CudaLibrary,
    of: _Launches,
    passes: Passes,
    step: Pass,
    rows: Sequence[Sequence[int]],
    lengths: Sequence[Sequence[int]],
) -> None:
    (table,) = library.tables(rows, [cut(passes, step, lengths)], of.device)
    library.launch(of.module, step.name, table, of.arguments, of.device)


def _total_of(library: CudaLibrary, launches: Sequence[_Launches]) -> tuple[Any, int]:
    """Return memory that begins with the total over the parameters of launches, of which kernels combine the parts alike.

    And where it is, on the device of the first of them, which fetches what the others find.
    """
    root = launches[0]
    assert root.passes is not None
    (partial,) = root.passes.partial
    width = words_of(root.passes.stages.program.ops[partial].name)
    chunks = [[number_of_parts(math.prod(lengths), library.reduced_chunk) for lengths in of.lengths] for of in launches]
    number = sum(map(sum, chunks))
    # The result comes first, then the parts of all parameters as if they were those of one.
    with library.on(root.device):
        memory, at = library.workspace(1 + width * number, root.device)
    end, fetches, elsewhere = at, [], []
    for of, counts in zip(launches, chunks, strict=True):
        assert of.passes is not None
        size = 8 * width * sum(counts)
        with library.on(of.device):
            start = end
            if of.device != root.device:
                others, start = library.workspace(1 + width * sum(counts), of.device)
                elsewhere.append(others)
                fetches += [Fetch(root.device, end + 8, of.device, start + 8, size)] * bool(size)
            rows = []
            for own, lengths, count, place in zip(of.addresses, of.lengths, counts, of.numbers, strict=True):
                rows.append([*own, *lengths, start, place])
                start += 8 * width * count
            _run_pass(library, of, of.passes, of.passes.passes[0], rows, of.lengths)
        end += size
    if fetches:
        library.fetch(fetches)
    del elsewhere
    with library.on(root.device):
        while number > JOINED:
            parts, count, number = memory, number, -(-number // JOINED)
            memory, at = library.workspace(1 + width * number, root.device)
            kernel = SUMS_JOINED if width > 1 else LARGEST_JOINED
            library.call(library.totals_module(), kernel, number, [parts, memory, count, JOINED], root.device)
        all_of = (number * library.reduced_chunk, *[1] * (len(root.passes.stages.space) - 1))
        row = [*[0] * (len(root.addresses[0])), *all_of, at, 0]
        _run_pass(library, root, root.passes, root.passes.passes[1], [row], [all_of])
    return memory, at


def _addresses(library: CudaLibrary, columns: Sequence[str], arrays: Arrays, outputs: Arrays) -> list[int]:
    """Return the addresses of a parameter's arrays in the order of the kernel's columns."""
    return [library.address(outputs[c.removeprefix(NEW)] if c.startswith(NEW) else arrays[c]) for c in columns]


def overwritten(
    parameters: Sequence[tuple[Arrays, Program]], memory: Callable[[Any], tuple[str, int, int]]
) -> set[tuple[int, str]]:
    """Return the gradients and further inputs, by parameter and name, that share memory with what a step in place writes.

    They must be copied first.

    Args:
        parameters: the arrays of each parameter, and what the step runs on it.
        memory: returns device, first and one-past-last byte of an array's memory.
    """
    written: dict[str, list[tuple[int, int]]] = {}
    for arrays, program in parameters:
        for name in program.array_outputs:
            device, start, end = memory(arrays[name])
            if start < end:
                written.setdefault(device, []).append((start, end))
    sorted_ranges = {}
    for device, ranges in written.items():
        starts, ends = np.asarray(sorted(ranges)).T
        sorted_ranges[device] = starts, np.maximum.accumulate(ends)
    found = set()
    for i, (arrays, program) in enumerate(parameters):
        for name in ("g", *program.further_inputs):
            device, start, end = memory(arrays[name])
            if start == end or device not in sorted_ranges:
                continue
            starts, furthest = sorted_ranges[device]
            below = int(np.searchsorted(starts, end))
            if below and furthest[below - 1] > start:
                found.add((i, name))
    return found
