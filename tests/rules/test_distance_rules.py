"""Prodigy, D-Adapted Adam and DoG: against NumPy, which is compared with optax, and what is particular to them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bits import Array, ordinary
from support.dialect_settings import STEPS, rate_at
from support.distance_formulas import DAdaptAdam, DoG, Prodigy
from support.distance_formulas import trajectory as formula_trajectory
from support.optax_trajectories import OWN_CALL
from support.optax_trajectories import trajectory as optax_trajectory

import portopt

TOLERANCE = 1e-12
"""Relative to the largest magnitude on the way. The formulas order factors and sums differently in the last bits."""
SHAPES = ((3, 4), (5,), (), (2, 3, 4))

FORMULAS: dict[str, Any] = {"Prodigy": Prodigy, "DAdaptAdam": DAdaptAdam, "DoG": DoG}
COMMON: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Prodigy", {}),
    ("Prodigy", {"learning_rate": 2.0, "d0": 1e-3, "weight_decay": 0.1}),
    ("Prodigy", {"beta_1": 0.8, "beta_2": 0.9, "beta_3": 0.7, "epsilon": 1e-3, "d_coef": 2.0, "d0": 1e-3}),
    ("Prodigy", {"safeguard_warmup": True, "d0": 1e-2, "learning_rate": 0.5}),
    ("Prodigy", {"beta_2": 0.5, "d0": 0.1}),
    ("DAdaptAdam", {}),
    ("DAdaptAdam", {"learning_rate": 2.0, "d0": 1e-3, "weight_decay": 0.1}),
    ("DAdaptAdam", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "d0": 1e-3}),
    ("DAdaptAdam", {"d0": 1e-2, "learning_rate": 0.5}),
    ("DAdaptAdam", {"beta_2": 0.5, "d0": 0.1}),
)
OF_OPTAX: tuple[tuple[str, dict[str, Any]], ...] = (
    *COMMON,
    ("DoG", {}),
    ("DoG", {"learning_rate": 2.0, "relative_distance": 1e-2}),
    ("DoG", {"initial_distance": 0.5}),
    ("DoG", {"initial_rate": 0.1}),
    ("DoG", {"weight_decay": 0.1, "epsilon": 1e-2, "relative_distance": 0.1}),
)
OF_THE_AUTHORS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((rule, {"decouple": True, **arguments}) for rule, arguments in COMMON),
    ("Prodigy", {"weight_decay": 0.1, "decouple": False, "use_bias_correction": True, "d0": 1e-2}),
    ("Prodigy", {"growth_rate": 1.02, "d0": 1e-2}),
    ("DAdaptAdam", {"weight_decay": 0.1, "decouple": False, "use_bias_correction": True, "d0": 1e-2}),
    ("DAdaptAdam", {"growth_rate": 1.02, "d0": 1e-2}),
)
NAMES = {
    "learning_rate": "lr", "epsilon": "eps", "beta_3": "beta3", "use_bias_correction": "bias_correction",
    "initial_distance": "distance", "initial_rate": "first_rate",
}  # fmt: skip


def parameters() -> list[Array]:
    return [ordinary(shape, "float64", seed) for seed, shape in enumerate(SHAPES)]


def gradients() -> list[list[Array]]:
    found = [[ordinary(shape, "float64", 100 * s + i) for i, shape in enumerate(SHAPES)] for s in range(1, STEPS + 1)]
    for step in found:
        step[0][0, 0] = 0.0
    return found


def formula(rule: str, arguments: Mapping[str, Any]) -> Any:
    given = {NAMES.get(name, name): value for name, value in arguments.items()}
    if "beta_1" in given or "beta_2" in given:
        given["betas"] = (given.pop("beta_1", 0.9), given.pop("beta_2", 0.999))
    return FORMULAS[rule](**given)


def expected(rule: str, **arguments: Any) -> list[list[Array]]:
    return formula_trajectory(formula(rule, arguments), parameters(), gradients(), rate_at)


def assert_close(actual: list[list[Array]], wanted: list[list[Array]]) -> None:
    for i, shape in enumerate(SHAPES):
        ours, theirs = np.asarray([p[i] for p in actual]), np.asarray([p[i] for p in wanted])
        error = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
        assert error <= TOLERANCE, f"parameter of shape {shape}: off by {error:.2g} relative"
        assert np.max(np.abs(theirs - parameters()[i])) > 1e-6, f"parameter {i} hardly moves"


def ours(rule: str, **arguments: Any) -> list[list[Array]]:
    optimizer = getattr(portopt, rule)(**arguments)
    params, found = parameters(), []
    state, rate = optimizer.init(params), optimizer.learning_rate
    with portopt.interpreted():  # a kernel for each combination of options would take long to compile
        for step, gradient in enumerate(gradients()):
            params, state = optimizer.apply(params, gradient, state, learning_rate=rate_at(step, rate))
            found.append(params)
    return found


def of_optax(rule: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what optax does beside the arguments: it always corrects the bias."""
    return {**arguments, **({} if rule == "DoG" else {"use_bias_correction": True})}


