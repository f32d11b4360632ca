"""Fused steps on CuPy arrays: CUDA C, compiled by NVRTC.

CuPy's own `RawModule` always compiles with `-ftz=true`. The contract flushes by comparison, with tininess decided after
rounding, so the modules are compiled through NVRTC directly and then loaded by CuPy.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from portopt import __version__
from portopt.kernels import cache
from portopt.kernels.cuda.norm import norm_source
from portopt.kernels.cuda.products import products_source
from portopt.kernels.cuda.source import CHUNK, THREADS, cuda_source
from portopt.kernels.cuda.staged_source import chunk_of, staged_source
from portopt.kernels.cuda.tables import Table
from portopt.kernels.cuda.totals import totals_source
from portopt.kernels.key import KernelKey
from portopt.kernels.library import Library
from portopt.kernels.names import SCALARS_OF_NORM
from portopt.kernels.norm_dependence import GradientNorm
from portopt.program import Program

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""NVRTC's options: IEEE arithmetic, one rounding per operation."""
_MOST_BLOCKS = 65535
"""Of a grid; blocks take further chunks when there are more."""

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
    return _loaded(source, device).get_function(name)


@functools.lru_cache(maxsize=512)
def _loaded(source: str, device: int) -> Any:
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
def _update_source(program: Program, key: KernelKey) -> str:
    return cuda_source(program, key) if program.is_elementwise else staged_source(program, key)


_norm_source = functools.cache(norm_source)


# Launching ------------------------------------------------------------------------------------------------------


class _Cupy:
    """CuPy as `portopt.kernels.launch` asks for it, a `Library`; a device is its number."""

    device = operator.attrgetter("device.id")
    dtype = operator.attrgetter("dtype.name")
    size = operator.attrgetter("size")
    address = operator.attrgetter("data.ptr")
    copied = operator.methodcaller("copy")
    chunk = CHUNK
    chunk_of = staticmethod(chunk_of)

    def memory(self, array: Any) -> tuple[str, int, int]:
        start = int(array.data.ptr)
        return str(array.device.id), start, start + int(array.nbytes)

    def dense(self, array: Any) -> Any:
        if array.flags.c_contiguous:
            return array
        with array.device:
            return array.copy(order="C")

    def empty_like(self, array: Any, dtype: str | None = None) -> Any:
        with array.device:
            return _cupy().empty(array.shape, array.dtype if dtype is None else dtype)

    def is_dense(self, array: Any) -> bool:
        return bool(array.flags.c_contiguous)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return _cupy().empty(shape, dtype)

    def assign(self, target: Any, value: Any) -> None:
        target[...] = value

    def on(self, device: int) -> Any:
        return _cupy().cuda.Device(device)

    def module(self, program: Program, key: KernelKey) -> str:
        return _update_source(program, key)

    def norm_module(self, dtype: str) -> str:
        return _norm_source(dtype)

    def products_module(self, compute_dtype: str) -> str:
        return products_source(compute_dtype)

    def totals_module(self) -> str:
        return totals_source()

    def arguments(self, values: Sequence[float], dtype: str, device: int) -> list[Any]:
        return list(map(np.dtype(dtype).type, values))

    def unrounded(self, values: Sequence[Any], device: int) -> list[Any]:
        return list(map(typed_scalar, values))

    def workspace(self, words: int, device: int) -> tuple[Any, int]:
        memory = _cupy().empty(words, np.int64)
        return memory, int(memory.data.ptr)

    def words(self, memory: Any, count: int) -> list[int]:
        found: list[int] = _cupy().asnumpy(memory[:count]).tolist()
        return found

    def tables(
        self, module: str, addresses: Sequence[Sequence[int]], sizes: Sequence[int], chunk: int
    ) -> Iterator[tuple[Table, Any]]:
        table = Table(addresses, sizes, chunk)
        if table.chunks:
            yield table, _cupy().asarray(table.words)

    def launch(self, module: str, kernel: str, table: tuple[Table, Any], arguments: Sequence[Any], device: int) -> None:
        known, memory = table
        words = known.argument(int(memory.data.ptr))
        # CuPy passes a structure by value.
        by_value = words.view(np.dtype([("words", np.int64, words.shape)]))
        _function(module, kernel, device)((min(known.chunks, _MOST_BLOCKS),), (THREADS,), (by_value, *arguments))

    def call(self, module: str, kernel: str, blocks: int, arguments: Sequence[Any], device: int) -> None:
        typed = tuple(typed_scalar(a) if isinstance(a, int) else a for a in arguments)
        _function(module, kernel, device)((min(blocks, _MOST_BLOCKS),), (THREADS,), typed)

    def scalars_of_norm(
        self, module: str, norm: GradientNorm, given: Sequence[Any], count: int, dtype: str, device: int
    ) -> Any:
        results = _cupy().empty(count, dtype)
        arguments = (norm.words, *map(typed_scalar, given), results)
        _function(module, SCALARS_OF_NORM, device)((1,), (1,), arguments)
        return results

    def new_norm(self, device: int) -> GradientNorm:
        memory = _cupy().zeros(4, np.int64)
        return GradientNorm(memory, functools.partial(self.words, memory, 4))

    def largest(self, norm: GradientNorm) -> list[Any]:
        return [norm.words]

    def sums(self, norm: GradientNorm) -> list[Any]:
        return [norm.words]


def typed_scalar(value: Any) -> Any:
    """Return a scalar in the type that the kernel declares for it."""
    return (
        np.bool_(value) if isinstance(value, bool) else np.int64(value) if isinstance(value, int) else np.float64(value)
    )


def _cupy() -> Any:
    return importlib.import_module("cupy")


LIBRARY: Library = _Cupy()
