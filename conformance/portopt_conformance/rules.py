"""Layers 2 and 3: every rule, one step and many, from raw words and from ordinary data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from portopt import Optimizer, OptimizerState
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.keras_weights import has_keras_weights
from portopt_conformance.arrangement import arranged, gathered, is_elementwise, rearranged, shapes_for
from portopt_conformance.configurations import SCHEDULES, Configuration
from portopt_conformance.experiment import Experiment
from portopt_conformance.platform import Platform
from portopt_conformance.words import (
    Words,
    crossed,
    finite,
    magnitude,
    random_between,
    random_words,
    to_floats,
    without_nan,
)

SPECIAL = 4096
RANDOM = 100_352
"""Number of raw random words in each parameter, gradient and slot; as many special words as `SPECIAL` come before them."""

GRADIENTS: Mapping[str, Callable[[Words, str], Words]] = {
    "any": lambda words, dtype: words,
    "without_nan": without_nan,
    "finite": finite,
}
"""Kinds of raw gradients: with a NaN the norm is NaN, with an infinity infinite, else finite but mostly huge."""


@functools.cache
def raw(dtype: str, role: str) -> Words:
    """Return special words in random combinations, then random words."""
    key = f"raw/{dtype}/{role}"
    return to_floats(np.concatenate([crossed(dtype, SPECIAL, key), random_words(dtype, RANDOM, key)]), dtype)


@functools.cache
def raw_gradients(dtype: str) -> Mapping[str, Words]:
    """Return raw gradients of each kind, and moderate ones, which clipping scales without making them all zero."""
    words = raw(dtype, "g").view(f"uint{8 * raw(dtype, 'g').itemsize}")
    kinds = {kind: to_floats(select(words, dtype), dtype) for kind, select in GRADIENTS.items()}
    return {**kinds, "moderate": to_floats(random_between(dtype, -40, 10, words.size, f"raw/{dtype}/moderate"), dtype)}


@functools.cache
def ordinary(dtype: str, role: str) -> Words:
    """Return numbers of the sizes that parameters, gradients and slots have in training; slots are not negative."""
    key, count = f"ordinary/{dtype}/{role}", SPECIAL + RANDOM
    if role == "p":
        return to_floats(random_between(dtype, -8, 2, count, key), dtype)
    if role.startswith("g"):
        return to_floats(random_between(dtype, -20, 2, count, key), dtype)
    return to_floats(magnitude(random_between(dtype, -24, 2, count, key), dtype), dtype)


def _raw_or_finite(optimizer: Optimizer, dtype: str, role: str) -> Words:
    """Return raw words; finite ones for a rule whose sums would make a single NaN one of all elements."""
    words = raw(dtype, role)
    if is_elementwise(optimizer):
        return words
    return to_floats(finite(words.view(f"uint{8 * words.itemsize}"), dtype), dtype)


def parameters(platform: Platform, optimizer: Optimizer, words: Words) -> dict[str, Any]:
    """Return words as a tree of parameters, or of their gradients."""
    return arranged(shapes_for(optimizer), words, platform.array)


def _state(
    platform: Platform,
    optimizer: Optimizer,
    params: Any,
    slots: Mapping[str, Words] | None = None,
    *,
    finished: int = 0,
    slot_dtype: str | None = None,
) -> OptimizerState:
    """Return a state with these slots, or new ones, after a number of finished steps."""
    state = optimizer.init(params, slot_dtype=slot_dtype)
    given = {
        name: rearranged(state.slots[name], words, platform.array)
        for name, words in (slots or {}).items()
        if name in state.slots
    }
    return state._replace(step=platform.step_number(finished), slots={**state.slots, **given})


def results_of(platform: Platform, optimizer: Optimizer, params: Any, state: OptimizerState) -> dict[str, Words]:
    """Return the parameter, slots and scalars of a finished run as NumPy arrays by name."""
    results = {"p": gathered(params, platform.to_numpy)}
    for name, slot in state.slots.items():
        if name in optimizer.scalar_slots:
            results[name] = np.array([platform.backend.scalar(slot)], np.float64)
        else:
            results[name] = gathered(slot, platform.to_numpy)
    results["step"] = np.array([platform.backend.scalar(state.step)], np.float64)
    return results


_FINISHED: Mapping[str, int] = {"raw": 0, "zero": 0, "ordinary": 6}
"""Number of finished steps before a single one: at the first, features such as `decay` do nothing yet."""

Source = Callable[[str, str], Words]
"""Gives the words of a dtype for a role: `p`, or a slot's name."""


