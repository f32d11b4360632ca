"""How the compiled look reads CuPy's arrays: where their objects have what it asks for, found by looking for known values.

Nothing here needs a GPU: the arrays that are looked at lie in the host's memory, and nobody asks for their elements.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portopt.kernels.host import trial
from portopt.kernels.host.readers import OWN_FIELDS, ArrayReader, FieldLayout

_WORDS_OF_ARRAY, _WORDS_OF_POINTER, _WORDS_OF_MEMORY = 16, 6, 5
"""How much of each object is read: no more than all versions of CuPy have."""


@functools.cache
def reader(device: int) -> ArrayReader | None:
    """Return how the compiled look reads arrays on a device; None if it cannot be told without doubt."""
    layout = _find_layout()
    if layout is None:
        return None
    kind = _cupy().ndarray
    found = ArrayReader(
        OWN_FIELDS,
        lambda array: id(array.dtype),
        lambda array: int(array.data.ptr),
        (kind,),
        functools.partial(_is_plain, device),
        functools.partial(_dense, device),
        functools.partial(_maker, device),
        layout=layout,
        device=device,
    )

    def wrong(like: Any) -> list[Any]:
        return [
            played((4, 3), device),
            played((3, 4), device, "int32"),
            played((6, 4), device)[::2],
            played((4, 3), device).T,
            played((3, 4), device + 1),
        ]

    def make(values: Any) -> Any:
        return played(values.shape, device, values.dtype.name)

    return found if trial.works(found, make, wrong) else None


def played(shape: tuple[int, ...], device: int, dtype: str = "float32") -> Any:
    """Return an array that says that it is on a device, and lies in the host's memory."""
    cupy = _cupy()
    content = np.zeros(shape, dtype)
    # An address of its own, also without elements.
    own = content if content.size else np.zeros(1)
    memory = cupy.cuda.UnownedMemory(own.ctypes.data, max(content.nbytes, 1), own, device)
    return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


def _is_plain(device: int, array: Any) -> bool:
    return type(array) is _cupy().ndarray and array.flags.c_contiguous and array.data.device_id == device


def _dense(device: int, gradient: Any) -> Any:
    """Return a contiguous array with the elements of a gradient; itself if it is one, or is elsewhere."""
    if type(gradient) is not _cupy().ndarray or _is_plain(device, gradient) or gradient.data.device_id != device:
        return gradient
    with _cupy().cuda.Device(device):
        return gradient.copy(order="C")


def _maker(device: int, arrays: Sequence[Any]) -> Callable[[], list[Any]]:
    empty, shapes, dtypes = _cupy().empty, [a.shape for a in arrays], [a.dtype for a in arrays]

    def new() -> list[Any]:
        # For the current stream of the device.
        with _cupy().cuda.Device(device):
            return list(map(empty, shapes, dtypes))

    return new


def _find_layout() -> FieldLayout | None:
    arrays = [played((3, 4), 5), played((2, 1, 6), 6, "float64"), played((7,), 7, "float16")]
    arrays += [played((4, 3), 5).T, played((6, 4), 6)[::2]]
    pointers = [a.data for a in arrays]
    memories = [p.mem for p in pointers]
    objects, of_pointers, of_memories = (list(map(id, found)) for found in (arrays, pointers, memories))
    words = (
        _shape_word(arrays),
        _word(objects, [int(a.flags.c_contiguous) for a in arrays], _WORDS_OF_ARRAY, 0xFFFFFFFF),
        _word(objects, [id(a.dtype) for a in arrays], _WORDS_OF_ARRAY),
        _word(objects, of_pointers, _WORDS_OF_ARRAY),
        _word(of_pointers, [p.ptr for p in pointers], _WORDS_OF_POINTER),
        _word(of_pointers, of_memories, _WORDS_OF_POINTER),
        _word(of_memories, [m.device_id for m in memories], _WORDS_OF_MEMORY, 0xFFFFFFFF),
    )
    return None if None in words else FieldLayout(*[word for word in words if word is not None])


def _words(address: int, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(address))


def _word(objects: Sequence[int], values: Sequence[int], count: int, mask: int = 2**64 - 1) -> int | None:
    """Return the first word that has the values in the objects at the addresses, all of them."""
    return next((k for k in range(count) if [_words(at, count)[k] & mask for at in objects] == list(values)), None)


def _shape_word(arrays: Sequence[Any]) -> int | None:
    """Return the first of two words that say where the shape begins and ends."""
    for k in range(_WORDS_OF_ARRAY - 1):
        ranges = [_words(id(a), _WORDS_OF_ARRAY)[k : k + 2] for a in arrays]
        # As long as a shape for arrays with one, two and three axes: only then is it an address.
        if all(begin and end - begin == 8 * a.ndim for (begin, end), a in zip(ranges, arrays, strict=True)) and all(
            tuple(_words(begin, a.ndim)) == a.shape for (begin, _), a in zip(ranges, arrays, strict=True)
        ):
            return k
    return None


def _cupy() -> Any:
    return importlib.import_module("cupy")
