"""Muon against the frameworks that have it and against its paper, in float64; which parameters it takes, and in which axes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from support.bits import Array, assert_same_bits, ordinary
from support.elsewhere import Elsewhere
from support.muon_settings import CUBIC, KERAS3, OPTAX, RATE, SHAPES, gradients, parameters

import portopt
from portopt.dialects import Dialect

QUINTIC = (3.4445, -4.775, 2.0315)

TORCH: Sequence[dict[str, Any]] = (
    {},
    {"nesterov": False, "weight_decay": 0.0},
    {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.7},
    {"ns_steps": 3, "epsilon": 1.0},
    {**CUBIC, "weight_decay": 0.5},
)


def after_steps(optimizer: portopt.Optimizer, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Array]:
    params = parameters(shapes)
    state = optimizer.init(params)
    with portopt.interpreted():
        for gradient in gradients(shapes):
            params, state = optimizer.apply(params, gradient, state)
    return params


def worst(actual: Sequence[Array], expected: Sequence[Any], shapes: Sequence[tuple[int, ...]] = SHAPES) -> float:
    """Return the largest error, relative to how far a parameter came."""
    errors = []
    for ours, theirs, start in zip(actual, expected, parameters(shapes), strict=True):
        errors.append(float(np.max(np.abs(ours - np.asarray(theirs))) / np.max(np.abs(np.asarray(theirs) - start))))
    return max(errors)


# optax


def optax_after_steps(**arguments: Any) -> list[Array]:
    with jax.enable_x64(True):
        transformation = optax.contrib.muon(RATE, **arguments)
        stacked = [jnp.stack([jnp.asarray(g[i]) for g in gradients()]) for i in range(len(SHAPES))]

        def step(carry: Any, gradient: Any) -> Any:
            updates, state = transformation.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        @jax.jit
        def run(params: Any) -> Any:
            return jax.lax.scan(step, (params, transformation.init(params)), stacked)[0][0]

        return [np.asarray(p) for p in run([jnp.asarray(p) for p in parameters()])]


@pytest.mark.parametrize(("ours", "theirs"), OPTAX)
def test_optax_dialect_is_the_formula_of_optax(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    expected = optax_after_steps(**theirs)
    assert worst(after_steps(portopt.Muon(RATE, dialect="optax", **ours)), expected) < 1e-12


# Keras 3, in a process of its own


@pytest.fixture(scope="module")
def keras3(elsewhere: Elsewhere) -> Any:
    environment = {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    return elsewhere.call("muon_on_keras", "results", **environment)


@pytest.mark.parametrize("number", range(len(KERAS3)))
def test_keras3_dialect_is_the_formula_of_keras_3(number: int, keras3: Any) -> None:
    assert worst(after_steps(portopt.Muon(RATE, dialect="keras3", **KERAS3[number][0])), keras3[number]) < 1e-12


# torch, and the paper


def orthogonalized_by_singular_values(x: Array, coefficients: tuple[float, float, float], steps: int) -> Array:
    """Return what Newton-Schulz steps make of a matrix, by what they make of each singular value."""
    left, values, right = np.linalg.svd(x, full_matrices=False)
    a, b, c = coefficients
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    result: Array = (left * values) @ right
    return result


def muon_of_the_paper(p: Array, steps: Sequence[Array], **arguments: Any) -> Array:
    """Return a matrix after steps of Muon as torch.optim.Muon describes it, in float64."""
    given = {
        "nesterov": True, "momentum": 0.95, "weight_decay": 0.1, "ns_steps": 5, "epsilon": 1e-7, "adjust_lr_fn": "original",
        **dict(zip(("ns_a", "ns_b", "ns_c"), QUINTIC, strict=True)), **arguments,
    }  # fmt: skip
    rows, columns = p.shape
    scale = 0.2 * math.sqrt(max(p.shape)) if given["adjust_lr_fn"] != "original" else math.sqrt(max(1, rows / columns))
    mu, moment = given["momentum"], np.zeros_like(p)
    for g in steps:
        moment = mu * moment + (1 - mu) * g
        u = mu * moment + (1 - mu) * g if given["nesterov"] else moment
        x = u / max(float(np.linalg.norm(u)), given["epsilon"])
        x = orthogonalized_by_singular_values(x, (given["ns_a"], given["ns_b"], given["ns_c"]), given["ns_steps"])
        p = p - RATE * given["weight_decay"] * p - RATE * scale * x
    return p


def torch_after_steps(**arguments: Any) -> list[Array]:
    names = {"epsilon": "eps"}
    given = {names.get(name, name): value for name, value in arguments.items() if not name.startswith("ns_")}
    given["ns_coefficients"] = tuple(
        arguments.get(name, q) for name, q in zip(("ns_a", "ns_b", "ns_c"), QUINTIC, strict=True)
    )
    given["ns_steps"] = arguments.get("ns_steps", 5)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in parameters()[:2]]
    optimizer = torch.optim.Muon(tensors, RATE, **given)
    for gradient in gradients():
        for tensor, g in zip(tensors, gradient, strict=False):
            tensor.grad = torch.tensor(g)
        optimizer.step()  # type: ignore[no-untyped-call]  # torch's own
    return [tensor.detach().numpy() for tensor in tensors]


@pytest.mark.parametrize("arguments", TORCH)
def test_torch_dialect_is_the_formula_of_the_paper(arguments: Mapping[str, Any]) -> None:
    expected = [muon_of_the_paper(p, [g[i] for g in gradients()], **arguments) for i, p in enumerate(parameters()[:2])]
    assert worst(after_steps(portopt.Muon(RATE, **arguments))[:2], expected, SHAPES[:2]) < 1e-12


@pytest.mark.parametrize("arguments", TORCH[:3])
def test_torch_dialect_is_torchs_within_its_bfloat16(arguments: Mapping[str, Any]) -> None:
    """Each of torch's products and sums has 8 bits, 2**-9 off relative, about ten in a row, each step anew."""
    expected = torch_after_steps(**arguments)
    assert worst(after_steps(portopt.Muon(RATE, **arguments))[:2], expected, SHAPES[:2]) < 0.03
    off = after_steps(portopt.Muon(1.1 * RATE, **arguments))[:2]
    assert worst(off, expected, SHAPES[:2]) > 0.03