@pytest.mark.parametrize(("rule", "arguments"), OF_OPTAX, ids=repr)
def test_numpy_computes_what_optax_computes(rule: str, arguments: dict[str, Any]) -> None:
    rate = arguments.get("learning_rate", 1.0)
    others = {name: value for name, value in arguments.items() if name != "learning_rate"}

    def schedule(count: Any) -> Any:
        return jnp.where(count < STEPS // 2, rate_at(0, rate), rate_at(STEPS, rate))

    with jax.enable_x64(True):
        found = optax_trajectory(OWN_CALL[rule](schedule, **others), parameters(), gradients())
    assert_close(found, expected(rule, **of_optax(rule, arguments)))


@pytest.mark.parametrize(("rule", "arguments"), OF_OPTAX, ids=repr)
def test_dialect_optax_computes_what_numpy_computes(rule: str, arguments: dict[str, Any]) -> None:
    assert_close(ours(rule, dialect="optax", **arguments), expected(rule, **of_optax(rule, arguments)))


@pytest.mark.parametrize(("rule", "arguments"), OF_THE_AUTHORS, ids=repr)
def test_dialect_torch_computes_what_numpy_computes(rule: str, arguments: dict[str, Any]) -> None:
    assert_close(ours(rule, dialect="torch", **arguments), expected(rule, **arguments))


def test_defaults_of_optax_are_optaxs() -> None:
    assert inspect.signature(optax.contrib.dog).parameters["init_step"].default == ("heuristic", 1e-6)
    for rule, function in (
        (portopt.Prodigy, optax.contrib.prodigy),
        (portopt.DAdaptAdam, optax.contrib.dadapt_adamw),
        (portopt.DoG, optax.contrib.dog),
    ):
        theirs = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        named = {"epsilon": "eps", "beta_3": "beta3", "d0": "estim_lr0", "d_coef": "estim_lr_coef"}
        known = {named.get(name, name): value for name, value in rule.defaults("optax").items()}
        for name in theirs.keys() & known.keys():
            assert (theirs[name] or 0) == (known[name] or 0), name
        assert theirs.get("betas", (0.9, 0.999)) == (known.get("beta_1", 0.9), known.get("beta_2", 0.999))


@pytest.mark.parametrize("rule", [portopt.Prodigy, portopt.DAdaptAdam])
def test_estimate_stays_while_there_is_no_gradient(rule: Any) -> None:
    for dialect in rule.dialects():
        optimizer, w = rule(dialect=dialect, d0=0.25), np.ones(3)
        state = optimizer.init(w)
        for _ in range(3):
            w, state = optimizer.apply(w, np.zeros(3), state)
            assert w.tolist() == [1, 1, 1]
            assert state.slots["d"] == 0.25
        assert optimizer.apply(w, np.ones(3), state)[0].max() < 1


@pytest.mark.parametrize("rule", [portopt.Prodigy, portopt.DAdaptAdam])
def test_estimate_grows_no_faster_than_is_allowed_and_never_shrinks(rule: Any) -> None:
    w = np.asarray([1.0, -3.0])
    bounded, free = rule(growth_rate=1.5, d0=1e-3), rule(d0=1e-3)
    for optimizer in (bounded, free):
        p, state, estimates = w, optimizer.init(w), [1e-3]
        for _ in range(30):
            p, state = optimizer.apply(p, 2 * p, state)
            estimates.append(float(state.slots["d"]))
        assert estimates == sorted(estimates)
        assert estimates[-1] > 1e-2
        # Prodigy's first estimate that is above d0 counts in full.
        growth = [b / a for a, b in itertools.pairwise(estimates) if a > 1e-3]
        assert (max(growth) <= 1.5 * (1 + 1e-15)) == (optimizer is bounded)


def test_dog_begins_with_a_distance_or_a_rate() -> None:
    message = (
        "^DoG begins with a distance or with a rate, but both initial_distance=0.5 and initial_rate=0.25 were given: leave one "
        "out$"
    )
    with pytest.raises(ValueError, match=message):
        portopt.DoG(initial_distance=0.5, initial_rate=0.25)
    w, g = np.asarray([3.0, 4.0]), np.asarray([0.0, 2.0])
    cases: tuple[tuple[dict[str, Any], float], ...] = (
        ({"relative_distance": 0.125}, 0.125 * (1 + 5.0) / 2.0),
        ({"initial_distance": 0.5}, 0.5 / 2.0),
        ({"initial_rate": 0.25}, 0.25),
    )
    for given, step in cases:
        optimizer = portopt.DoG(epsilon=0.0, **given)
        np.testing.assert_allclose(optimizer.apply(w, g, optimizer.init(w))[0], w - step * g, rtol=1e-15)


@pytest.mark.parametrize("rule", [portopt.Prodigy, portopt.DAdaptAdam, portopt.DoG])
def test_estimate_is_one_for_all_parameters(rule: Any) -> None:
    """Of one array and of its parts come the same bits: totals do not depend on how elements are spread over leaves."""
    optimizer, w = rule(), ordinary((24,), "float32", 1)
    parts: Any = {"a": w[:7], "b": [w[7:12].reshape(5, 1), w[12:].reshape(2, 3, 2)]}
    state, split = optimizer.init(w), optimizer.init(parts)
    for step in range(4):
        g = ordinary((24,), "float32", 100 + step)
        w, state = optimizer.apply(w, g, state)
        spread = {"a": g[:7], "b": [g[7:12].reshape(5, 1), g[12:].reshape(2, 3, 2)]}
        parts, split = optimizer.apply(parts, spread, split)
    joined = np.concatenate([parts["a"], parts["b"][0].ravel(), parts["b"][1].ravel()])
    assert joined.tobytes() == w.tobytes()
    for name in optimizer.scalar_slots:
        assert split.slots[name] == state.slots[name]
