"""NorMuon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from portopt import scalars
from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter, option
from portopt.optimizer import Optimizer
from portopt.rules.matrices import (
    LAYOUTS,
    adamw_step,
    frobenius_norm,
    is_matrix,
    matrix_shape,
    orthogonalized,
    outputs_and_inputs,
)
from portopt.scalars import sqrt
from portopt.schedules import LearningRate
from portopt.slot import slot

_STEPS: Mapping[str, list[tuple[float, float, float]]] = {
    "dion": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    "standard": [(3.4445, -4.7750, 2.0315)] * 5,
}


class NorMuon(Optimizer):
    """NorMuon: Muon whose orthogonal step has each output's row scaled by the root of its mean square over time.

    `m = momentum * m + g`; `u = g + momentum * m` with nesterov, else `u = m`; `O = O(u / (norm(u) + epsilon))`, by the
    Newton-Schulz steps that `Muon` describes; of each output's row of O,
    `v = beta_2 * v + (1 - beta_2) * mean(O**2)`; `U = O / (sqrt(v) + 1e-8)`; `U = U * (norm(O) / max(norm(U), 1e-8))`;
    `p = p * (1 - lr * weight_decay)`; `p - lr * s * U`, where `s = sqrt(outputs / inputs)`, or
    `s = 0.2 * sqrt(max(outputs, inputs))` with `adjust_lr="rms_norm"`.

    Parameters that are no matrices step by AdamW, as torch has it. The outputs of a matrix are its rows, but in the layout
    `"HWIO"`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: decay of the sum of the gradient, in [0, 1).
        beta_2: decay of the mean of squares of a row, in [0, 1).
        nesterov: whether the step looks ahead.
        ns_coefficients: of the five steps: `"dion"` for five different ones, `"standard"` for those of Muon.
        matrices: which parameters are matrices, and how: `"2-D"`, `"OIHW"`, `"HWIO"` or `"stacked"`; see
            `portopt.rules.matrices.LAYOUTS`.
        epsilon: in [0, inf), None means `portopt.epsilon()`; added to the norm, and in AdamW to the root.
        weight_decay: of all parameters, in [0, inf).
        adjust_lr: how the step depends on the shape, `"spectral_norm"` or `"rms_norm"`.
        adam_beta_1, adam_beta_2: decays of AdamW, in [0, 1).
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.NorMuon(learning_rate=0.5, weight_decay=0.0), np.eye(2)
        >>> opt.apply(w, np.asarray([[3.0, 0.0], [0.0, 1.0]]), opt.init(w))[0].round(1)
        array([[0.5, 0. ],
               [0. , 0.5]])

    Reference:
        Li and others, "NorMuon: making Muon more efficient and scalable", 2025, https://arxiv.org/abs/2510.05491
    """

    learning_rate: LearningRate = hyperparameter(default=0.01, at_least=0, kw_only=False)
    momentum: float = hyperparameter(default=0.95, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.95, at_least=0, below=1, kw_only=False)
    nesterov: bool = option(default=False)
    ns_coefficients: Literal["dion", "standard"] = option(default="dion", choices=tuple(_STEPS))
    matrices: str = option(default="2-D", choices=LAYOUTS)
    epsilon: float = epsilon_hyperparameter(default=1e-8)
    weight_decay: float = hyperparameter(default=0.01, at_least=0, off=0.0)
    adjust_lr: Literal["spectral_norm", "rms_norm"] = option(
        default="spectral_norm", choices=("spectral_norm", "rms_norm")
    )
    adam_beta_1: float = hyperparameter(default=0.9, at_least=0, below=1)
    adam_beta_2: float = hyperparameter(default=0.95, at_least=0, below=1)
    slots = ("m", slot("row", drop="inputs_of"), "v")

    def slots_for(self, p: Any) -> tuple[str, ...]:
        """Matrices have a mean of squares a row, and all others one an element."""
        return ("m", "row") if is_matrix(self.matrices, p.ndim) else ("m", "v")

    def inputs_of(self, p: Any) -> tuple[int, ...]:
        """Return the axes along which a row of a matrix lies."""
        match self.matrices:
            case "OIHW":
                return tuple(range(1, p.ndim))
            case "HWIO":
                return tuple(range(p.ndim - 1))
            case _:
                return (-1,)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        lr = self.learning_rate_at(t)
        return {"lr": lr, "lr_t": lr / (1 - self.adam_beta_1**t), "root_c2": sqrt(1 - self.adam_beta_2**t)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p = p * (1 - c.lr * self.weight_decay) if self.weight_decay else p
        if not is_matrix(self.matrices, p.ndim):
            return adamw_step(xp, p, g, slots, (self.adam_beta_1, self.adam_beta_2, self.epsilon), c)
        m = self.momentum * slots.m + g
        u = xp.reshape(g + self.momentum * m if self.nesterov else m, matrix_shape(self.matrices, p.shape))
        step = orthogonalized(u / (frobenius_norm(xp, u) + self.epsilon), _STEPS[self.ns_coefficients])
        inputs = -2 if self.matrices == "HWIO" else -1
        square = xp.mean(step * step, axis=inputs, keepdims=True)
        row = self.beta_2 * slots.row + (1 - self.beta_2) * xp.reshape(square, slots.row.shape)
        scaled = step / (xp.sqrt(xp.reshape(row, square.shape)) + 1e-8)
        size = frobenius_norm(xp, scaled)
        size = scalars.maximum(size, 1e-8) if u.ndim == 2 else xp.maximum(size, 1e-8)
        step = xp.reshape(scaled * (frobenius_norm(xp, step) / size), p.shape)
        return p - c.lr * self._scale(p.shape) * step, {"m": m, "row": row}

    def _scale(self, shape: tuple[int, ...]) -> float:
        """Return what the step is multiplied by for its shape."""
        outputs, inputs = outputs_and_inputs(self.matrices, shape, rows_are_outputs=True)
        if self.adjust_lr == "rms_norm":
            return 0.2 * math.sqrt(max(outputs, inputs))
        return math.sqrt(outputs / max(inputs, 1))