each_dialect = pytest.mark.parametrize("dialect", portopt.Muon.dialects())


@each_dialect
def test_what_is_no_matrix_steps_by_adamw_of_the_dialect(dialect: Dialect) -> None:
    muon = portopt.Muon(RATE, dialect=dialect, adam_weight_decay=0.1)
    ahead: Any = {"nesterov": True} if dialect == "optax" else {}
    expected = after_steps(portopt.AdamW(RATE, dialect=dialect, weight_decay=0.1, **ahead))
    for ours, theirs in zip(after_steps(muon)[2:], expected[2:], strict=True):
        assert_same_bits(ours, theirs)
    state = muon.init(parameters())
    assert [None if v is None else v.shape for v in state.slots["v"]] == [None, None, (5,), ()]


def test_defaults_are_those_of_the_frameworks() -> None:
    """Apart from the learning rate of optax, which has no default; Keras' are compared where Keras is."""
    theirs = {name: p.default for name, p in inspect.signature(torch.optim.Muon).parameters.items()}
    ours = portopt.Muon()
    assert (ours.lr, ours.weight_decay, ours.momentum, ours.nesterov) == tuple(
        theirs[name] for name in ("lr", "weight_decay", "momentum", "nesterov")
    )
    assert (ours.ns_coefficients, ours.epsilon, ours.ns_steps) == tuple(
        theirs[name] for name in ("ns_coefficients", "eps", "ns_steps")
    )
    assert portopt.Muon(eps=0.5) == portopt.Muon(epsilon=0.5)
    theirs = {name: p.default for name, p in inspect.signature(optax.contrib.muon).parameters.items()}
    defaults = portopt.Muon.defaults("optax")
    names = {"momentum": "beta", "epsilon": "eps", "adam_beta_1": "adam_b1", "adam_beta_2": "adam_b2"}
    compared = [name for name in defaults if names.get(name, name) in theirs and name != "learning_rate"]
    assert len(compared) == 12
    assert {name: defaults[name] for name in compared} == {name: theirs[names.get(name, name)] for name in compared}


# Layouts


def stepped(optimizer: portopt.Optimizer, p: Array, g: Array) -> Array:
    new, _ = optimizer.apply(p, g, optimizer.init(p))
    result: Array = new
    return result


@each_dialect
def test_kernels_are_matrices_of_outputs_and_inputs(dialect: Dialect) -> None:
    p, g = ordinary((6, 2, 3, 4), "float32", 0), ordinary((6, 2, 3, 4), "float32", 1)

    def optimizer(layout: str) -> portopt.Optimizer:
        return portopt.Muon(RATE, dialect=dialect, matrices=layout)

    by_torch = stepped(optimizer("OIHW"), p, g)
    as_matrix = stepped(optimizer("OIHW"), p.reshape(6, 24), g.reshape(6, 24))
    assert_same_bits(by_torch, as_matrix.reshape(p.shape))
    by_keras = stepped(optimizer("HWIO"), *(x.transpose(2, 3, 1, 0).copy() for x in (p, g)))
    in_torchs_order = [x.transpose(2, 3, 1, 0).reshape(24, 6).copy() for x in (p, g)]
    assert_same_bits(by_keras, stepped(optimizer("HWIO"), *in_torchs_order).reshape(by_keras.shape))
    # The same numbers in another order, so the sums of a product are the same, whose order does not matter.
    assert_same_bits(by_keras.transpose(3, 2, 0, 1), by_torch)


@each_dialect
def test_stacked_matrices_step_each_by_itself(dialect: Dialect) -> None:
    p, g = ordinary((3, 2, 4, 5), "float32", 0), ordinary((3, 2, 4, 5), "float32", 1)
    g[1, 0] = 0.0
    together = stepped(portopt.Muon(RATE, dialect=dialect, matrices="stacked"), p, g)
    one = portopt.Muon(RATE, dialect=dialect)
    for i, j in np.ndindex(3, 2):
        alone = stepped(one, p[i, j], g[i, j])
        # The norm of one matrix is a float64 scalar, and that of several one of the compute dtype.
        assert np.max(np.abs(together[i, j] - alone)) < 1e-5 * np.max(np.abs(alone))


def test_a_stack_of_kernels_is_no_matrix_by_itself() -> None:
    p = ordinary((3, 4, 5), "float64", 0)
    ours, adamw = portopt.Muon(RATE), portopt.AdamW(RATE, dialect="torch")
    assert_same_bits(stepped(ours, p, p), stepped(adamw, p, p))


def test_muon_trains_a_matrix_that_a_product_hides() -> None:
    """Least squares with a matrix between: the loss falls by orders of magnitude."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((64, 8)).astype(np.float32), rng.standard_normal((8, 6)).astype(np.float32)
    y, w = x @ target, np.zeros((8, 6), np.float32)
    optimizer = portopt.Muon(portopt.schedules.CosineDecay(0.1, 200), weight_decay=0.0)
    state = optimizer.init(w)

    def loss() -> float:
        return float(np.mean((x @ w - y) ** 2))

    before = loss()
    for _ in range(200):
        w, state = optimizer.apply(w, x.T @ (x @ w - y), state)
    assert loss() < 1e-4 * before
