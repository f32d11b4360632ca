"""Eager steps on JAX arrays as calls of one compiled function: when it is compiled, and that nobody can tell the difference."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.jax_trees import assert_same_trees
from support.processes import run_python

import portopt
from portopt_jax import _plan
from portopt_jax._kernel import without_kernels
from portopt_jax._scalars import JaxArithmetic


def tree(seed: int, shape: tuple[int, ...] = (3, 4), dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.standard_normal(shape), dtype),
        "b": (jnp.asarray(rng.standard_normal(5), "bfloat16"), None),
    }


def on_host(trees: Any) -> Any:
    return jax.tree.map(np.asarray, trees)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows whenever a step is traced."""
    found: list[str] = []

    def arithmetic(witness: Any) -> JaxArithmetic:
        found.append("trace")
        return JaxArithmetic(witness)

    monkeypatch.setattr(_plan, "JaxArithmetic", arithmetic)
    _plan.compiled.cache_clear()
    return found


def test_new_steps_values_schedules_and_optimizers_compile_nothing(traces: list[str]) -> None:
    params, grads = tree(0), tree(1)
    optimizers = [portopt.Adam(0.1, clipnorm=0.5), portopt.Adam(0.2, beta_1=0.5, clipnorm=0.1)]
    optimizers.append(portopt.Adam(portopt.schedules.InverseTimeDecay(0.1, 10, 0.5), clipnorm=1.0))
    for count, optimizer in enumerate(optimizers):
        state = optimizer.init(params)
        for _ in range(3):
            params, state = optimizer.apply(params, grads, state)
            # Values that are always the same are kept as one array, others are passed on as words.
            assert len(traces) <= (1 if count < 2 else 2)
    for rate in (0.1, 0.2):
        optimizers[0].apply(params, grads, optimizers[0].init(params), learning_rate=rate)
    assert len(traces) == 2


def test_a_first_step_compiles_what_all_steps_run_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = portopt.get_backend("jax")
    for name in ("_update_compiled", "_compiled_norm"):
        monkeypatch.setattr(backend, name, lambda *arguments: pytest.fail("something else was run"), raising=False)
    optimizer, params = portopt.Nadam(0.1, clipnorm=1.0), tree(0)
    host, host_state = on_host(params), optimizer.init(on_host(params))
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.apply(params, params, state)
        host, host_state = optimizer.apply(host, host, host_state)
        assert_same_trees(params, host)


