"""Fused steps on CuPy arrays: CUDA C, compiled by NVRTC, all parameters of a dtype in few launches, the host never waiting.

CuPy's own `RawModule` always compiles with `-ftz=true`. The contract flushes by comparison, with tininess decided after
rounding, so the modules are compiled through NVRTC directly and then loaded by CuPy.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portopt._version import __version__
from portopt.arithmetic.dtypes import round_scalar
from portopt.kernels import cache, groups, launch
from portopt.kernels.cuda.norm import LARGEST_GRADIENT, SUM_SQUARES, norm_source
from portopt.kernels.cuda.source import CHUNK, SCALARS_OF_NORM, THREADS, UPDATE, cuda_source, rows_of_table
from portopt.kernels.norm_dependence import GradientNorm, norm_dependence
from portopt.program import Program
from portopt.program.interpreter import StepScalars
from portopt.program.reductions import rounding_constants

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""NVRTC's options: IEEE arithmetic, one rounding per operation."""
_MOST_BLOCKS = 65535
"""Of a grid; blocks take further chunks when there are more."""

Arrays = Mapping[str, Any]


# Compiling ------------------------------------------------------------------------------------------------------


def compile_source(source: str, target: str) -> bytes:
    """Return CUDA C compiled for a target such as `"sm_90"` (machine code) or `"compute_90"` (PTX)."""
    nvrtc = importlib.import_module("cupy.cuda").nvrtc
    program = nvrtc.createProgram(source, "portopt.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"--gpu-architecture={target}", *OPTIONS])
        compiled = nvrtc.getCUBIN(program) if target.startswith("sm_") else nvrtc.getPTX(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"NVRTC cannot compile a kernel for {target}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)
    return bytes(compiled)


def target_of(capability: int, supported: Sequence[int]) -> str:
    """Return what to compile for on a device of a compute capability such as 90, given those that NVRTC supports.

    A device newer than NVRTC gets PTX, which its driver translates; that keeps each operation as it is.
    """
    if capability in supported:
        return f"sm_{capability}"
    older = [known for known in supported if known < capability]
    if not older:
        raise RuntimeError(
            f"this device has compute capability {capability}, but NVRTC compiles for {min(supported)} and newer: "
            "install an older CUDA toolkit, or use portopt.interpreted()"
        )
    return f"compute_{max(older)}"


@functools.lru_cache(maxsize=1024)
def _function(source: str, name: str, device: int) -> Any:
    return _module(source, device).get_function(name)


@functools.lru_cache(maxsize=512)
def _module(source: str, device: int) -> Any:
    cuda = importlib.import_module("cupy.cuda")
    target = target_of(int(cuda.Device(device).compute_capability), list(map(int, cuda.nvrtc.getSupportedArchs())))
    compiler = ".".join(map(str, cuda.nvrtc.getVersion()))
    key = {"portopt": __version__, "nvrtc": compiler, "target": target, "options": " ".join(OPTIONS), "source": source}
    code = cache.load(key)
    if code is None:
        code = compile_source(source, target)
        cache.store(key, code)
    module = cuda.Module()
    module.load(code)
    return module


@functools.lru_cache(maxsize=512)
def _source(program: Program, key: Any) -> str:
    return cuda_source(program, key)


@functools.lru_cache
def _norm_source(dtype: str) -> str:
    return norm_source(dtype)


# Launching ------------------------------------------------------------------------------------------------------


def _by_value(table: Any) -> Any:
    """Return a table in the form in which CuPy passes an argument by value."""
    return table.view(np.dtype([("words", np.int64, table.shape)]))


def _launch(function: Any, chunks: int, arguments: tuple[Any, ...]) -> None:
    function((min(chunks, _MOST_BLOCKS),), (THREADS,), arguments)


def _address(array: Any) -> int:
    return int(array.data.ptr)


def gradient_norm(gradients: Sequence[Any], compute: Callable[[], float]) -> Any:
    """Return the norm of all gradients, left on their device; None unless they are all on one.

    Args:
        gradients: arrays of any dtypes.
        compute: returns the same norm as a Python float.
    """
    cupy = importlib.import_module("cupy")
    if len({g.device.id for g in gradients}) != 1:
        return None
    with gradients[0].device as device:
        words = cupy.zeros(4, np.float64)
        constants = tuple(map(np.float64, rounding_constants(sum(g.size for g in gradients))))
        dense = [_dense(g) for g in gradients]
        launches = [
            (_norm_source(dtype), _by_value(part.table), part.chunks)
            for dtype, members in groups.positions([g.dtype.name for g in dense]).items()
            for part in launch.launches(
                [[_address(dense[i])] for i in members], [dense[i].size for i in members], rows_of_table(1, 4), CHUNK
            )
        ]
        for source, table, chunks in launches:
            _launch(_function(source, LARGEST_GRADIENT, device.id), chunks, (table, words))
        for source, table, chunks in launches:
            _launch(_function(source, SUM_SQUARES, device.id), chunks, (table, *constants, words))
    return GradientNorm(words, compute)


def update(
    program: Program, scalars: StepScalars, parameters: Sequence[Arrays], *, in_place: bool
) -> list[dict[str, Any]] | None:
    """Do a step by fused kernels; None if the norm of the gradients is not on the parameters' device.

    Args:
        program: what to run.
        scalars: the step's scalars; those of the state are put into it if the norm is on the device.
        parameters: the arrays of each parameter.
        in_place: write the results into the given arrays.
    """
    cupy = importlib.import_module("cupy")
    norm = scalars.inputs.get("gradient_norm")
    split = norm_dependence(program)
    if split.rounded_on_device and (
        not isinstance(norm, GradientNorm)
        or any(split.needs_norm(i) for i in split.program.scalar_outputs.values())
        or any(arrays["p"].device.id != norm.words.device.id for arrays in parameters)
    ):
        return None
    values = split.host_scalars(scalars.inputs)
    if split.rounded_on_device:
        scalars.provide(split.state_scalars(scalars.inputs))
    names = tuple(program.array_outputs)
    dense = [{name: _dense(array) for name, array in arrays.items()} for arrays in parameters]
    if in_place:
        for i in launch.overwritten(dense, program, _memory):
            dense[i]["g"] = dense[i]["g"].copy()
        outputs = dense
    else:
        outputs = [{name: _empty_like(cupy, arrays[name]) for name in names} for arrays in parameters]
    kinds = groups.grouped(
        program,
        ({name: array.dtype.name for name, array in arrays.items()} for arrays in dense),
        in_place=in_place,
        flush="where",
        devices=(arrays["p"].device.id for arrays in dense),
    )
    for key, device, members in kinds:
        source = _source(program, key)
        columns = key.columns(program)
        real = np.dtype(key.compute_dtype).type
        rounded = [real(round_scalar(float(values[j]), key.compute_dtype)) for _, j in split.rounded_on_host]
        with cupy.cuda.Device(device):
            if split.rounded_on_device:
                from_norm = cupy.empty(len(split.rounded_on_device), key.compute_dtype)
                given = [_scalar(values[i]) for i in split.given]
                _function(source, SCALARS_OF_NORM, device)((1,), (1,), (norm.words, *given, from_norm))  # type: ignore[union-attr]  # checked above
                rounded.append(from_norm)
            addresses = launch.rows_of(columns, [dense[i] for i in members], [outputs[i] for i in members], _address)
            sizes = [dense[i]["p"].size for i in members]
            rows = rows_of_table(len(columns), len(split.rounded_on_host) + 1)
            for part in launch.launches(addresses, sizes, rows, CHUNK):
                _launch(_function(source, UPDATE, device), part.chunks, (_by_value(part.table), *rounded))
    if not in_place:
        return outputs
    for original, written in zip(parameters, dense, strict=True):
        for name in names:
            if written[name] is not original[name]:
                original[name][...] = written[name]
    return [{name: arrays[name] for name in names} for arrays in parameters]


def _scalar(value: Any) -> Any:
    """Return a scalar in the type that the kernel declares for it."""
    return (
        np.bool_(value) if isinstance(value, bool) else np.int64(value) if isinstance(value, int) else np.float64(value)
    )


def _empty_like(cupy: Any, array: Any) -> Any:
    with array.device:
        return cupy.empty(array.shape, array.dtype)


def _dense(array: Any) -> Any:
    if array.flags.c_contiguous:
        return array
    with array.device:
        return array.copy(order="C")


def _memory(array: Any) -> tuple[str, int, int]:
    """Return device, first and one-past-last byte of a C-contiguous array."""
    return str(array.device.id), _address(array), _address(array) + int(array.nbytes)
