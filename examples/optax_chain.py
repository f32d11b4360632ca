"""A portopt optimizer inside optax: after gradient transformations, for a part of the parameters, with a schedule of optax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

import portopt
import portopt_jax

inputs = jax.random.normal(jax.random.key(0), (128, 4))
targets = inputs @ jnp.asarray([[1.0], [-2.0], [0.5], [3.0]]) + 0.25

adam = optax.inject_hyperparams(portopt_jax.optax_factory(portopt.Adam(beta_2=0.99)))
tx = optax.partition(
    {
        "portopt": optax.chain(
            optax.clip_by_global_norm(5.0),
            adam(learning_rate=optax.exponential_decay(0.2, transition_steps=50, decay_rate=0.5)),
        ),
        "optax": optax.sgd(0.1),
    },
    {"kernel": "portopt", "bias": "optax"},
)


def loss(params):
    return jnp.mean((inputs @ params["kernel"] + params["bias"] - targets) ** 2)


@jax.jit
def train_step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    # In place of tx.update and optax.apply_updates: kernel gets the bits that portopt computed, bias is optax's sum.
    params, state = portopt_jax.step(tx, params, grads, state)
    return params, state, value


def main():
    params = {"kernel": jnp.zeros((4, 1)), "bias": jnp.zeros(())}
    state = tx.init(params)
    for i in range(300):
        params, state, value = train_step(params, state)
        if i % 100 == 0:
            print(f"step {i}: loss {value:.6f}")
    print(f"kernel {params['kernel'].ravel().round(3).tolist()}, bias {float(params['bias']):.3f}")
    assert value < 1e-4


if __name__ == "__main__":
    main()