def slot_words(optimizer: Optimizer, dtype: str, source: Source) -> dict[str, Words]:
    """Return words for each slot, in the compute dtype."""
    return {name: source(COMPUTE_DTYPE[dtype], name) for name in optimizer.slots}


def one_step(configuration: Configuration, dtype: str, dataset: str) -> Experiment:
    """Return the experiment of single steps, one from each of the dataset's gradients.

    Args:
        configuration: rule and arguments.
        dtype: the parameters' dtype.
        dataset: `raw` words; `ordinary` data; or `zero`, ordinary data but p = 0 and a learning rate of 1, where every
            bit of the update shows in the result.
    """

    @functools.cache
    def optimizer() -> Optimizer:
        return configuration.optimizer(learning_rate=1.0) if dataset == "zero" else configuration.optimizer()

    def given() -> tuple[Words, dict[str, Words], Mapping[str, Words]]:
        if dataset == "raw":
            source = functools.partial(_raw_or_finite, optimizer())
            gradients = raw_gradients(dtype)
            # The kinds differ in their norms, so without clipping the first one has all there is to see.
            if not configuration.arguments.get("clipnorm") and is_elementwise(optimizer()):
                gradients = {"any": gradients["any"]}
            return source(dtype, "p"), slot_words(optimizer(), dtype, source), gradients
        p = ordinary(dtype, "p")
        slots = slot_words(optimizer(), dtype, ordinary)
        return np.zeros_like(p) if dataset == "zero" else p, slots, {"": ordinary(dtype, "g")}

    def inputs() -> Mapping[str, Words]:
        p, slots, gradients = given()
        return {"p": p, **slots, **{f"g {kind}".strip(): g for kind, g in gradients.items()}}

    def run(platform: Platform) -> dict[str, Words]:
        p, slots, gradients = given()
        results = {}
        for kind, gradient in gradients.items():
            params = parameters(platform, optimizer(), p)
            state = _state(platform, optimizer(), params, slots, finished=_FINISHED[dataset])
            params, state = platform.many(optimizer(), params, [parameters(platform, optimizer(), gradient)], state)
            for name, array in results_of(platform, optimizer(), params, state).items():
                results[f"{kind} {name}".strip()] = array
        return results

    return Experiment(_key(configuration, dtype, dataset), run, inputs)


def _key(configuration: Configuration, dtype: str, dataset: str) -> str:
    return f"rules/{configuration.rule.__name__}/{configuration.name}/{dtype}/{dataset}"


def hundred_steps(configuration: Configuration, dtype: str) -> Experiment:
    """Return the experiment of 100 steps from raw words, every kind of raw gradient in turn."""
    optimizer = functools.cache(configuration.optimizer)

    def run(platform: Platform) -> dict[str, Words]:
        source = functools.partial(_raw_or_finite, optimizer())
        params = parameters(platform, optimizer(), source(dtype, "p"))
        state = _state(platform, optimizer(), params, slot_words(optimizer(), dtype, source))
        # The kinds with a NaN or infinity in many elements come first, so that few elements end as NaN.
        gradients = [parameters(platform, optimizer(), g) for g in raw_gradients(dtype).values()]
        return results_of(platform, optimizer(), *platform.many(optimizer(), params, gradients * 25, state))

    def inputs() -> Mapping[str, Words]:
        source = functools.partial(_raw_or_finite, optimizer())
        return {
            "p": source(dtype, "p"),
            **slot_words(optimizer(), dtype, source),
            **{f"g {kind}": g for kind, g in raw_gradients(dtype).items()},
        }

    return Experiment(_key(configuration, dtype, "hundred"), run, inputs)


