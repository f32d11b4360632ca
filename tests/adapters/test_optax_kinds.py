"""`to_optax` with rules of each kind: slots of other shapes and absent ones, totals, programs per shape."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from support.bits import assert_same_bits, ordinary
from support.rules_of_each_kind import RULES

import portopt
import portopt_jax

SHAPES = {"matrix": (3, 4), "vector": (5,), "number": ()}


def data(seed: int) -> dict[str, Any]:
    return {name: np.asarray(ordinary(shape, "float32", seed + i)) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.mark.parametrize("kind", RULES)
def test_a_masked_part_takes_steps_with_the_bits_of_apply(kind: type[portopt.Optimizer]) -> None:
    rule = kind(0.1, clipnorm=2.0)
    moving = {name: name != "vector" for name in SHAPES}
    tx = optax.masked(optax.inject_hyperparams(portopt_jax.optax_factory(rule))(), moving)
    params: Any = jax.tree.map(jax.numpy.asarray, data(1))
    state = tx.init(params)

    @jax.jit
    def step(params: Any, grads: Any, state: Any) -> Any:
        return portopt_jax.step(tx, params, grads, state)

    expected: Any = {name: p for name, p in data(1).items() if moving[name]}
    expected_state = rule.init(expected)
    for i in range(3):
        params, state = step(params, data(10 * i), state)
        own = {name: g for name, g in data(10 * i).items() if moving[name]}
        expected, expected_state = rule.apply(expected, own, expected_state)
    for name, p in expected.items():
        assert_same_bits(np.asarray(params[name]), p, name)
