"""The training loops of Flax NNX and Equinox with `portopt_jax.to_optax` in the place of an optax optimizer."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.bits import assert_same_bits, ordinary

import portopt
import portopt_jax

OPTIMIZER = portopt.Adam(0.05, clipnorm=1.0)
X = jnp.asarray(ordinary((16, 3), "float32", 1))
Y = jnp.sum(X, axis=1, keepdims=True)


def assert_same_leaves(actual: Any, expected: Any) -> None:
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    assert len(pairs) > 3
    for x, y in pairs:
        assert_same_bits(np.asarray(x), np.asarray(y))


class Network(nnx.Module):
    """Two layers, and statistics of a batch, which are no parameters."""

    def __init__(self, dtype: Any = jnp.float32) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 8, rngs=rngs, param_dtype=dtype)
        self.normalise = nnx.BatchNorm(8, rngs=rngs, param_dtype=dtype)
        self.second = nnx.Linear(8, 1, rngs=rngs, param_dtype=dtype)

    def __call__(self, x: Any) -> Any:
        return self.second(nnx.relu(self.normalise(self.first(x))))


def nnx_loss(model: Network) -> Any:
    return jnp.mean((model(X) - Y) ** 2)


@nnx.jit
def nnx_step(model: Network, optimizer: nnx.Optimizer[Any]) -> Any:
    loss, grads = nnx.value_and_grad(nnx_loss)(model)
    optimizer.update(model, grads)
    return loss, grads


def parameters(model: Network) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.parametrize(
    ("rule", "wrap"),
    [(portopt.Nadam(0.05), lambda tx: tx), (OPTIMIZER, lambda tx: optax.chain(optax.identity(), tx))],
    ids=["alone", "in a chain"],
)
def test_an_nnx_optimizer_takes_the_steps_of_apply(rule: portopt.Optimizer, wrap: Any) -> None:
    model = Network()
    optimizer = nnx.Optimizer(model, wrap(portopt_jax.to_optax(rule)), wrt=nnx.Param)
    expected = parameters(model)
    state = rule.init(expected)
    losses = []
    for _ in range(10):
        loss, grads = nnx_step(model, optimizer)
        losses.append(float(loss))
        expected, state = rule.apply(expected, nnx.to_pure_dict(grads), state)
        assert_same_leaves(parameters(model), expected)
    assert losses[-1] < losses[0] / 2
    assert int(optimizer.step.get_value()) == 10


def test_step_updates_an_nnx_model_in_bfloat16() -> None:
    model, tx = Network(jnp.bfloat16), portopt_jax.to_optax(OPTIMIZER)
    state = tx.init(nnx.state(model, nnx.Param))

    @nnx.jit
    def train(model: Network, state: Any) -> Any:
        grads = nnx.grad(nnx_loss)(model)
        params, state = portopt_jax.step(tx, nnx.state(model, nnx.Param), grads, state)
        nnx.update(model, params)
        return state, grads

    expected = parameters(model)
    expected_state = OPTIMIZER.init(expected)
    for _ in range(3):
        state, grads = train(model, state)
        expected, expected_state = OPTIMIZER.apply(expected, nnx.to_pure_dict(grads), expected_state)
        assert_same_leaves(parameters(model), expected)


def equinox_loss(model: Any) -> Any:
    return jnp.mean((jax.vmap(model)(X) - Y) ** 2)


equinox_gradients: Any = eqx.filter_value_and_grad(equinox_loss)


@pytest.mark.parametrize("by_step", [False, True], ids=["apply_updates", "step"])
def test_an_equinox_loop_takes_the_steps_of_apply(by_step: bool) -> None:
    model = eqx.nn.MLP(3, 1, 8, 1, key=jax.random.key(0))
    tx = portopt_jax.to_optax(OPTIMIZER)

    @eqx.filter_jit
    def train(model: Any, state: Any) -> Any:
        loss, grads = equinox_gradients(model)
        params, rest = eqx.partition(model, eqx.is_inexact_array)
        if by_step:
            params, state = portopt_jax.step(tx, params, grads, state)
            return eqx.combine(params, rest), state, loss, grads
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, loss, grads

    expected = eqx.filter(model, eqx.is_inexact_array)
    state, expected_state = tx.init(expected), OPTIMIZER.init(expected)
    losses = []
    for _ in range(10):
        model, state, loss, grads = train(model, state)
        losses.append(float(loss))
        expected, expected_state = OPTIMIZER.apply(expected, grads, expected_state)
        assert_same_leaves(eqx.filter(model, eqx.is_inexact_array), expected)
    assert losses[-1] < losses[0]


def test_a_whole_equinox_model_is_refused_with_the_remedy() -> None:
    model = eqx.nn.MLP(3, 1, 8, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"params\.activation is .*, which is no array; leave it out, or put None"):
        portopt_jax.to_optax(OPTIMIZER).init(model)