@pytest.mark.parametrize(
    "optimizer",
    [
        portopt.SGD(0.1, momentum=0.9),
        portopt.Nadam(clipnorm=0.5),
        portopt.LAMB(clipnorm=1.0),
        portopt.NoisySGD(),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_steps_on_other_trees_shapes_and_dtypes_have_the_bits_of_the_host(optimizer: portopt.Optimizer) -> None:
    cases = [tree(0), tree(2, (4, 3), "float16"), list(tree(4)["b"]), tree(5)]
    for params in cases:
        grads: Any = jax.tree.map(lambda x: 3 * x, params)
        host, host_grads = on_host(params), on_host(grads)
        state, host_state = optimizer.init(params), optimizer.init(host)
        for given in ({}, {"learning_rate": 0.05}, {"learning_rate": 0.5}, {}):
            params, state = optimizer.apply(params, grads, state, **given)
            host, host_state = optimizer.apply(host, host_grads, host_state, **given)
            assert_same_trees(params, host)
            assert state.step == host_state.step
            assert list(state.slots) == list(host_state.slots)


def test_parameters_without_a_gradient_and_their_slots_stay_the_same_objects() -> None:
    optimizer, params = portopt.Nadam(clipnorm=0.1), tree(0)
    grads = {"w": None, "b": tree(1)["b"]}
    state = optimizer.init(params)
    host, host_state = on_host(params), optimizer.init(on_host(params))
    for _ in range(3):
        new, new_state = optimizer.apply(params, grads, state)
        host, host_state = optimizer.apply(host, on_host(grads), host_state)
        assert new["w"] is params["w"]
        assert new_state.slots["m"]["w"] is state.slots["m"]["w"]
        assert_same_trees(new, host)
        params, state = new, new_state


def test_further_inputs_are_passed_on_where_there_are_any() -> None:
    optimizer, params = portopt.SophiaG(), tree(0)
    hessian = jax.tree.map(jnp.abs, params)
    state, host, host_state = optimizer.init(params), on_host(params), optimizer.init(on_host(params))
    for given in (hessian, hessian, None, hessian):
        params, state = optimizer.apply(params, hessian, state, hessian=given)
        host, host_state = optimizer.apply(host, on_host(hessian), host_state, hessian=on_host(given))
        assert_same_trees(params, host)


def test_what_does_not_fit_is_refused_as_in_the_first_step() -> None:
    optimizer, params = portopt.Adam(), tree(0)
    state = optimizer.init(params)
    for _ in range(2):
        with pytest.raises(TypeError, match=r'grads\["w"\] is an array of numpy, but params\["w"\] has arrays of jax'):
            optimizer.apply(params, {**params, "w": np.ones((3, 4), np.float32)}, state)
        with pytest.raises(ValueError, match=r'grads\["w"\] has shape \(4, 3\), but params\["w"\] has shape \(3, 4\)'):
            optimizer.apply(params, {**params, "w": jnp.ones((4, 3))}, state)
        with pytest.raises(ValueError, match="learning_rate must be"):
            optimizer.apply(params, params, state, learning_rate=-1.0)
        optimizer.apply(params, params, state)
    gone = jax.tree.map(jnp.copy, params)
    gone["w"].delete()
    with pytest.raises(RuntimeError, match="deleted"):
        optimizer.apply(params, gone, state)


def test_a_given_norm_is_the_one_that_clips() -> None:
    optimizer, params = portopt.SGD(0.1, clipnorm=1.0), tree(0)
    state, host = optimizer.init(params), on_host(params)
    for norm in (None, None, 7.0, jnp.asarray(7.0), None):
        found, _ = optimizer.apply(params, params, state, gradient_norm=norm)
        assert_same_trees(found, optimizer.apply(host, host, optimizer.init(host), gradient_norm=norm)[0])


def test_kernels_that_are_switched_off_later_are_not_called(traces: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, params = portopt.Adam(), tree(0)
    state = optimizer.init(params)
    expected = [optimizer.apply(params, params, state)[0] for _ in range(2)][1]
    assert len(traces) == 1
    monkeypatch.setattr("portopt_jax._kernel.run", lambda *arguments, **kinds: pytest.fail("a kernel was called"))
    with without_kernels():
        found, _ = optimizer.apply(params, params, state)
    assert_same_trees(found, expected)
    assert len(traces) == 2


def test_a_step_inside_a_computation_leaves_nothing_of_it_behind() -> None:
    optimizer, params = portopt.Adam(clipnorm=1.0), tree(0)
    state = optimizer.init(params)
    expected, _ = optimizer.apply(params, params, state)
    inside = portopt.Adam(clipnorm=1.0)
    found = [
        jax.jit(lambda: [inside.apply(params, params, state)[0] for _ in range(2)][1])(),
        jax.vmap(lambda _: inside.apply(params, params, state)[0], out_axes=None)(jnp.ones(2)),
        inside.apply(params, params, state)[0],
    ]
    for of in found:
        assert_same_trees(of, expected)


def test_arrays_on_several_devices_stay_there_and_are_not_moved_silently() -> None:
    printed = run_python(
        """
        import jax, jax.numpy as jnp, portopt

        first, second = jax.devices()
        optimizer = portopt.Adam(clipnorm=1.0)
        for device in (None, second, first, second):
            p = jnp.ones(5) if device is None else jax.device_put(jnp.ones(5), device)
            new, state = optimizer.apply(p, p, optimizer.init(p))
            new, state = optimizer.apply(new, p, state)
            print(new.device == p.device, new.committed == p.committed, state.slots["m"].device == p.device)
        try:
            optimizer.apply(p, jnp.ones(5), optimizer.init(p))
        except ValueError as error:
            print(error)
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    ).splitlines()
    assert printed[:-1] == ["True True True"] * 4
    assert re.fullmatch(r"grads has device \S+0, but params has device \S+1; they must agree", printed[-1])
