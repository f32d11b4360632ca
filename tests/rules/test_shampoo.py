"""Shampoo against its paper, written with eigenvalues, in float64; roots that have not converged; which axes have matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary
from support.libraries import BY_NAME

import portopt

RATE, STEPS = 0.0625, 50
SETTINGS: Sequence[dict[str, Any]] = (
    {},
    {"momentum": 0.0, "weight_decay": 0.1},
    {"beta_2": 0.9, "epsilon": 1e-2},
    {"max_size": 32},
    {"momentum": 0.5, "beta_2": 0.5, "epsilon": 0.5, "weight_decay": 0.5},
)
SHAPES: dict[str, Sequence[tuple[int, int]]] = {"two sides": ((3, 4),), "one or none": ((3, 40), (40, 3), (36, 40))}
"""Matrices with two sides, and with max_size=32 others."""


def inverse_root(a: Array, r: int) -> Array:
    values, vectors = np.linalg.eigh(a)
    root: Array = (vectors * values ** (-1 / r)) @ vectors.T
    return root


def shampoo(p: Array, gradients: Sequence[Array], **arguments: Any) -> Iterator[Array]:
    """Yield a matrix after each step of the paper's algorithm 1, whose matrices start with epsilon on their diagonals."""
    given = {"momentum": 0.9, "beta_2": None, "epsilon": 1e-6, "weight_decay": 0.0, "max_size": 1024, **arguments}
    beta = given["beta_2"]
    old, new = (1.0, 1.0) if beta is None else (beta, 1 - beta)
    left, right = (np.zeros((n, n)) if n <= given["max_size"] else None for n in p.shape)
    r = 2 * sum(side is not None for side in (left, right))
    squares, moment = np.zeros_like(p), np.zeros_like(p)
    for g in gradients:
        u = g
        if left is not None:
            left = old * left + new * (g @ g.T)
            u = inverse_root(left + given["epsilon"] * np.eye(len(left)), r) @ u
        if right is not None:
            right = old * right + new * (g.T @ g)
            u = u @ inverse_root(right + given["epsilon"] * np.eye(len(right)), r)
        if not r:
            squares = old * squares + new * g**2
            u = g / np.sqrt(squares + given["epsilon"])
        moment = given["momentum"] * moment + u
        p = p - RATE * given["weight_decay"] * p - RATE * moment
        yield p


def after_steps(optimizer: portopt.Optimizer, p: Array, gradients: Sequence[Array]) -> Array:
    state = optimizer.init(p)
    for g in gradients:
        p, state = optimizer.apply(p, g, state)
    return p


@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
def test_shampoo_is_the_formula_of_the_paper(arguments: dict[str, Any]) -> None:
    for shape in SHAPES["one or none" if "max_size" in arguments else "two sides"]:
        p, gradients = ordinary(shape, "float64", 0), [ordinary(shape, "float64", s) for s in range(1, STEPS + 1)]
        ours = after_steps(portopt.Shampoo(RATE, root_iterations=14, **arguments), p, gradients)
        theirs = list(shampoo(p, gradients, **arguments))[-1]
        assert np.max(np.abs(ours - theirs)) < 1e-12 * np.max(np.abs(theirs - p)), shape


@pytest.mark.parametrize("iterations", [1, 4, 10])
def test_iterations_bound_how_much_a_direction_is_amplified(iterations: int) -> None:
    gradient = np.diag(np.asarray([1.0, 0.5, 1e-9], np.float32))
    optimizer = portopt.Shampoo(1.0, momentum=0.0, epsilon=1e-30, root_iterations=iterations)
    step = -after_steps(optimizer, np.zeros_like(gradient), [gradient])
    bound = 1.25 ** (2 * iterations) * np.sqrt(2.5 / np.linalg.norm(gradient**2))
    amplified = np.diag(step) / np.diag(gradient)
    assert amplified[2] == pytest.approx(bound, rel=1e-5)
    assert max(amplified[:2]) < bound


@pytest.mark.needs("torch")
def test_sides_that_are_too_long_have_no_matrix() -> None:
    optimizer = portopt.Shampoo(RATE, max_size=32, momentum=0.5, matrices="stacked", root_iterations=2)
    shapes = {"both": (2, 3, 4), "columns": (40, 3), "none": (33, 34), "vector": (5,)}
    p, g = ({name: ordinary(shape, "float32", seed) for name, shape in shapes.items()} for seed in (0, 1))
    expected, state = optimizer.apply(p, g, optimizer.init(p))
    shapes_of = {name: {n: None if x is None else x.shape for n, x in of.items()} for name, of in state.slots.items()}
    assert shapes_of["left"] == {"both": (2, 3, 3), "columns": None, "none": None, "vector": None}
    assert shapes_of["right"] == {"both": (2, 4, 4), "columns": (3, 3), "none": None, "vector": None}
    assert shapes_of["v"] == {"both": None, "columns": None, "none": (33, 34), "vector": (5,)}
    assert shapes_of["m"] == shapes
    library = BY_NAME["torch"]
    q = library.arrays(p)
    found, after = optimizer.apply(q, library.arrays(g), optimizer.init(q))
    for name in shapes:
        assert_same_bits(library.backend.to_numpy(found[name]), expected[name], name)
    for slot in ("left", "right"):
        assert_same_bits(library.backend.to_numpy(after.slots[slot]["both"]), state.slots[slot]["both"], slot)
