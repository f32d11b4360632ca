"""What optax's own tests ask of its optimizers, asked of `portopt_jax.to_optax` in the dialect optax.

The problems, learning rates and tolerances are those of optax; the tests are written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.tree_utils
import pytest
from support.jax_trees import assert_same_trees

import portopt
import portopt_jax

OPTIMIZERS: dict[str, tuple[type[portopt.Optimizer], dict[str, Any]]] = {
    "sgd": (portopt.SGD, {"learning_rate": 1e-3, "momentum": 0.9}),
    "adadelta": (portopt.Adadelta, {"learning_rate": 0.1}),
    "adagrad": (portopt.Adagrad, {"learning_rate": 1.0}),
    "adam": (portopt.Adam, {"learning_rate": 1e-1}),
    "adamw": (portopt.Adam, {"learning_rate": 1e-1, "weight_decay": 1e-4}),
    "adamax": (portopt.Adamax, {"learning_rate": 1e-1}),
    "adamaxw": (portopt.Adamax, {"learning_rate": 1e-1, "weight_decay": 1e-4}),
    "amsgrad": (portopt.Adam, {"learning_rate": 1e-1, "amsgrad": True}),
    "nadam": (portopt.Nadam, {"learning_rate": 1e-2}),
    "nadamw": (portopt.Nadam, {"learning_rate": 1e-2, "weight_decay": 1e-4}),
    "rmsprop": (portopt.RMSprop, {"learning_rate": 5e-3}),
    "rmsprop with momentum": (portopt.RMSprop, {"learning_rate": 5e-3, "momentum": 0.9}),
}
"""The optimizers of optax that portopt has, with the learning rates of optax's tests."""
KINDS = ("sgd", "adam", "amsgrad", "nadamw")
"""With one slot, two and three, and with a scalar of the state and a decay: a transformation knows of no rule."""

each = pytest.mark.parametrize("name", OPTIMIZERS)
each_way = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
START = {"parabola": [-1.0, 10.0, 1.0], "rosenbrock": [0.0, 0.0]}
MINIMUM = {"parabola": [1.0, -1.0, 1.0], "rosenbrock": [1.0, 1.0]}


def rule(name: str) -> portopt.Optimizer:
    cls, arguments = OPTIMIZERS[name]
    return cls(**arguments, dialect="optax")


def made(name: str) -> Any:
    return portopt_jax.to_optax(rule(name))


def tree(of: dict[str, list[float]], dtype: Any = jnp.float32) -> Any:
    return {name: jnp.asarray(values, dtype) for name, values in of.items()}


def objective(params: Any) -> Any:
    """Two problems at once: rules are elementwise, so that neither sees the other."""
    x, y = params["rosenbrock"]
    parabola = jnp.sum(jnp.square(params["parabola"] - jnp.asarray(MINIMUM["parabola"], params["parabola"].dtype)))
    return parabola + jnp.square(1 - x) + 100 * jnp.square(y - jnp.square(x))


def stepping(tx: Any, loss: Callable[[Any], Any] = objective) -> Callable[[Any], Any]:
    def step(carry: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


@each
def test_the_minimum_is_found(name: str) -> None:
    tx, params = made(name), tree(START)
    state = optax.tree_utils.tree_map_params(tx, lambda v: v, tx.init(params))
    step = stepping(tx)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(lambda c, _: (step(c), None), carry, length=10_000))(
        (params, state)
    )
    for problem, values in MINIMUM.items():
        np.testing.assert_allclose(params[problem], values, rtol=3e-2, atol=3e-2, err_msg=problem)


@pytest.mark.parametrize("name", KINDS)
def test_a_jitted_step_has_the_bits_of_an_eager_one(name: str) -> None:
    tx, params, grads = made(name), tree(START), tree({"parabola": [0.3, -2.0, 1e-30], "rosenbrock": [7.0, -0.0]})
    state = tx.init(params)
    assert_same_trees(jax.jit(tx.init)(params), state)
    update = jax.jit(tx.update)
    for _ in range(2):
        eager = tx.update(grads, state, params)
        assert_same_trees(update(grads, state, params), eager)
        params, state = optax.apply_updates(params, eager[0]), eager[1]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in KINDS), *(("adam", dtype) for dtype in ("float16", "bfloat16", "float64"))],
)
def test_types_shapes_and_structure_stay_through_a_step(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        tx, params = made(name), tree(START, dtype)
        state = tx.init(params)

        def step(carry: Any, which: Any) -> Any:
            params, state = carry
            # Both branches of a condition must agree in all of these.
            updates, state = jax.lax.cond(which, lambda: tx.update(params, state, params), lambda: (params, state))
            return optax.apply_updates(params, updates), state

        before = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), (params, state))
        carry, compiled = (params, state), jax.jit(step)
        for which in (True, False):
            carry = compiled(carry, which)
            assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), carry) == before
        updates, _ = tx.update(params, state, params)
        assert {u.dtype for u in updates.values()} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_unexpected_extra_argument_is_ignored_as_optax_does(name: str) -> None:
    tx, params = made(name), tree(START)
    state = tx.init(params)
    expected = tx.update(params, state, params)
    assert_same_trees(tx.update(params, state, params, an_argument_of_others=1), expected)
    assert_same_trees(optax.with_extra_args_support(tx).update(params, state, params, value=jnp.zeros(())), expected)


