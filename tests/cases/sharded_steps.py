"""Steps on arrays that are spread over eight devices, compared with those on one.

How many devices a host has is fixed when JAX starts, by XLA_FLAGS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import rules_of_each_kind
from support.bits import assert_same_bits, ordinary

import portopt
import portopt_jax


def spec(*axes: Any) -> PartitionSpec:
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]  # as JAX has it


STEPS = 3
SPECS = {
    "both": spec("x", "y"),
    "columns": spec(None, "y"),
    "together": spec(("x", "y")),
    "whole": spec(),
}
SHAPES = {"both": (64, 48), "columns": (3, 10), "together": (8000,), "whole": ()}


def data(seed: int) -> dict[str, Any]:
    """Return values over many binades, so that another order of an ordinary sum would show."""
    scales = {n: np.float32(2.0) ** ordinary(s, "float32", seed + 500).round() for n, s in SHAPES.items()}
    return {n: np.asarray(ordinary(s, "float32", seed) * scales[n]) for n, s in SHAPES.items()}


def placed(tree: dict[str, Any], mesh: Any, specs: dict[str, PartitionSpec]) -> dict[str, Any]:
    return {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in tree.items()}


def expected_steps(optimizer: portopt.Optimizer) -> tuple[Any, portopt.OptimizerState]:
    params: Any = data(1)
    state = optimizer.init(params)
    for i in range(STEPS):
        params, state = optimizer.apply(params, data(10 + i), state)
    return params, state


def ways(optimizer: portopt.Optimizer) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, function that inits and function that steps, of each way."""
    tx = portopt_jax.to_optax(optimizer)

    @jax.jit
    def add(params: Any, grads: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def step(params: Any, grads: Any, state: Any) -> Any:
        return portopt_jax.step(tx, params, grads, state)

    yield "apply", optimizer.init, optimizer.apply
    yield "jitted apply", optimizer.init, jax.jit(optimizer.apply)
    yield "optax", tx.init, add
    yield "step", tx.init, step


def check(optimizer: portopt.Optimizer, mesh: Any, init: Any, step: Any, gradients: dict[str, PartitionSpec]) -> None:
    params: Any = placed(data(1), mesh, SPECS)
    state = init(params)
    check_places(optimizer, state.slots, mesh)
    for i in range(STEPS):
        params, state = step(params, placed(data(10 + i), mesh, gradients), state)
        check_places(optimizer, {"p": params, **state.slots}, mesh)
    expected, expected_state = expected_steps(optimizer)
    for name in SHAPES:
        assert_same_bits(np.asarray(params[name]), expected[name], name)
        for slot in optimizer.slots:
            assert_same_bits(np.asarray(state.slots[slot][name]), expected_state.slots[slot][name], f"{slot} of {name}")


def check_places(optimizer: portopt.Optimizer, trees: dict[str, Any], mesh: Any) -> None:
    for tree in [trees[name] for name in ("p", *optimizer.slots) if name in trees]:
        for name, leaf in tree.items():
            wanted = NamedSharding(mesh, SPECS[name])
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), f"{name} is at {leaf.sharding}, not at {wanted}"


def check_norm(mesh: Any, specs: dict[str, PartitionSpec]) -> None:
    """Compare the norm's 64 bits; the parameters' 32 would hide most differences."""
    given, backend = data(10), portopt.get_backend("jax")
    expected = portopt.get_backend("numpy").gradient_norm(list(given.values()))
    gradients = list(placed(given, mesh, specs).values())
    inside = jax.jit(lambda gradients: backend.stored_scalar(backend.gradient_norm(gradients)))
    for norm in (float(backend.gradient_norm(gradients)), backend.scalar(inside(gradients))):
        assert norm.hex() == expected.hex(), f"the norm is {norm.hex()}, not {expected.hex()}"


def check_parts(optimizer: portopt.Optimizer, mesh: Any) -> None:
    """Step inside shard_map, each device with its part, its norm and its learning rate."""
    count = mesh.devices.size
    rates = np.linspace(0.1, 0.8, count)
    given, gradients = (ordinary((count, 5), "float32", seed) for seed in (1, 2))

    def step(p: Any, g: Any, rate: Any) -> Any:
        state = optimizer.init(p)
        for _ in range(STEPS):
            p, state = optimizer.apply(p, g, state, learning_rate=rate[0])
        return p, state.slots["m"]

    with jax.enable_x64(True):
        parts = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(spec("x"),) * 3, out_specs=(spec("x"),) * 2))
        found, slot = parts(given, gradients, rates)
    for i in range(count):
        p, state = given[i : i + 1], optimizer.init(given[i : i + 1])
        for _ in range(STEPS):
            p, state = optimizer.apply(p, gradients[i : i + 1], state, learning_rate=float(rates[i]))
        assert_same_bits(np.asarray(found)[i : i + 1], p)
        assert_same_bits(np.asarray(slot)[i : i + 1], state.slots["m"])


