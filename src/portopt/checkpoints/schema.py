"""What the header of a checkpoint may say: every value is checked before anything is made of it.

Checksums guard against accidents. Whoever wrote a file may have computed them for a header of any content, so that nothing of
it is believed: not the type of a value, not a size, not the name of a class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from portopt.checkpoints.structure import ARRAY, DEEPEST
from portopt.scalars import MOST_STEPS

ITEM_SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Bytes of an element, by the name of its dtype in the file."""
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_MOST_AXES = 64
_SIZE_LIMIT = 1 << 63

Fail = Callable[[str], Exception]
"""Makes an error of a message that goes on after the name of the file."""


class Tensor(NamedTuple):
    """What the header says about one tensor."""

    shape: tuple[int, ...]
    dtype: str


class Place(NamedTuple):
    """Where a tensor's bytes are, counted from the end of the header."""

    start: int
    size: int


def parse(text: str | bytes, what: str, fail: Fail) -> dict[str, Any]:
    """Return the object that a JSON text holds, in which no key may be there twice."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise fail(f"its {what} is nested too deeply") from None
    except ValueError as error:
        raise fail(f"its {what} is no JSON that portopt writes: {error!s:.200}") from None
    if type(value) is not dict:
        raise fail(f"its {what} is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        key = _repeated(key for key, _ in pairs)
        raise ValueError(f"the key {key!r:.80} is there twice")
    return result


def _repeated(keys: Iterable[Any]) -> Any:
    """Return the first key that is there twice, or None."""
    seen = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _SIZE_LIMIT


# Tensors --------------------------------------------------------------------------------------------------------------


def check_tensors(header: Mapping[str, Any], fail: Fail) -> tuple[dict[str, Tensor], dict[str, Place]]:
    """Return what a header says about each tensor, and where it is; together they lie without gaps."""
    tensors, places = {}, {}
    for name, entry in header.items():
        tensors[name], places[name] = _check_tensor(f"the tensor {name!r:.200}", entry, fail)
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        if place.start != end:
            raise fail(f"the tensor {name!r:.200} begins at byte {place.start} of the data, where {end} is right")
        end += place.size
    return tensors, places


def _check_tensor(what: str, entry: Any, fail: Fail) -> tuple[Tensor, Place]:
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fail(f"{what} must be described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in _DTYPES:
        raise fail(f"{what} is of dtype {dtype!s:.80}; allowed are {', '.join(_DTYPES)}")
    if type(shape) is not list or len(shape) > _MOST_AXES or not all(map(_is_count, shape)):
        raise fail(f"{what} has the shape {shape!r:.200}, but a shape is a list of at most {_MOST_AXES} sizes")
    # An array without elements has a size on its other axes, too, that NumPy must be able to hold.
    if math.prod(axis or 1 for axis in shape) * ITEM_SIZES[dtype] >= _SIZE_LIMIT:
        raise fail(f"{what} has the shape {shape!r:.200}, which is too large for an array")
    if type(offsets) is not list or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise fail(f"{what} has the data_offsets {offsets!r:.200}, but they are two numbers of bytes")
    size = math.prod(shape) * ITEM_SIZES[dtype]
    if offsets[1] - offsets[0] != size:
        raise fail(f"{what} has {offsets[1] - offsets[0]} bytes where its shape and dtype need {size}")
    return Tensor(tuple(shape), _DTYPES[dtype]), Place(offsets[0], size)


# The document ---------------------------------------------------------------------------------------------------------


def check_document(document: Mapping[str, Any], tensors: Iterable[str], fail: Fail) -> None:
    """Raise an error unless every entry of the document is of the right kind."""

    def expect(condition: bool, entry: str, what: str) -> None:
        if not condition:
            raise fail(f"the entry {entry!r} of its metadata must be {what}, but is {document[entry]!r:.200}")

    for name in _ENTRIES:
        if name not in document:
            raise fail(f"it lacks the entry {name!r} in its metadata: it was not written by portopt.save")
    expect(type(document["backend"]) is str, "backend", "a name")
    step = document["step"]
    expect(_is_count(step) and step <= MOST_STEPS, "step", f"the number of finished steps, at most {MOST_STEPS}")
    config = document["optimizer"]
    expect(
        type(config) is dict and type(config.get("class_name")) is str and type(config.get("config")) is dict,
        "optimizer",
        "an object with class_name and config",
    )
    scalars, slots, digests = document["scalars"], document["slots"], document["digests"]
    expect(type(scalars) is dict and all(map(_is_number, scalars.values())), "scalars", "hexadecimal floats by name")
    is_list = type(slots) is list and all(type(slot) is str for slot in slots)
    expect(is_list and len(set(slots)) == len(slots), "slots", "a list of different names")
    is_text = type(digests) is dict and all(type(digest) is str for digest in digests.values())
    expect(is_text and set(digests) == set(tensors), "digests", "one checksum for each tensor")
    _check_node(document["params"], "params", fail, DEEPEST)


_ENTRIES = ("backend", "optimizer", "step", "scalars", "params", "slots", "digests")


def _is_number(text: Any) -> bool:
    if type(text) is not str:
        return False
    try:
        float.fromhex(text)
    except (ValueError, OverflowError):
        return False
    return True


def _check_node(node: Any, where: str, fail: Fail, levels: int) -> None:
    """Raise an error unless a node is one of those that `structure.describe` makes."""
    if node is None or node == ARRAY:
        return
    if levels == 0:
        raise fail(f"{where:.200} is nested more than {DEEPEST} levels deep")
    pairs: Any
    kind, children = next(iter(node.items())) if type(node) is dict and len(node) == 1 else (None, None)
    if kind in ("list", "tuple") and type(children) is list:
        pairs = list(enumerate(children))
    elif kind == "dict" and _are_pairs(children, (str, int)):
        pairs = children
    elif _is_of_class(node):
        pairs = node["parts"]
    else:
        raise fail(f"{where:.200} is described as {node!r:.200}, which is no structure that portopt.save writes")
    if len({key for key, _ in pairs}) != len(pairs):
        raise fail(f"{where:.200} has the key {_repeated(key for key, _ in pairs)!r:.80} twice")
    for key, child in pairs:
        _check_node(child, f"{where}[{key!r:.80}]", fail, levels - 1)


def _is_of_class(node: Any) -> bool:
    is_one = type(node) is dict and set(node) == {"class", "parts"}
    return is_one and type(node["class"]) is str and _are_pairs(node["parts"], (str,))


def _are_pairs(pairs: Any, kinds: tuple[type, ...]) -> bool:
    return type(pairs) is list and all(type(p) is list and len(p) == 2 and type(p[0]) in kinds for p in pairs)
