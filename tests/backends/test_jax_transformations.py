"""`apply` under JAX's transformations: jit, scan, vmap, grad, donation; x64 on and off; strict promotion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.bits import assert_same_bits, ordinary, random_words
from support.conditional_rule import Conditional, expected_slots
from support.elementwise import ELEMENTWISE
from support.jax_evaluation import each_x64
from support.jax_trees import assert_same_trees
from support.processes import run_python, started_python
from support.turns import in_turn, in_turns, rules_in_turn

import portopt
import portopt_jax
from portopt import OptimizerState
from portopt_jax._kernel import without_kernels

KINDS = (portopt.SGD, portopt.Adam, portopt.Nadam)
"""Rules without and with slots, and with a scalar of the state. A rule decides nothing about what JAX does around a step."""


def each_rule_and_x64(turn: int) -> pytest.MarkDecorator:
    """Return the rules whose turn it is, and those of each kind with x64 off and on."""
    return pytest.mark.parametrize(
        ("rule", "x64"), in_turns(rules_in_turn(ELEMENTWISE, turn, always=KINDS), (False, True), in_all=KINDS)
    )


def tree(seed: int, make: Any = ordinary, dtype: str = "float32") -> dict[str, Any]:
    return {"a": jnp.asarray(make((4, 3), dtype, seed)), "b": jnp.asarray(make((5,), dtype, seed + 50))}


def trained(optimizer: portopt.Optimizer, steps: int = 3) -> tuple[Any, OptimizerState]:
    params = tree(1)
    state = optimizer.init(params)
    for i in range(steps):
        params, state = optimizer.apply(params, tree(10 + i), state)
    return params, state


# jit and scan


@each_rule_and_x64(0)
def test_jit_gives_the_bits_of_an_eager_step(rule: type[portopt.Optimizer], x64: bool) -> None:
    optimizer = rule(learning_rate=0.1, clipnorm=1.0, clipvalue=0.3)
    with jax.enable_x64(x64):
        step = jax.jit(optimizer.apply)
        params = expected = tree(1, random_words)
        state = expected_state = optimizer.init(params)
        for i in range(3):
            make = random_words if i else ordinary
            params, state = step(params, tree(10 + i, make), state)
            expected, expected_state = optimizer.apply(expected, tree(10 + i, make), expected_state)
        assert_same_trees((params, state), (expected, expected_state))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree_util.tree_leaves(params))


def test_one_jit_may_hold_several_steps() -> None:
    optimizer = portopt.Adam(0.1, clipnorm=1.0)

    @jax.jit
    def three(params: Any, state: Any) -> Any:
        for i in range(3):
            params, state = optimizer.apply(params, tree(10 + i), state)
        return params, state

    params = tree(1)
    assert_same_trees(three(params, optimizer.init(params)), trained(optimizer))


def test_init_works_inside_jit() -> None:
    for optimizer in (portopt.Adam(0.1), portopt.Nadam(0.1)):
        params = tree(1)

        @jax.jit
        def first(params: Any, grads: Any, optimizer: portopt.Optimizer = optimizer) -> Any:
            return optimizer.apply(params, grads, optimizer.init(params))

        assert_same_trees(first(params, tree(10)), trained(optimizer, 1))


@each_rule_and_x64(1)
def test_scan_carries_parameters_and_state(rule: type[portopt.Optimizer], x64: bool) -> None:
    optimizer = rule(learning_rate=0.1)
    with jax.enable_x64(x64):
        params = tree(1)
        gradients = jax.tree_util.tree_map(lambda *steps: jnp.stack(steps), *(tree(10 + i) for i in range(3)))

        def body(carry: Any, grads: Any) -> Any:
            return optimizer.apply(carry[0], grads, carry[1]), carry[1].step

        final, counted = lax.scan(body, (params, optimizer.init(params)), gradients)
        assert counted.tolist() == [0, 1, 2]
        assert_same_trees(final, trained(optimizer))


def test_loops_and_branches() -> None:
    optimizer = portopt.Adam(0.1)
    params = tree(1)

    def body(carry: Any) -> Any:
        params, state = carry
        return optimizer.apply(params, tree(10), state)

    start = (params, optimizer.init(params)._replace(step=jnp.asarray(0)))
    looped = lax.while_loop(lambda carry: carry[1].step < 3, body, start)
    expected = start
    for _ in range(3):
        expected = optimizer.apply(expected[0], tree(10), expected[1])
    assert_same_trees(looped, expected)

    chosen = jax.jit(lambda run, carry: lax.cond(run, body, lambda carry: carry, carry))
    assert_same_trees(chosen(True, start), body(start))
    assert_same_trees(chosen(False, start), start)


@pytest.mark.parametrize("known", ["params", "grads", "state"])
def test_arrays_from_outside_may_meet_traced_ones(known: str) -> None:
    optimizer = portopt.Adam(0.1, clipnorm=1.0)
    given: dict[str, Any] = {"params": tree(1), "grads": tree(10), "state": optimizer.init(tree(1))}
    traced = {name: value for name, value in given.items() if name != known}
    step = jax.jit(lambda traced: optimizer.apply(**{known: given[known], **traced}))
    assert_same_trees(step(traced), optimizer.apply(**given))


@pytest.mark.parametrize("rule", rules_in_turn(ELEMENTWISE, 2, always=KINDS))
def test_everything_but_the_learning_rate_may_come_from_outside(rule: type[portopt.Optimizer]) -> None:
    """All arrays are constants of the compiled step then, and a compiler may rewrite arithmetic with what it knows."""
    optimizer = rule(clipnorm=1.0)
    params = jnp.asarray(ordinary((500,), "float32", 1))
    state = optimizer.init(params)
    for i in range(3):
        grads = jnp.asarray(ordinary((500,), "float32", 10 + i))
        params, state = optimizer.apply(params, grads, state)
    rate = jnp.asarray(0.3, jnp.float32)
    actual = jax.jit(lambda rate: optimizer.apply(params, grads, state, learning_rate=rate))(rate)
    assert_same_trees(actual, optimizer.apply(params, grads, state, learning_rate=rate))


def test_shapes_are_known_without_computing() -> None:
    optimizer = portopt.Nadam()
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    state = jax.eval_shape(optimizer.init, params)
    assert state.slots["m"]["w"].shape == (2, 3)
    assert state.slots["m"]["w"].dtype == jnp.float32
    new, new_state = jax.eval_shape(optimizer.apply, params, params, state)
    assert (new["w"].shape, new["w"].dtype) == ((2, 3), jnp.bfloat16)
    assert new_state.slots["m_schedule"].shape == (2,)


def test_steps_work_without_jit() -> None:
    optimizer = portopt.Adam(0.1)
    with jax.disable_jit():
        assert_same_trees(trained(optimizer, 1), trained(optimizer, 1))
        disabled = jax.jit(optimizer.apply)(tree(1), tree(10), optimizer.init(tree(1)))
    assert_same_trees(disabled, trained(optimizer, 1))


@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam])
@pytest.mark.filterwarnings("error")
def test_arguments_may_be_donated(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(learning_rate=0.1, clipnorm=1.0)
    step = jax.jit(optimizer.apply, donate_argnums=(0, 2))
    params = tree(1)
    state = optimizer.init(params)
    for i in range(3):
        before = params
        params, state = step(params, tree(10 + i), state)
        assert all(leaf.is_deleted() for leaf in jax.tree_util.tree_leaves(before))
    assert_same_trees((params, state), trained(optimizer))


# vmap


@pytest.mark.parametrize("rule", KINDS)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_vmap_over_parameters_gives_the_bits_of_each(rule: type[portopt.Optimizer], jit: bool) -> None:
    optimizer = rule(learning_rate=0.1, clipnorm=1.0)
    lanes = 3
    params = [tree(seed) for seed in range(lanes)]
    grads = [tree(100 + seed) for seed in range(lanes)]

    def stacked(trees: list[Any]) -> Any:
        return jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *trees)

    axes = OptimizerState(
        None, {name: None if name in optimizer.scalar_slots else 0 for name in optimizer.init(params[0]).slots}
    )
    step = jax.vmap(optimizer.apply, in_axes=(0, 0, axes), out_axes=(0, axes))
    run: Callable[..., Any] = jax.jit(step) if jit else step
    batch = stacked(params)
    state = optimizer.init(batch)
    for _ in range(2):
        batch, state = run(batch, stacked(grads), state)
    for lane in range(lanes):
        expected, expected_state = params[lane], optimizer.init(params[lane])
        for _ in range(2):
            expected, expected_state = optimizer.apply(expected, grads[lane], expected_state)
        assert_same_trees(jax.tree_util.tree_map(lambda x, lane=lane: x[lane], batch), expected)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@each_x64
def test_vmap_over_learning_rates_gives_the_bits_of_each(x64: bool, jit: bool) -> None:
    optimizer = portopt.Adam(clipnorm=1.0)
    with jax.enable_x64(x64):
        params, state = trained(optimizer)
        rates = jnp.asarray([0.0, 1e-3, 0.1, 0.3], jnp.float32)
        step = jax.vmap(lambda rate: optimizer.apply(params, tree(20), state, learning_rate=rate)[0])
        run: Callable[..., Any] = jax.jit(step) if jit else step
        results = run(rates)
        for lane, rate in enumerate(rates.tolist()):
            expected, _ = optimizer.apply(params, tree(20), state, learning_rate=rate)
            assert_same_trees(jax.tree_util.tree_map(lambda x, lane=lane: x[lane], results), expected)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@each_x64
def test_conditions_of_scalars_choose_between_arrays_in_each_lane(x64: bool, jit: bool) -> None:
    p, g = np.asarray([1.0, -2.0], np.float32), np.asarray([-0.5, 3.0], np.float32)
    optimizer = Conditional()
    with jax.enable_x64(x64):
        state = optimizer.init(jnp.asarray(p))
        finished, rates = np.asarray([0, 0, 1, 1, 2], np.int32), [0.25, 0.0625, 0.25, 0.0625, 0.0625]

        def step(done: Any, rate: Any) -> Any:
            given = portopt.OptimizerState(done, state.slots)
            return optimizer.apply(jnp.asarray(p), jnp.asarray(g), given, learning_rate=rate)[1].slots

        lanes: Callable[..., Any] = jax.jit(jax.vmap(step)) if jit else jax.vmap(step)
        slots = lanes(jnp.asarray(finished), jnp.asarray(rates, jnp.float32))
        for lane, rate in enumerate(rates):
            for name, expected in expected_slots(p, g, int(finished[lane]) + 1, rate).items():
                assert_same_bits(np.asarray(slots[name][lane]), expected, f"{name} {lane}")


def test_vmap_over_every_hyperparameter() -> None:
    optimizer = portopt.Nadam(clipnorm=1.0, clipvalue=1.0)
    params, state = trained(optimizer)
    names = optimizer.numeric_hyperparameters()
    values = jnp.asarray([0.25, 0.5], jnp.float32)
    step = jax.vmap(lambda x: optimizer.apply(params, tree(20), state, **dict.fromkeys(names, x))[0])
    run: Callable[..., Any] = step
    results = run(values)
    for lane, value in enumerate(values.tolist()):
        expected, _ = optimizer.apply(params, tree(20), state, **dict.fromkeys(names, value))
        assert_same_trees(jax.tree_util.tree_map(lambda x, lane=lane: x[lane], results), expected)


# grad


def difference(function: Callable[[float], Any], x: float, h: float = 1e-6) -> float:
    return (float(function(x + h)) - float(function(x - h))) / (2 * h)


def loss(params: Any) -> Any:
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree_util.tree_leaves(params))


CONFIGURATIONS = [
    portopt.SGD(0.1),
    portopt.SGD(0.1, momentum=0.9, nesterov=True, decay=0.01),
    portopt.RMSprop(0.1),
    portopt.Adagrad(0.1),
    portopt.Adadelta(1.0, epsilon=1e-2),
    portopt.Adam(0.1, amsgrad=True),
    portopt.Adam(0.1, clipnorm=0.5),
    portopt.Adam(0.1, clipvalue=0.3),
    portopt.Adamax(0.1),
    portopt.Nadam(0.1),
]
each_configuration = pytest.mark.parametrize("optimizer", in_turn(CONFIGURATIONS, 0, 2), ids=repr)


def data64() -> tuple[Any, list[Any]]:
    return tree(1, dtype="float64"), [tree(10 + i, dtype="float64") for i in range(3)]


@each_configuration
def test_gradient_with_respect_to_the_learning_rate(optimizer: portopt.Optimizer) -> None:
    """Through two steps, against a central difference in float64."""
    with jax.enable_x64(True):
        params, gradients = data64()

        def final(rate: Any) -> Any:
            p, state = params, optimizer.init(params)
            for grads in gradients[:2]:
                p, state = optimizer.apply(p, grads, state, learning_rate=rate)
            return loss(p)

        exact = float(jax.jit(jax.grad(final))(0.1))
        assert exact == pytest.approx(difference(final, 0.1), rel=1e-6)
        if optimizer.clipnorm is not None:
            assert float(jax.grad(final)(0.1)) == pytest.approx(exact, rel=1e-12)


@each_configuration
@pytest.mark.parametrize("what", ["grads", "params"])
def test_gradient_with_respect_to_arrays(what: str, optimizer: portopt.Optimizer) -> None:
    """The derivative along a random direction, against a central difference in float64."""
    with jax.enable_x64(True):
        params, gradients = data64()
        p, state = optimizer.apply(params, gradients[0], optimizer.init(params))
        given = {"params": p, "grads": gradients[1]}
        direction = tree(77, dtype="float64")

        def final(tree: Any) -> Any:
            return loss(optimizer.apply(**{**given, what: tree}, state=state)[0])

        def along(x: float) -> float:
            return float(final(jax.tree_util.tree_map(lambda leaf, d: leaf + x * d, given[what], direction)))

        gradient = jax.grad(final)(given[what])
        products = jax.tree_util.tree_map(lambda g, d: jnp.sum(g * d), gradient, direction)
        exact = float(sum(jax.tree_util.tree_leaves(products)))
        assert exact == pytest.approx(difference(along, 0.0), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("zero", [0.0, -0.0], ids=str)
def test_gradient_where_a_gradient_and_its_slot_are_zero(zero: float, jit: bool) -> None:
    """What becomes zero because it is subnormal must not cost zeros their derivative."""
    optimizer = portopt.SGD(0.5, momentum=0.5)
    params = jnp.asarray([1.0, 2.0], jnp.float32)

    def final(grads: Any) -> Any:
        p, state = optimizer.apply(params, grads, optimizer.init(params))
        return optimizer.apply(p, grads, state)[0].sum()

    derivative = jax.grad(final)
    result = (jax.jit(derivative) if jit else derivative)(jnp.asarray([zero, 1.0], jnp.float32))
    assert result.tolist() == [-1.25, -1.25]


def test_gradient_with_respect_to_other_hyperparameters() -> None:
    with jax.enable_x64(True):
        params, gradients = data64()
        for optimizer, name, x in (
            (portopt.Adam(0.1), "beta_1", 0.9),
            (portopt.Adam(0.1), "beta_2", 0.99),
            (portopt.Adam(0.1), "epsilon", 1e-2),
            (portopt.SGD(0.1, momentum=0.5), "momentum", 0.5),
            (portopt.SGD(0.1, clipnorm=0.5), "clipnorm", 0.5),
            (portopt.SGD(0.1, clipvalue=0.5), "clipvalue", 0.5),
            (portopt.Nadam(0.1), "epsilon", 1e-2),
        ):

            def final(value: Any, optimizer: portopt.Optimizer = optimizer, name: str = name) -> Any:
                p, state = params, optimizer.init(params)
                for grads in gradients[:2]:
                    p, state = optimizer.apply(p, grads, state, **{name: value})
                return loss(p)

            exact = float(jax.grad(final)(x))
            assert exact == pytest.approx(difference(final, x), rel=1e-5), name


@pytest.mark.parametrize(("name", "x"), [("schedule_decay", 0.01), ("beta_1", 0.9), ("beta_2", 0.99)])
def test_gradient_of_one_step_with_respect_to_the_momentum_schedule(name: str, x: float) -> None:
    """One step only: the scalar of the state goes to the next one as integer words, which carry no derivative."""
    with jax.enable_x64(True):
        optimizer = portopt.Nadam(0.1)
        params, gradients = data64()
        params, state = optimizer.apply(params, gradients[0], optimizer.init(params))

        def final(value: Any) -> Any:
            return loss(optimizer.apply(params, gradients[1], state, **{name: value})[0])

        assert float(jax.grad(final)(x)) == pytest.approx(difference(final, x), rel=1e-5)


def test_gradient_works_in_float32_without_x64() -> None:
    optimizer = portopt.Adam(0.1, clipnorm=1.0)
    params, state = trained(optimizer)

    def final(rate: Any) -> Any:
        return loss(optimizer.apply(params, tree(20), state, learning_rate=rate)[0])

    exact = jax.grad(final)(0.1)
    assert exact.dtype == jnp.float32
    assert float(exact) == pytest.approx(difference(final, 0.1, 1e-2), rel=1e-2)


CLIPPED_AND_NADAM = [
    portopt.SGD(0.1, clipnorm=0.5),
    portopt.Adam(0.1, clipnorm=0.5),
    portopt.Nadam(0.1, clipnorm=0.5),
    portopt.Nadam(0.1),
]


def moved(optimizer: portopt.Optimizer, x: Any, dtype: str = "float32") -> Any:
    """Return what two scanned steps give with gradients that depend on x."""
    params, gradients = tree(1, dtype=dtype), [tree(10 + i, dtype=dtype) for i in range(2)]
    state = optimizer.init(params)._replace(step=jnp.asarray(0, jnp.int32))

    def body(carry: Any, grads: Any) -> Any:
        return optimizer.apply(carry[0], jax.tree.map(lambda g: g + x * g * g, grads), carry[1]), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    return loss(lax.scan(jax.checkpoint(body), (params, state), stacked)[0][0])


@pytest.mark.parametrize(
    ("optimizer", "derivative", "dtype"),
    [
        (CLIPPED_AND_NADAM[0], jax.grad, "float64"),
        (CLIPPED_AND_NADAM[0], jax.grad, "float32"),
        (CLIPPED_AND_NADAM[0], jax.jacfwd, "float32"),
        # A scalar of the state is seconds to compile, in each of these.
        (CLIPPED_AND_NADAM[-1], jax.grad, "float32"),
    ],
    ids=("SGD-x64", "SGD", "SGD-forward", "Nadam"),
)
def test_gradient_through_scan_and_checkpoint_is_the_same_without_x64(
    optimizer: portopt.Optimizer, derivative: Callable[..., Any], dtype: str
) -> None:
    with jax.enable_x64(True):
        expected = difference(jax.jit(lambda x: moved(optimizer, x, "float64")), 0.0)
    with jax.enable_x64(dtype == "float64"):
        found = float(jax.jit(derivative(lambda x: moved(optimizer, x, dtype)))(jnp.asarray(0.0, dtype)))
    assert found == pytest.approx(expected, rel=1e-6 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("optimizer", in_turn([portopt.Adam(0.1), *CLIPPED_AND_NADAM], 0, 2), ids=repr)
def test_gradients_of_zero_have_a_derivative(optimizer: portopt.Optimizer) -> None:
    """Neither a root nor a norm has one at zero, but a step does."""
    params = jnp.asarray([1.0, 2.0], jnp.float32)

    def final(grads: Any) -> Any:
        return optimizer.apply(params, grads, optimizer.init(params))[0].sum()

    derivative = jax.grad(final)
    for zeros in (jnp.zeros(2), jnp.asarray([0.0, 1e-3])):
        found = derivative(zeros)
        assert jnp.isfinite(found).all(), found
        assert found[0] < 0


def test_plain_descent_has_the_gradient_that_one_computes_by_hand() -> None:
    optimizer = portopt.SGD(0.25)
    p, g = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 5.0])
    state = optimizer.init(p)
    by_rate = jax.grad(lambda rate: optimizer.apply(p, g, state, learning_rate=rate)[0].sum())(0.25)
    assert float(by_rate) == -8.0
    assert jax.grad(lambda g: optimizer.apply(p, g, state)[0].sum())(g).tolist() == [-0.25, -0.25]
    assert jax.grad(lambda p: optimizer.apply(p, g, state)[0].sum())(p).tolist() == [1.0, 1.0]


# The state


@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam])
def test_state_goes_from_jit_to_eager_and_back(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(learning_rate=0.1)
    step = jax.jit(optimizer.apply)
    params = tree(1)
    state = optimizer.init(params)
    applies: list[Callable[..., Any]] = [optimizer.apply, step, optimizer.apply, step]
    for i, apply in enumerate(applies):
        params, state = apply(params, tree(10 + i), state)
    assert_same_trees((params, state), trained(optimizer, 4))


@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam])
def test_state_goes_through_host_memory(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(learning_rate=0.1)
    params, state = trained(optimizer, 2)
    restored = jax.tree_util.tree_map(jnp.asarray, jax.device_get((params, state)))
    assert_same_trees(optimizer.apply(restored[0], tree(12), restored[1]), trained(optimizer, 3))


def test_scalar_of_the_state_keeps_its_64_bits_without_x64() -> None:
    optimizer = portopt.Nadam(beta_1=0.9)
    _, state = trained(optimizer, 3)
    host = {name: np.asarray(leaf) for name, leaf in tree(1).items()}
    host_state = optimizer.init(host)
    for i in range(3):
        host, host_state = optimizer.apply(host, {k: np.asarray(v) for k, v in tree(10 + i).items()}, host_state)
    words = np.asarray(state.slots["m_schedule"])
    assert words.dtype == np.uint32
    assert words.shape == (2,)
    assert float(words.view(np.float64)[0]) == host_state.slots["m_schedule"]
    assert portopt.get_backend("jax").scalar(state.slots["m_schedule"]) == host_state.slots["m_schedule"]


def test_scalar_of_the_state_may_be_a_python_float() -> None:
    optimizer = portopt.Nadam(0.1)
    params, state = trained(optimizer, 2)
    value = portopt.get_backend("jax").scalar(state.slots["m_schedule"])
    plain = state._replace(slots={**state.slots, "m_schedule": value})
    assert_same_trees(optimizer.apply(params, tree(12), plain), trained(optimizer, 3))


@each_x64
def test_step_keeps_its_dtype(x64: bool) -> None:
    optimizer = portopt.Adam()
    with jax.enable_x64(x64):
        for dtype in (jnp.int32, jnp.uint8) + ((jnp.int64,) if x64 else ()):
            state = optimizer.init(tree(1))._replace(step=jnp.asarray(5, dtype))
            new = jax.jit(optimizer.apply)(tree(1), tree(10), state)
            assert (new[1].step.dtype, int(new[1].step)) == (dtype, 6)
            assert_same_trees(new, optimizer.apply(tree(1), tree(10), state._replace(step=5)))


@each_x64
def test_a_python_step_is_compiled_once(x64: bool) -> None:
    compiled: list[str] = []
    optimizer = portopt.Nadam()

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    with jax.enable_x64(x64):
        params = tree(1)
        state, step = optimizer.init(params), jax.jit(lambda *arguments: optimizer.apply(*arguments))
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            for _ in range(3):
                params, state = step(params, params, state)
            step(params, params, optimizer.init(params))
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1


@pytest.mark.parametrize("kernels", [True, False])
@each_x64
def test_steps_beyond_what_jax_counts_are_the_last_that_it_counts(kernels: bool, x64: bool) -> None:
    last = 2**31 - 1
    optimizer, params = portopt.Adam(), tree(1)
    context = contextlib.nullcontext if kernels else without_kernels
    with jax.enable_x64(x64), context():
        step = jax.jit(lambda *arguments: optimizer.apply(*arguments))
        state = optimizer.init(params)
        expected = step(params, tree(10), state._replace(step=jnp.asarray(last - 1, jnp.int32)))
        assert expected[1].step == last
        assert_same_trees(step(params, tree(10), state._replace(step=jnp.asarray(last, jnp.int32))), expected)
        if x64:
            beyond = step(params, tree(10), state._replace(step=jnp.asarray(2**40)))
            assert beyond[1].step == 2**40 + 1
            assert_same_trees((beyond[0], beyond[1].slots), (expected[0], expected[1].slots))


def test_a_known_step_beyond_what_jax_counts_is_refused() -> None:
    optimizer, params = portopt.Adam(), tree(1)
    state = optimizer.init(params)._replace(step=2**31 - 1)
    with pytest.raises(
        ValueError, match=r"state.step must be at most 2147483646 before a step, but 2147483647 was given"
    ):
        optimizer.apply(params, params, state)


# Descriptions and exports

description: Any = jax.ShapeDtypeStruct


def test_init_describes_the_state_of_described_parameters() -> None:
    optimizer, params = portopt.Nadam(), {**tree(1), "half": jnp.ones(3, jnp.bfloat16)}
    described = jax.tree.map(lambda leaf: description(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    state, found = optimizer.init(params), optimizer.init(described)
    assert found.step == 0
    for name in optimizer.slots:
        for leaf, wanted in zip(jax.tree.leaves(found.slots[name]), jax.tree.leaves(state.slots[name]), strict=True):
            assert isinstance(leaf, jax.ShapeDtypeStruct)
            assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)
    compiled = jax.jit(optimizer.apply).lower(described, described, found).compile()
    assert_same_trees(compiled(params, params, state), optimizer.apply(params, params, state))


@pytest.mark.parametrize("optimizer", [portopt.Adam(), portopt.Adam(clipnorm=1.0)], ids=repr)
def test_a_step_on_described_parameters_is_refused_with_the_remedy(optimizer: portopt.Optimizer) -> None:
    params = tree(1)
    described = jax.tree.map(lambda leaf: description(leaf.shape, leaf.dtype), params)
    for given, state in ((described, optimizer.init(described)), (params, optimizer.init(params))):
        with pytest.raises(TypeError, match=r"a jax.ShapeDtypeStruct has shape and dtype, but no values.*eval_shape"):
            optimizer.apply(given, described, state)
    with pytest.raises(TypeError, match="no values"):
        optimizer.get_weights(optimizer.init(described))


CALL_EXPORTED = """
import pathlib, sys, jax, jax.numpy as jnp
import portopt_jax
called = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes())).call
params = {"w": jnp.arange(3.0)}
slots = {"m": {"w": jnp.zeros(3)}, "v": {"w": jnp.zeros(3)}}
params, state = called(params, params, sys.modules["portopt.optimizer"].OptimizerState(0, slots))
print(type(state).__name__, int(state.step), params["w"].tolist())
"""


def test_an_exported_step_is_read_by_another_process(tmp_path: Any) -> None:
    optimizer, params = portopt.Adam(0.5), {"w": jnp.arange(3.0)}
    state = optimizer.init(params)
    exported = jax.export.export(jax.jit(optimizer.apply))(params, params, state)
    (tmp_path / "step").write_bytes(exported.serialize())
    run = started_python(CALL_EXPORTED, str(tmp_path / "step"))
    expected = optimizer.apply(params, params, state)[0]["w"].tolist()
    assert (run.stdout, run.stderr) == (f"OptimizerState 1 {expected}\n", "")


def test_an_exported_update_holds_its_state() -> None:
    tx, params = portopt_jax.to_optax(portopt.Adam(0.5)), {"w": jnp.arange(3.0)}
    exported = jax.export.export(jax.jit(tx.update))(params, tx.init(params), params)
    called: Any = jax.export.deserialize(exported.serialize()).call
    assert_same_trees(called(params, tx.init(params), params), tx.update(params, tx.init(params), params))


# Settings


@pytest.mark.parametrize("rule", KINDS)
def test_x64_changes_nothing_for_float32(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(learning_rate=0.1, clipnorm=1.0)
    results = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            step = jax.jit(optimizer.apply)
            results.append(step(tree(1), tree(10), optimizer.init(tree(1))))
    assert_same_trees(results[1], results[0], any_integers=True)


SCRIPT = """
import hashlib
import jax, numpy as np, portopt
jax.config.update("jax_enable_x64", {x64})
digest = hashlib.sha256()
for rule in (portopt.Adam, portopt.Nadam):
    optimizer = rule(learning_rate=portopt.schedules.CosineDecay(0.1, steps=3), clipnorm=1.0)
    params = jax.numpy.asarray(np.linspace(-1, 1, 7, dtype=np.float32))
    state = optimizer.init(params)
    step = jax.jit(optimizer.apply)
    for _ in range(3):
        params, state = step(params, params * 3, state)
    assert params.dtype == "float32"
    digest.update(np.asarray(params).tobytes())
    for name in optimizer.slots:
        digest.update(np.asarray(state.slots[name]).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_x64_for_a_whole_process_changes_nothing_for_float32() -> None:
    digests = {run_python(SCRIPT.format(x64=x64)) for x64 in (False, True)}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


@pytest.mark.parametrize(
    ("rule", "dtype", "jit"),
    [
        (rule, dtype, jit)
        for rule, dtype in in_turns(rules_in_turn(ELEMENTWISE, 3, always=KINDS), ("float32", "bfloat16", "float64"))
        for jit in ((False, True) if rule in KINDS else (True,))
    ],
)
def test_strict_promotion_is_respected(rule: type[portopt.Optimizer], dtype: str, jit: bool) -> None:
    optimizer = rule(
        learning_rate=portopt.schedules.CosineDecay(0.1, steps=3, warmup_steps=2), clipnorm=1.0, clipvalue=0.5
    )
    with jax.enable_x64(dtype == "float64"):
        params, grads = tree(1, dtype=dtype), tree(10, dtype=dtype)
        expected = optimizer.apply(params, grads, optimizer.init(params))
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            apply = jax.jit(optimizer.apply) if jit else optimizer.apply
            assert_same_trees(apply(params, grads, optimizer.init(params)), expected)