def check_given_norm(optimizer: portopt.Optimizer, mesh: Any) -> None:
    """Step inside shard_map with the norm of all gradients: what all devices hold stays the same on all."""
    params, grads = ({name: data(seed)[name] for name in ("together", "whole")} for seed in (1, 10))
    norm = portopt.get_backend("numpy").gradient_norm(list(grads.values()))
    specs = {"together": spec("x"), "whole": spec()}
    state = optimizer.init(jax.tree.map(jax.numpy.asarray, params))
    state_specs = portopt.OptimizerState(
        spec(), {name: spec() if name in optimizer.scalar_slots else specs for name in state.slots}
    )

    def step(params: Any, grads: Any, state: Any) -> Any:
        return optimizer.apply(params, grads, state, gradient_norm=norm)

    in_specs, out_specs = (specs, specs, state_specs), (specs, state_specs)
    found, _ = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs))(params, grads, state)
    expected, _ = optimizer.apply(params, grads, optimizer.init(params))
    for name in params:
        assert_same_bits(np.asarray(found[name]), expected[name], name)


def line() -> Any:
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def plane(kind: str) -> Any:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType[kind], AxisType[kind]))


def case_parts(rule: str) -> None:
    optimizer = portopt.get({"class_name": rule, "config": {"learning_rate": 0.1, "clipnorm": 0.5}})
    check_parts(optimizer, line())
    check_given_norm(optimizer, line())


def case_norm(kind: str) -> None:
    check_norm(plane(kind), SPECS)


def case_steps(kind: str, way: str, gradients: str) -> None:
    specs = {"placed": SPECS, "everywhere": dict.fromkeys(SPECS, spec())}[gradients]
    optimizer = portopt.Adam(0.1, clipnorm=0.5)
    [(init, step)] = [(init, step) for name, init, step in ways(optimizer) if name == way]
    check(optimizer, plane(kind), init, step, specs)


def case_kinds() -> None:
    """Rules that reduce and multiply: the bits of one device, and narrow slots where their axes are."""
    mesh = plane("Auto")
    for kind in rules_of_each_kind.RULES:
        optimizer = kind(0.1, clipnorm=2.0)
        params: Any = placed(data(1), mesh, SPECS)
        state, step = optimizer.init(params), jax.jit(optimizer.apply)
        for slot, axes in (("row", spec("x")), ("column", spec("y")), ("size", spec())):
            if slot in state.slots:
                leaf = state.slots[slot]["both"]
                assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, axes), leaf.ndim), f"{slot}: {leaf.sharding}"
        for i in range(STEPS):
            params, state = step(params, placed(data(10 + i), mesh, SPECS), state)
        expected, _ = expected_steps(optimizer)
        for name in SHAPES:
            assert_same_bits(np.asarray(params[name]), expected[name], f"{kind.__name__}: {name}")


def case_inputs() -> None:
    """A further input that is spread as its parameter is, and one that lies whole on every device."""
    optimizer, names, mesh = portopt.SophiaG(0.1), ("both", "columns"), plane("Auto")
    params, gradients, hessian = ({n: data(seed)[n] for n in names} for seed in (1, 10, 20))
    expected, expected_state = optimizer.apply(params, gradients, optimizer.init(params), hessian=hessian)
    found: Any = placed(params, mesh, SPECS)
    given = placed(hessian, mesh, {**SPECS, "columns": spec()})
    state = optimizer.init(found)
    found, state = jax.jit(optimizer.apply)(found, placed(gradients, mesh, SPECS), state, hessian=given)
    check_places(optimizer, {"p": found, **state.slots}, mesh)
    for name in names:
        assert_same_bits(np.asarray(found[name]), expected[name], name)
        assert_same_bits(np.asarray(state.slots["h"][name]), expected_state.slots["h"][name], f"h of {name}")


def case_narrow_parts() -> None:
    """Step inside shard_map with slots that lack an axis, each device with rows of its own."""
    optimizer, mesh = rules_of_each_kind.Factored(0.1), line()
    given, gradients = (ordinary((2 * mesh.devices.size, 5), "float32", seed) for seed in (1, 2))

    def steps(p: Any, g: Any) -> tuple[Any, ...]:
        state = optimizer.init(p)
        for _ in range(2):
            p, state = optimizer.apply(p, g, state)
        return p, state.slots["row"], state.slots["column"]

    specs = (spec("x"),) * 3
    found = jax.jit(jax.shard_map(steps, mesh=mesh, in_specs=specs[:2], out_specs=specs))(given, gradients)
    expected = [steps(given[i : i + 2], gradients[i : i + 2]) for i in range(0, len(given), 2)]
    for name, whole, parts in zip(("p", "row", "column"), found, zip(*expected, strict=True), strict=True):
        assert_same_bits(np.asarray(whole), np.concatenate(parts), name)