Variant = Callable[[Platform, Optimizer, Any, list[Any], OptimizerState], tuple[Any, OptimizerState]]


def _straight(
    platform: Platform, optimizer: Optimizer, params: Any, gradients: list[Any], state: OptimizerState
) -> tuple[Any, OptimizerState]:
    return platform.many(optimizer, params, gradients, state)


def _resumed(
    platform: Platform, optimizer: Optimizer, params: Any, gradients: list[Any], state: OptimizerState
) -> tuple[Any, OptimizerState]:
    params, state = platform.many(optimizer, params, gradients[:5], state)
    params, state = _carried(platform, optimizer, params, state)
    return platform.many(optimizer, params, gradients[5:], state)


def _carried(
    platform: Platform, optimizer: Optimizer, params: Any, state: OptimizerState
) -> tuple[Any, OptimizerState]:
    """Return parameters and state made anew from what a file would hold: Keras' list of weights, if the rule has one."""
    carried = rearranged(params, gathered(params, platform.to_numpy), platform.array)
    if has_keras_weights(optimizer):
        return carried, optimizer.set_weights(optimizer.init(carried), optimizer.get_weights(state))
    backend = platform.backend
    words = {name: gathered(slot, platform.to_numpy) for name, slot in state.slots.items() if name in optimizer.slots}
    new = _state(platform, optimizer, carried, words, finished=int(backend.scalar(state.step)))
    scalars = {name: backend.stored_scalar(backend.scalar(state.slots[name])) for name in optimizer.scalar_slots}
    return carried, new._replace(slots={**new.slots, **scalars})


def _nested(
    platform: Platform, optimizer: Optimizer, params: Any, gradients: list[Any], state: OptimizerState
) -> tuple[Any, OptimizerState]:
    """Run on the reversed elements, spread over nested containers: neither may matter to an elementwise rule."""

    def spread(tree: Any) -> Any:
        flat = platform.to_numpy(tree["w"])[::-1]
        parts = np.split(flat, [1, 1, 4097, flat.size - 6])
        first, empty, middle, rest, last = map(np.ascontiguousarray, parts)
        return {
            "a": [platform.array(first.reshape(())), (platform.array(empty), platform.array(middle.reshape(64, 64)))],
            "b": {"c": platform.array(rest), "d": platform.array(last.reshape(1, 2, 3))},
        }

    def gather(tree: Any) -> Any:
        (first, (empty, middle)), rest, last = tree["a"], tree["b"]["c"], tree["b"]["d"]
        parts = [platform.to_numpy(part).reshape(-1) for part in (first, empty, middle, rest, last)]
        return {"w": platform.array(np.concatenate(parts)[::-1].copy())}

    slots = {name: spread(slot) for name, slot in state.slots.items() if name not in optimizer.scalar_slots}
    params, state = platform.many(
        optimizer,
        spread(params),
        [spread(gradient) for gradient in gradients],
        state._replace(slots={**state.slots, **slots}),
    )
    slots = {name: gather(slot) for name, slot in state.slots.items() if name not in optimizer.scalar_slots}
    return gather(params), state._replace(slots={**state.slots, **slots})


VARIANTS: Mapping[str, Variant] = {"ten": _straight, "resumed": _resumed, "nested": _nested}
"""Ways to do the same ten steps, which must give the same bits."""


