"""Fused steps on torch tensors on a GPU: Triton, all parameters of a dtype in one launch, the host never waiting."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import linecache
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from portopt.arithmetic.dtypes import round_scalar
from portopt.kernels import groups, launch
from portopt.kernels.norm_dependence import GradientNorm, norm_dependence
from portopt.kernels.triton.norm import LARGEST_GRADIENT, SUM_SQUARES, norm_source
from portopt.kernels.triton.source import CHUNK, SCALARS_OF_NORM, UPDATE, WARPS, triton_source
from portopt.program import Program
from portopt.program.interpreter import StepScalars
from portopt.program.reductions import rounding_constants

OPTIONS: Mapping[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}
"""Triton's options: one rounding per operation."""

Arrays = Mapping[str, Any]


@functools.cache
def available() -> bool:
    """Tell whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def _torch() -> Any:
    return importlib.import_module("torch")


@functools.lru_cache(maxsize=512)
def load_module(source: str) -> ModuleType:
    """Return generated source as a module. Triton reads a kernel's source again, and finds it in `linecache`."""
    name = f"portopt_triton_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    filename = f"<{name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = sys.modules[name] = ModuleType(name)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


@functools.lru_cache(maxsize=512)
def _source(program: Program, key: Any) -> str:
    return triton_source(program, key)


# Launching ------------------------------------------------------------------------------------------------------


def _upload(array: Any, device: Any) -> Any:
    """Copy a NumPy array to a device without waiting: torch keeps the pinned memory until the copy is done."""
    tensor = _torch().from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Layout:
    """How parameters of known sizes are cut into chunks.

    Attributes:
        starts: number of each parameter's first chunk, and at the end the number of all chunks.
    """

    def __init__(self, sizes: tuple[int, ...], device: Any) -> None:
        self.starts = launch.chunk_starts(sizes, CHUNK)
        rows = np.repeat(np.arange(len(sizes), dtype=np.int32), np.diff(self.starts))
        self._rows = _upload(rows, device)
        self._stream = self._uploaded = None
        if device.type == "cuda":
            self._stream = _torch().cuda.current_stream(device)
            self._uploaded = self._stream.record_event()

    def rows(self) -> Any:
        """Return, on the device, the parameter of each chunk, for kernels on the current stream."""
        if self._stream is not None:
            current = _torch().cuda.current_stream(self._rows.device)
            if current != self._stream:
                # Neither does a stream wait for another's copy by itself, nor does torch's memory for another's kernels.
                current.wait_event(self._uploaded)
                self._rows.record_stream(current)
        return self._rows


_layout = functools.lru_cache(maxsize=32)(_Layout)
"""Sizes rarely change."""


def _launch(
    kernel: Any, addresses: Sequence[Sequence[int]], sizes: Sequence[int], device: Any, *arguments: Any
) -> None:
    """Run a kernel on all chunks of parameters with these addresses and sizes."""
    layout = _layout(tuple(sizes), device)
    starts = layout.starts
    if not starts[-1]:
        return
    table = np.column_stack([starts[:-1], np.asarray(sizes, np.int64), np.asarray(addresses, np.uint64).view(np.int64)])
    kernel[(int(starts[-1]),)](
        _upload(np.ascontiguousarray(table), device), layout.rows(), *arguments, CHUNK=CHUNK, **OPTIONS
    )


def _on(device: Any) -> Any:
    return _torch().cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).rpartition(".")[2]


def _address(tensor: Any) -> int:
    return int(tensor.data_ptr())


def gradient_norm(gradients: Sequence[Any], compute: Callable[[], float]) -> Any:
    """Return the norm of all gradients, left on their device; None unless they are all on one.

    Args:
        gradients: detached tensors of any dtypes.
        compute: returns the same norm as a Python float.
    """
    torch = _torch()
    if len({g.device for g in gradients}) != 1:
        return None
    device = gradients[0].device
    with _on(device):
        norm = GradientNorm(torch.zeros(4, dtype=torch.int64, device=device), compute)
        constants = _upload(np.asarray(rounding_constants(sum(g.numel() for g in gradients))), device)
        dense = [g.contiguous() for g in gradients]
        reductions = [
            (
                load_module(norm_source(dtype)),
                [[_address(dense[i])] for i in members],
                [dense[i].numel() for i in members],
            )
            for dtype, members in groups.positions([_dtype(g) for g in dense]).items()
        ]
        for module, addresses, sizes in reductions:
            _launch(getattr(module, LARGEST_GRADIENT), addresses, sizes, device, largest(norm))
        for module, addresses, sizes in reductions:
            _launch(getattr(module, SUM_SQUARES), addresses, sizes, device, constants, largest(norm), sums(norm))
    return norm


