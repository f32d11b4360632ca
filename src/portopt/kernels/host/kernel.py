"""Steps by fused kernels: from arrays to a table of addresses, and one call for all parameters of a kind."""

from __future__ import annotations

import functools
import operator
from array import array
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.arithmetic.dtypes import ITEMSIZES
from portopt.interrupts import finish
from portopt.kernels.groups import grouped
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, compile_kernel, default_flush
from portopt.kernels.key import NEW, KernelKey
from portopt.program import Program
from portopt.program.interpreter import StepScalars

GROUP_WORDS = 5
"""Words that tell compiled code of a group: address of the kernel, offset of the table, sizes, their number and sum."""

RECORD_WORDS = threads.HEAD + 6
"""Words of a thread's record: what follows the head are address and number of groups, tables, inputs, step, outputs."""

_PART_SOURCE = f'''"""One thread's part of a step."""


def kernel():
    """Run the kernels on the elements, counted through all groups, that the record names."""
    address = first_argument()
    record = pointer_to_int64(address)
    offset = 0
    for group in range(record[6]):
        part = pointer_to_int64(record[5] + {8 * GROUP_WORDS} * group)
        first = max(record[3] - offset, 0)
        last = min(record[4] - offset, part[4])
        offset += part[4]
        if first < last:
            call_kernel(
                part[0], address, address, record[7] + part[1], part[2], part[3], first, last, record[8], record[9], record[10]
            )
'''


class HostKernel:
    """A program compiled for one combination of dtypes."""

    def __init__(self, program: Program, key: KernelKey) -> None:
        self.program = program
        self.key = key
        self.columns = key.columns(program)
        self.inputs = tuple(name for name in program.scalar_inputs if name != "t")
        self.function = compile_kernel(program, key)
        self.address = threads.address_of(self.function)


class Work(NamedTuple):
    """Parameters that one kernel updates.

    Attributes:
        kernel: the kernel.
        members: the parameters' numbers.
        table: addresses, int64 of shape (parameters, columns), C-contiguous.
        sizes: number of elements of each parameter, int64.
    """

    kernel: HostKernel
    members: Sequence[int]
    table: Any
    sizes: Any


@functools.cache
def compiled_part() -> int:
    """Return the address of the function that does one thread's part."""
    return threads.address_of(_part())


@functools.cache
def _part() -> Any:
    return compile_function(_PART_SOURCE, "part")


def group_words(work: Sequence[Work], offsets: Sequence[int]) -> array[int]:
    """Return the work as compiled code reads it, `GROUP_WORDS` a group, given the offset of each table."""
    return array("q", [
        word
        for (kernel, _, _, sizes), offset in zip(work, offsets, strict=True)
        for word in (kernel.address, offset, sizes.ctypes.data, len(sizes), int(sizes.sum()))
    ])  # fmt: skip


def run(work: Sequence[Work], inputs: Mapping[str, Any], then: Sequence[Callable[[], object]] = ()) -> dict[str, float]:
    """Do a step, and then, before anything can be raised, make further calls of functions in C.

    Returns:
        The scalars of the state that the step replaces.
    """
    program = work[0].kernel.program
    values = array("d", [inputs[name] for name in work[0].kernel.inputs])
    outputs = array("d", bytes(8 * max(len(program.scalar_outputs), 1)))
    unused = array("q", bytes(8))
    values_at, outputs_at, unused_at = (buffer.buffer_info()[0] for buffer in (values, outputs, unused))
    step, total = int(inputs.get("t", 0)), sum(int(sizes.sum()) for _, _, _, sizes in work)
    calls: list[Callable[[], object]]
    if threads.is_small(total):
        calls = [
            functools.partial(
                kernel.function, unused_at, unused_at, table.ctypes.data, sizes.ctypes.data, len(sizes), 0, int(sizes.sum()),
                values_at, step, outputs_at,
            )
            for kernel, _, table, sizes in work
        ]  # fmt: skip
    else:
        groups = group_words(work, [table.ctypes.data for _, _, table, _ in work])
        records = threads.make_records(total, (groups.buffer_info()[0], len(work), 0, values_at, step, outputs_at))
        records_at = records.buffer_info()[0]
        calls = [
            functools.partial(
                threads.compiled_split(), records_at, records_at, compiled_part(), records_at, RECORD_WORDS,
                len(records) // RECORD_WORDS, *threads.thread_functions(),
            )
        ]  # fmt: skip
    finish([*calls, *then])
    return dict(zip(program.scalar_outputs, outputs, strict=False))


