"""Adamax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.schedules import LearningRate


class Adamax(DialectRule):
    """Adamax: Adam with the running maximum of |g| in place of the root of the running mean of squares.

    With `c1 = 1 - beta_1**t`:

    - keras2: `m = beta_1 * m + (1 - beta_1) * g`; `u = max(beta_2 * u, abs(g))`; `p - (lr / c1) * m / (u + epsilon)`
    - keras3: `m = m + (g - m) * (1 - beta_1)`; `u = max(beta_2 * u, abs(g))`; `p - lr * m / (c1 * (u + epsilon))`
    - torch: `m = m + (1 - beta_1) * (g - m)`; `u = max(beta_2 * u, abs(g) + epsilon)`; `p - (lr / c1) * m / u`
    - optax: `m = beta_1 * m + (1 - beta_1) * g`; `u = max(abs(g) + epsilon, beta_2 * u)`;
      `p - lr * ((m / c1) / u + weight_decay * p)`

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the maximum, in [0, 1).
        epsilon: in [0, inf); None means the dialect's default, which in keras2 is `portopt.epsilon()`.
        decay: keras2: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        weight_decay: in [0, inf). keras3: `p - p * weight_decay * lr` before the step. torch: `g + weight_decay * p`.
            optax: in the step.
        dialect, maximize: see `DialectRule`.
        betas, eps: torch: other names for (beta_1, beta_2) and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adamax(learning_rate=0.5, beta_1=0.5, epsilon=0), np.asarray([1.0])
        >>> opt.apply(w, np.asarray([5.0]), opt.init(w))[0]
        array([0.5])

    Reference:
        Kingma, Ba, "Adam: a method for stochastic optimization", 2014, section 7.1, https://arxiv.org/abs/1412.6980
    """

    slots = ("m", "u")

    counterparts = (
        Counterpart("torch.optim.Adamax", {"m": "exp_avg", "u": "exp_inf"}, epsilon="in the maximum"),
        Counterpart("optax.adamax", {"m": "mu", "u": "nu"}, fixed={"weight_decay": 0.0}, epsilon="in the maximum"),
        Counterpart("optax.adamaxw", {"m": "mu", "u": "nu"}, epsilon="in the maximum"),
        Counterpart("keras.optimizers.Adamax", {"m": "momentum", "u": "norm"}, epsilon="beside the norm"),
        Counterpart("tf_keras.optimizers.legacy.Adamax", {"m": "m", "u": "v"}, epsilon="beside the norm"),
    )

    dialect: Dialect = dialect_option(default="keras2", others=("keras3", "torch", "optax"))
    learning_rate: LearningRate = hyperparameter(
        default=per_dialect(keras2=0.002, keras3=0.001, torch=0.002, optax=0.001), at_least=0, kw_only=False
    )
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(
        default=per_dialect(keras2=None, keras3=1e-7, torch=1e-8, optax=1e-8)
    )
    decay: float | None = hyperparameter(default=per_dialect(keras2=0.0), at_least=0, off=0.0)
    weight_decay: float | None = hyperparameter(
        default=per_dialect(keras3=0.0, torch=0.0, optax=0.0), at_least=0, off=0.0
    )
    betas: tuple[float, float] | None = alias("beta_1", "beta_2", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        lr, c1 = self.learning_rate_at(t), 1 - self.beta_1**t
        return {"lr": lr, "c1": c1, "lr_t": lr / c1}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        match self.dialect:
            case "keras2":
                m = self.beta_1 * slots.m + (1 - self.beta_1) * g
                u = xp.maximum(self.beta_2 * slots.u, xp.abs(g))
                p = p - c.lr_t * m / (u + self.epsilon)
            case "keras3":
                m = slots.m + (g - slots.m) * (1 - self.beta_1)
                u = xp.maximum(self.beta_2 * slots.u, xp.abs(g))
                p = p - c.lr * m / (c.c1 * (u + self.epsilon))
            case "torch":
                m = slots.m + (1 - self.beta_1) * (g - slots.m)
                u = xp.maximum(self.beta_2 * slots.u, xp.abs(g) + self.epsilon)
                p = p - c.lr_t * m / u
            case "optax":
                m = self.beta_1 * slots.m + (1 - self.beta_1) * g
                u = xp.maximum(xp.abs(g) + self.epsilon, self.beta_2 * slots.u)
                direction = m / c.c1 / u
                p = p - c.lr * (direction + self.weight_decay * p if self.weight_decay else direction)
        return p, {"m": m, "u": u}
