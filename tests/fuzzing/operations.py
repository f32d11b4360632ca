"""What can be done to trees and arrays between two steps, and with a step."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import portopt
from fuzzing.arrays import ARRAYS, random_values
from fuzzing.trees import is_array, leaves, mapped, places
from fuzzing.worlds import Operations, World

OPERATIONS = Operations()


@OPERATIONS.of_weight(10)
def step_with_new_gradients(world: World, rng: random.Random) -> str:
    world.grads = world.new_gradients(rng)
    return world.step()


@OPERATIONS.of_weight(8)
def step_again(world: World, rng: random.Random) -> str:
    return world.step()


@OPERATIONS.of_weight(6)
def step_with_changed_gradients(world: World, rng: random.Random) -> str:
    def change(g: Any) -> None:
        if is_array(g):
            with contextlib.suppress(ValueError, RuntimeError):
                values = world.arrays.values(g)
                world.arrays.fill(g, random_values(rng, values.dtype.name, values.shape))

    mapped(change, world.grads)
    return world.step()


@OPERATIONS.of_weight(2)
def pure_step(world: World, rng: random.Random) -> str:
    return world.step(pure=True)


OVERRIDES: dict[str, Sequence[Any]] = {
    "learning_rate": (0.1, 0, 1e-3, 3, np.float32(0.1), float("nan"), -1.0, "fast", None, np.ones(2), True),
    "lr": (0.25, -0.0),
    "clipnorm": (0.5, None, 1e30, 0.0),
    "clipvalue": (0.01, None, -1),
    "epsilon": (1e-3, 0.0),
    "beta_1": (0.5, 1.0),
    "gradient_norm": (3.0, 0.0, float("inf"), float("nan"), -1.0),
    "beta_9": (0.5,),
    "dialect": ("torch",),
}


@OPERATIONS.of_weight(5)
def step_with_values_of_its_own(world: World, rng: random.Random) -> str:
    names = rng.sample(sorted(OVERRIDES), rng.choice((1, 1, 2)))
    return world.step(**{name: rng.choice(OVERRIDES[name]) for name in names})


@OPERATIONS.of_weight(3)
def step_without_some_gradients(world: World, rng: random.Random) -> str:
    return world.step(grads=mapped(lambda g: None if rng.random() < 0.3 else g, world.grads))


@OPERATIONS.of_weight(4)
def step_with_a_wrong_gradient(world: World, rng: random.Random) -> str:
    arrays = [g for _, _, g in places(world.grads)]
    if not arrays:
        return "no place"
    chosen = rng.randrange(len(arrays))
    other = ARRAYS["torch" if world.arrays.name == "numpy" else "numpy"]

    def wrong(g: Any) -> Any:
        if g is not arrays[chosen]:
            return g
        values = world.arrays.values(g)
        kind = rng.choice(("shape", "integers", "float", "list", "number", "foreign", "complex", "dtype"))
        if kind == "foreign":
            return other.make(values, "plain") if other.name != "torch" or "torch" in sys.modules else 1.0
        made: dict[str, Callable[[], Any]] = {
            "shape": lambda: world.arrays.make(random_values(rng, values.dtype.name, (*values.shape, 2)), "plain"),
            "dtype": lambda: world.arrays.make(
                random_values(rng, rng.choice(world.arrays.dtypes), values.shape), "plain"
            ),
            "integers": lambda: integers(world, values.shape),
            "complex": lambda: integers(world, values.shape) * 1j,
            "list": lambda: [1.0],
            "number": lambda: 1.0,
            "float": lambda: "g",
        }
        return made[kind]()

    return world.step(grads=mapped(wrong, world.grads))


def integers(world: World, shape: Sequence[int]) -> Any:
    """Return an array of integers."""
    ones = np.ones(shape, np.int32)
    if world.arrays.name == "numpy":
        return ones
    import torch

    return torch.from_numpy(ones)


@OPERATIONS.of_weight(2)
def step_with_a_wrong_tree(world: World, rng: random.Random) -> str:
    tree = world.grads
    if isinstance(tree, dict):
        key = rng.choice(list(tree))
        changed = {k: v for k, v in tree.items() if k != key}
        if rng.random() < 0.5:
            changed["another"] = tree[key]
        return world.step(grads=type(tree)(changed))
    return world.step(grads=rng.choice((None, [tree], {"w": tree}, (tree, tree), 3)) or {})


@OPERATIONS.of_weight(2)
def step_with_a_gradient_on_written_memory(world: World, rng: random.Random) -> str:
    arrays = list(places(world.params))
    if not arrays:
        return "no place"
    chosen = rng.choice(arrays)[2]
    numbers = iter(range(10_000))
    position = next(i for i, p in enumerate(leaves(world.params)) if p is chosen)
    alias = chosen.detach() if world.arrays.name == "torch" else chosen[...]
    return world.step(grads=mapped(lambda g: alias if next(numbers) == position else g, world.grads))


@OPERATIONS.of_weight(3)
def replace_an_array_by_an_equal_one(world: World, rng: random.Random) -> str:
    tree = rng.choice((world.params, world.grads, world.state.slots))
    where = list(places(tree))
    if not where:
        return "no place"
    container, key, array = rng.choice(where)
    container[key] = world.arrays.make(world.arrays.values(array), rng.choice(world.arrays.layouts))
    return world.step()


@OPERATIONS.of_weight(2)
def swap_two_arrays(world: World, rng: random.Random) -> str:
    tree = rng.choice((world.params, world.grads, world.state.slots))
    where = list(places(tree))
    if len(where) < 2:
        return "no place"
    (a, i, x), (b, j, y) = rng.sample(where, 2)
    a[i], b[j] = y, x
    return world.step()


@OPERATIONS.of_weight(2)
def change_the_order_of_keys(world: World, rng: random.Random) -> str:
    def shuffled(tree: Any) -> Any:
        if isinstance(tree, dict):
            items = [("".join(k), shuffled(v)) for k, v in tree.items()]
            rng.shuffle(items)
            return type(tree)(items)
        return type(tree)(map(shuffled, tree)) if type(tree) in (list, tuple) else tree

    which = rng.choice(("params", "grads", "slots"))
    if which == "slots":
        world.state = world.state._replace(slots=shuffled(world.state.slots))
    else:
        setattr(world, which, shuffled(getattr(world, which)))
    return world.step()


@OPERATIONS.of_weight(2)
def change_the_kind_of_a_container(world: World, rng: random.Random) -> str:
    def changed(tree: Any) -> Any:
        if type(tree) is dict:
            return OrderedDict((k, changed(v)) for k, v in tree.items())
        if type(tree) in (list, tuple):
            parts = [changed(v) for v in tree]
            return tuple(parts) if type(tree) is list else parts
        return tree

    which = rng.choice(("params", "grads", "slots"))
    if which == "slots":
        return world.step(state=world.state._replace(slots=changed(world.state.slots)))
    if which == "grads":
        return world.step(grads=changed(world.grads))
    before, world.params = world.params, changed(world.params)
    outcome = world.step()
    world.params = before
    return outcome


@OPERATIONS.of_weight(2)
def step_with_a_wrong_state(world: World, rng: random.Random) -> str:
    slots = dict(world.state.slots)
    kind = rng.choice(("missing", "more", "none", "step", "shape", "tuple"))
    if kind == "missing" and slots:
        slots.pop(rng.choice(sorted(slots)))
    elif kind == "more":
        slots["another"] = world.params
    elif kind == "none":
        return world.step(state=())
    elif kind == "step":
        return world.step(
            state=world.state._replace(step=rng.choice((-1, 1.5, "1", None, 2**63 - 1, 2**64 + 5, 10**30)))
        )
    elif kind == "tuple":
        return world.step(state=tuple(world.state))
    elif arrays := [name for name in slots if name in world.optimizer.slots]:
        name = rng.choice(arrays)

        def wrong(s: Any) -> Any:
            return world.arrays.make(np.zeros((*s.shape, 1), np.float32), "plain")

        slots[name] = mapped(wrong, slots[name])
    return world.step(state=world.state._replace(slots=slots))


@OPERATIONS.of_weight(1)
def change_the_step_number(world: World, rng: random.Random) -> str:
    world.state = world.state._replace(step=rng.choice((0, 1, 7, 1000, 10**6, np.int64(3))))
    return world.step()


@OPERATIONS.of_weight(2)
def copy_the_state(world: World, rng: random.Random) -> str:
    slots = rng.choice((dict, OrderedDict))(world.state.slots)
    world.state = portopt.OptimizerState(world.state.step, slots)
    return world.step()


@OPERATIONS.of_weight(3)
def change_an_arrays_memory(world: World, rng: random.Random) -> str:
    tree = rng.choice((world.params, world.grads, world.state.slots))
    where = list(places(tree))
    if not where:
        return "no place"
    array = rng.choice(where)[2]
    if world.has_view(array):
        return "no place"
    world.arrays.change_memory(array, rng)
    return world.step()


@OPERATIONS.of_weight(1)
def begin_anew(world: World, rng: random.Random) -> str:
    world.begin_anew(rng)
    return world.step()


@OPERATIONS.of_weight(1)
def share_memory_between_two_arrays(world: World, rng: random.Random) -> str:
    where = list(places(world.params))
    if len(where) < 2:
        return "no place"
    (a, i, x), (_, _, y) = rng.sample(where, 2)
    a[i] = y
    outcome = world.step()
    a[i] = x
    return outcome
