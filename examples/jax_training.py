"""Train a small network with JAX: a jitted step, the learning rate as an input, and the whole loop as one scan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import portopt

optimizer = portopt.Adam(learning_rate=portopt.schedules.CosineDecay(0.05, steps=200, warmup_steps=10), clipnorm=1.0)

inputs = jax.random.normal(jax.random.key(0), (256, 8))
targets = jnp.tanh(inputs.sum(axis=1, keepdims=True))


def initial_parameters():
    first, second = jax.random.split(jax.random.key(1))
    return {
        "hidden": {"kernel": 0.3 * jax.random.normal(first, (8, 16)), "bias": jnp.zeros(16)},
        "output": {"kernel": 0.3 * jax.random.normal(second, (16, 1)), "bias": jnp.zeros(1)},
    }


def loss(params):
    hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["output"]["kernel"] + params["output"]["bias"] - targets) ** 2)


def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    return optimizer.apply(params, grads, state), value


def main():
    params = initial_parameters()
    state = optimizer.init(params)
    state = state._replace(step=jnp.asarray(state.step, jnp.int32))

    (trained, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200))((params, state))
    print(f"loss before: {losses[0]:.4f}, after 200 steps: {losses[-1]:.6f}")
    assert losses[-1] < 0.05 * losses[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))


if __name__ == "__main__":
    main()
