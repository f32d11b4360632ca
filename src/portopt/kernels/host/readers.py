"""How the compiled look asks an array for its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.kernels.host.memory import address
from portopt.kernels.host.threads import Team

MOST_AXES = 5
"""Of arrays whose shape stands in the library's own object, and not where it points to."""


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


HOST, _CUDA = 1, 2
"""Kinds of devices, as DLPack numbers them."""


def cuda_device(number: int) -> int:
    """Return what stands for a CUDA device in DLPack."""
    return _CUDA | number << 32


class FieldLayout(NamedTuple):
    """Where a library keeps in its array objects what the look asks for; words are counted from the start of an object.

    Attributes:
        shape: word of an array with the address of its shape, int64, after which comes that of the shape's end.
        contiguous: word whose lower half says whether the array is C-contiguous.
        dtype: word with the dtype.
        data: word with the object that has the memory's address.
        address: word of that object with the address.
        memory: word of that object with another one, which knows the device.
        device: word of that one whose lower half is the number of the device.
    """

    shape: int
    contiguous: int
    dtype: int
    data: int
    address: int
    memory: int
    device: int


OWN_GRADIENTS = object()
"""Stands for a tree of the gradients that a library itself keeps of each parameter, where `ArrayReader.gradients` says so.

Whoever gives it has parameters and slots in containers of its own, which nobody changes during the step.
"""


class Alike(NamedTuple):
    """What a library's own object says of an array that is equal in arrays that differ in their memory only.

    Attributes:
        first: the first word of it; words are counted from the start of the object.
        bits: of each of the words, those that say something; none if that is not known.
    """

    first: int = 0
    bits: tuple[int, ...] = ()


class GradientFields(NamedTuple):
    """Where a library keeps the gradient of an array; words are counted from the start of an object.

    Attributes:
        kept: word of the library's own object with the address of what has it, 0 if there is nothing.
        gradient: word of that with the address of the gradient, as the library's own object.
        absent: what is there if there is no gradient.
    """

    kept: int
    gradient: int
    absent: int


NUMPY_FIELDS, OWN_FIELDS = 0, 1
"""What stands for an array library's function where there is none: its arrays are like NumPy's, or as a `FieldLayout` says."""


class ArrayReader(NamedTuple):
    """How the compiled function asks an array for its memory, and how a plan gets arrays that it can be asked about.

    Attributes:
        function: address of DLPack's `dltensor_from_py_object_no_sync` of the library; `NUMPY_FIELDS` or
            `OWN_FIELDS` where there is none.
        dtype: returns what stands for an array's dtype there.
        address: returns the address of an array's memory.
        kinds: types of the arrays, at most two.
        is_plain: tells whether an object is an array of these types, C-contiguous, where the arrays are.
        dense: returns a plain array with the elements of a gradient, or the gradient itself if that cannot be had.
        maker: given arrays, returns what makes new ones like them, whose elements are not set, C-contiguous.
        finished: called with the parameters before a step, and with the new ones; None if there is nothing to do.
        layout: what else is read; None for NumPy arrays.
        team: returns the library's threads if they should do a large step.
        device: where the arrays are, as DLPack says it; the number of the device for a `FieldLayout`.
        alike: the words of a library's own object that are equal in arrays that differ in their memory only, if they have few
            axes, and in no others.
        versions: word of a library's own object with the address of what counts how often an array was written, zero where nobody
            does, and word of that whose lower half is the number; zeros if that is not known.
        gradients: where the library keeps gradients of arrays; None if it does not, or that is not known.
    """

    function: int
    dtype: Callable[[Any], int]
    address: Callable[[Any], int]
    kinds: tuple[type, ...]
    is_plain: Callable[[Any], bool]
    dense: Callable[[Any], Any]
    maker: Callable[[Sequence[Any]], Callable[[], list[Any]]]
    finished: Callable[[Sequence[Any], Sequence[Any]], None] | None = None
    layout: Layout | FieldLayout | None = None
    team: Callable[[], Team | None] = lambda: None
    device: int = HOST
    alike: Alike = Alike()
    versions: tuple[int, int] = (0, 0)
    gradients: GradientFields | None = None
    of: Callable[[Any], ArrayReader] | None = None

    def place(self, array: Any) -> tuple[int, int]:
        """Return what the look expects of where an array is: its device, and `Layout.expected`."""
        own = self if self.of is None else self.of(array)
        return own.device, own.layout.expected if isinstance(own.layout, Layout) else 0


def reader_over(readers: Mapping[int, ArrayReader], device: Callable[[Any], int]) -> ArrayReader:
    """Return how arrays on several devices are read.

    Args:
        readers: how those on each device are, by its number.
        device: returns the number of an array's device.
    """
    first = next(iter(readers.values()))
    if len(readers) == 1:
        return first

    def of(array: Any) -> ArrayReader | None:
        return readers.get(device(array)) if type(array) in first.kinds else None

    def dense(gradient: Any) -> Any:
        found = of(gradient)
        return gradient if found is None else found.dense(gradient)

    def maker(arrays: Sequence[Any]) -> Callable[[], list[Any]]:
        places = [(number, [k for k, a in enumerate(arrays) if device(a) == number]) for number in readers]
        makers = [(readers[number].maker([arrays[k] for k in of_device]), of_device) for number, of_device in places]

        def new() -> list[Any]:
            found = [None] * len(arrays)
            for make, of_device in makers:
                for k, made in zip(of_device, make(), strict=True):
                    found[k] = made
            return found

        return new

    return first._replace(
        is_plain=lambda array: (found := of(array)) is not None and found.is_plain(array),
        dense=dense,
        maker=maker,
        of=lambda array: readers[device(array)],
    )


_DLPACK_TYPES = {"float16": (2, 16), "bfloat16": (4, 16), "float32": (2, 32), "float64": (2, 64)}


def exchange_function(kind: type) -> int:
    """Return `ArrayReader.function` of an array type with DLPack's exchange API in version 1; 0 if it has none."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return 0
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The version's two numbers, the preceding table, three functions, and the one that is wanted.
    table = ctypes.cast(get_pointer(capsule, b"dlpack_exchange_api"), ctypes.POINTER(ctypes.c_uint64))
    return int(table[5]) if table[0] & 0xFFFFFFFF == 1 else 0


def exchange_dtype(name: str) -> int:
    """Return what stands for a dtype of this name in DLPack."""
    code, bits = _DLPACK_TYPES[name]
    return code | bits << 8 | 1 << 16


def _is_plain(array: Any) -> bool:
    return type(array) is np.ndarray and array.flags.c_contiguous and array.flags.aligned


def _dense(gradient: Any) -> Any:
    if not isinstance(gradient, np.ndarray | np.generic) or _is_plain(gradient):
        return gradient
    # A subclass may have other numbers than those in its memory.
    plain = type(gradient) in (np.ndarray, np.memmap) or isinstance(gradient, np.generic)
    return np.array(gradient, order="C") if plain else gradient


def _maker(arrays: Sequence[Any]) -> Callable[[], list[Any]]:
    shapes, dtypes = [a.shape for a in arrays], [a.dtype for a in arrays]
    return lambda: list(map(np.empty, shapes, dtypes))


NUMPY_READER = ArrayReader(
    NUMPY_FIELDS,
    lambda array: id(array.dtype),
    address,
    (np.ndarray,),
    _is_plain,
    _dense,
    _maker,
)
