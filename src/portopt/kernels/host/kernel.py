"""Steps by fused kernels: from arrays to a table of addresses, and one call for all parameters of a kind."""

from __future__ import annotations

import functools
import math
import operator
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.arithmetic.dtypes import ITEMSIZES
from portopt.backend import Leaf, is_interpreted
from portopt.interrupts import finish
from portopt.kernels.groups import grouped
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import available, compile_function, compile_kernel, default_flush
from portopt.kernels.host.staged_steps import Workspace, can_be_staged, row_width, shared_steps, stages_of, workspace
from portopt.kernels.key import NEW, KernelKey
from portopt.program import Program
from portopt.program.interpreter import StepScalars

GROUP_WORDS = 8
"""Words that tell compiled code of a group of parameters: address of the kernel, offset of the table, sizes, their number and
sum, whether the kernel has stages, offsets of its inputs and outputs."""

RECORD_WORDS = threads.HEAD + 9
"""Words of a part's record: what follows the head are address and number of groups; for kernels with stages the stage, or -1 for
all of them, the offset of a workspace, the part's number, and the number of parts; then which word of the call's the tables begin
with, and their offset from there, and which one the workspaces begin with."""

_TABLES, _INPUTS, _STEP, _OUTPUTS, _WORKSPACES, _ZERO = range(6)
"""Words that a call is given."""

CALL_SOURCE = """        if part[5] == 0:
            call_kernel(
                part[0], {unused}, {unused}, {tables} + part[1], part[2], part[3], {first}, {last}, {inputs} + part[6], {step},
                {outputs} + part[7]
            )
        else:
            call_stages(
                part[0], {unused}, {unused}, {tables} + part[1], part[2], part[3], {first}, {last}, {inputs} + part[6], {step},
                {outputs} + part[7], {stage}, {workspace}, {part}, {parts}
            )
"""
"""Source of the call of a group's kernel, `part` being the group's words."""

_PART_CALL = "".join(
    f"    {line}\n"
    for line in CALL_SOURCE.format(
        unused="address", tables="given[record[8]] + record[9]", first="first", last="last", inputs=f"given[{_INPUTS}]",
        step=f"given[{_STEP}]", outputs=f"given[{_OUTPUTS}]", stage="record[4]",
        workspace="given[record[10]] + record[5]", part="record[6]", parts="record[7]",
    ).splitlines()
)  # fmt: skip

_PART_SOURCE = f'''"""One thread's part of a step."""


def kernel():
    """Run the kernels on the elements, counted through all groups, that the record names."""
    address = first_argument()
    record = pointer_to_int64(address)
    given = pointer_to_int64(second_argument())
    offset = 0
    for group in range(record[3]):
        part = pointer_to_int64(record[2] + {8 * GROUP_WORDS} * group)
        first = max(record[0] - offset, 0)
        last = min(record[1] - offset, part[4])
        offset += part[4]
        if first < last:
{_PART_CALL}'''


class HostKernel:
    """A program compiled for one combination of dtypes."""

    def __init__(self, program: Program, key: KernelKey) -> None:
        self.program = program
        self.key = key
        self.columns = key.columns(program)
        self.inputs = tuple(name for name in program.scalar_inputs if name != "t")
        self.stages = None if program.is_elementwise else stages_of(program)
        self.width = len(self.columns) if self.stages is None else row_width(self.stages, self.columns)
        """Of the table."""
        self.shared_steps = () if self.stages is None else shared_steps(program, key)
        self.function = compile_kernel(program, key)
        self.address = threads.address_of(self.function)


class Work(NamedTuple):
    """Parameters that one kernel updates.

    Attributes:
        kernel: the kernel.
        members: the parameters' numbers.
        table: addresses, and lengths and numbers as `row_width` says, int64 of shape (parameters, width), C-contiguous.
        sizes: number of elements of each parameter, int64.
        total: of the sizes.
        program: number of the kernel's program among those of the step.
        memory: what a kernel with stages needs for each of them.
        is_shared: whether threads share the only parameter, stage by stage.
    """

    kernel: HostKernel
    members: Sequence[int]
    table: Any
    sizes: Any
    total: int
    program: int = 0
    memory: Workspace = Workspace(0, 0)
    is_shared: bool = False