def largest(norm: GradientNorm) -> Any:
    """Return the bits of max |g| as float64."""
    return norm.words[:1]


def sums(norm: GradientNorm) -> Any:
    """Return the three exact sums, float64."""
    return norm.words[1:].view(_torch().float64)


def update(
    program: Program, scalars: StepScalars, parameters: Sequence[Arrays], *, in_place: bool
) -> list[dict[str, Any]] | None:
    """Do a step by fused kernels; None if the norm of the gradients is not on the parameters' device.

    Args:
        program: what to run.
        scalars: the step's scalars; those of the state are put into it if the norm is on the device.
        parameters: the arrays of each parameter, detached.
        in_place: write the results into the given arrays.
    """
    torch = _torch()
    norm = scalars.inputs.get("gradient_norm")
    split = norm_dependence(program)
    if split.rounded_on_device and (
        not isinstance(norm, GradientNorm)
        or any(split.needs_norm(i) for i in split.program.scalar_outputs.values())
        or any(arrays["p"].device != norm.words.device for arrays in parameters)
    ):
        return None
    values = split.host_scalars(scalars.inputs)
    if split.rounded_on_device:
        scalars.provide(split.state_scalars(scalars.inputs))
    names = tuple(program.array_outputs)
    dense = [{name: tensor.contiguous() for name, tensor in arrays.items()} for arrays in parameters]
    outputs = dense
    if in_place:
        for i in launch.overwritten(dense, program, _memory):
            dense[i]["g"] = dense[i]["g"].clone()
    else:
        outputs = [
            {n: torch.empty(arrays[n].shape, dtype=arrays[n].dtype, device=arrays[n].device) for n in names}
            for arrays in parameters
        ]
    kinds = groups.grouped(
        program,
        ({name: _dtype(tensor) for name, tensor in arrays.items()} for arrays in dense),
        in_place=in_place,
        flush="where",
        devices=(arrays["p"].device for arrays in dense),
    )
    for key, device, members in kinds:
        module = load_module(_source(program, key))
        real = key.compute_dtype
        # At least one element: an address is needed even if nothing is read.
        rounded = [round_scalar(float(values[j]), real) for _, j in split.rounded_on_host] or [0.0]
        with _on(device):
            arguments = [_upload(np.asarray(rounded, real), device)]
            if isinstance(norm, GradientNorm) and split.rounded_on_device:
                given = _upload(np.asarray([values[i] for i in split.given] or [0.0], np.float64), device)
                from_norm = torch.empty(len(split.rounded_on_device), dtype=getattr(torch, real), device=device)
                one = {**OPTIONS, "num_warps": 1}
                getattr(module, SCALARS_OF_NORM)[(1,)](largest(norm), sums(norm), given, from_norm, **one)
                arguments.append(from_norm)
            addresses = launch.rows_of(
                key.columns(program), [dense[i] for i in members], [outputs[i] for i in members], _address
            )
            _launch(getattr(module, UPDATE), addresses, [dense[i]["p"].numel() for i in members], device, *arguments)
    if not in_place:
        return outputs
    for original, written in zip(parameters, dense, strict=True):
        for name in names:
            if written[name].data_ptr() != original[name].data_ptr():
                original[name].copy_(written[name])
    return [{name: arrays[name] for name in names} for arrays in parameters]


def _memory(tensor: Any) -> tuple[str, int, int]:
    """Return device, first and one-past-last byte of a contiguous tensor."""
    start = _address(tensor)
    return str(tensor.device), start, start + tensor.numel() * tensor.element_size()
