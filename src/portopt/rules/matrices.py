"""Parameters as matrices: which ones rules of matrices take, and in which axes; and how a matrix is made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LAYOUTS = ("2-D", "OIHW", "HWIO", "stacked")
"""Which parameters are matrices, and how.

- `"2-D"`: those of two axes, as they are.
- `"OIHW"`: those of two and more; the first axis are the outputs, and all others together the inputs (kernels of torch).
- `"HWIO"`: those of two and more; the last axis are the outputs, and all others together the inputs (kernels of Keras and JAX).
- `"stacked"`: those of two and more; the last two axes are a matrix, and the others count such (layers, heads, experts).
"""


def is_matrix(layout: str, ndim: int) -> bool:
    """Tell whether a parameter of so many axes is a matrix, or several."""
    return ndim == 2 or (ndim > 2 and layout != "2-D")


def matrix_shape(layout: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a parameter that is a matrix, as one: batches, if there are any, rows, columns."""
    match layout:
        case "OIHW":
            return shape[0], math.prod(shape[1:])
        case "HWIO":
            return math.prod(shape[:-1]), shape[-1]
        case _:
            return tuple(shape)


def outputs_and_inputs(layout: str, shape: Sequence[int], *, rows_are_outputs: bool) -> tuple[int, int]:
    """Return how many outputs and inputs a parameter that is a matrix has; `rows_are_outputs` if no layout says it."""
    rows, columns = matrix_shape(layout, shape)[-2:]
    return (rows, columns) if layout == "OIHW" or (rows_are_outputs and layout != "HWIO") else (columns, rows)


def orthogonalized(x: Any, steps: Sequence[tuple[Any, Any, Any]]) -> Any:
    """Return `x` with its singular values brought near 1 by Newton-Schulz steps; those of `x` are at most 1.

    One step is `A = X X'`, `X = a X + (b A + c A A) X`; of a matrix with more rows than columns, X is the transpose.

    Args:
        x: matrices, in the last two axes.
        steps: (a, b, c) of each step.

    Reference:
        Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon/
    """
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    for a, b, c in steps:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if is_tall else x


def frobenius_norm(xp: Any, x: Any) -> Any:
    """Return the Frobenius norm of each matrix: a scalar of the parameter if it is one matrix, else a narrow array."""
    return xp.linalg.vector_norm(x) if x.ndim == 2 else xp.linalg.vector_norm(x, axis=(-2, -1), keepdims=True)


def adamw_step(
    xp: Any, p: Any, g: Any, slots: Any, constants: tuple[Any, Any, Any], c: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Return the parameter after a step of Adam as torch has it, and the slots `m` and `v`, of what is no matrix.

    Args:
        xp: the namespace of a rule's `update`.
        p: the parameter, after weight decay.
        g: the gradient.
        slots: with `m` and `v`.
        constants: decay of the mean, decay of the mean of squares, and epsilon.
        c: with `lr_t`, the learning rate over the correction of the mean, and `root_c2`, the root of that of squares.
    """
    beta_1, beta_2, epsilon = constants
    m = slots.m + (1 - beta_1) * (g - slots.m)
    v = beta_2 * slots.v + (1 - beta_2) * xp.square(g)
    return p - c.lr_t * m / (xp.sqrt(v) / c.root_c2 + epsilon), {"m": m, "v": v}
