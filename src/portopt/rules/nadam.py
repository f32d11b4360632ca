"""Nadam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter
from portopt.optimizer import Optimizer


class Nadam(Optimizer):
    """Nadam: Adam with Nesterov momentum, its momentum on a schedule of its own.

    With `mu(t) = beta_1 * (1 - 0.5 * 0.96**(t * schedule_decay))` and `m_schedule` the product of all `mu` so far:
    `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
    `m_bar = (1 - mu(t)) * g / (1 - m_schedule) + mu(t + 1) * m / (1 - m_schedule * mu(t + 1))`;
    then `p - lr * m_bar / (sqrt(v / (1 - beta_2**t)) + epsilon)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: final momentum, and decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        schedule_decay: in [0, inf); how fast the momentum rises from about half of beta_1 to beta_1.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Nadam(learning_rate=0.1), np.asarray([1.0])
        >>> w, state = opt.apply(w, np.asarray([5.0]), opt.init(w))
        >>> w.round(4)
        array([0.8944])

    Reference:
        Dozat, "Incorporating Nesterov momentum into Adam", 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
    """

    slots = ("m", "v")
    scalar_slots = {"m_schedule": 1.0}  # noqa: RUF012  # a mapping that nothing writes to
    keras_short_list = (1, 1.0)

    learning_rate: Any = hyperparameter(default=0.002, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=None)
    schedule_decay: float = hyperparameter(default=0.004, at_least=0, kw_only=True)

    def momentum_at(self, t: Any) -> Any:
        """Return mu of step number `t`."""
        return self.beta_1 * (1 - 0.5 * 0.96 ** (t * self.schedule_decay))

    def coefficients(self, t: Any, m_schedule: Any) -> Mapping[str, Any]:
        mu, next_mu = self.momentum_at(t), self.momentum_at(t + 1)
        product = m_schedule * mu
        return {
            "lr": self.learning_rate_at(t),
            "mu": mu,
            "next_mu": next_mu,
            "m_schedule": product,
            "g_correction": 1 - product,
            "m_correction": 1 - product * next_mu,
            "v_correction": 1 - self.beta_2**t,
        }

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        m = self.beta_1 * slots.m + (1 - self.beta_1) * g
        v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
        m_bar = (1 - c.mu) * (g / c.g_correction) + c.next_mu * (m / c.m_correction)
        return p - c.lr * m_bar / (xp.sqrt(v / c.v_correction) + self.epsilon), {"m": m, "v": v}
