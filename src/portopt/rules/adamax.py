"""Adamax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter
from portopt.optimizer import Optimizer


class Adamax(Optimizer):
    """Adamax: Adam with the running maximum of |g| in place of the root of the running mean of squares.

    `m = beta_1 * m + (1 - beta_1) * g`; `u = max(beta_2 * u, |g|)`; then
    `p - (lr / (1 - beta_1**t)) * m / (u + epsilon)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the maximum, in [0, 1).
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        decay: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adamax(learning_rate=0.5, beta_1=0.5, epsilon=0), np.asarray([1.0])
        >>> opt.apply(w, np.asarray([5.0]), opt.init(w))[0]
        array([0.5])

    Reference:
        Kingma, Ba, "Adam: a method for stochastic optimization", 2014, section 7.1, https://arxiv.org/abs/1412.6980
    """

    slots = ("m", "u")

    learning_rate: Any = hyperparameter(default=0.002, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=None)
    decay: float = hyperparameter(default=0.0, at_least=0, off=0.0, kw_only=True)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        return {"lr_t": self.learning_rate_at(t) / (1 - self.beta_1**t)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        m = self.beta_1 * slots.m + (1 - self.beta_1) * g
        u = xp.maximum(self.beta_2 * slots.u, xp.abs(g))
        return p - c.lr_t * m / (u + self.epsilon), {"m": m, "u": u}
