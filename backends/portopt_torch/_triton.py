"""Fused steps on torch tensors on a GPU: Triton, all parameters of a dtype in one launch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import linecache
import operator
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from portopt.kernels.key import KernelKey
from portopt.kernels.launch import chunk_starts
from portopt.kernels.library import Library
from portopt.kernels.names import SCALARS_OF_NORM
from portopt.kernels.norm_dependence import GradientNorm
from portopt.kernels.triton.norm import norm_source
from portopt.kernels.triton.products import products_source
from portopt.kernels.triton.source import CHUNK, WARPS, triton_source
from portopt.kernels.triton.staged_source import chunk_of, staged_source
from portopt.kernels.triton.totals import totals_source
from portopt.program import Program

OPTIONS: Mapping[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}
"""Triton's options: one rounding per operation."""


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
def _source(program: Program, key: KernelKey) -> str:
    return triton_source(program, key) if program.is_elementwise else staged_source(program, key)


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

    def __init__(self, sizes: tuple[int, ...], device: Any, chunk: int = CHUNK) -> None:
        self.starts = chunk_starts(sizes, chunk)
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


_layout = functools.lru_cache(maxsize=128)(_Layout)
"""Sizes rarely change; those of a program that reduces are several, one for each kind of pass."""


class _Torch:
    """Torch as `portopt.kernels.launch` asks for it."""

    device = operator.attrgetter("device")
    size = operator.methodcaller("numel")
    address = operator.methodcaller("data_ptr")
    dense = operator.methodcaller("contiguous")
    copied = operator.methodcaller("clone")
    chunk = CHUNK
    chunk_of = staticmethod(chunk_of)

    def dtype(self, tensor: Any) -> str:
        return str(tensor.dtype).rpartition(".")[2]

    def memory(self, tensor: Any) -> tuple[str, int, int]:
        start = int(tensor.data_ptr())
        return str(tensor.device), start, start + tensor.numel() * tensor.element_size()

    def empty_like(self, tensor: Any, dtype: str | None = None) -> Any:
        kind = tensor.dtype if dtype is None else getattr(_torch(), dtype)
        return _torch().empty(tensor.shape, dtype=kind, device=tensor.device)

    def is_dense(self, tensor: Any) -> bool:
        return bool(tensor.is_contiguous())

    def empty(self, shape: tuple[int, ...], dtype: str, device: Any) -> Any:
        return _torch().empty(shape, dtype=getattr(_torch(), dtype), device=device)

    def assign(self, target: Any, value: Any) -> None:
        target.copy_(value)

    def on(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        return _torch().cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()

    def module(self, program: Program, key: KernelKey) -> ModuleType:
        return load_module(_source(program, key))

    def norm_module(self, dtype: str) -> ModuleType:
        return load_module(norm_source(dtype))

    def products_module(self, compute_dtype: str) -> ModuleType:
        return load_module(products_source(compute_dtype))

    def totals_module(self) -> ModuleType:
        return load_module(totals_source())

    def arguments(self, values: Sequence[float], dtype: str, device: Any) -> list[Any]:
        # At least one element: an address is needed even if nothing is read.
        return [_upload(np.asarray(values or [0.0], dtype), device)]

    def unrounded(self, values: Sequence[Any], device: Any) -> list[Any]:
        return self.arguments(list(map(float, values)), "float64", device)

    def workspace(self, words: int, device: Any) -> tuple[Any, int]:
        memory = _torch().empty(words, dtype=_torch().int64, device=device)
        return memory, int(memory.data_ptr())

    def words(self, memory: Any, count: int) -> list[int]:
        found: list[int] = memory[:count].tolist()
        return found

    def tables(
        self, module: ModuleType, addresses: Sequence[Sequence[int]], sizes: Sequence[int], chunk: int, device: Any
    ) -> list[tuple[Sequence[Sequence[int]], Sequence[int], int]]:
        return [(addresses, sizes, chunk)]

    def launch(self, module: ModuleType, kernel: str, table: Any, arguments: Sequence[Any], device: Any) -> None:
        addresses, sizes, chunk = table
        layout = _layout(tuple(sizes), device, chunk)
        starts = layout.starts
        if not starts[-1]:
            return
        columns = [starts[:-1], np.asarray(sizes, np.int64), np.asarray(addresses, np.uint64).view(np.int64)]
        table = _upload(np.ascontiguousarray(np.column_stack(columns)), device)
        getattr(module, kernel)[(int(starts[-1]),)](table, layout.rows(), *arguments, CHUNK=CHUNK, **OPTIONS)

    def call(self, module: ModuleType, kernel: str, blocks: int, arguments: Sequence[Any], device: Any) -> None:
        getattr(module, kernel)[(blocks,)](*arguments, CHUNK=CHUNK, **OPTIONS)

    def scalars_of_norm(
        self, module: ModuleType, norm: GradientNorm, given: Sequence[Any], count: int, dtype: str, device: Any
    ) -> Any:
        torch = _torch()
        (values,) = self.arguments(given, "float64", device)
        results = torch.empty(count, dtype=getattr(torch, dtype), device=device)
        one = {**OPTIONS, "num_warps": 1}
        getattr(module, SCALARS_OF_NORM)[(1,)](*self.sums(norm), values, results, **one)
        return results

    def new_norm(self, device: Any) -> GradientNorm:
        torch = _torch()
        memory = torch.zeros(4, dtype=torch.int64, device=device)
        return GradientNorm(memory, functools.partial(self.words, memory, 4))

    def largest(self, norm: GradientNorm) -> list[Any]:
        return [norm.words[:1]]

    def sums(self, norm: GradientNorm) -> list[Any]:
        return [norm.words[:1], norm.words[1:]]


LIBRARY: Library = _Torch()