def make_works(
    kernel: HostKernel,
    program: int,
    members: Sequence[int],
    addresses: Sequence[Sequence[int]],
    shapes: Sequence[Sequence[int]],
    places: Sequence[int] = (),
) -> list[Work]:
    """Return the work on parameters of a kernel; large ones of a kernel with stages are each a work of their own.

    Args:
        kernel: of the parameters.
        program: the number of its program.
        members: the parameters' numbers.
        addresses: of the arrays of each, in the order of the columns.
        shapes: of each parameter.
        places: the number of each parameter in its tree; only for kernels that draw.
    """
    stages = kernel.stages
    sizes = list(map(math.prod, shapes))
    if stages is None:
        return [Work(kernel, members, np.array(addresses, np.int64), np.array(sizes, np.int64), sum(sizes), program)]
    lengths = [stages.lengths(shape) for shape in shapes]
    small = [i for i, size in enumerate(sizes) if threads.is_small(size)]
    works = []
    for chosen in ([small] if small else []) + [[i] for i, size in enumerate(sizes) if not threads.is_small(size)]:
        rows = [[*addresses[i], *lengths[i], *(places[i : i + 1] if kernel.program.has_draws else ())] for i in chosen]
        table = np.array(rows, np.int64)
        needed = [workspace(stages, lengths[i]) for i in chosen]
        memory = max(needed, key=lambda memory: memory.words(1))
        # Also a parameter without elements has scalars.
        units = [max(sizes[i], 1) for i in chosen]
        works.append(
            Work(
                kernel, [members[i] for i in chosen], table, np.array(units, np.int64), sum(units), program, memory,
                not threads.is_small(sizes[chosen[0]]),
            )
        )  # fmt: skip
    return works


@functools.cache
def compiled_part() -> int:
    """Return the address of the function that does one thread's part."""
    return threads.address_of(_part())


@functools.cache
def _part() -> Any:
    return compile_function(_PART_SOURCE, "part")


