"""SophiaG beside its authors' formula and optax's transformation, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import portopt

STEPS, EVERY = 50, 3


def data() -> tuple[Any, list[tuple[Any, Any]]]:
    random = np.random.default_rng(3)
    steps = [(random.normal(size=(3, 2)), random.normal(size=(3, 2))) for _ in range(STEPS)]
    return random.normal(size=(3, 2)), [(g, h if t % EVERY == 0 else None) for t, (g, h) in enumerate(steps)]


def places(optimizer: portopt.Optimizer, of: Any = lambda h: h) -> list[Any]:
    p, steps = data()
    state, found = optimizer.init(p), []
    for g, h in steps:
        with portopt.interpreted():
            p, state = optimizer.apply(p, g, state, hessian=None if h is None else of(h))
        found.append(p)
    return found


def assert_near(found: list[Any], expected: list[Any]) -> None:
    for step, (a, b) in enumerate(zip(found, expected, strict=True), start=1):
        assert np.max(np.abs(a - np.asarray(b))) <= 1e-12 * max(1.0, float(np.max(np.abs(b)))), f"after step {step}"


SETTINGS: list[Mapping[str, Any]] = [
    {},
    {"learning_rate": 0.1, "weight_decay": 0.0},
    {"learning_rate": 0.05, "betas": (0.9, 0.5), "rho": 0.01, "batch_size": 30.0},
    {"learning_rate": 0.2, "batch_size": 1.0, "rho": 1.0, "weight_decay": 0.5},
    {"learning_rate": 0.1, "batch_size": 4.0, "maximize": True},
]


@pytest.mark.parametrize("given", SETTINGS, ids=repr)
def test_sophia_g_is_that_of_its_authors(given: Mapping[str, Any]) -> None:
    optimizer = portopt.SophiaG(**given)
    assert optimizer.batch_size is not None
    assert optimizer.weight_decay is not None
    p, steps = data()
    m, h, expected = np.zeros((3, 2)), np.zeros((3, 2)), []
    for g, sampled in steps:
        if sampled is not None:
            h = h * optimizer.beta_2 + sampled * sampled * (1 - optimizer.beta_2)
        g = -g if optimizer.maximize else g
        p = p * (1 - optimizer.learning_rate * optimizer.weight_decay)  # type: ignore[operator]  # no schedule
        m = m * optimizer.beta_1 + g * (1 - optimizer.beta_1)
        ratio = np.minimum(np.abs(m) / (optimizer.gamma * optimizer.batch_size * h + 1e-15), 1)
        p = p - optimizer.learning_rate * np.sign(m) * ratio
        expected.append(p)
    assert_near(places(optimizer), expected)


@pytest.mark.needs("jax", "optax")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"weight_decay": 0.0, "clip_threshold": 0.0}, {"weight_decay": 0.0, "clip_threshold": None}),
        ({"gamma": 0.5, "beta_2": 0.5}, {"gamma": 0.5, "b2": 0.5}),
        ({"epsilon": 0.1, "beta_1": 0.5}, {"eps": 0.1, "b1": 0.5}),
        ({"clip_threshold": 0.25, "weight_decay": 0.1}, {"clip_threshold": 0.25, "weight_decay": 0.1}),
    ],
    ids=repr,
)
def test_sophia_g_is_that_of_optax(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")

    def given(updates: Any, state: Any, params: Any = None, *, hessian: Any, **_: Any) -> Any:
        return hessian, state

    estimate = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), given)
    found = places(portopt.SophiaG(0.01, dialect="optax", **ours), np.abs)
    with jax.enable_x64(True):
        tx = optax.contrib.sophia(0.01, update_interval=EVERY, hessian_diagonal_fn=estimate, **theirs)
        p, steps = data()
        p = jax.numpy.asarray(p)
        state, expected = tx.init(p), []

        def step(p: Any, state: Any, g: Any, h: Any) -> Any:
            updates, state = tx.update(g, state, p, hessian=h)
            return optax.apply_updates(p, updates), state

        jitted = jax.jit(step)
        for g, h in steps:
            p, state = jitted(p, state, jax.numpy.asarray(g), jax.numpy.asarray(np.abs(g if h is None else h)))
            expected.append(np.asarray(p))
    assert_near(found, expected)
