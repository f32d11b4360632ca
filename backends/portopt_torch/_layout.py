"""Where this torch keeps what DLPack does not tell of a tensor: found by looking for known values in the objects themselves."""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch

from portopt.kernels.host.readers import Alike, GradientFields, Layout

_CHUNKS = 7
"""How much memory of one size a thread may have to give out anew."""
_Result = TypeVar("_Result")
_WORDS_OF_OBJECT, _WORDS_OF_TENSOR, _WORDS_OF_STORAGE, _WORDS_OF_COUNTER, _WORDS_OF_AUTOGRAD = 4, 26, 8, 3, 8
"""How much of each object is read: no more than all versions of torch have."""


def dispatch_keys(tensor: Any) -> int:
    """Return the bits by which torch chooses what to do with a tensor; plain ones have those of `plain_keys`."""
    return int(torch._C._dispatch_keys(tensor).raw_repr())


@functools.cache
def plain_keys() -> tuple[int, int]:
    """Return which bits tell a tensor whose memory in the host holds its elements, and what they are."""
    return elsewhere(_plain_keys)


def find_layout() -> Layout | None:
    """Return the layout of tensors; None if it cannot be told without doubt."""
    try:
        return elsewhere(_find_layout)
    except (AttributeError, RuntimeError, TypeError):
        return None


def elsewhere(function: Callable[[], _Result]) -> _Result:
    """Call a function in a thread of its own, where none of the modes is on that may be on in this one."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def _plain_keys() -> tuple[int, int]:
    plain = dispatch_keys(torch.empty(0, device="cpu", requires_grad=True))
    with torch.inference_mode():
        without_autograd = dispatch_keys(torch.empty(0, device="cpu"))
    mask = ~(plain ^ without_autograd) & (1 << 64) - 1
    return mask, plain & mask


def _find_layout() -> Layout | None:
    tensors = [torch.zeros(n, device="cpu")[n // 3 :] for n in (3, 50, 700)]
    tensors += [torch._neg_view(tensors[0]), torch.nn.Parameter(tensors[1])]
    with torch.inference_mode():
        tensors.append(torch.zeros(9, device="cpu"))
    storages = [tensor.untyped_storage() for tensor in tensors]
    inner, storage = [int(t._cdata) for t in tensors], [int(s._cdata) for s in storages]
    mask, expected = plain_keys()
    words = (
        _word(list(map(id, tensors)), inner, _WORDS_OF_OBJECT),
        _word(inner, list(map(dispatch_keys, tensors)), _WORDS_OF_TENSOR),
        _word(inner, storage, _WORDS_OF_TENSOR),
        _word(storage, [s.data_ptr() for s in storages], _WORDS_OF_STORAGE),
        _word(storage, [s.nbytes() for s in storages], _WORDS_OF_STORAGE),
    )
    if None in words:
        return None
    of_inner, of_keys, of_storage, of_memory, of_size = (word for word in words if word is not None)
    return Layout(of_inner, of_keys, _signed(mask), _signed(expected), of_storage, of_memory, of_size)


def find_alike(layout: Layout) -> Alike:
    """Return `ArrayReader.alike` of tensors: the words from behind the Python object's to those of the dispatch keys."""
    tensors = [torch.zeros(n, device="cpu") for n in (3, 50)]
    word = _word([int(t._cdata) for t in tensors], list(map(id, tensors)), _WORDS_OF_TENSOR)
    if word is None or word >= layout.kind or layout.storage > word:
        return Alike()
    try:
        unset = elsewhere(lambda: _unset_bits(word + 1, layout.kind - word))
    except (AttributeError, OSError, TypeError):
        unset = [0] * (layout.kind - word)
    return Alike(word + 1, tuple(~bits for bits in unset))


def _unset_bits(first: int, count: int) -> list[int]:
    """Return the bits of words of a tensor that torch does not set: those that are left of what was in the memory before."""
    objects = list[list[int]]()
    for left in (0x00, 0xFF):
        leave_in_memory(left)
        tensors = [torch.zeros(3, device="cpu") for _ in range(4)]
        objects += [list((ctypes.c_int64 * count).from_address(int(t._cdata) + 8 * first)) for t in tensors]
    return [functools.reduce(operator.or_, (word ^ words[0] for word in words)) for words in zip(*objects, strict=True)]