@functools.lru_cache(maxsize=512)
def host_kernel(program: Program, key: KernelKey) -> HostKernel:
    """Return the kernel of a key, compiling it if it is new."""
    return HostKernel(program, key)


def update(
    program: Program,
    scalars: StepScalars,
    dtypes: Sequence[Mapping[str, str]],
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]] | None,
    then: Sequence[Callable[[], object]] = (),
) -> None:
    """Do a step on NumPy arrays, of any strides. Once it has begun to write it is finished, whatever is raised meanwhile.

    Args:
        program: what to run.
        scalars: the step's scalars; those of the state that the kernel computes are put into it.
        dtypes: dtype names of each parameter's arrays by name. An array may show its bits as an integer of the same size.
        inputs: parameter, gradient and slots of each parameter.
        outputs: C-contiguous arrays for the results by name; None to overwrite the inputs, which then share no memory.
        then: further calls, of functions written in C, that belong to the step.

    Raises:
        ValueError: a parameter's arrays differ in size. Nothing has been written then.
    """
    in_place = outputs is None
    dense = [{name: np.ascontiguousarray(array) for name, array in arrays.items()} for arrays in inputs]
    if in_place:
        _copy_overlapping(dense, program.array_outputs)
    work = []
    for key, _, members in grouped(program, dtypes, in_place=in_place, flush=default_flush()):
        kernel = host_kernel(program, key)
        rows = [
            {**dense[i], **({} if outputs is None else {NEW + n: a for n, a in outputs[i].items()})} for i in members
        ]
        _check_sizes(rows, [dtypes[i] for i in members])
        table = np.array([[_address(row[column]) for column in kernel.columns] for row in rows], np.int64)
        sizes = np.array([row["p"].size for row in rows], np.int64)
        work.append(Work(kernel, members, table, sizes))
    if not work:
        return
    copies = []
    if in_place:
        for original, copied in zip(inputs, dense, strict=True):
            for name in program.array_outputs:
                if _address(copied[name]) != _address(original[name]) or not original[name].flags.c_contiguous:
                    value = copied[name].reshape(original[name].shape)
                    copies.append(functools.partial(operator.setitem, original[name], ..., value))
    scalars.provide(run(work, scalars.inputs, [*copies, *then]))


def _check_sizes(rows: Sequence[Mapping[str, Any]], dtypes: Sequence[Mapping[str, str]]) -> None:
    """Raise an error if arrays differ in size or dtype: a schedule of the user's may have changed one after the checks."""
    for row, names in zip(rows, dtypes, strict=True):
        size = row["p"].size
        for name, found in row.items():
            if found.size != size or (name in names and found.itemsize != ITEMSIZES[names[name]]):
                raise ValueError(
                    "an array changed its size while the step was computed; arrays must stay as they are until the step is done"
                )


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])  # a third of the time of `array.ctypes.data`


def _copy_overlapping(parameters: Sequence[dict[str, Any]], written: Container[str]) -> None:
    """Replace gradients, and other arrays that are only read, that share memory with what the step writes by copies."""
    ranges = sorted(
        (a.ctypes.data, a.ctypes.data + a.nbytes, name, i)
        for i, arrays in enumerate(parameters)
        for name, a in arrays.items()
        if a.size
    )
    end_of_written = end_of_read = 0
    reading: list[tuple[int, str]] = []
    overlapping: set[tuple[int, str]] = set()
    for start, end, name, i in ranges:
        if name not in written:
            if start < end_of_written:
                overlapping.add((i, name))
            reading = [(i, name)] if start >= end_of_read else [*reading, (i, name)]
            end_of_read = max(end_of_read, end)
        else:
            if start < end_of_read:
                overlapping.update(reading)
            end_of_written = max(end_of_written, end)
    for i, name in overlapping:
        parameters[i][name] = parameters[i][name].copy()
