"""Layer 4: what a step may not touch, and arrays of unusual layout, shape or size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from portopt import Optimizer, OptimizerState
from portopt.backend import IN_PLACE
from portopt_conformance.arrangement import is_elementwise
from portopt_conformance.comparison import compare
from portopt_conformance.platform import Platform
from portopt_conformance.rules import ordinary, results_of
from portopt_conformance.words import Words, to_words

Check = Callable[[Platform, Optimizer, str], Iterator[str]]
"""Yields what is wrong on a platform, for an optimizer and a dtype."""

_SIZE = 60


def _start(
    platform: Platform, optimizer: Optimizer, dtype: str, convert: Callable[[Words], Any] | None = None
) -> tuple[Any, Any, OptimizerState]:
    """Return parameters, gradients and a state after one step, of `_SIZE` elements; `convert` makes an array of each."""
    make = convert or platform.array
    shape = (_SIZE,) if is_elementwise(optimizer) else (6, 10)
    p, g = (ordinary(dtype, role)[:_SIZE].reshape(shape) for role in ("p", "g"))
    params, grads = {"w": platform.array(p)}, {"w": platform.array(g)}
    params, state = optimizer.apply(params, grads, optimizer.init(params))
    slots = {
        name: slot if name in optimizer.scalar_slots else {"w": make(platform.to_numpy(slot["w"]))}
        for name, slot in state.slots.items()
    }
    return {"w": make(platform.to_numpy(params["w"]))}, {"w": make(g)}, state._replace(slots=slots)


def _arrays(optimizer: Optimizer, params: Any, grads: Any, state: OptimizerState) -> dict[str, Any]:
    slots = {name: slot["w"] for name, slot in state.slots.items() if name not in optimizer.scalar_slots}
    return {"params": params["w"], "grads": grads["w"], **slots}


def _bits(platform: Platform, arrays: Mapping[str, Any]) -> dict[str, Words]:
    return {name: to_words(platform.to_numpy(array)) for name, array in arrays.items()}


def _changed(before: Mapping[str, Words], after: Mapping[str, Words]) -> list[str]:
    return [name for name in before if not np.array_equal(before[name], after[name])]


def _plain_result(platform: Platform, optimizer: Optimizer, dtype: str) -> dict[str, Words]:
    return results_of(platform, optimizer, *optimizer.apply(*_start(platform, optimizer, dtype)))


def apply_leaves_its_inputs(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    params, grads, state = _start(platform, optimizer, dtype)
    arrays = _arrays(optimizer, params, grads, state)
    before, step, scalars = _bits(platform, arrays), state.step, {n: state.slots[n] for n in optimizer.scalar_slots}
    optimizer.apply(params, grads, state)
    for name in _changed(before, _bits(platform, arrays)):
        yield f"apply changed its argument {name}"
    if state.step != step or any(state.slots[name] is not value for name, value in scalars.items()):
        yield "apply changed the scalars of its argument state"


def apply_returns_new_arrays(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    params, grads, state = _start(platform, optimizer, dtype)
    new_params, new_state = optimizer.apply(params, grads, state)
    given = _arrays(optimizer, params, grads, state)
    results = _arrays(optimizer, new_params, {"w": None}, new_state)
    for name, array in results.items():
        for other, argument in given.items():
            if array is argument:
                yield f"apply returned its argument {other} as {name}"


def in_place_changes_only_what_it_says(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    if "apply_" not in platform.backend.modes:
        return
    expected = _plain_result(platform, optimizer, dtype)
    params, grads, state = _start(platform, optimizer, dtype)
    arrays = _arrays(optimizer, params, grads, state)
    before = _bits(platform, {"grads": grads["w"]})
    after = optimizer.apply_(params, grads, state)
    for name in _changed(before, _bits(platform, {"grads": grads["w"]})):
        yield f"apply_ changed {name}"
    if difference := compare(results_of(platform, optimizer, params, after), expected):
        yield f"apply_ left other bits than apply gives: {difference.text}"
    for name, array in _arrays(optimizer, params, grads, after).items():
        if array is not arrays[name]:
            yield f"apply_ put another array in the place of {name}"


def gradient_may_be_the_parameter(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    params, _, state = _start(platform, optimizer, dtype)
    copy = {"w": platform.array(platform.to_numpy(params["w"]))}
    expected = results_of(platform, optimizer, *optimizer.apply(params, copy, state))
    if difference := compare(results_of(platform, optimizer, *optimizer.apply(params, params, state)), expected):
        yield f"with the parameter as its own gradient: {difference.text}"


def read_only_arrays_are_enough(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    def read_only(array: Words) -> Any:
        made = platform.array(array)
        if isinstance(made, np.ndarray):
            made.flags.writeable = False
        return made

    expected = _plain_result(platform, optimizer, dtype)
    given = _start(platform, optimizer, dtype, read_only)
    if difference := compare(results_of(platform, optimizer, *optimizer.apply(*given)), expected):
        yield f"from read-only arrays: {difference.text}"


def views_give_the_same_bits(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    def every_second(array: Words) -> Any:
        return platform.array(np.repeat(array, 2, axis=0))[::2, ...] if array.ndim else platform.array(array)

    def column(array: Words) -> Any:
        return platform.array(np.stack([array, array], axis=-1))[..., 1]

    expected = _plain_result(platform, optimizer, dtype)
    for convert in (every_second, column):
        given = _start(platform, optimizer, dtype, convert)
        if difference := compare(results_of(platform, optimizer, *optimizer.apply(*given)), expected):
            yield f"from views ({convert.__name__}): {difference.text}"


def views_are_changed_in_place(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    if "apply_" not in platform.backend.modes:
        return
    wholes: list[tuple[Any, Words]] = []

    def every_second(array: Words) -> Any:
        if not array.ndim:
            return platform.array(array)
        whole = platform.array(np.repeat(array, 2, axis=0))
        wholes.append((whole, array))
        return whole[::2, ...]

    expected = _plain_result(platform, optimizer, dtype)
    params, grads, state = _start(platform, optimizer, dtype, every_second)
    after = optimizer.apply_(params, grads, state)
    if difference := compare(results_of(platform, optimizer, params, after), expected):
        yield f"apply_ on views: {difference.text}"
    for whole, array in wholes:
        if not np.array_equal(to_words(platform.to_numpy(whole)[1::2]), to_words(array)):
            yield "apply_ on views wrote between their elements"


def shapes_do_not_matter(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    if not is_elementwise(optimizer):
        return
    expected = _plain_result(platform, optimizer, dtype)
    for shape in ((_SIZE, 1), (3, 4, 5)):
        given = _start(platform, optimizer, dtype, lambda array, shape=shape: platform.array(array.reshape(shape)))  # type: ignore[misc]  # binds shape
        params, state = optimizer.apply(*given)
        for name, array in _arrays(optimizer, params, given[1], state).items():
            if (found := tuple(platform.to_numpy(array).shape)) != shape:
                yield f"{name} has shape {found}, but the parameter {shape}"
        if difference := compare(results_of(platform, optimizer, params, state), expected):
            yield f"in shape {shape}: {difference.text}"


def arrays_of_no_axes_work(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    p, g = ordinary(dtype, "p"), ordinary(dtype, "g")
    alone = optimizer.replace(clipnorm=None)

    def after_two_steps(p: Words, g: Words) -> Words:
        params, grads = {"w": platform.array(p)}, {"w": platform.array(g)}
        state = alone.init(params)
        for _ in range(2):
            params, state = alone.apply(params, grads, state)
        return platform.to_numpy(params["w"])

    result, expected = after_two_steps(p[0].reshape(()), g[0].reshape(())), after_two_steps(p[:1], g[:1])[0]
    if result.shape != () or to_words(result)[0] != to_words(np.asarray(expected))[0]:
        yield f"a 0-d parameter became {result!r}, expected {expected!r}"


def empty_arrays_work(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    for shape in ((0,), (2, 0, 3)):

        def empty(shape: tuple[int, ...] = shape) -> Any:
            return {"w": platform.array(np.zeros(shape, ordinary(dtype, "p").dtype))}

        params, after = platform.mode.many(optimizer, empty(), [empty(), empty()], optimizer.init(empty()))
        if (found := platform.to_numpy(params["w"]).shape) != shape:
            yield f"an empty parameter of shape {shape} became one of shape {found}"
        if platform.backend.scalar(after.step) != 2:
            yield f"two steps with an empty parameter were counted as {after.step}"


def none_gradients_leave_a_parameter(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    if platform.mode is IN_PLACE:
        return
    expected = _plain_result(platform, optimizer, dtype)
    params, grads, state = _start(platform, optimizer, dtype)
    # A rule may draw numbers that depend on a parameter's place: this one comes after the other.
    still = {"without": platform.array(ordinary(dtype, "p")[:5])}
    still, kept = optimizer.apply(still, {"without": platform.array(ordinary(dtype, "g")[:5])}, optimizer.init(still))
    arrays = [name for name in optimizer.slots if name in {**state.slots, **kept.slots}]
    slots = {
        name: {"w": None, "without": None, **state.slots.get(name, {}), **kept.slots.get(name, {})} for name in arrays
    }
    after_params, after = platform.mode.many(
        optimizer, {**params, **still}, [{**grads, "without": None}], state._replace(slots={**state.slots, **slots})
    )
    moved = {n: {"w": tree["w"]} if n in arrays else tree for n, tree in after.slots.items() if n in state.slots}
    results = results_of(platform, optimizer, {"w": after_params["w"]}, after._replace(slots=moved))
    if difference := compare(results, expected):
        yield f"beside a gradient of None: {difference.text}"
    pairs = {"p": (still["without"], after_params["without"])}
    pairs |= {name: (slots[name]["without"], after.slots[name]["without"]) for name in arrays if name in kept.slots}
    for name, (old, new) in pairs.items():
        if not np.array_equal(to_words(platform.to_numpy(old)), to_words(platform.to_numpy(new))):
            yield f"a gradient of None changed {name}"


def the_same_array_twice_is_refused_in_place(platform: Platform, optimizer: Optimizer, dtype: str) -> Iterator[str]:
    if "apply_" not in platform.backend.modes:
        return
    array = platform.array(ordinary(dtype, "p")[:5])
    params = [array, array]
    grads = [platform.array(ordinary(dtype, "g")[:5]) for _ in params]
    before = to_words(platform.to_numpy(array))
    try:
        optimizer.apply_(params, grads, optimizer.init(params))
    except (ValueError, TypeError):
        if not np.array_equal(before, to_words(platform.to_numpy(array))):
            yield "apply_ raised an error after it had changed a parameter"
    else:
        yield "apply_ changed an array twice that was given as two parameters"


CHECKS: Sequence[Check] = (
    apply_leaves_its_inputs,
    apply_returns_new_arrays,
    in_place_changes_only_what_it_says,
    gradient_may_be_the_parameter,
    read_only_arrays_are_enough,
    views_give_the_same_bits,
    views_are_changed_in_place,
    shapes_do_not_matter,
    arrays_of_no_axes_work,
    the_same_array_twice_is_refused_in_place,
)
"""The checks of layer 4 that no mode matters to."""

MODE_CHECKS: Sequence[Check] = (empty_arrays_work, none_gradients_leave_a_parameter)
"""Those of a platform's mode."""
