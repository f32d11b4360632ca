"""Shampoo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt import scalars
from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter, option
from portopt.optimizer import Optimizer
from portopt.rules.matrices import LAYOUTS, frobenius_norm, is_matrix, matrix_shape
from portopt.schedules import LearningRate
from portopt.slot import slot


class Shampoo(Optimizer):
    """Shampoo: a matrix's gradient is multiplied by inverse roots of the sums of its products with itself, on both sides.

    `left = left + g g'`, `right = right + g' g`, from zero; with beta_2, `beta_2 * left + (1 - beta_2) * g g'` and the like;
    `u = R(left + epsilon * I) g R(right + epsilon * I)`; `p = p * (1 - lr * weight_decay)`; with momentum, `m = momentum * m + u`
    and `u = m`; `p - lr * u`.

    `R(A)` is the inverse fourth root (r = 4) by coupled Newton iterations: with `z = (1 + r) / (2 * norm(A))`, `M = z A`,
    `X = I`, and in each, `T = (1 + 1/r) I - (1/r) M`, `X = X T`, `M = (T**r) M`; `R(A) = z**(1/r) * X`. Their number is fixed. It
    bounds by how much directions of small gradients are amplified: at most `z**(1/r) * (1 + 1/r)**root_iterations`. Ten are exact
    in float64 for matrices whose eigenvalues differ 100 times, and have 5% left at 10,000 times. More than 15 are for float64, or
    need an epsilon above the rounding errors of the matrices, which otherwise grow by `(1 + 1/r)**r` each. Roots are taken in
    every step, as a program computes both sides of a condition: eight products a step and iteration.

    An axis longer than `max_size` has no matrix; the root of the other one is then the inverse square root (r = 2). Where no axis
    has one, and for parameters that are no matrices, `v = v + g**2` and `u = g / sqrt(v + epsilon)`, as Adagrad has it.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: decay of the sum of the steps, in [0, 1); 0 keeps none, as in the paper's algorithm, whose experiments have 0.9.
        beta_2: decay of the means of products, in [0, 1); None for sums, as in the paper.
        epsilon: in [0, inf), None means `portopt.epsilon()`; what the paper's matrices start with on their diagonals.
        weight_decay: in [0, inf).
        matrices: which parameters are matrices, and how: `"2-D"`, `"OIHW"`, `"HWIO"` or `"stacked"`; see
            `portopt.rules.matrices.LAYOUTS`.
        max_size: of an axis that has a matrix: 32, 64, and so on to 8192.
        root_iterations: Newton iterations of each root, from 1 to 30.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Shampoo(learning_rate=0.5), np.eye(2)
        >>> opt.apply(w, np.asarray([[3.0, 0.0], [0.0, 1.0]]), opt.init(w))[0].round(3)
        array([[0.5, 0. ],
               [0. , 0.5]])

    Reference:
        Gupta, Koren, Singer, "Shampoo: preconditioned stochastic tensor optimization", ICML 2018,
        https://arxiv.org/abs/1802.09568; the roots are those of Anil, Gupta, Koren, Regan, Singer, "Scalable second order
        optimization for deep learning", 2020, https://arxiv.org/abs/2002.09018
    """

    learning_rate: LearningRate = hyperparameter(default=0.1, at_least=0, kw_only=False)
    momentum: float = hyperparameter(default=0.9, at_least=0, below=1, off=0.0)
    beta_2: float | None = hyperparameter(default=None, at_least=0, below=1, off=None)
    epsilon: float = epsilon_hyperparameter(default=1e-6)
    weight_decay: float = hyperparameter(default=0.0, at_least=0, off=0.0)
    matrices: str = option(default="2-D", choices=LAYOUTS)
    max_size: int = option(default=1024, choices=tuple(2**k for k in range(5, 14)))
    root_iterations: int = option(default=10, choices=range(1, 31))

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on options
        """What is known of both sides of matrices, and of elements of others; with momentum, `m`."""
        known = (slot("left", shape="left_of"), slot("right", shape="right_of"), "v")
        return (*known, "m") if self.momentum else known

    def left_of(self, p: Any) -> tuple[int, ...]:
        """Return the shape of the left matrices."""
        *batches, rows, _ = matrix_shape(self.matrices, p.shape)
        return (*batches, rows, rows)

    def right_of(self, p: Any) -> tuple[int, ...]:
        """Return the shape of the right matrices."""
        *batches, _, columns = matrix_shape(self.matrices, p.shape)
        return (*batches, columns, columns)

    def slots_for(self, p: Any) -> tuple[str, ...]:
        """A matrix has those of its sides that are not too long; what has no side has one number an element."""
        return (*(self._sides(p) or ("v",)), *(("m",) if self.momentum else ()))

    def _sides(self, p: Any) -> tuple[str, ...]:
        """Return the slots that are matrices."""
        if not is_matrix(self.matrices, p.ndim):
            return ()
        lengths = zip(("left", "right"), matrix_shape(self.matrices, p.shape)[-2:], strict=True)
        return tuple(name for name, length in lengths if length <= self.max_size)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p = p * (1 - c.lr * self.weight_decay) if self.weight_decay else p
        sides, new = self._sides(p), {}
        if sides:
            u = x = xp.reshape(g, matrix_shape(self.matrices, p.shape))
            if "left" in sides:
                new["left"] = self._added(slots.left, x @ x.mT)
                u = self._inverse_root(xp, new["left"], 2 * len(sides)) @ u
            if "right" in sides:
                new["right"] = self._added(slots.right, x.mT @ x)
                u = u @ self._inverse_root(xp, new["right"], 2 * len(sides))
            u = xp.reshape(u, p.shape)
        else:
            new["v"] = self._added(slots.v, xp.square(g))
            u = g / xp.sqrt(new["v"] + self.epsilon)
        if self.momentum:
            u = new["m"] = self.momentum * slots.m + u
        return p - c.lr * u, new

    def _added(self, known: Any, product: Any) -> Any:
        """Return the sum or mean of products with one more."""
        return known + product if self.beta_2 is None else self.beta_2 * known + (1 - self.beta_2) * product

    def _inverse_root(self, xp: Any, known: Any, r: int) -> Any:
        """Return the inverse r-th root of matrices, r being 2 or 4, by coupled Newton iterations."""
        one = xp.eye(known.shape[-1])
        a = known + self.epsilon * one
        z = (0.5 * (1 + r)) / frobenius_norm(xp, a)
        square_root = scalars.sqrt if a.ndim == 2 else xp.sqrt
        m, x = z * a, None
        for k in range(self.root_iterations):
            t = (1 + 1 / r) * one - (1 / r) * m
            # Symmetric but for rounding, whose errors grow where the transpose takes the place of a factor.
            x = t if x is None else x @ t
            if k + 1 < self.root_iterations:
                square = t @ t
                m = (square if r == 2 else square @ square) @ m
        return (square_root(z) if r == 2 else square_root(square_root(z))) * x