class Inputs:
    """Where the inputs and outputs of the programs of a step are, in one array.

    Args:
        work: of the step.

    Attributes:
        places: offsets in bytes of each program's inputs and of its outputs, by the program's number.
        length: how many numbers there are, one at least.
    """

    def __init__(self, work: Sequence[Work]) -> None:
        self._kernels = {item.program: item.kernel for item in work}
        kernels = self._kernels.values()
        self.places: dict[int, tuple[int, int]] = {}
        start, end = 0, sum([len(kernel.inputs) for kernel in kernels])
        for number, kernel in self._kernels.items():
            self.places[number] = 8 * start, 8 * end
            start += len(kernel.inputs)
            end += len(kernel.program.scalar_outputs)
        self.length = max(end, 1)

    def values(self, scalars: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the inputs of all programs, given those of each by name; there is room for outputs after them.

        Programs beyond these are of parts of the first ones, whose inputs they have.
        """
        found = [
            scalars[number if number < len(scalars) else 0][name]
            for number, kernel in self._kernels.items()
            for name in kernel.inputs
        ]
        return [*found, *[0.0] * (self.length - len(found))]

    def numbers_of(self, name: str) -> list[int]:
        """Return where all programs have an input."""
        names = [other for kernel in self._kernels.values() for other in kernel.inputs]
        return [k for k, other in enumerate(names) if other == name]

    def outputs(self, values: Sequence[float], number: int) -> dict[str, float]:
        """Return the new scalars of the state that a program computed."""
        names = self._kernels[number].program.scalar_outputs
        return dict(zip(names, values[self.places[number][1] // 8 :], strict=False))


def group_words(work: Sequence[Work], offsets: Sequence[int], inputs: Inputs) -> array[int]:
    """Return the work as compiled code reads it, `GROUP_WORDS` a group, given the offset of each table."""
    words = array("q")
    for item, offset in zip(work, offsets, strict=True):
        kernel, places = item.kernel, inputs.places[item.program]
        sizes = item.sizes.ctypes.data, len(item.sizes), item.total
        words.extend((kernel.address, offset, *sizes, int(kernel.stages is not None), *places))
    return words


class Before(NamedTuple):
    """What threads do before the kernels.

    Attributes:
        key: the same where the passes are.
        passes: returns them.
    """

    key: tuple[Any, ...]
    passes: Callable[[], Sequence[threads.Pass]]


_MOST_RESTING = 8
"""Kinds of jobs that are kept: with and without a norm, by few teams."""


class StepJob(threads.Job):
    """The job of a step.

    Args:
        passes: what is done.
        at_most: how many threads are worth their while.
        key: what it was made for.
        memory_words: how much memory a call needs.
    """

    __slots__ = ("key", "memory_words")

    def __init__(self, passes: Sequence[threads.Pass], at_most: int, key: Any, memory_words: int) -> None:
        super().__init__(passes, at_most)
        self.key = key
        self.memory_words = memory_words


class Passes:
    """What threads do of a step, one pass after the other, each of which is split among them.

    The first one is over all parameters but those that are shared; then comes one for each stage of each of these.

    Args:
        work: of the step, shared ones last.
        groups: address of the work's words.
    """

    def __init__(self, work: Sequence[Work], groups: int) -> None:
        self._groups = groups
        self._alone = [item for item in work if not item.is_shared]
        self._shared = [item for item in work if item.is_shared]
        self._memory = max((item.memory.words(1) for item in self._alone), default=0)
        alone = [sum(item.total for item in self._alone)] if self._alone else []
        self._totals = [*alone, *(item.total for item in self._shared)]
        self._resting: dict[Any, list[StepJob]] = {}

    def job(self, tables: int, inputs: int, step: int, outputs: int) -> StepJob:
        """Return the job that does them; its memory is the workspaces of the parts.

        Args:
            tables: address of the tables.
            inputs: address of the inputs.
            step: number of the step.
            outputs: address of the outputs.
        """
        return _given(self._new((), ()), tables, inputs, step, outputs)

    def job_by(
        self,
        find: Callable[[], threads.Team | None],
        tables: int,
        inputs: int,
        step: int,
        outputs: int,
        before: Before,
    ) -> StepJob:
        """Return the same, with other passes before, for the team that a function finds: one that rests, or else a new one.

        To make one takes 0.2 ms between products, which leave little of Python in the caches.

        Args:
            find: finds the team.
            tables: address of the tables.
            inputs: address of the inputs.
            step: number of the step.
            outputs: address of the outputs.
            before: what the other passes do, and what returns them.
        """
        team = find()
        key = before.key, team, threads.changes
        try:
            job = self._resting[key].pop()
        except LookupError:
            with threads.by(lambda: team):
                job = self._new(key, before.passes())
        return _given(job, tables, inputs, step, outputs)

    def rest(self, job: StepJob) -> None:
        """Keep a job of `job_by` that was done."""
        job.memory = None
        if len(self._resting) >= _MOST_RESTING:
            self._resting.clear()
        self._resting.setdefault(job.key, []).append(job)

    def _new(self, key: Any, before: Sequence[threads.Pass]) -> StepJob:
        at_most = max(map(threads.worth, self._totals))
        return StepJob([*before, *self.passes()], at_most, key, self.memory_words())

    def passes(self, tables: int | None = None, workspaces: int = 0) -> list[threads.Pass]:
        """Return the passes.

        Args:
            tables: offset of the tables from the inputs; None if they are where a call says.
            workspaces: address of the workspaces; 0 if they are where a call says.
        """
        bases = (_TABLES, 0) if tables is None else (_INPUTS, tables)
        memory = _ZERO if workspaces else _WORKSPACES
        passes = []
        for known in self._layout()[0]:
            words = array("q")
            for *first, offset, part, parts in known:
                words.extend((*first, workspaces + offset, part, parts, *bases, memory))
            passes.append(threads.Pass(compiled_part(), words, RECORD_WORDS))
        return passes

    def memory_words(self) -> int:
        """Return how many words the workspaces have."""
        return self._layout()[1]

    def _layout(self) -> tuple[list[list[tuple[int, ...]]], int]:
        """Return of each pass how its records begin, and how many words of memory the parts need."""
        found, words = list[list[tuple[int, ...]]](), [0]
        parts = [threads.parts(total) for total in self._totals]
        if self._alone:
            own, count = 8 * self._memory, len(self._alone)
            found.append([(*part, self._groups, count, -1, own * k, 0, 1) for k, part in enumerate(parts[0])])
            words.append(self._memory * len(parts.pop(0)))
        for number, (item, ranges) in enumerate(zip(self._shared, parts, strict=True)):
            group = self._groups + 8 * GROUP_WORDS * (len(self._alone) + number)
            words.append(item.memory.words(len(ranges)))
            for stage, is_shared in enumerate(item.kernel.shared_steps):
                chosen = ranges if is_shared else [(0, item.total)]
                found.append([(*part, group, 1, stage, 0, k, len(ranges)) for k, part in enumerate(chosen)])
        return found, max(words)


def _given(job: StepJob, tables: int, inputs: int, step: int, outputs: int) -> StepJob:
    memory = np.empty(job.memory_words, np.int64) if job.memory_words else None
    job.give((tables, inputs, step, outputs, 0 if memory is None else _address(memory), 0), memory)
    return job


def shared_last(work: Sequence[Work]) -> list[Work]:
    """Return work in the order that `Passes` needs."""
    return sorted(work, key=lambda item: item.is_shared)


def run(
    work: Sequence[Work],
    scalars: Sequence[StepScalars],
    then: Sequence[Callable[[], object]] = (),
    *,
    in_this_thread: bool = False,
) -> dict[int, dict[str, float]]:
    """Do a step, and then, before anything can be raised, make further calls of functions in C.

    Args:
        work: kernels and parameters.
        scalars: the scalars of each program, by its number.
        then: the further calls.
        in_this_thread: whether no other thread takes part.

    Returns:
        The scalars of the state that the step replaces, as each program computes them, by its number.
    """
    inputs = Inputs(work)
    values = array("d", inputs.values([of.inputs for of in scalars]))
    values_at = values.buffer_info()[0]
    step, total = int(scalars[0].inputs.get("t", 0)), sum([item.total for item in work])
    calls: list[Callable[[], object]]
    if in_this_thread or threads.is_small(total):
        # The first word is for what kernels return.
        memory = array("q", bytes(8 * (1 + max([item.memory.words(1) for item in work]))))
        unused, calls = memory.buffer_info()[0], []
        for item in work:
            own, new = inputs.places[item.program]
            arguments = (
                unused, unused, _address(item.table), _address(item.sizes), len(item.sizes), 0, item.total,
                values_at + own, step, values_at + new,
            )  # fmt: skip
            further = () if item.kernel.stages is None else (-1, unused + 8, 0, 1)
            calls.append(functools.partial(item.kernel.function, *arguments, *further))
    else:
        work = shared_last(work)
        groups = group_words(work, [item.table.ctypes.data for item in work], inputs)
        job = Passes(work, groups.buffer_info()[0]).job(0, values_at, step, values_at)
        calls = [job.call()]
    finish([*calls, *then])
    return {number: inputs.outputs(values, number) for number in inputs.places}


@functools.lru_cache(maxsize=512)
def host_kernel(program: Program, key: KernelKey) -> HostKernel:
    """Return the kernel of a key, compiling it if it is new."""
    return HostKernel(program, key)


@functools.lru_cache(maxsize=512)
def can_run(program: Program) -> bool:
    """Tell whether kernels can run a program."""
    return program.is_elementwise or can_be_staged(program)


def why_not_fused(program: Program, leaves: Sequence[Leaf]) -> str | None:
    """Return why no kernel can do a step of a program on parameters in host memory; None if one can."""
    if is_interpreted():
        return "it is inside portopt.interpreted(), which switches the kernels off"
    if not available():
        return 'numba, which compiles the kernels, is not installed: pip install "portopt[fused]"'
    if not can_run(program):
        return (
            "no kernel holds all of the program (products of matrices, for one), so only stretches of it are compiled"
        )
    if draws(program) and places_of(leaves) is None:
        return "no kernel draws random numbers for parameters of which other processes hold parts"
    return None


@functools.lru_cache(maxsize=512)
def draws(program: Program) -> bool:
    """Tell whether a kernel needs to know the number of each parameter in its tree."""
    return program.has_draws


def places_of(leaves: Sequence[Leaf]) -> list[int] | None:
    """Return the number of each parameter in its tree; None if one is part of a whole, for which there is no kernel."""
    places = [leaf.place for leaf in leaves]
    return [place.number for place in places] if all(place.shape == place.whole for place in places) else None


class Job(NamedTuple):
    """What a step does to those parameters that one program is for.

    Attributes:
        program: what to run.
        scalars: the step's scalars; those of the state that the kernel computes are put into it.
        dtypes: dtype names of each parameter's arrays by name. An array may show its bits as an integer of the same size.
        inputs: parameter, gradient, slots and further inputs of each parameter.
        outputs: C-contiguous arrays for the results by name; None to overwrite the inputs, which then share no memory.
        places: the number of each parameter in its tree; only for programs that draw.
    """

    program: Program
    scalars: StepScalars
    dtypes: Sequence[Mapping[str, str]]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]] | None
    places: Sequence[int] = ()


def update(jobs: Sequence[Job], then: Sequence[Callable[[], object]] = (), *, in_this_thread: bool = False) -> None:
    """Do a step on NumPy arrays, of any strides. Once it has begun to write it is finished, whatever is raised meanwhile.

    Args:
        jobs: what the step does.
        then: further calls, of functions written in C, that belong to the step.
        in_this_thread: whether no other thread takes part, however much there is to do.

    Raises:
        ValueError: a parameter's arrays differ in size. Nothing has been written then.
    """
    in_place = jobs[0].outputs is None
    dense = [
        [{name: np.ascontiguousarray(array) for name, array in arrays.items()} for arrays in job.inputs] for job in jobs
    ]
    if in_place:
        _copy_overlapping(
            [(arrays, job.program) for job, parameters in zip(jobs, dense, strict=True) for arrays in parameters]
        )
    work: list[Work] = []
    for number, (job, parameters) in enumerate(zip(jobs, dense, strict=True)):
        for key, _, members in grouped(job.program, job.dtypes, in_place=in_place, flush=default_flush()):
            kernel = host_kernel(job.program, key)
            new = job.outputs
            rows = [
                {**parameters[i], **({} if new is None else {NEW + n: a for n, a in new[i].items()})} for i in members
            ]
            shapes = [job.inputs[i]["p"].shape for i in members]
            _check_sizes(kernel, rows, shapes, [job.dtypes[i] for i in members])
            addresses = [[_address(row[column]) for column in kernel.columns] for row in rows]
            places = [job.places[i] for i in members] if job.places else ()
            work += make_works(kernel, number, members, addresses, shapes, places)
    if not work:
        return
    copies = []
    if in_place:
        for job, parameters in zip(jobs, dense, strict=True):
            for original, copied in zip(job.inputs, parameters, strict=True):
                for name in job.program.array_outputs:
                    if _address(copied[name]) != _address(original[name]) or not original[name].flags.c_contiguous:
                        value = copied[name].reshape(original[name].shape)
                        copies.append(functools.partial(operator.setitem, original[name], ..., value))
    for number, outputs in run(
        work, [job.scalars for job in jobs], [*copies, *then], in_this_thread=in_this_thread
    ).items():
        jobs[number].scalars.provide(outputs)


def _check_sizes(
    kernel: HostKernel,
    rows: Sequence[Mapping[str, Any]],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[Mapping[str, str]],
) -> None:
    """Raise an error if arrays differ in size or dtype: a schedule of the user's may have changed one after the checks."""
    stages = kernel.stages
    for row, shape, names in zip(rows, shapes, dtypes, strict=True):
        size = math.prod(shape)
        small = {} if stages is None else stages.sizes(shape)
        for name, found in row.items():
            if found.size != (small.get(name.removeprefix(NEW), size) if small else size) or (
                name in names and found.itemsize != ITEMSIZES[names[name]]
            ):
                raise ValueError(
                    "an array changed its size while the step was computed; arrays must stay as they are until the step is done"
                )


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])  # a third of the time of `array.ctypes.data`


def _copy_overlapping(parameters: Sequence[tuple[dict[str, Any], Program]]) -> None:
    """Replace gradients and further inputs that share memory with what the step writes by copies."""
    ranges = sorted(
        (a.ctypes.data, a.ctypes.data + a.nbytes, name in program.array_outputs, name, i)
        for i, (arrays, program) in enumerate(parameters)
        for name, a in arrays.items()
        if a.size
    )
    end_of_written = end_of_read = 0
    reading: list[tuple[int, str]] = []
    overlapping: set[tuple[int, str]] = set()
    for start, end, is_written, name, i in ranges:
        if not is_written:
            if start < end_of_written:
                overlapping.add((i, name))
            reading = [(i, name)] if start >= end_of_read else [*reading, (i, name)]
            end_of_read = max(end_of_read, end)
        else:
            if start < end_of_read:
                overlapping.update(reading)
            end_of_written = max(end_of_written, end)
    for i, name in overlapping:
        arrays = parameters[i][0]
        arrays[name] = arrays[name].copy()