def ten_steps(configuration: Configuration, dtype: str, variant: str = "ten") -> Experiment:
    """Return the experiment of ten steps on ordinary data, from a new state."""
    optimizer = functools.cache(configuration.optimizer)
    roles = [f"g{i}" for i in range(10)]

    def run(platform: Platform) -> dict[str, Words]:
        params = parameters(platform, optimizer(), ordinary(dtype, "p"))
        gradients = [parameters(platform, optimizer(), ordinary(dtype, role)) for role in roles]
        state = _state(platform, optimizer(), params)
        return results_of(platform, optimizer(), *VARIANTS[variant](platform, optimizer(), params, gradients, state))

    def inputs() -> Mapping[str, Words]:
        return {role: ordinary(dtype, role) for role in ("p", *roles)}

    return Experiment(_key(configuration, dtype, "ten"), run, inputs)


def given_each_step(configuration: Configuration, dtype: str) -> Experiment:
    """Return the experiment of five steps, each with hyperparameters of its own."""
    optimizer = functools.cache(configuration.optimizer)
    # float32 holds these numbers, so that a jit without x64, which rounds its arguments, is given the same ones.
    rates = (0.5, 0.09375, 0.0, 1.0, 0.0078125)

    def run(platform: Platform) -> dict[str, Words]:
        params = parameters(platform, optimizer(), ordinary(dtype, "p"))
        state = optimizer().init(params)
        step = platform.step(optimizer())
        for i, rate in enumerate(rates):
            gradient = parameters(platform, optimizer(), ordinary(dtype, f"g{i}"))
            clipping = {"clipnorm": 2.0 + i} if configuration.arguments.get("clipnorm") else {}
            params, state = step(params, gradient, state, learning_rate=rate, **clipping)
        return results_of(platform, optimizer(), params, state)

    return Experiment(_key(configuration, dtype, "given_each_step"), run)


def scheduled(configuration: Configuration, dtype: str) -> Iterator[tuple[str, Experiment]]:
    """Yield name and experiment of each schedule."""
    for name in SCHEDULES:
        yield name, _scheduled(configuration, dtype, name)


def _scheduled(configuration: Configuration, dtype: str, name: str) -> Experiment:
    optimizer = functools.cache(lambda: configuration.optimizer(learning_rate=SCHEDULES[name]))

    def run(platform: Platform) -> dict[str, Words]:
        params = parameters(platform, optimizer(), np.zeros_like(ordinary(dtype, "p")))
        gradients = [parameters(platform, optimizer(), ordinary(dtype, f"g{i}")) for i in range(10)]
        state = _state(platform, optimizer(), params)
        return results_of(platform, optimizer(), *platform.many(optimizer(), params, gradients, state))

    return Experiment(_key(configuration, dtype, f"schedule_{name}"), run)


def narrow_slots(configuration: Configuration, dtype: str, slot_dtype: str) -> Experiment:
    """Return the experiment of ten steps with slots kept in another dtype."""
    optimizer = functools.cache(configuration.optimizer)

    def run(platform: Platform) -> dict[str, Words]:
        params = parameters(platform, optimizer(), ordinary(dtype, "p"))
        gradients = [parameters(platform, optimizer(), ordinary(dtype, f"g{i}")) for i in range(10)]
        state = _state(platform, optimizer(), params, slot_dtype=slot_dtype)
        return results_of(platform, optimizer(), *platform.many(optimizer(), params, gradients, state))

    return Experiment(_key(configuration, dtype, f"slots_{slot_dtype}"), run)


def gradients_of_another_dtype(configuration: Configuration, dtype: str, gradient_dtype: str) -> Experiment:
    """Return the experiment of ten steps with gradients of another dtype than the parameter."""
    optimizer = functools.cache(configuration.optimizer)

    def run(platform: Platform) -> dict[str, Words]:
        with platform.backend.dtype_context(gradient_dtype):
            params = parameters(platform, optimizer(), ordinary(dtype, "p"))
            gradients = [parameters(platform, optimizer(), ordinary(gradient_dtype, f"g{i}")) for i in range(10)]
            state = _state(platform, optimizer(), params)
            return results_of(platform, optimizer(), *platform.many(optimizer(), params, gradients, state))

    return Experiment(_key(configuration, dtype, f"gradients_{gradient_dtype}"), run)
