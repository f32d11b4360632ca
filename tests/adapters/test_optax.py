"""`portopt_jax.to_optax`: the optax contract, the bits after `apply_updates`, and `step` where a sum cannot have them."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bits import assert_same_bits, ordinary, random_words
from support.elementwise import ELEMENTWISE
from support.jax_trees import assert_same_trees
from support.processes import run_python

import portopt
import portopt_jax
from portopt_jax import PortoptState

each_way = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


def tree(seed: int, dtype: str = "float32", size: int = 500) -> dict[str, Any]:
    return {"a": jnp.asarray(ordinary((size,), dtype, seed)), "b": jnp.asarray(ordinary((), dtype, seed + 50))}


def structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def trained(optimizer: portopt.Optimizer, gradients: list[Any], params: Any) -> tuple[Any, portopt.OptimizerState]:
    state = optimizer.init(params)
    for grads in gradients:
        params, state = optimizer.apply(params, grads, state)
    return params, state


def differing(actual: Any, expected: Any) -> int:
    a, b = np.asarray(actual), np.asarray(expected)
    return int(np.sum(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")))


# The bits after apply_updates


@pytest.mark.parametrize(
    ("rule", "jit"),
    [
        # ScheduleFree has a test of its own below.
        *((rule, True) for rule in (*ELEMENTWISE, portopt.Adafactor) if rule is not portopt.ScheduleFree),
        (portopt.Nadam, False),
    ],
)
def test_applied_updates_give_the_bits_of_apply(rule: type[portopt.Optimizer], jit: bool) -> None:
    # Where a decayed parameter is much smaller than before, no update may lead to it exactly.
    optimizer = rule(learning_rate=0.3, **({"weight_decay": 0.0} if "weight_decay" in rule.defaults() else {}))
    tx = portopt_jax.to_optax(optimizer)

    def step(params: Any, grads: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, gradients = tree(1), [tree(10 + i) for i in range(3)]
    expected, expected_state = trained(optimizer, gradients, params)
    state = tx.init(params)
    for grads in gradients:
        params, state = (jax.jit(step) if jit else step)(params, grads, state)
    assert_same_trees((params, state.slots), (expected, expected_state.slots))
    assert int(state.count) == 3


def test_where_applied_updates_have_other_bits_no_update_has_those_of_apply() -> None:
    """ScheduleFree's first steps are far: they lead parameters across zero to smaller ones, to some of which no sum is equal."""
    optimizer = portopt.ScheduleFree(learning_rate=0.3)
    tx, missed = portopt_jax.to_optax(optimizer), 0
    params = tree(1)
    state = tx.init(params)
    for i in range(3):
        grads = tree(10 + i)
        expected, _ = optimizer.apply(params, grads, portopt.OptimizerState(i, state.slots))
        by_step, _ = portopt_jax.step(tx, params, grads, state)
        updates, state = jax.jit(tx.update)(grads, state, params)
        assert_same_trees(by_step, expected)
        for p, u, q in zip(*map(jax.tree.leaves, (params, updates, expected)), strict=True):
            p, u, q = (np.asarray(x) for x in (p, u, q))
            differs = p + u != q
            # A sum grows with the update, so those of its neighbours are on both sides of what is wanted.
            below, above = (p + np.nextafter(u, np.asarray(side, u.dtype)) for side in (-np.inf, np.inf))
            assert np.all((below < q) & (q < above) | ~differs)
            missed += int(np.sum(differs))
        params = optax.apply_updates(params, updates)
    assert missed


def test_float64_parameters_have_the_bits_too() -> None:
    with jax.enable_x64(True):
        optimizer = portopt.Adam(0.3)
        tx = portopt_jax.to_optax(optimizer)
        params, grads = tree(1, "float64"), tree(10, "float64")
        updates, _ = tx.update(grads, tx.init(params), params)
        assert_same_trees(optax.apply_updates(params, updates), trained(optimizer, [grads], params)[0])