def leave_in_memory(byte: int) -> None:
    """Leave a byte all over memory that the thread's next objects of torch's get."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    chunks = [(libc.malloc(size), size) for size in range(64, 512, 16) for _ in range(_CHUNKS)]
    for address, size in chunks:
        ctypes.memset(address, byte, size)
    for address, _ in chunks:
        libc.free(address)


class GradientLayout(NamedTuple):
    """Where this torch keeps the gradient of a tensor; words are counted from the start of an object.

    Attributes:
        inner: word of a Python object with the address of torch's own.
        autograd: word of that with the address of what autograd keeps of the tensor, 0 if there is nothing.
        gradient: word of that with the address of the gradient, as torch's own object.
        absent: what is there if there is no gradient.
        object: word of torch's own object with the address of the Python object, 0 if there is none.
    """

    inner: int
    autograd: int
    gradient: int
    absent: int
    object: int


@functools.cache
def find_gradient() -> GradientLayout | None:
    """Return where gradients are kept; None if it cannot be told without doubt."""
    layout = find_layout()
    if layout is None:
        return None
    try:
        return elsewhere(lambda: _find_gradient(layout))
    except (AttributeError, RuntimeError, TypeError):
        return None


def _find_gradient(layout: Layout) -> GradientLayout | None:
    parameters = [torch.nn.Parameter(torch.zeros(n, device="cpu")) for n in (3, 50, 700)]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in parameters if p.grad is not None]
    plain = [torch.zeros(n, device="cpu") for n in (3, 50, 700)]
    own = [int(p._cdata) for p in parameters]
    # Behind the dispatch keys there may be nothing of the tensor any more.
    found, without = _words(own, layout.kind), _words([int(t._cdata) for t in plain], layout.kind)
    # Only what autograd keeps is there for all that have gradients, for each its own, and for no others: an address.
    of_autograd = [
        k
        for k in range(layout.kind)
        if not any(words[k] for words in without)
        and len({words[k] for words in found}) == len(found)
        and all(words[k] > 1 << 16 and words[k] % 8 == 0 and words[k] >> 47 == 0 for words in found)
    ]
    if len(of_autograd) != 1:
        return None
    kept = [words[of_autograd[0]] for words in found]
    gradient = _word(kept, [int(g._cdata) for g in gradients], _WORDS_OF_AUTOGRAD)
    python = _word(own, list(map(id, parameters)), layout.kind)
    if gradient is None or python is None:
        return None
    for p in parameters:
        p.grad = None
    absent = {words[gradient] for words in _words(kept, _WORDS_OF_AUTOGRAD)}
    if len(absent) != 1:
        return None
    return GradientLayout(layout.inner, of_autograd[0], gradient, absent.pop(), python)


def find_gradient_fields() -> GradientFields | None:
    """Return `ArrayReader.gradients` of tensors."""
    found = find_gradient()
    return None if found is None else GradientFields(found.autograd, found.gradient, found.absent)


def find_versions() -> tuple[int, int]:
    """Return `ArrayReader.versions` of tensors; zeros if it cannot be told without doubt."""
    return elsewhere(_find_versions)


def _find_versions() -> tuple[int, int]:
    tensors = [torch.zeros(n, device="cpu") for n in (3, 4, 50)]
    for k, tensor in enumerate(tensors):
        for _ in range(3 * k + 2):
            tensor.zero_()
    with torch.inference_mode():
        uncounted = torch.zeros(3, device="cpu")
    # An alias and a view are counted together with the tensor, a copy of another count with the same memory is not.
    aliases, views, others = ([of(t) for t in tensors] for of in (_detached, _viewed, _uncoupled))
    own, same, also, other, without = (
        [list((ctypes.c_uint64 * _WORDS_OF_TENSOR).from_address(int(t._cdata))) for t in of]
        for of in (tensors, aliases, views, others, [uncounted])
    )
    words = [
        k
        for k in range(_WORDS_OF_TENSOR)
        if without[0][k] == 0
        and all(a[k] == b[k] == c[k] != d[k] != 0 for a, b, c, d in zip(own, same, also, other, strict=True))
        and len({words[k] for words in own}) == len(own)
    ]
    if len(words) != 1:
        return 0, 0
    (word,) = words
    counters = [of[word] for of in own]
    count = next(
        (
            k
            for k in range(1, _WORDS_OF_COUNTER)
            if all(_half_at(at + 8 * k) == t._version for at, t in zip(counters, tensors, strict=True))
        ),
        0,
    )
    return (word, count) if count else (0, 0)


def _detached(tensor: Any) -> Any:
    return tensor.detach()


def _viewed(tensor: Any) -> Any:
    return tensor[1:]


def _uncoupled(tensor: Any) -> Any:
    return tensor.data


def _half_at(address: int) -> int:
    return ctypes.c_uint32.from_address(address).value


def on_device(layout: Layout, device: torch.device) -> Layout:
    """Return the layout of tensors on a device, given that of tensors in the host's memory."""
    mask, _ = plain_keys()
    keys = elsewhere(lambda: dispatch_keys(torch.empty(0, device=device)))
    return layout._replace(expected=_signed(keys & mask))


def _word(addresses: Sequence[int], values: Sequence[int], count: int) -> int | None:
    """Return the first word that has the values in the objects at the addresses, all of them."""
    objects = _words(addresses, count)
    return next((k for k in range(count) if [words[k] for words in objects] == list(values)), None)


def _words(addresses: Sequence[int], count: int) -> list[list[int]]:
    """Return the first words of the objects at the addresses."""
    return [list((ctypes.c_uint64 * count).from_address(address)) for address in addresses]


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
