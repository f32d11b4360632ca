"""What can be done to a `TorchOptimizer`, its groups, parameters and states."""

from __future__ import annotations

import copy
import random

import numpy as np

from fuzzing.arrays import random_values
from fuzzing.trees import is_array
from fuzzing.worlds import Operations, TorchWorld

OPERATIONS = Operations()


@OPERATIONS.of_weight(8)
def step(world: TorchWorld, rng: random.Random) -> str:
    return world.step()


@OPERATIONS.of_weight(8)
def step_with_new_gradients(world: TorchWorld, rng: random.Random) -> str:
    world.set_gradients(rng)
    return world.step()


@OPERATIONS.of_weight(4)
def step_without_some_gradients(world: TorchWorld, rng: random.Random) -> str:
    for p in world.parameters:
        if rng.random() < 0.4:
            p.grad = None
    return world.step()


@OPERATIONS.of_weight(4)
def step_with_another_rate(world: TorchWorld, rng: random.Random) -> str:
    group = rng.choice(world.optimizer.param_groups)
    group["lr"] = rng.choice((0.1, 0, 1e-3, 0.1, float("nan"), -1.0, "fast", None))
    outcome = world.step()
    if outcome:
        group["lr"] = 0.01
    return outcome


@OPERATIONS.of_weight(3)
def step_with_other_values(world: TorchWorld, rng: random.Random) -> str:
    group = rng.choice(world.optimizer.param_groups)
    name = rng.choice(sorted(set(group) - {"params", "lr"}) or ["lr"])
    before = group[name]
    other = rng.choice((0.5, 0.25, None, -1.0, 2.0, "x"))
    group[name] = (0.5, other) if isinstance(before, tuple) else other
    outcome = world.step()
    if outcome or rng.random() < 0.5:
        group[name] = before
    return outcome


@OPERATIONS.of_weight(2)
def step_with_an_unknown_entry(world: TorchWorld, rng: random.Random) -> str:
    group = rng.choice(world.optimizer.param_groups)
    group[rng.choice(("nesterov", "amsgrad", "weight_decay", "label", "decoupled_weight_decay"))] = rng.choice(
        (True, 0.1, None)
    )
    outcome = world.step()
    if outcome:
        world.begin_anew(rng)
    return outcome


@OPERATIONS.of_weight(1)
def add_a_group(world: TorchWorld, rng: random.Random) -> str:
    group = {"params": [world.parameter(rng, world.arrays.dtypes) for _ in range(rng.choice((1, 2)))]}
    world.optimizer.add_param_group(group)
    world.set_gradients(rng)
    return world.step()


@OPERATIONS.of_weight(2)
def save_and_load(world: TorchWorld, rng: random.Random) -> str:
    saved = world.optimizer.state_dict()
    if rng.random() < 0.5:
        world.step()
    try:
        world.optimizer.load_state_dict(saved)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return world.step()


@OPERATIONS.of_weight(2)
def copy_the_optimizer(world: TorchWorld, rng: random.Random) -> str:
    world.optimizer = copy.deepcopy(world.optimizer)
    world.set_gradients(rng)
    return world.step()


@OPERATIONS.of_weight(3)
def spoil_a_state(world: TorchWorld, rng: random.Random) -> str:
    entries = [world.optimizer.state[p] for p in world.parameters if p in world.optimizer.state]
    if not entries:
        return "no state"
    entry = rng.choice(entries)
    name = rng.choice(sorted(entry))
    before = entry[name]
    if name == "step":
        # A spoilt one stays where the parameter has no gradient.
        entry[name] = rng.choice((-1, 2**63 - 1, before + 3 if isinstance(before, int) else 3, "1"))
    elif is_array(before):
        values = world.arrays.values(before)
        entry[name] = rng.choice(
            (
                None,
                1.0,
                world.arrays.make(values, "strided"),
                world.arrays.make(np.zeros((*values.shape, 2), np.float32), "plain"),
            )
        )
    else:
        entry[name] = rng.choice((None, "x", 0.5))
    outcome = world.step()
    if outcome:
        entry[name] = before
    return outcome


@OPERATIONS.of_weight(2)
def change_a_parameters_data(world: TorchWorld, rng: random.Random) -> str:
    p = rng.choice(world.parameters)
    p.data = world.arrays.make(random_values(rng, str(p.dtype).rpartition(".")[2], p.shape), "plain")
    return world.step()


@OPERATIONS.of_weight(2)
def change_memory(world: TorchWorld, rng: random.Random) -> str:
    p = rng.choice(world.parameters)
    world.arrays.change_memory(rng.choice((p, p.grad) if p.grad is not None else (p,)), rng)
    return world.step()


@OPERATIONS.of_weight(1)
def step_with_a_sparse_gradient(world: TorchWorld, rng: random.Random) -> str:
    p = rng.choice(world.parameters)
    if p.ndim:
        p.grad = p.detach().to_sparse()
    outcome = world.step()
    world.set_gradients(rng)
    return outcome