def power_of_two_results(count: int) -> tuple[Any, Any]:
    """Return parameters p and steps d whose sum, just above a power of two, is rounded to it, and `q - p` to a third number."""
    odd = np.random.default_rng(0).integers(2**22, 2**23, count) * 2 + 1
    scale = 2.0 ** np.random.default_rng(1).integers(-60, 60, count)
    return (np.asarray(-odd * scale, np.float32), np.asarray((2.0**24 + 1 + odd) * scale, np.float32))


@each_way
def test_an_update_beside_the_rounded_difference_is_taken_where_only_it_gives_the_bits(jit: bool) -> None:
    p, d = power_of_two_results(300)
    q = p + d
    assert differing(p + (q - p), q) > 100
    tx = portopt_jax.to_optax(portopt.SGD(1.0))
    params = jnp.asarray(p)
    update = jax.jit(tx.update) if jit else tx.update
    updates, _ = update(jnp.asarray(-d), tx.init(params), params)
    assert_same_bits(np.asarray(optax.apply_updates(params, updates)), q)


def all_bfloat16(low: float, high: float) -> Any:
    words = jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16)
    values = jax.lax.bitcast_convert_type(words, jnp.bfloat16)
    return values[(jnp.abs(values) >= low) & (jnp.abs(values) < high)]


def test_no_other_update_reaches_what_this_one_misses() -> None:
    """For a few parameters, every new parameter and every update in bfloat16: 12 binades of each."""
    values = all_bfloat16(2.0**-6, 2.0**6)
    updates = jnp.concatenate([all_bfloat16(2.0**-16, 2.0**8), jnp.zeros(1, jnp.bfloat16)])
    for p in (1.0, 1.5078125, 0.33203125, -3.984375):
        params = jnp.full_like(values, p)
        made = portopt_jax._optax._difference(values, params, values.dtype)
        missed = values[optax.apply_updates(params, made) != values]
        assert 500 < missed.size < values.size
        reachable = set(np.asarray(optax.apply_updates(jnp.full_like(updates, p), updates), np.float32).tolist())
        assert not reachable & set(np.asarray(missed, np.float32).tolist())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_updates_give_the_bits_of_16_bit_parameters(dtype: str) -> None:
    optimizer = portopt.SGD(0.3)
    scales = [np.exp2(np.random.default_rng(seed).integers(-9, 9, 200_000)) for seed in (1, 2)]
    params, grads = (jnp.asarray(ordinary(x.shape, "float32", i) * x, dtype) for i, x in enumerate(scales))
    expected = trained(optimizer, [grads], params)[0]

    def missed(**options: Any) -> int:
        tx = portopt_jax.to_optax(optimizer, **options)
        updates, _ = tx.update(grads, tx.init(params), params)
        return differing(optax.apply_updates(params, updates), expected)

    assert missed() > 1000
    assert missed(update_dtype="float32") == 0


