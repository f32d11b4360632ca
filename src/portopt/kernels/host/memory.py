"""Advice to the operating system about large new arrays."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

_LARGE = 4 << 20
"""Bytes from which on advice is given; a huge page has 2 MiB on most systems."""


def use_huge_pages(address: int, size: int) -> None:
    """Ask for huge pages under memory that was never written, so that writing it first does not stop at every small page.

    NumPy does so for its own arrays. It is advice: where there are no huge pages, nothing happens.

    Args:
        address: of the memory.
        size: in bytes.
    """
    if size < _LARGE or (advise := _madvise()) is None:
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
