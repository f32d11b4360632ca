"""Layer 0: what a backend promises about arrays, scalars and containers, before any arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.backend import find_backend
from portopt_conformance.platform import Platform
from portopt_conformance.words import random_words, special_words, to_floats, to_words

Check = Callable[[Platform, str], Iterator[str]]
"""Yields what is wrong on a platform, for a dtype."""


def _all_words(dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    return to_floats(np.concatenate([special_words(dtype), random_words(dtype, 2000, f"contract/{dtype}")]), dtype)


def round_trip_keeps_every_bit(platform: Platform, dtype: str) -> Iterator[str]:
    given = _all_words(dtype)
    back = platform.to_numpy(platform.array(given))
    if (back.dtype, back.shape) != (given.dtype, given.shape):
        yield f"{given.dtype} {given.shape} came back as {back.dtype} {back.shape}"
    elif (changed := np.nonzero(to_words(back) != to_words(given))[0]).size:
        i = int(changed[0])
        yield f"{changed.size} words changed, the first {to_words(given)[i]:#x} to {to_words(back)[i]:#x}"


def conversions_copy(platform: Platform, dtype: str) -> Iterator[str]:
    given = np.ones(4, _all_words(dtype).dtype)
    array = platform.array(given)
    given[0] = 2
    back = platform.to_numpy(array)
    if back[0] != 1:
        yield "from_numpy shares memory with its argument"
    if not back.flags.writeable:
        yield "to_numpy returned a read-only array"
    else:
        back[1] = 2
        if platform.to_numpy(array)[1] != 1:
            yield "to_numpy shares memory with its argument"


def shapes_survive(platform: Platform, dtype: str) -> Iterator[str]:
    for shape in ((), (1,), (0,), (3, 0, 2), (2, 3, 4)):
        given = np.zeros(shape, _all_words(dtype).dtype)
        array = platform.array(given)
        if (described := platform.backend.describe(array).shape) != shape:
            yield f"describe gives the shape {described} for {shape}"
        if (back := platform.to_numpy(array).shape) != shape:
            yield f"to_numpy gives the shape {back} for {shape}"


def describe_gives_dtype_and_device(platform: Platform, dtype: str) -> Iterator[str]:
    array = platform.array(_all_words(dtype))
    info = platform.backend.describe(array)
    if info.dtype != dtype:
        yield f"describe gives the dtype {info.dtype}"
    again = platform.backend.describe(platform.backend.from_numpy(_all_words(dtype), info.device))
    if again.device != info.device:
        yield f"from_numpy on the device {info.device!r} of an array gives one on {again.device!r}"


def full_fills_like(platform: Platform, dtype: str) -> Iterator[str]:
    like = platform.array(np.zeros((2, 3), _all_words(dtype).dtype))
    for name in {dtype, COMPUTE_DTYPE[dtype]}:
        for value in (0.0, -0.0, 1.0, 0.5, float("inf")):
            array = platform.backend.full(like, value, name)
            info, values = platform.backend.describe(array), platform.to_numpy(array)
            if (info.shape, info.dtype, info.device) != ((2, 3), name, platform.backend.describe(like).device):
                yield f"full(like, {value}, {name!r}) gave {info}"
            wanted = np.full((2, 3), value, values.dtype)
            if (to_words(values) != to_words(wanted)).any():
                yield f"full(like, {value}, {name!r}) gave {values.tolist()}"


def update_keeps_dtype_shape_and_device(platform: Platform, dtype: str) -> Iterator[str]:
    import portopt

    optimizer = portopt.Adam()
    array = platform.array(np.ones((2, 3), _all_words(dtype).dtype))
    before = platform.backend.describe(array)
    params, state = optimizer.apply({"w": array}, {"w": array}, optimizer.init({"w": array}))
    after = platform.backend.describe(params["w"])
    if after != before:
        yield f"the parameter was {before}, its update is {after}"
    for name in optimizer.slots:
        slot = platform.backend.describe(state.slots[name]["w"])
        if (slot.shape, slot.dtype, slot.device) != (before.shape, COMPUTE_DTYPE[dtype], before.device):
            yield f"the slot {name} of a parameter {before} is {slot}"


def arrays_are_recognised(platform: Platform, dtype: str) -> Iterator[str]:
    backend, array = platform.backend, platform.array(_all_words(dtype))
    if not backend.owns(array):
        yield f"owns is false for its own array of type {type(array).__name__}"
    if find_backend(array) is not backend:
        yield f"arrays of type {type(array).__name__} are taken by the backend {find_backend(array)!r}"
    for stranger in (None, 1, 1.0, "w", object(), memoryview(b"w")):
        if backend.owns(stranger):
            yield f"owns is true for {stranger!r}, which is no array of {backend.name}"


def unknown_devices_are_errors(platform: Platform, dtype: str) -> Iterator[str]:
    try:
        platform.backend.from_numpy(_all_words(dtype), "no-such-device")
    except ValueError as error:
        if "no-such-device" not in str(error):
            yield f"the error does not name the device: {error}"
    else:
        yield "from_numpy accepted the device 'no-such-device'"


def integer_arrays_are_described(platform: Platform, dtype: str) -> Iterator[str]:
    array = platform.backend.from_numpy(np.arange(3, dtype=np.int32), platform.device)
    if (name := platform.backend.describe(array).dtype) in COMPUTE_DTYPE:
        yield f"describe calls an int32 array {name}"


def scalars_keep_their_bits(platform: Platform, dtype: str) -> Iterator[str]:
    backend = platform.backend
    for word, x in zip(special_words("float64"), to_floats(special_words("float64"), "float64").tolist(), strict=True):
        # A scalar of the arithmetic is never subnormal.
        if x != x or 0 < abs(x) < 2.0**-1022:
            continue
        back = backend.scalar(backend.stored_scalar(x))
        if not isinstance(back, float) or np.float64(back).view(np.uint64) != word:
            yield f"scalar(stored_scalar({x!r})) is {back!r}"
    for given in (7, 0):
        if (back := backend.scalar(given)) != given or not isinstance(back, int):
            yield f"scalar({given!r}) is {back!r}"


def containers_survive(platform: Platform, dtype: str) -> Iterator[str]:
    trees, array = platform.backend.trees, platform.array(_all_words(dtype))
    tree = {"b": [array, (array, None)], "a": {"c": array}}
    leaves, definition = trees.flatten(tree)
    if len(leaves) != 4 or sum(leaf is None for leaf in leaves) != 1:
        yield f"flatten found {len(leaves)} leaves in a tree of three arrays and a None"
    rebuilt = trees.unflatten(definition, leaves)
    if trees.flatten(rebuilt)[1] != definition or not isinstance(rebuilt["b"][1], tuple):
        yield "unflatten gave another structure"
    paths = trees.paths(tree)
    if sorted(paths) != ['["a"]["c"]', '["b"][0]', '["b"][1][0]', '["b"][1][1]']:
        yield f"paths are {json.dumps(paths)}"


CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        round_trip_keeps_every_bit,
        conversions_copy,
        shapes_survive,
        describe_gives_dtype_and_device,
        full_fills_like,
        update_keeps_dtype_shape_and_device,
        arrays_are_recognised,
        unknown_devices_are_errors,
        integer_arrays_are_described,
        scalars_keep_their_bits,
        containers_survive,
    )
}
"""The checks of layer 0 by name."""
