"""Steps by fused kernels on GPUs: all parameters of a kind in few launches, the host never waiting.

What differs between libraries of arrays is a `Library`: how it allocates, compiles and launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from portopt.arithmetic.dtypes import round_scalar
from portopt.kernels.groups import grouped, positions
from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.names import LARGEST_GRADIENT, SUM_SQUARES, UPDATE
from portopt.kernels.norm_dependence import GradientNorm, norm_dependence
from portopt.program import Program
from portopt.program.interpreter import StepScalars

Arrays = Mapping[str, Any]


class Library(Protocol):
    """A library of arrays on GPUs, and how it runs kernels. What stands for a device there compares equal to itself only."""

    def device(self, array: Any, /) -> Any:
        """Return what stands for the device of an array."""

    def dtype(self, array: Any, /) -> str:
        """Return the name of an array's dtype."""

    def size(self, array: Any, /) -> int:
        """Return the number of an array's elements."""

    def address(self, array: Any, /) -> int:
        """Return where the memory of a C-contiguous array begins."""

    def memory(self, array: Any, /) -> tuple[str, int, int]:
        """Return device, first and one-past-last byte of a C-contiguous array."""

    def dense(self, array: Any, /) -> Any:
        """Return an array itself if it is C-contiguous, else a copy that is."""

    def copied(self, array: Any, /) -> Any:
        """Return a copy of a C-contiguous array."""

    def empty_like(self, array: Any, /) -> Any:
        """Return a new C-contiguous array of the same shape and dtype, on the same device."""

    def assign(self, target: Any, value: Any, /) -> None:
        """Write the elements of an array into another one."""

    def on(self, device: Any, /) -> AbstractContextManager[Any]:
        """Make a device the current one."""

    def module(self, program: Program, key: KernelKey, /) -> Any:
        """Return the kernels that run a program."""

    def norm_module(self, dtype: str, /) -> Any:
        """Return the kernels that reduce gradients of a dtype to what their norm is computed from."""

    def arguments(self, values: Sequence[float], dtype: str, device: Any, /) -> list[Any]:
        """Return numbers of a dtype as arguments of a kernel."""

    def tables(self, module: Any, addresses: Sequence[Sequence[int]], sizes: Sequence[int], /) -> Iterable[Any]:
        """Yield what tells each launch where its parameters are and how many elements they have."""

    def launch(self, module: Any, kernel: str, table: Any, arguments: Sequence[Any], device: Any, /) -> None:
        """Run a kernel on all parameters of a table."""

    def scalars_of_norm(
        self, module: Any, norm: GradientNorm, given: Sequence[Any], count: int, dtype: str, device: Any, /
    ) -> Any:
        """Return an array, made on the device, of the rounded scalars that need the norm, given those of the host they need."""

    def new_norm(self, device: Any, compute: Callable[[], float], /) -> GradientNorm:
        """Return a norm whose words are zero."""

    def largest(self, norm: GradientNorm, /) -> list[Any]:
        """Return the argument of a kernel that looks for the largest gradient."""

    def sums(self, norm: GradientNorm, /) -> list[Any]:
        """Return the arguments of a kernel that adds up, given the largest gradient."""


def gradient_norm(library: Library, gradients: Sequence[Any], compute: Callable[[], float]) -> GradientNorm | None:
    """Return the norm of all gradients, left on their device; None unless they are all on one.

    Args:
        library: of the gradients.
        gradients: arrays of any dtypes.
        compute: returns the same norm as a Python float.
    """
    devices = set(map(library.device, gradients))
    if len(devices) != 1:
        return None
    (device,) = devices
    with library.on(device):
        norm = library.new_norm(device, compute)
        dense = list(map(library.dense, gradients))
        launches = [
            (module, table)
            for dtype, members in positions(map(library.dtype, dense)).items()
            for module in [library.norm_module(dtype)]
            for table in library.tables(
                module, [[library.address(dense[i])] for i in members], [library.size(dense[i]) for i in members]
            )
        ]
        for module, table in launches:
            library.launch(module, LARGEST_GRADIENT, table, library.largest(norm), device)
        for module, table in launches:
            library.launch(module, SUM_SQUARES, table, library.sums(norm), device)
    return norm


