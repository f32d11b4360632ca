"""What each dialect is compared with its framework on: settings, in portopt's argument names, and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from support.bits import Array, ordinary

STEPS = 50
SHAPES = ((3, 4), (5,), ())

_BETAS: Mapping[str, Any] = {"learning_rate": 0.01, "beta_1": 0.7, "beta_2": 0.95, "epsilon": 1e-3}
_LOW_BETAS: Mapping[str, Any] = {"learning_rate": 0.01, "beta_1": 0.3, "beta_2": 0.5, "epsilon": 1e-5}
_RHO: Mapping[str, Any] = {"learning_rate": 0.02, "rho": 0.6, "epsilon": 1e-3}
_DECAY: Mapping[str, Any] = {"learning_rate": 0.05, "weight_decay": 0.1}

SETTINGS: Mapping[str, Mapping[str, list[Mapping[str, Any]]]] = {
    "SGD": {
        "keras3": [
            {},
            {"learning_rate": 0.1, "momentum": 0.9},
            {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
            _DECAY,
            {"momentum": 0.5, "nesterov": True, **_DECAY},
        ],
        "torch": [
            {},
            {"learning_rate": 0.1, "momentum": 0.9},
            {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.3},
            {"momentum": 0.9, "nesterov": True, **_DECAY},
            {"maximize": True, **_DECAY},
            {"momentum": 0.5, "dampening": 0.7, "maximize": True, **_DECAY},
        ],
        "optax": [
            {},
            {"learning_rate": 0.1, "momentum": 0.9},
            {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
            {"momentum": 1.0},
            {"momentum": 0.3, "nesterov": True},
        ],
    },
    "RMSprop": {
        "keras3": [
            {},
            _RHO,
            {"momentum": 0.8, **_RHO},
            {"centered": True, "learning_rate": 0.01},
            {"momentum": 0.5, "centered": True, "epsilon": 1e-2, **_DECAY},
        ],
        "torch": [
            {},
            _RHO,
            {"momentum": 0.8, **_RHO},
            {"centered": True, "learning_rate": 0.01},
            {"momentum": 0.5, "centered": True, "maximize": True, "epsilon": 1e-2, **_DECAY},
        ],
        "optax": [
            {},
            _RHO,
            {"momentum": 0.8, "initial_accumulator_value": 0.5, **_RHO},
            {"momentum": 0.8, "nesterov": True, "bias_correction": True, "eps_in_sqrt": False},
            {"centered": True, "eps_in_sqrt": False, "epsilon": 1e-3},
            {"centered": True, "bias_correction": True, "momentum": 0.5, **_RHO},
        ],
    },
    "Adagrad": {
        "keras3": [
            {},
            {"learning_rate": 0.1},
            {"initial_accumulator_value": 0.0, "learning_rate": 0.1},
            {"epsilon": 1e-2, "initial_accumulator_value": 2.0},
            _DECAY,
        ],
        "torch": [
            {},
            {"learning_rate": 0.1, "decay": 0.05},
            {"initial_accumulator_value": 0.7, "learning_rate": 0.1},
            {"maximize": True, "decay": 0.5, **_DECAY},
            {"epsilon": 1e-2, **_DECAY},
        ],
        "optax": [
            {},
            {"learning_rate": 0.1},
            {"initial_accumulator_value": 0.0, "learning_rate": 0.1},
            {"epsilon": 1e-2, "initial_accumulator_value": 2.0},
            {"initial_accumulator_value": 0.0, "epsilon": 0.0},
        ],
    },
    "Adadelta": {
        "keras3": [{}, {"learning_rate": 1.0}, _RHO, {"rho": 0.99, "epsilon": 1e-4, "learning_rate": 0.5}, _DECAY],
        "torch": [{}, {"learning_rate": 0.5}, _RHO, {"maximize": True, **_DECAY}, {"rho": 0.99, **_DECAY}],
        "optax": [{}, {"learning_rate": 0.5}, _RHO, _DECAY, {"rho": 0.99, "epsilon": 1e-4, **_DECAY}],
    },
    "Adam": {
        "keras3": [{}, _BETAS, _LOW_BETAS, {"amsgrad": True, **_BETAS}, _DECAY, {"amsgrad": True, **_DECAY}],
        "torch": [
            {},
            _BETAS,
            _LOW_BETAS,
            {"amsgrad": True, **_BETAS},
            {"maximize": True, **_DECAY},
            {"decoupled_weight_decay": True, "amsgrad": True, **_DECAY},
        ],
        "optax": [
            {},
            _BETAS,
            {"eps_root": 1e-3, **_LOW_BETAS},
            {"amsgrad": True, "eps_root": 1e-4, **_BETAS},
            {"nesterov": True, **_BETAS},
            {"nesterov": True, **_DECAY},
            {"amsgrad": True, **_DECAY},
        ],
    },
    "Adamax": {
        "keras3": [{}, _BETAS, _LOW_BETAS, {"epsilon": 0.1}, _DECAY],
        "torch": [{}, _BETAS, _LOW_BETAS, {"epsilon": 0.1}, {"maximize": True, **_DECAY}],
        "optax": [{}, _BETAS, _LOW_BETAS, {"epsilon": 0.1}, _DECAY],
    },
    "Nadam": {
        "keras3": [{}, _BETAS, _LOW_BETAS, {"epsilon": 0.1}, _DECAY],
        "torch": [
            {},
            _BETAS,
            {"schedule_decay": 0.1, **_LOW_BETAS},
            {"maximize": True, **_DECAY},
            {"decoupled_weight_decay": True, **_DECAY},
        ],
        "optax": [{}, _BETAS, {"eps_root": 1e-3, **_LOW_BETAS}, {"epsilon": 0.1}, {"eps_root": 1e-4, **_DECAY}],
    },
}
"""Rule to dialect to the arguments of each setting."""


def settings(dialect: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Yield rule, number and arguments of each setting of a dialect."""
    for rule, dialects in SETTINGS.items():
        for number, arguments in enumerate(dialects[dialect]):
            yield rule, number, arguments


def rate_at(step: int, learning_rate: float) -> float:
    """Return the learning rate of a step, from 0: it changes, so that it matters whether the moment holds it."""
    return learning_rate if step < STEPS // 2 else 0.3 * learning_rate


def parameters() -> list[Array]:
    return [ordinary(shape, "float64", seed) for seed, shape in enumerate(SHAPES)]


def gradients() -> list[list[Array]]:
    """Return the gradients of each step: one element is always zero, and one tensor at first."""
    found = [[ordinary(shape, "float64", 100 * s + i) for i, shape in enumerate(SHAPES)] for s in range(1, STEPS + 1)]
    for step in found:
        step[0][0, 0] = 0.0
    found[0][1] = np.zeros_like(found[0][1])
    return found
