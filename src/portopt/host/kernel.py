"""Steps by fused kernels: from arrays to a table of addresses, and one call for all parameters of a kind."""

from __future__ import annotations

import array
import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portopt.host import threads
from portopt.host.compiler import compile_kernel, default_flush
from portopt.host.source import NEW, Flush, KernelKey
from portopt.interpreter import StepScalars
from portopt.program import Program


class HostKernel:
    """A program compiled for one combination of dtypes."""

    def __init__(self, program: Program, key: KernelKey) -> None:
        self.program = program
        self.key = key
        self.columns = key.columns(program)
        self.inputs = tuple(name for name in program.scalar_inputs if name != "t")
        self._function = compile_kernel(program, key)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value or 0

    def prepare(self, table: Any, sizes: Any, outputs: array.array[float]) -> Callable[[int, int], None]:
        """Return a function that does a step on arrays whose addresses stand in `table`.

        Args:
            table: addresses, int64 of shape (parameters, columns), C-contiguous. What it holds at the call counts.
            sizes: number of elements of each parameter, int64.
            outputs: where the scalars of the state that the step replaces are put, float64.

        Returns:
            A function of the address of the values of `self.inputs`, and of the number of the step from 1.
        """
        function = self._function
        unused = array.array("q", bytes(8))
        unused_address, outputs_address = unused.buffer_info()[0], outputs.buffer_info()[0]
        table_address, sizes_address, count, total = table.ctypes.data, sizes.ctypes.data, len(sizes), int(sizes.sum())

        def run(inputs_address: int, step: int, keep_alive: object = (table, sizes, unused, outputs)) -> None:
            def work(start: int, stop: int) -> None:
                function(
                    unused_address, unused_address, table_address, sizes_address, count, start, stop, inputs_address, step,
                    outputs_address,
                )  # fmt: skip

            threads.run_split(work, total)

        return run

    def run(self, table: Any, sizes: Any, inputs: Mapping[str, Any]) -> dict[str, float]:
        """Do a step.

        Args:
            table: addresses, int64 of shape (parameters, columns), C-contiguous.
            sizes: number of elements of each parameter, int64.
            inputs: the program's scalar inputs by name, `"t"` among them.

        Returns:
            The scalars of the state that the step replaces.
        """
        names = self.program.scalar_outputs
        values = array.array("d", [inputs[name] for name in self.inputs])
        outputs = array.array("d", bytes(8 * len(names)))
        self.prepare(table, sizes, outputs)(values.buffer_info()[0], int(inputs.get("t", 0)))
        return dict(zip(names, outputs, strict=True))


@functools.lru_cache(maxsize=512)
def _kernel(program: Program, key: KernelKey) -> HostKernel:
    return HostKernel(program, key)


def get_kernel(
    program: Program, dtypes: Mapping[str, str], *, in_place: bool, flush: Flush | None = None
) -> HostKernel:
    """Return the kernel for arrays of these dtypes, compiling it if it is new."""
    ordered = (("p", dtypes["p"]), ("g", dtypes["g"]), *(item for item in dtypes.items() if item[0] not in ("p", "g")))
    return _kernel(program, KernelKey(ordered, in_place, flush or default_flush()))


def update(
    program: Program,
    scalars: StepScalars,
    dtypes: Sequence[Mapping[str, str]],
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Do a step on NumPy arrays, of any strides.

    Args:
        program: what to run.
        scalars: the step's scalars; those of the state that the kernel computes are put into it.
        dtypes: dtype names of each parameter's arrays by name. An array may show its bits as an integer of the same size.
        inputs: parameter, gradient and slots of each parameter.
        outputs: C-contiguous arrays for the results by name; None to overwrite the inputs, which then share no memory.
    """
    in_place = outputs is None
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, names in enumerate(dtypes):
        groups.setdefault(tuple(sorted(names.items())), []).append(i)
    dense = [{name: np.ascontiguousarray(array) for name, array in arrays.items()} for arrays in inputs]
    if in_place:
        _copy_overlapping_gradients(dense)
    for kind, members in groups.items():
        kernel = get_kernel(program, dict(kind), in_place=in_place)
        rows = [
            {**dense[i], **({} if outputs is None else {NEW + n: a for n, a in outputs[i].items()})} for i in members
        ]
        table = np.array([[_address(row[column]) for column in kernel.columns] for row in rows], np.int64)
        sizes = np.array([row["p"].size for row in rows], np.int64)
        scalars.provide(kernel.run(table, sizes, scalars.inputs))
    if in_place:
        for original, copies in zip(inputs, dense, strict=True):
            for name in program.array_outputs:
                if copies[name].ctypes.data != original[name].ctypes.data or not original[name].flags.c_contiguous:
                    original[name][...] = copies[name].reshape(original[name].shape)


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])  # a third of the time of `array.ctypes.data`


def _copy_overlapping_gradients(parameters: Sequence[dict[str, Any]]) -> None:
    """Replace gradients that share memory with what the step writes by copies."""
    ranges = sorted(
        (a.ctypes.data, a.ctypes.data + a.nbytes, name, i)
        for i, arrays in enumerate(parameters)
        for name, a in arrays.items()
        if a.size
    )
    end_of_written = end_of_read = 0
    reading: list[int] = []
    overlapping: set[int] = set()
    for start, end, name, i in ranges:
        if name == "g":
            if start < end_of_written:
                overlapping.add(i)
            reading = [i] if start >= end_of_read else [*reading, i]
            end_of_read = max(end_of_read, end)
        else:
            if start < end_of_read:
                overlapping.update(reading)
            end_of_written = max(end_of_written, end)
    for i in overlapping:
        parameters[i]["g"] = parameters[i]["g"].copy()
