"""Muon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from portopt import scalars
from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, fixed, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
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


class Muon(DialectRule):
    """Muon: momentum whose matrix is made orthogonal by Newton-Schulz steps; AdamW for what is no matrix.

    With `O(u)` the result of `ns_steps` steps of `A = X X'`, `X = ns_a * X + (ns_b * A + ns_c * A A) X` that begin at
    `X = u / n`, and a matrix of so many outputs and inputs:

    - torch: `p = p * (1 - lr * weight_decay)`; `m = m + (1 - momentum) * (g - m)`; `u = g + momentum * (m - g)`, without
      nesterov `u = m`; `n = max(norm(u), epsilon)`; `p - lr * s * O(u)`, `s = sqrt(max(1, outputs / inputs))`, or
      `s = 0.2 * sqrt(max(outputs, inputs))` with `adjust_lr_fn="match_rms_adamw"`
    - keras3: `p = p - p * weight_decay * lr`; `m = m + (g + m * (momentum - 1))`; `u = g + momentum * m`, without nesterov
      `u = m`; `n = norm(u) + 1e-7`; `p - lr * s * O(u)`, `s = rms_rate * sqrt(max(outputs, inputs))`, or 1 if rms_rate is 0
    - optax: `m = momentum * m + (1 - momentum) * g`;
      `u = momentum * (m / (1 - momentum**(t + 1))) + (1 - momentum) * (g / (1 - momentum**t))`, without nesterov
      `u = m / (1 - momentum**t)`; `n = norm(u) + epsilon`; `p - lr * (s * O(u) + weight_decay * p)`,
      `s = sqrt(max(1, outputs / inputs))`, or `s = consistent_rms * sqrt(max(outputs, inputs))` with it

    Parameters that are no matrices step by AdamW of the dialect, with `adam_beta_1`, `adam_beta_2`, and their own epsilon and
    weight decay; torch.optim.Muon refuses them. Embeddings and output layers, which are no hidden layers, are better left to
    another optimizer, too. torch computes the steps in bfloat16; here they have the compute dtype.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: decay of the mean (keras3: the sum) of the gradient, in [0, 1).
        nesterov: whether the step looks ahead.
        ns_steps: how many Newton-Schulz steps, from 1 to 12.
        ns_a, ns_b, ns_c: their coefficients.
        matrices: which parameters are matrices, and how: `"2-D"`, `"OIHW"`, `"HWIO"` or `"stacked"`; see
            `portopt.rules.matrices.LAYOUTS`.
        epsilon: in [0, inf); None means the dialect's default. torch, optax: of the norm, optax: of AdamW, too. keras3: of AdamW.
        weight_decay: of matrices, in [0, inf).
        adjust_lr_fn: torch: how the step depends on the shape, `"original"` or `"match_rms_adamw"`.
        rms_rate: keras3: the root mean square of a step, in [0, inf); 0 (in Keras None) for steps of any shape alike.
        consistent_rms: optax: the root mean square of a step, in [0, inf); None for another dependence on the shape.
        adaptive: optax: whether the step is scaled by the sum of `u * O(u)`.
        adam_beta_1, adam_beta_2: decays of AdamW, in [0, 1).
        adam_weight_decay: weight decay of AdamW, in [0, inf).
        adam_epsilon: torch: epsilon of AdamW, in [0, inf).
        adam_lr_ratio: torch, keras3: learning rate of AdamW, in that of matrices, in [0, inf).
        adam_learning_rate: optax: learning rate of AdamW, in [0, inf); None for that of matrices.
        adam_eps_root: optax: in [0, inf); added under AdamW's root.
        dialect: see `DialectRule`.
        ns_coefficients, eps: torch: other names for (ns_a, ns_b, ns_c) and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Muon(learning_rate=0.5, weight_decay=0.0), np.eye(2)
        >>> opt.apply(w, np.asarray([[3.0, 0.0], [0.0, 1.0]]), opt.init(w))[0].round(1)
        array([[0.6, 0. ],
               [0. , 0.4]])

    Reference:
        Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon/; Liu and others, "Muon is scalable for LLM training", 2025,
        https://arxiv.org/abs/2502.16982
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "torch.optim.Muon",
            {"m": "momentum_buffer"},
            names={
                "ns_a": "ns_coefficients.0", "ns_b": "ns_coefficients.1", "ns_c": "ns_coefficients.2",
            },
            lacks=(
                "matrices", "adam_beta_1", "adam_beta_2", "adam_weight_decay", "adam_epsilon", "adam_lr_ratio",
            ),
            counts=False,
            # It takes matrices only, where models have vectors, too.
            compared=False,
        ),
        Counterpart(
            "keras.optimizers.Muon",
            {"m": "momentum", "v": "velocity"},
            names={"ns_a": "muon_a", "ns_b": "muon_b", "ns_c": "muon_c"},
            lacks=("matrices",),
            none=("rms_rate",),
            given={"exclude_embeddings": False},
        ),
        Counterpart(
            "optax.contrib.muon",
            {"m": "mu", "v": "nu"},
            names={
                "ns_a": "ns_coeffs.0", "ns_b": "ns_coeffs.1", "ns_c": "ns_coeffs.2", "momentum": "beta",
                "adam_beta_1": "adam_b1", "adam_beta_2": "adam_b2",
            },
            lacks=("matrices",),
        ),
    )  # fmt: skip

    dialect: Dialect = dialect_option(default="torch", others=("keras3", "optax"))
    learning_rate: LearningRate = hyperparameter(default=0.001, at_least=0, kw_only=False)
    momentum: float = hyperparameter(default=0.95, at_least=0, below=1, kw_only=False)
    nesterov: bool = option(default=True)
    ns_steps: int = option(default=5, choices=range(1, 13))
    ns_a: float = hyperparameter(default=3.4445)
    ns_b: float = hyperparameter(default=-4.775)
    ns_c: float = hyperparameter(default=2.0315)
    matrices: str = option(default="2-D", choices=LAYOUTS)
    epsilon: float = epsilon_hyperparameter(default=per_dialect(torch=1e-7, keras3=1e-7, optax=1e-8))
    weight_decay: float | None = hyperparameter(
        default=per_dialect(torch=0.1, keras3=0.004, optax=0.0), at_least=0, off=0.0
    )
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = option(
        default=per_dialect(torch="original"), choices=("original", "match_rms_adamw")
    )
    rms_rate: float | None = hyperparameter(default=per_dialect(keras3=0.2), at_least=0, off=0.0)
    consistent_rms: float | None = hyperparameter(default=per_dialect(optax=None), at_least=0, off=None)
    adaptive: bool | None = option(default=per_dialect(optax=False))
    adam_beta_1: float = hyperparameter(default=0.9, at_least=0, below=1)
    adam_beta_2: float = hyperparameter(default=0.999, at_least=0, below=1)
    adam_weight_decay: float | None = hyperparameter(
        default=per_dialect(torch=0.01, keras3=0.004, optax=0.0), at_least=0, off=0.0
    )
    adam_epsilon: float | None = hyperparameter(default=per_dialect(torch=1e-8), at_least=0)
    adam_lr_ratio: float | None = hyperparameter(default=per_dialect(torch=1.0, keras3=1.0), at_least=0)
    adam_learning_rate: float | None = hyperparameter(default=per_dialect(optax=None), at_least=0, off=None)
    adam_eps_root: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, off=0.0)
    maximize: bool | None = fixed(False)
    ns_coefficients: tuple[float, float, float] | None = alias("ns_a", "ns_b", "ns_c", dialect="torch", default=None)
    eps: float | None = alias("epsilon", dialect="torch", default=None)
    slots = ("m", "v")

    def slots_for(self, p: Any) -> tuple[str, ...]:
        """Matrices have no mean of squares."""
        return ("m",) if is_matrix(self.matrices, p.ndim) else ("m", "v")

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        lr = self.learning_rate_at(t)
        c1, c2 = 1 - self.adam_beta_1**t, 1 - self.adam_beta_2**t
        match self.dialect:
            case "torch":
                adam = lr * self.adam_lr_ratio
                return {"lr": lr, "lr_t": adam / c1, "adam_lr": adam, "root_c2": sqrt(c2)}
            case "keras3":
                return {"lr": lr, "lr_t": lr * self.adam_lr_ratio * sqrt(c2) / c1}
            case _:
                return {
                    "lr": lr,
                    "adam_lr": lr if self.adam_learning_rate is None else self.adam_learning_rate,
                    "c": 1 - self.momentum**t,
                    "next_c": 1 - self.momentum ** (t + 1),
                    "c1": c1,
                    "next_c1": 1 - self.adam_beta_1 ** (t + 1),
                    "c2": c2,
                }

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        if not is_matrix(self.matrices, p.ndim):
            return self._adamw(xp, p, g, slots, c)
        m, u = self._momentum(slots.m, g, c)
        x = xp.reshape(u, matrix_shape(self.matrices, p.shape))
        step = orthogonalized(x / self._size(xp, x), [(self.ns_a, self.ns_b, self.ns_c)] * self.ns_steps)
        step = xp.reshape(step, p.shape)
        if self.adaptive:
            step = xp.sum(u * step) * step
        lr, scale = c.lr, self._scale(p.shape)
        match self.dialect:
            case "torch":
                p = p * (1 - lr * self.weight_decay) if self.weight_decay else p
                p = p - lr * scale * step
            case "keras3":
                p = p - p * self.weight_decay * lr if self.weight_decay else p
                p = p - lr * scale * step
            case "optax":
                step = scale * step
                p = p - lr * (step + self.weight_decay * p if self.weight_decay else step)
        return p, {"m": m}

    def _momentum(self, m: Any, g: Any, c: Any) -> tuple[Any, Any]:
        """Return the new momentum, and what is made orthogonal."""
        mu = self.momentum
        match self.dialect:
            case "torch":
                m = m + (1 - mu) * (g - m)
                return m, g + mu * (m - g) if self.nesterov else m
            case "keras3":
                m = m + (g + m * (mu - 1))
                return m, g + mu * m if self.nesterov else m
            case _:
                m = mu * m + (1 - mu) * g
                return m, mu * (m / c.next_c) + (1 - mu) * (g / c.c) if self.nesterov else m / c.c

    def _size(self, xp: Any, x: Any) -> Any:
        """Return what each matrix is divided by, so that its singular values are at most 1."""
        norm = frobenius_norm(xp, x)
        match self.dialect:
            case "torch":
                return scalars.maximum(norm, self.epsilon) if x.ndim == 2 else xp.maximum(norm, self.epsilon)
            case "keras3":
                return norm + 1e-7
            case _:
                return norm + self.epsilon

    def _scale(self, shape: tuple[int, ...]) -> Any:
        """Return what the step is multiplied by for its shape."""
        outputs, inputs = outputs_and_inputs(self.matrices, shape, rows_are_outputs=self.dialect == "torch")
        match self.dialect:
            case "torch":
                rms = 0.2 if self.adjust_lr_fn == "match_rms_adamw" else None
            case "keras3" if not self.rms_rate:
                return 1.0
            case "keras3":
                rms = self.rms_rate
            case _:
                rms = self.consistent_rms
        return math.sqrt(max(1.0, outputs / max(inputs, 1))) if rms is None else rms * math.sqrt(max(outputs, inputs))

    def _adamw(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        beta_1, beta_2, decay = self.adam_beta_1, self.adam_beta_2, self.adam_weight_decay
        match self.dialect:
            case "torch":
                p = p * (1 - c.adam_lr * decay) if decay else p
                return adamw_step(xp, p, g, slots, (beta_1, beta_2, self.adam_epsilon), c)
            case "keras3":
                p = p - p * decay * c.lr if decay else p
                m = slots.m + (g - slots.m) * (1 - beta_1)
                v = slots.v + (xp.square(g) - slots.v) * (1 - beta_2)
                p = p - m * c.lr_t / (xp.sqrt(v) + self.epsilon)
            case _:
                m = beta_1 * slots.m + (1 - beta_1) * g
                v = beta_2 * slots.v + (1 - beta_2) * xp.square(g)
                ahead = beta_1 * (m / c.next_c1) + (1 - beta_1) * (g / c.c1) if self.nesterov else m / c.c1
                square = v / c.c2 + self.adam_eps_root if self.adam_eps_root else v / c.c2
                step = ahead / (xp.sqrt(square) + self.epsilon)
                p = p - c.adam_lr * (step + decay * p if decay else step)
        return p, {"m": m, "v": v}