def update(
    library: Library, program: Program, scalars: StepScalars, parameters: Sequence[Arrays], *, in_place: bool
) -> list[dict[str, Any]] | None:
    """Do a step by fused kernels; None if the norm of the gradients is not on the parameters' device, or there are other totals.

    Args:
        library: of the arrays.
        program: what to run.
        scalars: the step's scalars; those of the state are put into it if the norm is on the device.
        parameters: the arrays of each parameter.
        in_place: write the results into the given arrays.
    """
    if len(program.totals) > 1:
        return None  # the device keeps one
    split = norm_dependence(program)
    norm = split.norm(scalars.inputs)
    if split.rounded_on_device and (
        not isinstance(norm, GradientNorm)
        or any(split.needs_norm(i) for i in split.program.scalar_outputs.values())
        or any(library.device(arrays["p"]) != library.device(norm.words) for arrays in parameters)
    ):
        return None
    values = split.host_scalars(scalars.inputs)
    if split.rounded_on_device:
        scalars.provide(split.state_scalars(scalars.inputs))
    names = tuple(program.array_outputs)
    dense = [{name: library.dense(array) for name, array in arrays.items()} for arrays in parameters]
    outputs = dense
    if in_place:
        for i, name in overwritten(dense, program, library.memory):
            dense[i][name] = library.copied(dense[i][name])
    else:
        outputs = [{name: library.empty_like(arrays[name]) for name in names} for arrays in parameters]
    groups = grouped(
        program,
        ({name: library.dtype(array) for name, array in arrays.items()} for arrays in dense),
        in_place=in_place,
        flush="where",
        devices=(library.device(arrays["p"]) for arrays in dense),
    )
    for key, device, members in groups:
        module, real = library.module(program, key), key.compute_dtype
        rounded = [round_scalar(float(values[j]), real) for _, j in split.rounded_on_host]
        with library.on(device):
            arguments = library.arguments(rounded, real, device)
            if isinstance(norm, GradientNorm) and split.rounded_on_device:
                given, count = [values[i] for i in split.given], len(split.rounded_on_device)
                arguments.append(library.scalars_of_norm(module, norm, given, count, real, device))
            columns = key.columns(program)
            addresses = [_addresses(library, columns, dense[i], outputs[i]) for i in members]
            for table in library.tables(module, addresses, [library.size(dense[i]["p"]) for i in members]):
                library.launch(module, UPDATE, table, arguments, device)
    if not in_place:
        return outputs
    for original, written in zip(parameters, dense, strict=True):
        for name in names:
            if written[name] is not original[name]:
                library.assign(original[name], written[name])
    return [{name: arrays[name] for name in names} for arrays in parameters]


def _addresses(library: Library, columns: Sequence[str], arrays: Arrays, outputs: Arrays) -> list[int]:
    """Return the addresses of a parameter's arrays in the order of the kernel's columns."""
    return [library.address(outputs[c.removeprefix(NEW)] if c.startswith(NEW) else arrays[c]) for c in columns]


def chunk_starts(sizes: Sequence[int], chunk: int) -> Any:
    """Return the number of the first chunk of each parameter, and at the end the number of all chunks."""
    chunks = -(-np.asarray(sizes, np.int64) // chunk)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(chunks)])


def overwritten(
    parameters: Sequence[Arrays], program: Program, memory: Callable[[Any], tuple[str, int, int]]
) -> set[tuple[int, str]]:
    """Return the gradients and further inputs, by parameter and name, that share memory with what a step in place writes.

    They must be copied first.

    Args:
        parameters: the arrays of each parameter.
        program: what the step runs.
        memory: returns device, first and one-past-last byte of an array's memory.
    """
    written: dict[str, list[tuple[int, int]]] = {}
    for arrays in parameters:
        for name in program.array_outputs:
            device, start, end = memory(arrays[name])
            if start < end:
                written.setdefault(device, []).append((start, end))
    sorted_ranges = {}
    for device, ranges in written.items():
        starts, ends = np.asarray(sorted(ranges)).T
        sorted_ranges[device] = starts, np.maximum.accumulate(ends)
    found = set()
    for i, arrays in enumerate(parameters):
        for name in ("g", *program.further_inputs):
            device, start, end = memory(arrays[name])
            if start == end or device not in sorted_ranges:
                continue
            starts, furthest = sorted_ranges[device]
            below = int(np.searchsorted(starts, end))
            if below and furthest[below - 1] > start:
                found.add((i, name))
    return found
