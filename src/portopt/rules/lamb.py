"""LAMB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import dialect_option, epsilon_hyperparameter, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import where
from portopt.schedules import LearningRate


class LAMB(DialectRule):
    """LAMB: Adam's direction, scaled so that a step is as large as the parameter that it changes.

    With `c1 = 1 - beta_1**t`, `c2 = 1 - beta_2**t`, and `trust = norm(p) / norm(u)`, which is 1 where one of the norms is 0:

    - optax: `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `u = (m / c1) / (sqrt(v / c2 + eps_root) + epsilon) + weight_decay * p`; `p - lr * trust * u`
    - keras3: `p = p - p * weight_decay * lr`; `m = m + (g - m) * (1 - beta_1)`; `v = v + (g**2 - v) * (1 - beta_2)`;
      `u = (m / c1) / (sqrt(v / c2) + epsilon)`; `p - trust * lr * u`

    The norms are those of one parameter. In optax weight decay is part of the direction, as in the paper. In keras3 it is
    outside of the trust ratio: it comes first, and `norm(p)` is that of what it leaves.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        epsilon: in [0, inf); None means the dialect's default.
        weight_decay: in [0, inf).
        eps_root: optax: in [0, inf); added under the root.
        dialect: see `DialectRule`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.LAMB(learning_rate=0.5), np.asarray([3.0, 4.0])
        >>> opt.apply(w, np.asarray([0.001, -0.001]), opt.init(w))[0].round(2)
        array([1.23, 5.77])

    Reference:
        You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, "Large batch optimization for deep learning:
        training BERT in 76 minutes", 2019, https://arxiv.org/abs/1904.00962
    """

    slots = ("m", "v")
    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart("optax.lamb", {"m": "mu", "v": "nu"}, epsilon="beside the corrected root"),
        Counterpart("keras.optimizers.Lamb", {"m": "momentum", "v": "velocity"}, epsilon="beside the corrected root"),
    )

    dialect: Dialect = dialect_option(default="optax", others=("keras3",))
    learning_rate: LearningRate = hyperparameter(default=0.001, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=per_dialect(optax=1e-6, keras3=1e-7))
    weight_decay: float = hyperparameter(default=0.0, at_least=0, off=0.0)
    eps_root: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, off=0.0)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        return {"lr": self.learning_rate_at(t), "c1": 1 - self.beta_1**t, "c2": 1 - self.beta_2**t}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        if self.dialect == "optax":
            m = self.beta_1 * slots.m + (1 - self.beta_1) * g
            v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
        else:
            m = slots.m + (g - slots.m) * (1 - self.beta_1)
            v = slots.v + (xp.square(g) - slots.v) * (1 - self.beta_2)
        corrected = v / c.c2
        u = (m / c.c1) / (xp.sqrt(corrected + self.eps_root if self.eps_root else corrected) + self.epsilon)
        if self.dialect == "optax" and self.weight_decay:
            u = u + self.weight_decay * p
        size_p, size_u = xp.linalg.vector_norm(p), xp.linalg.vector_norm(u)
        trust = where((size_p == 0) | (size_u == 0), 1.0, size_p / size_u)
        return p - c.lr * trust * u, {"m": m, "v": v}
