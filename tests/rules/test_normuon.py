"""NorMuon against its paper, written with singular values, in float64; and the axes in which rows lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary

import portopt

RATE, STEPS = 0.0625, 50
DION = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)  # fmt: skip
SETTINGS: Sequence[dict[str, Any]] = (
    {},
    {"nesterov": True, "weight_decay": 0.0},
    {"ns_coefficients": "standard", "adjust_lr": "rms_norm"},
    {"momentum": 0.7, "beta_2": 0.5, "epsilon": 1e-3},
    {"weight_decay": 0.5, "beta_2": 0.0},
)


def normuon(p: Array, gradients: Sequence[Array], **arguments: Any) -> Array:
    """Return a matrix after steps of the paper's algorithm, with what microsoft/dion adds to it."""
    given = {
        "nesterov": False, "momentum": 0.95, "beta_2": 0.95, "weight_decay": 0.01, "epsilon": 1e-8,
        "ns_coefficients": "dion", "adjust_lr": "spectral_norm", **arguments,
    }  # fmt: skip
    rows, columns = p.shape
    scale = math.sqrt(rows / columns) if given["adjust_lr"] == "spectral_norm" else 0.2 * math.sqrt(max(rows, columns))
    triples = DION if given["ns_coefficients"] == "dion" else ((3.4445, -4.775, 2.0315),) * 5
    moment, second = np.zeros_like(p), np.zeros(rows)
    for g in gradients:
        moment = given["momentum"] * moment + g
        u = given["momentum"] * moment + g if given["nesterov"] else moment
        left, values, right = np.linalg.svd(u / (np.linalg.norm(u) + given["epsilon"]), full_matrices=False)
        for a, b, c in triples:
            values = a * values + b * values**3 + c * values**5
        orthogonal = (left * values) @ right
        second = given["beta_2"] * second + (1 - given["beta_2"]) * np.mean(orthogonal**2, axis=1)
        scaled = orthogonal / (np.sqrt(second)[:, None] + 1e-8)
        scaled *= np.linalg.norm(orthogonal) / np.linalg.norm(scaled)
        p = p - RATE * given["weight_decay"] * p - RATE * scale * scaled
    return p


def after_steps(optimizer: portopt.Optimizer, p: Array, gradients: Sequence[Array]) -> Array:
    state = optimizer.init(p)
    with portopt.interpreted():
        for g in gradients:
            p, state = optimizer.apply(p, g, state)
    return p


@pytest.mark.parametrize("arguments", SETTINGS)
def test_normuon_is_the_formula_of_the_paper(arguments: dict[str, Any]) -> None:
    for shape in ((3, 4), (7, 5)):
        p, gradients = ordinary(shape, "float64", 0), [ordinary(shape, "float64", s) for s in range(1, STEPS + 1)]
        ours = after_steps(portopt.NorMuon(RATE, **arguments), p, gradients)
        theirs = normuon(p, gradients, **arguments)
        assert np.max(np.abs(ours - theirs)) < 1e-12 * np.max(np.abs(theirs - p))


def test_rows_are_those_of_the_outputs_in_every_layout() -> None:
    p, g = ordinary((6, 2, 3, 4), "float32", 0), ordinary((6, 2, 3, 4), "float32", 1)
    by_torch = portopt.NorMuon(RATE, matrices="OIHW")
    by_keras = portopt.NorMuon(RATE, matrices="HWIO")
    q, h = (x.transpose(2, 3, 1, 0).copy() for x in (p, g))
    states = by_torch.init(p), by_keras.init(q)
    assert [state.slots["row"].shape for state in states] == [(6,), (6,)]
    for _ in range(2):
        p, first = by_torch.apply(p, g, states[0])
        q, second = by_keras.apply(q, h, states[1])
        states = first, second
        assert_same_bits(q.transpose(3, 2, 0, 1), p)
        assert_same_bits(second.slots["row"], first.slots["row"])
    stacked = portopt.NorMuon(RATE, matrices="stacked")
    assert stacked.init(p).slots["row"].shape == (6, 2, 3)


def test_what_is_no_matrix_steps_by_adamw() -> None:
    p, g = ordinary((5,), "float64", 0), [ordinary((5,), "float64", s) for s in range(1, 9)]
    ours = after_steps(portopt.NorMuon(RATE, weight_decay=0.1), p, g)
    theirs = after_steps(portopt.AdamW(RATE, dialect="torch", weight_decay=0.1, beta_2=0.95), p, g)
    assert_same_bits(ours, theirs)
