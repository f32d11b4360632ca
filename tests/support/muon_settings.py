"""What Muon is compared with the frameworks on: settings under the names here and there, and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from support.bits import Array, ordinary

STEPS = 50
RATE = 0.0625
SHAPES = ((3, 4), (7, 5), (5,), ())
CUBIC = {"ns_steps": 7, "ns_a": 1.5, "ns_b": -0.5, "ns_c": 0.0}

OPTAX: Sequence[tuple[dict[str, Any], dict[str, Any]]] = (
    ({}, {}),
    ({"nesterov": False, "weight_decay": 0.1, "adam_weight_decay": 0.2},) * 2,
    ({"consistent_rms": 0.2, "adam_learning_rate": 0.01, "adam_eps_root": 1e-3},) * 2,
    ({"adaptive": True, "adam_beta_1": 0.8, "adam_beta_2": 0.9}, {"adaptive": True, "adam_b1": 0.8, "adam_b2": 0.9}),
    (
        {**CUBIC, "epsilon": 1e-3, "momentum": 0.7},
        {"ns_steps": 7, "ns_coeffs": (1.5, -0.5, 0.0), "eps": 1e-3, "beta": 0.7},
    ),
)
KERAS3: Sequence[tuple[dict[str, Any], dict[str, Any]]] = (
    ({}, {}),
    ({"nesterov": False, "weight_decay": 0.1, "adam_weight_decay": 0.2},) * 2,
    ({"rms_rate": 0.0, "adam_lr_ratio": 0.5}, {"rms_rate": None, "adam_lr_ratio": 0.5}),
    ({"rms_rate": 0.5, "adam_beta_1": 0.8, "adam_beta_2": 0.9},) * 2,
    (
        {**CUBIC, "epsilon": 1e-3, "momentum": 0.7},
        {"ns_steps": 7, "muon_a": 1.5, "muon_b": -0.5, "muon_c": 0.0, "epsilon": 1e-3, "momentum": 0.7},
    ),
)


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Array]:
    return [ordinary(shape, "float64", seed) for seed, shape in enumerate(shapes)]


def gradients(shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[list[Array]]:
    return [
        [ordinary(shape, "float64", 100 * step + i) for i, shape in enumerate(shapes)] for step in range(1, STEPS + 1)
    ]
