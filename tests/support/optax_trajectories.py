"""What optax computes in float64 for the rules whose functions there are not called as the others, or round to float32 inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from support.bits import Array

import portopt


def adafactor(rate: Any, **changed: Any) -> Any:
    """Return `optax.adafactor`, but with decay and momentum in float64, which it has in float32 whatever the parameters are."""
    given = {**portopt.Adafactor.defaults("optax"), **changed}
    parts = [
        optax.scale_by_factored_rms(
            given["factored"],
            given["decay_rate"],
            given["decay_offset"],
            int(given["min_dim_size_to_factor"]),
            given["epsilon_1"],
            lambda step, exponent: 1 - (jnp.asarray(step, jnp.float64) + 1) ** -exponent,
        ),
        optax.clip_by_block_rms(given["clip_threshold"]),
        optax.scale_by_learning_rate(rate, flip_sign=False),
    ]
    if given["multiply_by_parameter_scale"]:
        parts.append(optax.scale_by_param_block_rms())
    if given["momentum"]:
        parts.append(optax.ema(given["momentum"], debias=False, accumulator_dtype=jnp.float64))
    return optax.chain(*parts, optax.add_decayed_weights(given["weight_decay"]), optax.scale(-1.0))


def sm3(rate: Any, beta_1: float = 0.9, beta_2: float | None = None, epsilon: float = 1e-8) -> Any:
    """Return `optax.sm3`, but with a schedule, and with the arguments that only a part of it has."""
    scaled = optax.scale_by_sm3(beta_1, 1.0 if beta_2 is None else beta_2, epsilon)
    return optax.chain(_of_one_axis(scaled), optax.scale_by_learning_rate(rate))


def _of_one_axis(transformation: Any) -> Any:
    """Return a transformation that sees a number as an array of one element: optax's SM3 has no case for numbers."""

    def lifted(tree: Any) -> Any:
        return jax.tree.map(jnp.atleast_1d, tree)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        found, state = transformation.update(lifted(updates), state, params)
        return jax.tree.map(lambda x, like: jnp.reshape(x, like.shape), found, updates), state

    return optax.GradientTransformation(lambda params: transformation.init(lifted(params)), update)


def dog(
    rate: Any,
    relative_distance: float = 1e-6,
    initial_distance: float | None = None,
    initial_rate: float | None = None,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Any:
    first: Any = ("heuristic", relative_distance)
    first = first if initial_distance is None else ("distance", initial_distance)
    first = first if initial_rate is None else ("learning_rate", initial_rate)
    return optax.contrib.dog(rate, init_step=first, eps=epsilon, weight_decay=weight_decay)


_OF_CONTRIB = {"beta_3": "beta3", "epsilon": "eps", "d0": "estim_lr0", "d_coef": "estim_lr_coef"}


def _with_distance(function: Callable[..., Any]) -> Callable[..., Any]:
    def made(rate: Any, beta_1: float = 0.9, beta_2: float = 0.999, **arguments: Any) -> Any:
        return function(rate, (beta_1, beta_2), **{_OF_CONTRIB.get(n, n): v for n, v in arguments.items()})

    return made


OWN_CALL: dict[str, Callable[..., Any]] = {
    "Adafactor": adafactor,
    "SM3": sm3,
    "Prodigy": _with_distance(optax.contrib.prodigy),
    "DAdaptAdam": _with_distance(optax.contrib.dadapt_adamw),
    "DoG": dog,
}
"""By the name of a rule, what is called with a rate or a schedule, and with arguments under the names of portopt."""


def trajectory(transformation: Any, params: Sequence[Array], gradients: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """Return the parameters after each step, in float64."""
    with jax.enable_x64(True):
        stacked = [jnp.stack([jnp.asarray(g[i]) for g in gradients]) for i in range(len(params))]

        def step(carry: Any, gradient: Any) -> Any:
            current, state = carry
            updates, state = transformation.update(gradient, state, current)
            current = optax.apply_updates(current, updates)
            return (current, state), current

        @jax.jit
        def run(first: Any) -> Any:
            return jax.lax.scan(step, (first, transformation.init(first)), stacked)[1]

        found = [np.asarray(each) for each in run([jnp.asarray(p) for p in params])]
    assert all(each.dtype == np.float64 for each in found)
    return [list(step) for step in zip(*found, strict=True)]