@pytest.mark.parametrize(("name", "jit"), [*((name, True) for name in KINDS), ("adam", False)])
def test_injected_hyperparameters_change_nothing(name: str, jit: bool) -> None:
    cls, arguments = OPTIMIZERS[name]
    fixed = {"amsgrad"} & set(arguments)
    base = cls(
        dialect="optax", **{n: arguments[n] for n in fixed}, **({"momentum": 0.5} if "momentum" in arguments else {})
    )
    numbers = {n: v for n, v in arguments.items() if n not in fixed}
    injected = optax.inject_hyperparams(portopt_jax.optax_factory(base))(**numbers)
    params = [-jnp.ones((2, 3)), jnp.ones((2, 5, 2))]
    grads = [jnp.ones((2, 3)), -jnp.ones((2, 5, 2))]
    wrap = jax.jit if jit else lambda f: f
    tx = made(name)
    updates, state = wrap(tx.update)(grads, wrap(tx.init)(params), params)
    found, after = wrap(injected.update)(grads, wrap(injected.init)(params), params)
    for a, e in zip(jax.tree.leaves((found, after.inner_state)), jax.tree.leaves((updates, state)), strict=True):
        # optax keeps an injected number in the dtype of the parameters.
        np.testing.assert_allclose(a, e, rtol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), [("sgd", "bfloat16"), ("adam", "float32"), ("nadam", "bfloat16")])
def test_accumulation_begins_with_updates_of_zero(name: str, dtype: str) -> None:
    tx = optax.MultiSteps(made(name), every_k_schedule=4)
    params = jnp.asarray([1.0, 2.0], dtype)
    state = tx.init(params)
    found, update = [], jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(2 * params, state, params)
        assert updates.dtype == params.dtype
        found.append(bool(jnp.any(updates != 0)))
    assert found == [False, False, False, True]


def test_a_chain_clips_before_the_step() -> None:
    params, grads = jnp.asarray([0.0, 0.0]), jnp.asarray([30.0, 40.0])
    tx = optax.chain(optax.clip_by_global_norm(1.0), portopt_jax.to_optax(portopt.SGD(1.0, dialect="optax")))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "nadam"])
def test_masked_and_partitioned_parameters_have_the_bits_of_separate_ones(name: str) -> None:
    tx, params = made(name), tree(START)
    grads = tree({"parabola": [0.3, -2.0, 5.0], "rosenbrock": [7.0, -1.0]})

    def alone(part: str) -> Any:
        return tx.update({part: grads[part]}, tx.init({part: params[part]}), {part: params[part]})[0][part]

    masked = optax.masked(tx, {"parabola": True, "rosenbrock": False})
    updates, _ = masked.update(grads, masked.init(params), params)
    assert_same_trees(updates, {"parabola": alone("parabola"), "rosenbrock": grads["rosenbrock"]})
    labels = {"parabola": "ours", "rosenbrock": "frozen"}
    for several in (optax.partition, optax.multi_transform):
        parts = several({"ours": tx, "frozen": optax.set_to_zero()}, labels)
        updates, _ = parts.update(grads, parts.init(params), params)
        zeros = jnp.zeros_like(params["rosenbrock"])
        assert_same_trees(updates, {"parabola": alone("parabola"), "rosenbrock": zeros})
        both = several({"a": tx, "b": tx}, {"parabola": "a", "rosenbrock": "b"})
        updates, _ = both.update(grads, both.init(params), params)
        assert_same_trees(updates, {part: alone(part) for part in params})


@each_way
def test_a_step_that_is_not_finite_is_left_out_until_there_are_too_many(jit: bool) -> None:
    tx = optax.apply_if_finite(made("adam"), max_consecutive_errors=2)
    params = jnp.asarray([1.0, 2.0])
    state = tx.init(params)
    update = jax.jit(tx.update) if jit else tx.update
    moved = []
    for gradient in (1.0, jnp.inf, jnp.nan, jnp.nan, 1.0):
        updates, state = update(jnp.full(2, gradient), state, params)
        moved.append(bool(jnp.any(updates != 0)))
    assert moved == [True, False, False, True, True]


def test_slots_are_found_by_name_in_the_state() -> None:
    params = tree(START)
    tx = optax.chain(optax.clip(1.0), made("adam"))
    state = tx.init(params)
    assert_same_trees(optax.tree_utils.tree_get(state, "m"), jax.tree.map(jnp.zeros_like, params))
    assert int(optax.tree_utils.tree_get(state, "count")) == 0
    state = optax.tree_utils.tree_set(state, count=jnp.asarray(7, jnp.int32))
    assert int(optax.tree_utils.tree_get(state, "count")) == 7


@pytest.mark.parametrize("slot_dtype", ["float16", "bfloat16", "float32"])
def test_slots_have_the_dtype_that_is_asked_for(slot_dtype: str) -> None:
    params = jnp.asarray([0.0, 0.0], jnp.bfloat16)
    tx = portopt_jax.to_optax(rule("adam"), slot_dtype=slot_dtype)
    assert optax.tree_utils.tree_get(tx.init(params), "m").dtype == jnp.dtype(slot_dtype)


@each
def test_complex_parameters_are_refused(name: str) -> None:
    params = jnp.asarray([1 + 1j, 2 - 1j])
    with pytest.raises(TypeError, match=r"params has dtype complex64.*float16, bfloat16, float32"):
        made(name).init(params)


@each
def test_the_first_steps_agree_with_those_of_optax(name: str) -> None:
    theirs = getattr(optax, name.split()[0])(**{n: v for n, v in OPTIMIZERS[name][1].items() if n != "amsgrad"})
    found = []
    for tx in (made(name), theirs):
        carry = (tree(START), tx.init(tree(START)))
        step = jax.jit(stepping(tx))
        for _ in range(20):
            carry = step(carry)
        found.append(carry[0])
    for ours, native in zip(*map(jax.tree.leaves, found), strict=True):
        # optax computes its coefficients in float32.
        np.testing.assert_allclose(ours, native, rtol=2e-4, atol=2e-5)
