"""CuPy's arrays, as launches of CUDA C ask for them."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator
from typing import Any

from portopt.kernels.cuda import driver
from portopt.kernels.cuda.library import CudaLibrary


class CupyLibrary(CudaLibrary):
    """CuPy."""

    def device(self, array: Any) -> int:
        return int(array.device.id)

    def dtype(self, array: Any) -> str:
        return str(array.dtype.name)

    def size(self, array: Any) -> int:
        return int(array.size)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def copied(self, array: Any) -> Any:
        return array.copy()

    def memory(self, array: Any) -> tuple[str, int, int]:
        start = int(array.data.ptr)
        return str(array.device.id), start, start + int(array.nbytes)

    def dense(self, array: Any) -> Any:
        if array.flags.c_contiguous:
            return array
        with array.device:
            return array.copy(order="C")

    def is_dense(self, array: Any) -> bool:
        return bool(array.flags.c_contiguous)

    def empty_like(self, array: Any, dtype: str | None = None) -> Any:
        with array.device:
            return _cupy().empty(array.shape, array.dtype if dtype is None else dtype)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return _cupy().empty(shape, dtype)

    def assign(self, target: Any, value: Any) -> None:
        target[...] = value

    def on(self, device: int) -> Any:
        return _cupy().cuda.Device(device)

    @contextlib.contextmanager
    def kept(self, device: int, owner: Any) -> Iterator[None]:
        if not self.is_capturing(device):
            yield
            return
        # CuPy gives memory to others that is freed after a capture, though the graph has its address.
        pool = _cupy().cuda.MemoryPool()
        with driver.device(device).driver.uncaptured(), _cupy().cuda.using_allocator(pool.malloc):
            yield
        weakref.finalize(owner, _let_go, pool).atexit = False

    def words(self, memory: Any, count: int) -> list[int]:
        found: list[int] = _cupy().asnumpy(memory[:count]).tolist()
        return found

    def stream(self, device: int) -> int:
        return int(_cupy().cuda.get_current_stream(device).ptr)


def _let_go(pool: Any) -> None:
    """Let memory go, of which this function had the last reference."""


def _cupy() -> Any:
    # Whoever has arrays has imported it; this takes a fraction of the time of an import.
    return sys.modules["cupy"]


LIBRARY = CupyLibrary()