@pytest.mark.parametrize(("dtype", "gradient_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_gradients_may_have_another_dtype_than_their_parameters(dtype: str, gradient_dtype: str) -> None:
    rule, p, g = portopt.Adam(0.1, clipnorm=1.0), ordinary((50,), dtype, 1), ordinary((50,), gradient_dtype, 2)
    expected, _ = rule.apply(p, g, rule.init(p))
    tx, params = portopt_jax.to_optax(rule), jnp.asarray(p)
    updates, _ = jax.jit(tx.update)(jnp.asarray(g), tx.init(params), params)
    assert updates.dtype == dtype
    new, _ = portopt_jax.step(tx, params, jnp.asarray(g), tx.init(params))
    assert_same_bits(new, expected)


def test_updates_have_the_dtype_of_their_parameter() -> None:
    for dtype in ("float16", "bfloat16", "float32"):
        params = tree(1, dtype)
        for wanted, expected in ((None, dtype), ("float32", "float32")):
            tx = portopt_jax.to_optax(portopt.SGD(), update_dtype=wanted)
            updates, _ = tx.update(params, tx.init(params), params)
            assert {str(u.dtype) for u in jax.tree.leaves(updates)} == {expected}
    with jax.enable_x64(True):
        params = tree(1, "float64")
        tx = portopt_jax.to_optax(portopt.SGD(), update_dtype="float32")
        assert tx.update(params, tx.init(params), params)[0]["a"].dtype == jnp.float64


@each_way
def test_a_parameter_that_stays_keeps_its_bits(jit: bool) -> None:
    tx = portopt_jax.to_optax(portopt.SGD(0.1))
    params = jnp.asarray([0.0, -0.0, np.inf, -np.inf, 1.0, -1.0], jnp.float32)
    update = jax.jit(tx.update) if jit else tx.update
    updates, _ = update(jnp.zeros(6), tx.init(params), params)
    assert updates.tolist() == [0.0] * 6
    assert_same_bits(np.asarray(optax.apply_updates(params, updates)), np.asarray(params))


@each_way
def test_the_sum_is_the_nearest_where_no_update_gives_the_bits(jit: bool) -> None:
    optimizer = portopt.SGD(1.0)
    tx = portopt_jax.to_optax(optimizer)
    params = jnp.asarray(1.0, jnp.bfloat16)
    grads = jnp.asarray(0.99609375, jnp.bfloat16)
    expected = optimizer.apply(params, grads, optimizer.init(params))[0]
    assert float(expected) == 2.0**-8
    updates, _ = (jax.jit(tx.update) if jit else tx.update)(grads, tx.init(params), params)
    assert float(optax.apply_updates(params, updates)) == 2.0**-8


# step


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [*((rule, "bfloat16") for rule in ELEMENTWISE), (portopt.Adam, "float16"), (portopt.Nadam, "float32")],
)
def test_step_gives_the_bits_of_apply(rule: type[portopt.Optimizer], dtype: str) -> None:
    optimizer = rule(learning_rate=0.3)
    tx = portopt_jax.to_optax(optimizer)
    params, gradients = tree(1, dtype), [tree(10 + i, dtype) for i in range(3)]
    expected, expected_state = trained(optimizer, gradients, params)
    state = tx.init(params)
    for i, grads in enumerate(gradients):
        step = portopt_jax.step if i == 1 else jax.jit(portopt_jax.step, static_argnums=0)
        params, state = step(tx, params, grads, state)
    assert type(state) is PortoptState
    assert_same_trees((params, state.slots), (expected, expected_state.slots))


def test_step_gives_the_bits_for_raw_words() -> None:
    optimizer = portopt.Adam(0.1)
    tx = portopt_jax.to_optax(optimizer)
    params, grads = (jnp.asarray(random_words((4000,), "float32", seed)) for seed in (1, 2))
    expected = optimizer.apply(params, grads, optimizer.init(params))
    actual = jax.jit(lambda *a: portopt_jax.step(tx, *a))(params, grads, tx.init(params))
    assert_same_trees((actual[0], actual[1].slots), (expected[0], expected[1].slots))


def mask_a(tree: Any) -> Any:
    return {name: name == "a" for name in tree}


def compositions(optimizer: portopt.Optimizer, **options: Any) -> dict[str, Any]:
    inner = portopt_jax.to_optax(optimizer, **options)
    return {
        "chain": optax.chain(optax.identity(), inner),
        "named_chain": optax.named_chain(("first", optax.identity()), ("second", inner)),
        "masked": optax.masked(inner, {"a": True, "b": True}),
        "partition": optax.partition({"one": inner, "other": inner}, {"a": "one", "b": "one"}),
        "inject_hyperparams": optax.inject_hyperparams(portopt_jax.optax_factory(optimizer))(**options),
        "MultiSteps": optax.MultiSteps(inner, every_k_schedule=1),
        "apply_if_finite": optax.apply_if_finite(inner, max_consecutive_errors=3),
        "conditionally_mask": optax.conditionally_mask(inner, lambda step: step >= 0),
    }


@pytest.mark.parametrize("name", compositions(portopt.Adam()))
@each_way
def test_step_keeps_the_bits_inside_of_other_transformations(name: str, jit: bool) -> None:
    optimizer = portopt.Adam(0.3)
    tx = compositions(optimizer)[name]
    params, gradients = tree(1, "bfloat16", 50), [tree(10 + i, "bfloat16", 50) for i in range(2)]
    expected, _ = trained(optimizer, gradients, params)
    state = start = tx.init(params)

    def step(*arguments: Any) -> Any:
        return portopt_jax.step(tx, *arguments)

    for grads in gradients:
        params, state = (jax.jit(step) if jit else step)(params, grads, state)
    assert_same_trees(params, expected)
    assert structure(state) == structure(start)


class Jump(portopt.Optimizer):
    """Puts the gradient in the place of the parameter, which most sums miss."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return g * c.lr, {}


@pytest.mark.parametrize("update_dtype", [None, "float32"])
def test_step_keeps_the_bits_through_an_accumulation(update_dtype: str | None) -> None:
    tx = optax.MultiSteps(portopt_jax.to_optax(Jump(1.0), update_dtype=update_dtype), every_k_schedule=2)
    params = jnp.full((500,), 3.0, jnp.bfloat16)
    grads = jnp.asarray(ordinary((500,), "float32", 1) * 2.0**-20, jnp.bfloat16)
    state = tx.init(params)
    updates, _ = portopt_jax.to_optax(Jump(1.0), update_dtype=update_dtype).update(grads, state.inner_opt_state, params)
    assert differing(optax.apply_updates(params, updates), grads) > 400
    same, state = portopt_jax.step(tx, params, grads, state)
    assert_same_bits(np.asarray(same), np.asarray(params))
    new, _ = portopt_jax.step(tx, params, grads, state)
    assert_same_bits(np.asarray(new), np.asarray(grads))


def test_step_adds_what_follows_portopt() -> None:
    tx = optax.chain(portopt_jax.to_optax(portopt.SGD(0.5)), optax.scale(0.5))
    params = jnp.asarray([1.0, 2.0])
    assert portopt_jax.step(tx, params, params, tx.init(params))[0].tolist() == [0.75, 1.5]


def test_step_adds_the_updates_of_others() -> None:
    tx = optax.partition(
        {"ours": portopt_jax.to_optax(portopt.SGD(0.5)), "theirs": optax.sgd(0.25), "none": optax.set_to_zero()},
        {"x": "ours", "y": "theirs", "z": {"u": "none", "v": "ours"}},
    )
    one = jnp.ones(())
    params = {"x": one, "y": one, "z": {"u": one, "v": one}}
    new, _ = jax.jit(lambda *a: portopt_jax.step(tx, *a))(params, params, tx.init(params))
    assert jax.tree.map(float, new) == {"x": 0.5, "y": 0.75, "z": {"u": 1.0, "v": 0.5}}


def test_step_follows_masks_of_whole_branches() -> None:
    tx = optax.chain(
        optax.masked(portopt_jax.to_optax(portopt.SGD(0.5)), {"x": True, "z": False}),
        optax.masked(optax.set_to_zero(), {"x": False, "z": True}),
    )
    params = {"x": jnp.ones(2), "z": {"u": jnp.ones(2), "v": None}}
    new, _ = portopt_jax.step(tx, params, params, tx.init(params))
    assert new["x"].tolist() == [0.5, 0.5]
    assert new["z"]["u"].tolist() == [1.0, 1.0]
    assert new["z"]["v"] is None


def test_step_takes_extra_arguments() -> None:
    tx = optax.chain(portopt_jax.to_optax(portopt.SGD(0.5)))
    params = jnp.asarray([1.0])
    assert portopt_jax.step(tx, params, params, tx.init(params), learning_rate=0.25, value=3.0)[0].tolist() == [0.75]


# Other transformations around it


def test_accumulation_takes_one_step_for_several_gradients() -> None:
    optimizer = portopt.Adam(0.1)
    tx = optax.MultiSteps(portopt_jax.to_optax(optimizer), every_k_schedule=2)
    params = start = tree(1)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(4):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        if i % 2 == 0:
            assert all(not np.asarray(u).any() for u in jax.tree.leaves(updates))
        params = optax.apply_updates(params, updates)
    ones = jax.tree.map(jnp.ones_like, start)
    assert int(state.inner_opt_state.count) == 2
    assert_same_trees(params, trained(optimizer, [ones, ones], start)[0])


def test_a_gradient_that_is_not_finite_can_be_left_out() -> None:
    optimizer = portopt.Nadam(0.1)
    tx = optax.apply_if_finite(portopt_jax.to_optax(optimizer), max_consecutive_errors=3)
    params, gradients = tree(1), [tree(10), jax.tree.map(lambda g: g * np.inf, tree(11)), tree(12)]
    expected, _ = trained(optimizer, [gradients[0], gradients[2]], params)
    state = tx.init(params)
    for grads in gradients:
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert (int(state.total_notfinite), int(state.inner_state.count)) == (1, 2)
    assert_same_trees(params, expected)


def test_masked_parameters_are_left_out_of_the_norm_and_of_the_state() -> None:
    optimizer = portopt.Adam(0.1, clipnorm=0.5)
    tx = optax.masked(portopt_jax.to_optax(optimizer), mask_a)
    params, grads = tree(1), tree(10)
    state = tx.init(params)
    assert jax.tree.leaves(state.inner_state.slots["m"]["b"]) == []
    updates, state = tx.update(grads, state, params)
    assert updates["b"] is grads["b"]
    expected, _ = trained(optimizer, [{"a": grads["a"]}], {"a": params["a"]})
    assert_same_bits(np.asarray(params["a"] + updates["a"]), np.asarray(expected["a"]))


@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam])
def test_a_label_may_have_no_parameters(rule: type[portopt.Optimizer]) -> None:
    tx = optax.partition({"x": portopt_jax.to_optax(rule()), "y": portopt_jax.to_optax(rule())}, {"a": "x", "b": "x"})
    params = tree(1)
    state = tx.init(params)
    updates, new_state = jax.jit(tx.update)(tree(10), state, params)
    assert structure(state) == structure(new_state)
    assert int(new_state.inner_states["y"].inner_state.count) == 1
    assert set(updates) == {"a", "b"}


def test_slots_can_be_mapped_as_parameters() -> None:
    tx = portopt_jax.to_optax(portopt.Nadam())
    state = optax.tree.map_params(tx, lambda slot: slot + 1, tx.init(tree(1)))
    assert state.slots["m"]["a"].tolist() == [1.0] * 500
    assert int(state.count) == 0
    assert_same_bits(np.asarray(state.slots["m_schedule"]), np.asarray([0, 0x3FF00000], np.uint32))


# Hyperparameters


def test_injected_hyperparameters_are_those_of_apply() -> None:
    optimizer = portopt.SGD(0.1, momentum=0.5)
    schedule = optax.linear_schedule(0.5, 0.25, 4)
    tx = optax.inject_hyperparams(portopt_jax.optax_factory(optimizer))(learning_rate=schedule, momentum=0.9)
    params = expected = tree(1)
    state, expected_state = tx.init(params), optimizer.init(params)
    for i in range(3):
        updates, state = jax.jit(tx.update)(tree(10 + i), state, params)
        params = optax.apply_updates(params, updates)
        rate, momentum = np.float32(schedule(jnp.asarray(i))), np.float32(0.9)
        assert float(state.hyperparams["learning_rate"]) == rate
        expected, expected_state = optimizer.apply(
            expected, tree(10 + i), expected_state, learning_rate=jnp.asarray(rate), momentum=jnp.asarray(momentum)
        )
    assert set(state.hyperparams) == {"learning_rate", "momentum"}
    assert_same_trees(params, expected)
    state.hyperparams["momentum"] = jnp.asarray(0.0)
    updates, _ = tx.update(tree(20), state, params)
    expected, _ = optimizer.apply(
        params, tree(20), expected_state, learning_rate=jnp.float32(0.3125), momentum=jnp.float32(0)
    )
    assert_same_trees(optax.apply_updates(params, updates), expected)


def test_the_factory_has_the_hyperparameters_of_the_optimizer() -> None:
    signature = inspect.signature(portopt_jax.optax_factory(portopt.Adam()))
    names = {*portopt.Adam.numeric_hyperparameters(), "lr"}
    assert set(signature.parameters) == names
    assert next(iter(signature.parameters)) == "learning_rate"
    tx = portopt_jax.optax_factory(portopt.SGD())(0.5)
    assert tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))[0].tolist() == [-0.5]


@pytest.mark.parametrize("name", ["learning_rate", "lr"])
def test_an_extra_argument_is_a_hyperparameter_of_the_step(name: str) -> None:
    tx = optax.chain(optax.identity(), portopt_jax.to_optax(portopt.SGD(0.5)))
    params = jnp.asarray([1.0])
    update = jax.jit(lambda x: tx.update(params, tx.init(params), params, **{name: x}, value=1.0, unknown=None)[0])
    assert update(0.25).tolist() == [-0.25]
    assert update(0.125).tolist() == [-0.125]


def test_hyperparameters_may_be_given_to_the_transformation() -> None:
    params = jnp.asarray([1.0])
    for rate in (0.25, jnp.asarray(0.25)):
        tx = portopt_jax.to_optax(portopt.SGD(0.5, clipvalue=4.0), lr=rate, clipvalue=None)
        state = tx.init(params)
        assert tx.update(jnp.asarray([8.0]), state, params)[0].tolist() == [-1.0]
        assert tx.update(jnp.asarray([8.0]), state, params, learning_rate=0.5)[0].tolist() == [-2.0]
    halving = portopt.schedules.ExponentialDecay(0.5, steps=1, rate=0.5)
    tx = portopt_jax.to_optax(portopt.SGD(), learning_rate=halving)
    assert tx.update(params, tx.init(params)._replace(count=jnp.asarray(2)), params)[0].tolist() == [-0.125]
    slots = portopt_jax.to_optax(portopt.Adam(), slot_dtype="bfloat16").init(params).slots
    assert slots["m"].dtype == jnp.bfloat16


# State and trees


@pytest.mark.parametrize("rule", [portopt.SGD, portopt.Adam, portopt.Nadam, portopt.ScheduleFree])
def test_state_has_only_arrays_and_keeps_its_structure(rule: type[portopt.Optimizer]) -> None:
    tx = portopt_jax.to_optax(rule())
    params = tree(1)
    state = tx.init(params)
    assert (state.count.dtype, state.count.shape) == (jnp.int32, ())
    for update in (tx.update, jax.jit(tx.update)):
        _, new = update(tree(10), state, params)
        for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
            assert isinstance(before, jax.Array)
            assert isinstance(after, jax.Array)
            assert (before.dtype, before.shape, before.weak_type) == (after.dtype, after.shape, after.weak_type)
        assert structure(state) == structure(new)


def test_a_step_compiles_once() -> None:
    tx = portopt_jax.to_optax(portopt.Nadam())
    traced = []

    @jax.jit
    def update(*arguments: Any) -> Any:
        traced.append(arguments)
        return tx.update(*arguments)

    params = tree(1)
    state = tx.init(params)
    for _ in range(3):
        _, state = update(tree(10), state, params)
    assert len(traced) == 1


def test_scan_carries_the_state() -> None:
    optimizer = portopt.Nadam(0.3)
    tx = portopt_jax.to_optax(optimizer)
    params = tree(1)
    gradients = [tree(10 + i) for i in range(3)]

    def body(carry: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    (final, _), _ = jax.lax.scan(body, (params, tx.init(params)), stacked)
    assert_same_trees(final, trained(optimizer, gradients, params)[0])


@each_way
def test_the_count_stays_at_the_largest_integer(jit: bool) -> None:
    optimizer = portopt.Adam(0.1)
    tx = portopt_jax.to_optax(optimizer)
    params = jnp.asarray([1.0, 2.0])
    last = np.iinfo(np.int32).max
    state = tx.init(params)._replace(count=jnp.asarray(last, jnp.int32))
    updates, state = (jax.jit(tx.update) if jit else tx.update)(params, state, params)
    assert int(state.count) == last
    expected, _ = optimizer.apply(params, params, optimizer.init(params)._replace(step=last - 1))
    assert_same_bits(np.asarray(optax.apply_updates(params, updates)), np.asarray(expected))


def test_none_passes_through() -> None:
    tx = portopt_jax.to_optax(portopt.Adam())
    params = {"x": jnp.ones(2), "y": None, "z": jnp.ones(2)}
    state = tx.init(params)
    updates, new_state = jax.jit(tx.update)({"x": jnp.ones(2), "y": None, "z": None}, state, params)
    assert updates["y"] is None
    assert updates["z"] is None
    assert new_state.slots["m"]["y"] is None
    assert new_state.slots["m"]["z"].tolist() == [0.0, 0.0]
    new, _ = portopt_jax.step(tx, params, {"x": jnp.ones(2), "y": None, "z": None}, state)
    assert new["z"].tolist() == [1.0, 1.0]
    assert new["y"] is None


def test_numpy_arrays_and_numbers_are_parameters() -> None:
    tx = portopt_jax.to_optax(portopt.SGD(0.5))
    params = {"x": np.ones(2, np.float32), "y": 2.0}
    updates, _ = tx.update({"x": np.ones(2, np.float32), "y": 1.0}, tx.init(params), params)
    assert updates["x"].tolist() == [-0.5, -0.5]
    assert float(updates["y"]) == -0.5


def test_a_state_is_one_of_the_optimizer_too() -> None:
    optimizer = portopt.Nadam(0.1)
    tx = portopt_jax.to_optax(optimizer)
    params, gradients = tree(1), [tree(10), tree(11)]
    new, state = portopt_jax.step(tx, params, gradients[0], tx.init(params))
    actual, _ = optimizer.apply(new, gradients[1], portopt.OptimizerState(state.count, state.slots))
    assert_same_trees(actual, trained(optimizer, gradients, params)[0])


def test_a_state_may_come_from_host_memory() -> None:
    tx = portopt_jax.to_optax(portopt.Nadam(0.1))
    params = tree(1)
    state = tx.init(params)
    restored = jax.tree.map(np.asarray, state)
    assert_same_trees(tx.update(params, restored, params), tx.update(params, state, params))


def test_strict_promotion_is_respected() -> None:
    tx = portopt_jax.to_optax(portopt.SGD(0.1), update_dtype="float32")
    params = tree(1, "bfloat16")
    expected = portopt_jax.step(tx, params, params, tx.init(params))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates["a"].dtype == jnp.float32
    narrow = portopt_jax.to_optax(portopt.SGD(0.1))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert_same_trees(portopt_jax.step(narrow, params, params, narrow.init(params)), expected)


def test_a_users_own_rule_without_slots_works() -> None:
    class SignDescent(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - c.lr * xp.sign(g), {}

    tx = portopt_jax.to_optax(SignDescent(0.25))
    params = jnp.asarray([1.0, 2.0])
    state = tx.init(params)
    assert state.slots == {}
    new, state = portopt_jax.step(tx, params, jnp.asarray([3.0, -3.0]), state)
    assert new.tolist() == [0.75, 2.25]


def test_vmap_over_models() -> None:
    optimizer = portopt.SGD(0.1, clipnorm=1.0)
    tx = portopt_jax.to_optax(optimizer)
    batch = jnp.asarray(ordinary((3, 7), "float32", 1))
    grads = jnp.asarray(ordinary((3, 7), "float32", 2))
    updates, _ = jax.vmap(tx.update)(grads, jax.vmap(tx.init)(batch), batch)
    for lane in range(3):
        expected = trained(optimizer, [grads[lane]], batch[lane])[0]
        assert_same_bits(np.asarray(batch[lane] + updates[lane]), np.asarray(expected))


@pytest.mark.parametrize("by_step", [False, True], ids=["apply_updates", "step"])
def test_gradient_through_an_update_is_that_through_apply(by_step: bool) -> None:
    optimizer = portopt.SGD(0.5)
    tx = portopt_jax.to_optax(optimizer)

    def after(rate: Any, params: Any, grads: Any) -> Any:
        if by_step:
            new = portopt_jax.step(tx, params, grads, tx.init(params), learning_rate=rate)[0]
        else:
            updates, _ = tx.update(grads, tx.init(params), params, learning_rate=rate)
            new = optax.apply_updates(params, updates)
        return jnp.sum(new * jnp.asarray([1.0, 2.0, 3.0]))

    # The first parameter stays where it is, and has a derivative all the same.
    given = (jnp.asarray(0.5), jnp.asarray([1.0, -2.0, 4.0]), jnp.asarray([1e-9, 3.0, 1.0]))
    by_rate, by_params, by_grads = jax.grad(after, argnums=(0, 1, 2))(*given)
    assert float(by_rate) == pytest.approx(-9.0)
    assert by_params.tolist() == [1.0, 2.0, 3.0]
    assert by_grads.tolist() == [-0.5, -1.0, -1.5]


# Errors


def test_something_else_than_an_optimizer_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"to_optax takes an optimizer such as portopt.Adam\(\), but 'adam' of type str"
    ):
        portopt_jax.to_optax("adam")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(
        ValueError, match="update_dtype must be None, for the dtype of each parameter, or 'float32', but 'x'"
    ):
        portopt_jax.to_optax(portopt.Adam(), update_dtype="x")


def test_hyperparameters_are_checked() -> None:
    with pytest.raises(TypeError, match=r"to_optax\(Adam\) got an unknown argument 'beta1'; did you mean 'beta_1'"):
        portopt_jax.to_optax(portopt.Adam(), beta1=0.5)
    with pytest.raises(ValueError, match=r"beta_1 must be in \[0, 1\), but 2.0 was given"):
        portopt_jax.to_optax(portopt.Adam(), beta_1=2.0)
    with pytest.raises(TypeError, match="given 'learning_rate' and another name of it at once"):
        portopt_jax.to_optax(portopt.Adam(), lr=0.1, learning_rate=0.1)


def test_parameters_are_needed_for_an_update() -> None:
    tx = portopt_jax.to_optax(portopt.Adam())
    with pytest.raises(ValueError, match=r"new parameters less old ones, so it needs the old ones: tx.update\(grads"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_a_foreign_state_is_refused() -> None:
    tx = portopt_jax.to_optax(portopt.Adam())
    with pytest.raises(
        TypeError, match=r"must be the PortoptState that tx.init or the previous step returned, but tuple"
    ):
        tx.update(jnp.ones(2), (), jnp.ones(2))


def test_a_leaf_that_is_no_array_is_named() -> None:
    tx = portopt_jax.to_optax(portopt.Adam())
    with pytest.raises(TypeError, match=r"params\['x'\] is <built-in function abs> of type builtin.*which is no array"):
        tx.init({"x": abs})
    with pytest.raises(TypeError, match=r"params\[0\] has dtype int32; parameters must be of dtype"):
        tx.init([jnp.ones(2, jnp.int32)])


def test_step_says_what_it_cannot_follow() -> None:
    params = {"x": jnp.ones(2), "y": jnp.ones(3)}
    plain = optax.adam(0.1)
    with pytest.raises(ValueError, match="holds no state of a portopt optimizer"):
        portopt_jax.step(plain, params, params, plain.init(params))
    tx = portopt_jax.to_optax(portopt.Adam())
    with pytest.raises(ValueError, match="is not one of this transformation"):
        portopt_jax.step(optax.chain(optax.adam(0.1), tx), params, params, tx.init(params))
    flat = optax.flatten(tx)
    with pytest.raises(ValueError, match="step cannot follow this transformation"):
        portopt_jax.step(flat, params, params, flat.init(params))


# Importing


def test_optax_is_imported_when_it_is_asked_for() -> None:
    assert (
        run_python("import sys, portopt_jax; print('optax' in sys.modules, 'jax' in sys.modules)").strip()
        == "False False"
    )
    assert run_python("import sys, portopt_jax; portopt_jax.to_optax; print('optax' in sys.modules)").strip() == "True"


def test_without_optax_the_error_has_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['optax'] = None\nimport portopt_jax\ntry: portopt_jax.step\nexcept ImportError as e: print(e)"
    assert run_python(code).strip() == 'portopt_jax.step needs optax: pip install "portopt[jax,optax]"'


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'portopt_jax' has no attribute 'to_optx'"):
        _ = portopt_jax.to_optx  # type: ignore[attr-defined]  # the mistake
