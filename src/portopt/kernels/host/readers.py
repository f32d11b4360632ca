"""How the compiled look asks an array for its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from portopt.kernels.host.threads import Team


class Layout(NamedTuple):
    """Where a library keeps what DLPack does not tell of an array; words are counted from the start of an object.

    Attributes:
        inner: word of the Python object with the address of the library's own object.
        kind: word of that with bits that say of what kind the array is.
        mask: which of these bits count.
        expected: what they must be.
        storage: word of the library's object with the address of a description of the memory.
        memory: word of that with the address of the memory.
        size: word with its size in bytes.
    """

    inner: int
    kind: int
    mask: int
    expected: int
    storage: int
    memory: int
    size: int


class ArrayReader(NamedTuple):
    """How the compiled function asks an array for its memory.

    Attributes:
        function: address of DLPack's `dltensor_from_py_object_no_sync` of the library; 0 for NumPy arrays.
        dtype: returns what stands for an array's dtype there.
        address: returns the address of an array's memory.
        layout: what else is read; None for NumPy arrays.
        team: returns the library's threads if they should do a large step.
    """

    function: int
    dtype: Callable[[Any], int]
    address: Callable[[Any], int]
    layout: Layout | None = None
    team: Callable[[], Team | None] = lambda: None


_DLPACK_TYPES = {"float16": (2, 16), "bfloat16": (4, 16), "float32": (2, 32), "float64": (2, 64)}


def dlpack_reader(
    kind: type,
    dtype_name: Callable[[Any], str],
    address: Callable[[Any], int],
    layout: Layout,
    team: Callable[[], Team | None],
) -> ArrayReader | None:
    """Return the reader of an array type with DLPack's exchange API in version 1; None if it has none."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The version's two numbers, the preceding table, three functions, and the one that is wanted.
    table = ctypes.cast(get_pointer(capsule, b"dlpack_exchange_api"), ctypes.POINTER(ctypes.c_uint64))
    if table[0] & 0xFFFFFFFF != 1 or not table[5]:
        return None

    def dtype(array: Any) -> int:
        code, bits = _DLPACK_TYPES[dtype_name(array)]
        return code | bits << 8 | 1 << 16

    return ArrayReader(table[5], dtype, address, layout, team)


NUMPY_READER = ArrayReader(0, lambda array: id(array.dtype), lambda array: int(array.ctypes.data))
