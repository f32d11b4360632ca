"""Memory of large new arrays: advice to the operating system, and intermediate results that follow each other in one place."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

_LARGE = 4 << 20
"""Bytes from which on advice is given; a huge page has 2 MiB on most systems."""


def is_large(size: int) -> bool:
    """Tell whether `use_huge_pages` does anything for so many bytes."""
    return size >= _LARGE


def use_huge_pages(address: int, size: int) -> None:
    """Ask for huge pages under memory that was never written, so that writing it first does not stop at every small page.

    NumPy does so for its own arrays. It is advice: where there are no huge pages, nothing happens.

    Args:
        address: of the memory.
        size: in bytes.
    """
    if not is_large(size) or (advise := _madvise()) is None:
        return
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    advise(start, address + size - start, mmap.MADV_HUGEPAGE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function


_HUGE_PAGE = 2 << 20
"""Bytes of one on most systems."""
_STEPS = 8
"""For so many steps on arrays of other sizes memory is kept."""
_LEAST_REUSED = 1 << 20
"""Bytes of the smallest array that takes another one's place."""


class _Blocks:
    """Memory of arrays of one step at a time."""

    def __init__(self) -> None:
        self.free: list[Any] = []
        self._unused: dict[int, int] = {}
        """For how many steps a block held no array, by its address."""

    def take(self, size: int) -> Any:
        """Return a block for so many bytes."""
        fitting = [k for k, block in enumerate(self.free) if size <= block.size <= 2 * size]
        block = self.free.pop(min(fitting, key=lambda k: int(self.free[k].size))) if fitting else _block(size)
        self._unused[address(block)] = -1
        return block

    def rest(self) -> bool:
        """Leave memory to the operating system until the next step; return whether that can be done."""
        if not hasattr(mmap, "MADV_FREE") or (advise := _madvise()) is None:
            return False
        self._unused = {at: self._unused.get(at, 0) + 1 for at in map(address, self.free)}
        self.free[:] = [block for block in self.free if self._unused.get(address(block), 0) <= _STEPS]
        return all(advise(address(block), block.size, mmap.MADV_FREE) == 0 for block in self.free)


_current: ContextVar[_Blocks | None] = ContextVar("portopt_blocks", default=None)
resting: list[_Blocks] = []
"""Those of steps that are over: one for each that ran at one time."""


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Within this context, arrays of `empty` take the places of those that are no more.

    The first write to memory from the operating system stops at every page. An array is in no more than twice the memory that it
    needs, so that arrays of all sizes are in at most a few times what those of the largest size need at one time. In the end the
    operating system may have the memory as soon as it needs any; what it does not take serves the next step.
    """
    try:
        blocks = resting.pop()
    except IndexError:
        blocks = _Blocks()
    before = _current.set(blocks)
    try:
        yield
    finally:
        _current.reset(before)
        if blocks.rest():
            resting.append(blocks)


def empty(shape: Sequence[int], dtype: Any) -> Any:
    """Return a new NumPy array for an intermediate result, whose elements are not set."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    blocks = _current.get()
    if blocks is None or size < _LEAST_REUSED:
        return np.empty(shape, kind)
    return np.asarray(_Lent(blocks.take(size), blocks.free, shape, kind))


def _block(size: int) -> Any:
    """Return so many bytes that begin with a huge page, of which they are made if the system has any."""
    whole = -(-size // _HUGE_PAGE) * _HUGE_PAGE
    around = np.empty(whole + _HUGE_PAGE, np.uint8)
    start = -address(around) % _HUGE_PAGE
    use_huge_pages(address(around) + start, whole)
    # Whole pages: what is given back must have nothing else on them.
    return around[start : start + whole]


def address(array: Any) -> int:
    """Return where the elements of a NumPy array begin, in a third of the time of `array.ctypes.data`."""
    return int(array.__array_interface__["data"][0])


class _Lent:
    """Memory of an array, which is free again when the array and all its views are no more."""

    def __init__(self, block: Any, free: list[Any], shape: Sequence[int], kind: Any) -> None:
        self._block, self._free = block, free
        self.__array_interface__ = {
            "data": (address(block), False), "shape": tuple(shape), "typestr": kind.str, "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        self._free.append(self._block)
