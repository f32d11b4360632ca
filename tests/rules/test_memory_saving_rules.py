"""Adafactor and SM3: against NumPy, which is compared with the frameworks, on parameters of many shapes; and what they save."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from support.bits import Array, ordinary
from support.dialect_settings import STEPS, rate_at
from support.memory_saving_formulas import (
    KerasAdafactor,
    OptaxAdafactor,
    OptaxSM3,
    TorchAdafactor,
)
from support.memory_saving_formulas import trajectory as formula_trajectory
from support.optax_trajectories import OWN_CALL
from support.optax_trajectories import trajectory as optax_trajectory

import portopt

TOLERANCE = 1e-12
"""Relative to the largest magnitude on the way. The formulas order factors and sums differently in the last bits."""
SHAPES = ((3, 4), (5,), (), (2, 4, 3))

TORCH: tuple[dict[str, Any], ...] = (
    {},
    {"lr": 0.05},
    {"lr": 0.05, "weight_decay": 0.1, "maximize": True},
    {"lr": 0.05, "d": 1.5, "beta2_decay": -0.5},
    {"lr": 0.5, "eps": (1e-2, 0.1)},
)
KERAS: tuple[dict[str, Any], ...] = (
    {},
    {"learning_rate": 0.05},
    {"learning_rate": 0.05, "weight_decay": 0.1},
    {"learning_rate": 0.05, "clip_threshold": 1.5, "epsilon_1": 1e-3},
    {"learning_rate": 0.5, "beta_2_decay": -0.5, "epsilon_2": 0.1},
)
OPTAX: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.05},
    {"learning_rate": 0.05, "min_dim_size_to_factor": 2},
    {"learning_rate": 0.05, "min_dim_size_to_factor": 3, "weight_decay": 0.01, "momentum": 0.5},
    {"learning_rate": 0.05, "min_dim_size_to_factor": 2, "multiply_by_parameter_scale": False, "clip_threshold": 1.5},
    {"learning_rate": 0.05, "min_dim_size_to_factor": 1, "decay_rate": 0.5, "epsilon_1": 1e-3},
)
OF_OPTAX = {"epsilon_1": "eps", "clip_threshold": "clipping_threshold", "weight_decay": "weight_decay_rate"}
SM3: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.05},
    {"learning_rate": 0.05, "beta_1": 0.5},
    {"learning_rate": 0.05, "beta_2": 0.9},
    {"learning_rate": 0.05, "epsilon": 1e-2},
    {"learning_rate": 0.05, "beta_1": 0.0, "beta_2": 0.5, "epsilon": 1e-3},
)
OF_SM3 = {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps"}


def parameters() -> list[Array]:
    return [ordinary(shape, "float64", seed) for seed, shape in enumerate(SHAPES)]


def gradients() -> list[list[Array]]:
    found = [[ordinary(shape, "float64", 100 * s + i) for i, shape in enumerate(SHAPES)] for s in range(1, STEPS + 1)]
    for step in found:
        step[0][0, 0] = 0.0
    return found


def assert_close(actual: list[list[Array]], expected: list[list[Array]]) -> None:
    for i, shape in enumerate(SHAPES):
        ours, theirs = np.asarray([p[i] for p in actual]), np.asarray([p[i] for p in expected])
        error = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
        assert error <= TOLERANCE, f"parameter of shape {shape}: off by {error:.2g} relative"
        assert np.max(np.abs(theirs - parameters()[i])) > 1e-6, f"parameter {i} hardly moves"


def renamed(names: Mapping[str, str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in arguments.items()}


def expected(formula: Any) -> list[list[Array]]:
    return formula_trajectory(formula, parameters(), gradients(), rate_at)


def rate_of(arguments: Mapping[str, Any]) -> Any:
    rate = arguments["learning_rate"]
    return lambda count: jnp.where(count < STEPS // 2, rate_at(0, rate), rate_at(STEPS, rate))


@pytest.mark.parametrize("arguments", TORCH, ids=repr)
def test_numpy_computes_what_torch_computes(arguments: dict[str, Any]) -> None:
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in parameters()]
    optimizer: Any = torch.optim.Adafactor(tensors, **arguments)
    rate, found = optimizer.param_groups[0]["lr"], []
    for step, gradient in enumerate(gradients()):
        optimizer.param_groups[0]["lr"] = rate_at(step, rate)
        for tensor, g in zip(tensors, gradient, strict=True):
            tensor.grad = torch.tensor(g)
        optimizer.step()
        found.append([tensor.detach().numpy().copy() for tensor in tensors])
    assert_close(found, expected(TorchAdafactor(**arguments)))


@pytest.mark.parametrize(
    ("rule", "arguments"), [*(("Adafactor", a) for a in OPTAX), *(("SM3", a) for a in SM3)], ids=repr
)
def test_numpy_computes_what_optax_computes(rule: str, arguments: dict[str, Any]) -> None:
    formula = OptaxSM3 if rule == "SM3" else OptaxAdafactor
    others = {name: value for name, value in arguments.items() if name != "learning_rate"}
    with jax.enable_x64(True):
        found = optax_trajectory(OWN_CALL[rule](rate_of(arguments), **others), parameters(), gradients())
    assert_close(found, expected(formula(**renamed(OF_SM3 if rule == "SM3" else OF_OPTAX, arguments))))


def test_adafactor_of_optax_as_it_comes_agrees_to_float32() -> None:
    arguments: dict[str, Any] = {"min_dim_size_to_factor": 2, "momentum": 0.5, "weight_decay_rate": 0.01}
    with jax.enable_x64(True):
        transformation = optax.adafactor(rate_of({"learning_rate": 0.05}), **arguments)
        found = optax_trajectory(transformation, parameters(), gradients())
    wanted = expected(OptaxAdafactor(0.05, **arguments))
    assert max(float(np.max(np.abs(a[i] - b[i]))) for a, b in zip(found, wanted, strict=True) for i in range(2)) < 1e-6
    with pytest.raises(AssertionError, match="off by"):
        assert_close(found, wanted)


CASES: list[tuple[type[portopt.Optimizer], dict[str, Any], Any]] = [
    *((portopt.Adafactor, a, TorchAdafactor(**a)) for a in TORCH),
    *((portopt.Adafactor, {"dialect": "keras3", **a}, KerasAdafactor(**a)) for a in KERAS),
    *((portopt.Adafactor, {"dialect": "optax", **a}, OptaxAdafactor(**renamed(OF_OPTAX, a))) for a in OPTAX),
    *((portopt.SM3, a, OptaxSM3(**renamed(OF_SM3, a))) for a in SM3),
]


@pytest.mark.parametrize(("rule", "arguments", "formula"), CASES, ids=[f"{r.__name__}-{a}" for r, a, _ in CASES])
def test_rule_computes_what_numpy_computes(
    rule: type[portopt.Optimizer], arguments: dict[str, Any], formula: Any
) -> None:
    optimizer, params, found = rule(**arguments), parameters(), []
    state = optimizer.init(params)
    given: Any = optimizer.learning_rate
    with portopt.interpreted():  # a kernel for each combination of options would take long to compile
        for step, gradient in enumerate(gradients()):
            params, state = optimizer.apply(params, gradient, state, learning_rate=rate_at(step, given))
            found.append(params)
    assert_close(found, expected(formula))


def test_defaults_of_optax_are_optaxs() -> None:
    for rule, function in ((portopt.Adafactor, optax.adafactor), (portopt.SM3, optax.scale_by_sm3)):
        theirs = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        ours = renamed({**OF_OPTAX, **OF_SM3}, rule.defaults("optax"))
        for name in theirs.keys() & ours.keys() - {"learning_rate", "b2"}:
            assert (theirs[name] or 0) == ours[name], name


# Slots


def test_adafactor_keeps_rows_and_columns_of_what_has_two_axes() -> None:
    shapes = {"matrix": (4, 3), "stacked": (2, 4, 3), "bias": (3,), "number": ()}
    params = {name: np.ones(shape) for name, shape in shapes.items()}
    for dialect in ("torch", "keras3"):
        slots = portopt.Adafactor(dialect=dialect).init(params).slots
        shaped = {slot: {n: x if x is None else x.shape for n, x in slots[slot].items()} for slot in slots}
        assert shaped == {
            "v": {"matrix": None, "stacked": None, "bias": (3,), "number": ()},
            "row": {"matrix": (4,), "stacked": (2, 4), "bias": None, "number": None},
            "column": {"matrix": (3,), "stacked": (2, 3), "bias": None, "number": None},
        }


@pytest.mark.parametrize(
    ("shape", "row", "column"),
    [
        ((128, 200), (128,), (200,)),
        ((200, 128), (128,), (200,)),
        ((128, 3, 130), (128, 3), (3, 130)),
        ((3, 3, 128, 128), (3, 3, 128), (3, 3, 128)),
        ((128, 127), None, None),
        ((3, 128, 100), None, None),
    ],
)
def test_adafactor_of_optax_factors_the_two_longest_axes(shape: Any, row: Any, column: Any) -> None:
    slots = portopt.Adafactor(dialect="optax").init(np.ones(shape, np.float32)).slots
    assert [getattr(slots.get(name), "shape", None) for name in ("row", "column")] == [row, column]
    assert ("v" in slots) == (row is None)
    theirs: Any = optax.adafactor().init(jnp.ones(shape))[0]
    assert (theirs.v_row.shape, theirs.v_col.shape) == ((row, column) if row else ((1,), (1,)))


def test_sm3_keeps_a_number_for_each_index_of_an_axis() -> None:
    params = {"matrix": np.ones((4, 3)), "kernel": np.ones((2, 5, 3)), "bias": np.ones(3), "number": np.ones(())}
    slots = portopt.SM3().init(params).slots
    assert list(slots) == ["m", "accumulator", "mu0", "mu1", "mu2"]
    shaped = {name: [getattr(x, "shape", None) for x in slot.values()] for name, slot in slots.items()}
    assert shaped == {
        "m": [(4, 3), (2, 5, 3), (3,), ()],
        "accumulator": [None, None, (3,), ()],
        "mu0": [(4,), (2,), None, None],
        "mu1": [(3,), (5,), None, None],
        "mu2": [None, (3,), None, None],
    }


GPT2_SMALL = {
    "wte": (50257, 768), "wpe": (1024, 768), "ln_f": {"weight": (768,), "bias": (768,)},
    "h": [
        {
            "ln_1": {"weight": (768,), "bias": (768,)}, "ln_2": {"weight": (768,), "bias": (768,)},
            "attn": {"weight": (768, 2304), "bias": (2304,), "proj": (768, 768), "proj_bias": (768,)},
            "mlp": {"fc": (768, 3072), "fc_bias": (3072,), "proj": (3072, 768), "proj_bias": (768,)},
        }
        for _ in range(12)
    ],
}  # fmt: skip
"""The shapes of its 124,439,808 parameters."""


def _allocated(shapes: Any) -> Any:
    """Return zeros, which take memory only where they are read."""
    if isinstance(shapes, dict):
        return {name: _allocated(shape) for name, shape in shapes.items()}
    return [_allocated(shape) for shape in shapes] if isinstance(shapes, list) else np.zeros(shapes, np.float32)


def _size(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dialect", portopt.Adafactor.dialects())
def test_slots_of_adafactor_take_less_than_a_hundredth_of_the_parameters(dialect: Any) -> None:
    params = _allocated(GPT2_SMALL)
    assert _size(params) == 4 * 124_439_808
    state = portopt.Adafactor(dialect=dialect).init(params)
    assert _size(state.slots) < 0.01 * _size(params)


# What is particular to a formula


@pytest.mark.parametrize("dialect", portopt.Adafactor.dialects())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adafactor_stays_finite_where_a_row_and_a_column_have_no_gradient(dialect: Any, dtype: str) -> None:
    """Keras multiplies two tiny means before the root, which is zero in float32; here the roots are multiplied."""
    options: dict[str, Any] = {"min_dim_size_to_factor": 1.0} if dialect == "optax" else {}
    optimizer, w = portopt.Adafactor(0.1, dialect=dialect, **options), np.ones((3, 3), dtype)
    g, state = np.ones((3, 3), dtype), optimizer.init(np.ones((3, 3), dtype))
    g[1], g[:, 2] = 0.0, 0.0
    for _ in range(3):
        w, state = optimizer.apply(w, g, state)
    assert np.isfinite(w).all()
    assert (w[1] == 1).all()
    assert (w[0, :2] < 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epsilon_of_adafactor_of_torch_is_that_of_the_dtype(dtype: str) -> None:
    eps = float(np.finfo(dtype).eps)
    g = np.full(4, eps / 4, dtype)
    for given, root in ((None, eps), (0.0, eps / 4)):
        optimizer, w = portopt.Adafactor(1.0, epsilon_1=given, clip_threshold=1e9), np.ones(4, dtype)
        moved = 1.0 - optimizer.apply(w, g, optimizer.init(w))[0]
        np.testing.assert_allclose(moved, eps / 4 / root, rtol=4 * eps)
