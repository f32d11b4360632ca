"""Adapters with rules that take more than gradients: `TorchOptimizer.step(hessian=...)`, and extra arguments of optax."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from support.bits import assert_same_bits, ordinary
from support.torch_parameters import assert_same, copies, give_gradients, parameters

import portopt
import portopt_jax
from portopt_torch import TorchOptimizer

SHAPES = ((3, 4), (5,), (), (4, 2))


def curvatures(params: list[Any], seed: int) -> list[Any]:
    """Return one for each parameter but the second."""
    made = [torch.tensor(ordinary(tuple(p.shape), "float32", seed + i)) for i, p in enumerate(params)]
    return [None if i == 1 else x.square() for i, x in enumerate(made)]


@pytest.mark.parametrize("as_mapping", [False, True], ids=["list", "mapping"])
def test_a_step_of_torch_takes_inputs_by_parameter(as_mapping: bool) -> None:
    params = parameters(SHAPES, "float32")
    rule, expected = portopt.SophiaG(0.1), copies(params)
    state = rule.init(expected)
    optimizer = TorchOptimizer([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], rule)
    for step in range(4):
        gradients = give_gradients(params, step)
        given: Any = None
        if step % 2 == 0:
            given = curvatures(params, 10 * step)
            state = rule.apply_(expected, gradients, state, hessian=given)
            if as_mapping:
                given = {p: x for p, x in zip(params, given, strict=True) if x is not None}
        else:
            state = rule.apply_(expected, gradients, state)
        optimizer.step(hessian=given)
        assert_same(params, expected)
    assert any(bool(h.any()) for h in state.slots["h"])
    for i, p in enumerate(params):
        assert_same([optimizer.state[p]["h"]], [state.slots["h"][i]])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"hesian": []}, TypeError, "step of SophiaG got an unknown argument 'hesian'; allowed are closure, hessian"),
        ({"hessian": [torch.ones(2)]}, ValueError, "for each of the 4 parameters, None for those that have none, but 1 values"),
        ({"hessian": 1.0}, ValueError, "hessian must be a mapping from parameters to tensors, or a list.*type float was given"),
        ({"hessian": {torch.ones(2): torch.ones(2)}}, ValueError, "hessian has a key that is none of the parameters"),
        ({"hessian": [torch.ones(2), *[None] * 3]}, ValueError, r"hessian\[0\] has shape \(2,\), but params\[0\] has"),
        ({"hessian": [1.0, *[None] * 3]}, TypeError, r"hessian\[0\] is 1.0 of type float"),
    ],
    ids=str,
)  # fmt: skip
def test_inputs_of_torch_that_do_not_fit_are_refused_and_nothing_moves(given: Any, error: Any, message: str) -> None:
    params = parameters(SHAPES, "float32")
    before = copies(params)
    optimizer = TorchOptimizer([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], portopt.SophiaG(0.1))
    give_gradients(params, 0)
    with pytest.raises(error, match=message):
        optimizer.step(**given)
    assert_same(params, before)


def test_an_extra_argument_of_optax_is_an_input() -> None:
    rule = portopt.SophiaG(0.1, dialect="optax")
    tx = optax.chain(optax.identity(), portopt_jax.to_optax(rule))
    numbers = {name: ordinary(shape, "float32", i) for i, (name, shape) in enumerate((("a", (3, 4)), ("b", (5,))))}
    expected: Any = numbers
    expected_state = rule.init(expected)
    params: Any = jax.tree.map(jax.numpy.asarray, numbers)
    state = tx.init(params)

    @jax.jit
    def step(params: Any, grads: Any, state: Any, hessian: Any) -> Any:
        return portopt_jax.step(tx, params, grads, state, hessian=hessian)

    for i in range(3):
        grads = {name: ordinary(p.shape, "float32", 10 * i + 1) for name, p in numbers.items()}
        hessian = {"a": np.abs(grads["a"]), "b": None if i == 1 else np.abs(grads["b"])} if i < 2 else None
        params, state = step(params, grads, state, hessian)
        given: dict[str, Any] = {} if hessian is None else {"hessian": hessian}
        expected, expected_state = rule.apply(expected, grads, expected_state, **given)
        for name in numbers:
            assert_same_bits(np.asarray(params[name]), expected[name], f"step {i}, {name}")


def test_an_input_of_optax_that_is_no_array_is_refused() -> None:
    tx = portopt_jax.to_optax(portopt.SophiaG(0.1, dialect="optax"))
    params = {"a": jax.numpy.ones(2)}
    with pytest.raises(TypeError, match=re.escape("hessian['a'] is 'x' of type str, which is no array")):
        tx.update(params, tx.init(params), params, hessian={"a": "x"})
