"""ScheduleFree and Lookahead beside optax's, and beside the formulas of the paper's authors, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import portopt

STEPS = 50


def gradients(seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(3, 2)) for _ in range(STEPS)]


def start() -> Any:
    return np.random.default_rng(0).normal(size=(3, 2))


def portopt_places(optimizer: portopt.Optimizer) -> tuple[list[Any], Any]:
    p, places = start(), []
    state = optimizer.init(p)
    for g in gradients(1):
        with portopt.interpreted():
            p, state = optimizer.apply(p, g, state)
        places.append(p)
    return places, state


def assert_near(found: list[Any], expected: list[Any]) -> None:
    for step, (a, b) in enumerate(zip(found, expected, strict=True), start=1):
        assert np.max(np.abs(a - np.asarray(b))) <= 1e-12 * max(1.0, float(np.max(np.abs(b)))), f"after step {step}"


FACEBOOK: list[tuple[Mapping[str, float], float]] = [
    ({"lr": 0.1, "beta": 0.9, "r": 0.0, "power": 2.0, "weight_decay": 0.0}, 0.999),
    ({"lr": 0.1, "beta": 0.5, "r": 0.0, "power": 2.0, "weight_decay": 0.1}, 0.99),
    ({"lr": 0.05, "beta": 0.98, "r": 1.0, "power": 2.0, "weight_decay": 0.01}, 0.9),
    ({"lr": 0.2, "beta": 0.9, "r": 0.5, "power": 0.0, "weight_decay": 0.0}, 0.999),
    ({"lr": 0.01, "beta": 1.0, "r": 2.0, "power": 1.0, "weight_decay": 0.5}, 0.95),
]


def facebook_places(given: Mapping[str, float], beta_2: float | None) -> list[Any]:
    """Return where the authors' formulas for SGD (without beta_2) and AdamW lead, in their order of operations."""
    y, z, v, total, places = start(), start(), np.zeros((3, 2)), 0.0, []
    for t, g in enumerate(gradients(1), start=1):
        if beta_2 is not None:
            v = v * beta_2 + (1 - beta_2) * g * g
            g = g / (np.sqrt(v / (1 - beta_2**t)) + 1e-8)
        g = g + given["weight_decay"] * y
        weight = t ** given["r"] * given["lr"] ** given["power"]
        total += weight
        share = weight / total
        y = y + share * (z - y)
        y = y + given["lr"] * (given["beta"] * (1 - share) - 1) * g
        z = z - given["lr"] * g
        places.append(y)
    return places


@pytest.mark.parametrize(("given", "beta_2"), FACEBOOK)
@pytest.mark.parametrize("adam", [False, True])
def test_schedule_free_is_that_of_its_authors(given: Mapping[str, float], beta_2: float, adam: bool) -> None:
    inner: portopt.Optimizer = portopt.SGD(given["lr"], weight_decay=given["weight_decay"], dialect="torch")
    if adam:
        inner = portopt.AdamW(given["lr"], beta_1=0.0, beta_2=beta_2, weight_decay=given["weight_decay"])
    optimizer = portopt.ScheduleFree(inner, given["beta"], weight_lr_power=given["power"], r=given["r"])
    assert_near(portopt_places(optimizer)[0], facebook_places(given, beta_2 if adam else None))


def test_evaluation_params_are_the_weighted_mean_of_where_the_inner_rule_was() -> None:
    optimizer = portopt.ScheduleFree(portopt.SGD(0.1), 0.75)
    p, zs = start(), []
    state = optimizer.init(p)
    for g in gradients(1):
        p, state = optimizer.apply(p, g, state)
        zs.append(state.slots["z"])
    assert np.max(np.abs(optimizer.evaluation_params(p, state) - np.mean(zs, axis=0))) < 1e-12


@pytest.mark.needs("jax", "optax")
@pytest.mark.parametrize(
    ("beta", "power", "rate"), [(0.9, 2.0, 0.1), (0.5, 2.0, 0.01), (0.95, 1.0, 0.3), (1.0, 0.5, 0.05), (0.8, 3.0, 0.2)]
)
def test_schedule_free_is_that_of_optax(beta: float, power: float, rate: float) -> None:
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    ours = portopt.ScheduleFree(portopt.Adam(rate, beta_1=0.0, dialect="optax"), beta, weight_lr_power=power)
    with jax.enable_x64(True):
        theirs = optax.contrib.schedule_free(optax.adam(rate, b1=0.0), rate, b1=beta, weight_lr_power=power)
        assert_near(portopt_places(ours)[0], optax_places(jax, optax, theirs))


def optax_places(jax: Any, optax: Any, tx: Any) -> list[Any]:
    p = jax.numpy.asarray(start())
    state, places = tx.init(p), []

    def step(p: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    jitted = jax.jit(step)
    for g in gradients(1):
        p, state = jitted(p, state, jax.numpy.asarray(g))
        places.append(np.asarray(p))
    return places


@pytest.mark.needs("jax", "optax")
@pytest.mark.parametrize(("period", "size"), [(6, 0.5), (1, 0.5), (5, 0.8), (2, 1.0), (7, 0.0)])
def test_lookahead_is_that_of_optax(period: int, size: float) -> None:
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    ours = portopt.Lookahead(portopt.Adam(0.1, dialect="optax"), period, size)
    with jax.enable_x64(True):
        tx = optax.lookahead(optax.adam(0.1), period, size)
        both = optax.LookaheadParams.init_synced(jax.numpy.asarray(start()))
        state, fast = tx.init(both), []

        def step(both: Any, state: Any, g: Any) -> Any:
            updates, state = tx.update(g, state, both)
            return optax.apply_updates(both, updates), state

        jitted = jax.jit(step)
        for g in gradients(1):
            both, state = jitted(both, state, jax.numpy.asarray(g))
            fast.append(np.asarray(both.fast))
    places, ours_after = portopt_places(ours)
    assert_near(places, fast)
    assert_near([ours_after.slots["slow"]], [both.slow])


@pytest.mark.parametrize("period", [0, 2.5])
def test_a_period_that_is_no_whole_number_is_refused(period: float) -> None:
    message = rf"Lookahead\S* sync_period must be an integer in \[1, inf\), but {period} was given"
    with pytest.raises(ValueError, match=message):
        portopt.Lookahead(sync_period=period)
    optimizer, p = portopt.Lookahead(), np.ones(1)
    with pytest.raises(ValueError, match=message):
        optimizer.apply(p, p, optimizer.init(p), sync_period=period)
