"""Nadam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.schedules import LearningRate


class Nadam(DialectRule):
    """Nadam: Adam with Nesterov momentum, its momentum on a schedule of its own.

    With `mu(t) = beta_1 * (1 - 0.5 * 0.96**(t * schedule_decay))`, `m_schedule` the product of all `mu` so far,
    `M = 1 - m_schedule`, `N = 1 - m_schedule * mu(t + 1)`, `c1 = 1 - beta_1**t` and `c2 = 1 - beta_2**t`:

    - keras2: `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `p - lr * ((1 - mu(t)) * (g / M) + mu(t + 1) * (m / N)) / (sqrt(v / c2) + epsilon)`
    - keras3: `m = m + (g - m) * (1 - beta_1)`; `v = v + (g**2 - v) * (1 - beta_2)`;
      `p - (mu(t + 1) * m / N + (1 - mu(t)) * g / M) * lr / (sqrt(v / c2) + epsilon)`
    - torch: `m = m + (1 - beta_1) * (g - m)`; `v = beta_2 * v + (1 - beta_2) * g**2`; `d = sqrt(v / c2) + epsilon`;
      `p - lr * (1 - mu(t)) / M * g / d - lr * mu(t + 1) / N * m / d`
    - optax: `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `m_bar = beta_1 * (m / (1 - beta_1**(t + 1))) + (1 - beta_1) * (g / c1)`;
      `p - lr * (m_bar / (sqrt(v / c2 + eps_root) + epsilon) + weight_decay * p)`

    In keras3 `schedule_decay` is 1. optax has no schedule of the momentum, and no `m_schedule`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: final momentum, and decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        epsilon: in [0, inf); None means the dialect's default, which in keras2 is `portopt.epsilon()`.
        schedule_decay: keras2, torch: in [0, inf); how fast the momentum rises from about half of beta_1 to beta_1.
        weight_decay: in [0, inf). keras3: `p - p * weight_decay * lr` before the step. torch: `g + weight_decay * p`.
            optax: in the step.
        decoupled_weight_decay: torch: whether weight decay is `p * (1 - lr * weight_decay)` before the step instead.
        eps_root: optax: in [0, inf); added under the root.
        dialect, maximize: see `DialectRule`.
        betas, eps, momentum_decay: torch: other names for (beta_1, beta_2), epsilon and schedule_decay.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

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
    keras_short_list = (1, 1.0)

    counterparts = (
        Counterpart(
            "torch.optim.NAdam",
            {"m": "exp_avg", "v": "exp_avg_sq", "m_schedule": "mu_product"},
            epsilon="beside the corrected root",
        ),
        Counterpart(
            "optax.nadam",
            {"m": "mu", "v": "nu"},
            fixed={"weight_decay": 0.0},
            ignored=("nesterov",),
            epsilon="beside the corrected root",
        ),
        Counterpart("optax.nadamw", {"m": "mu", "v": "nu"}, ignored=("nesterov",), epsilon="beside the corrected root"),
        Counterpart(
            "keras.optimizers.Nadam",
            # The product of the momenta is a variable without a name.
            {"m": "momentum", "v": "velocity", "m_schedule": "variable"},
            epsilon="beside the corrected root",
        ),
        Counterpart(
            "tf_keras.optimizers.legacy.Nadam",
            {"m": "m", "v": "v", "m_schedule": "momentum_cache"},
            names={"schedule_decay": "decay"},
            epsilon="beside the corrected root",
        ),
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
    schedule_decay: float | None = hyperparameter(default=per_dialect(keras2=0.004, torch=0.004), at_least=0)
    weight_decay: float | None = hyperparameter(
        default=per_dialect(keras3=0.0, torch=0.0, optax=0.0), at_least=0, off=0.0
    )
    decoupled_weight_decay: bool | None = option(default=per_dialect(torch=False))
    eps_root: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, off=0.0)
    betas: tuple[float, float] | None = alias("beta_1", "beta_2", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)
    momentum_decay: float | None = alias("schedule_decay", dialect="torch", default=None, kw_only=True)

    @property
    def scalar_slots(self) -> Mapping[str, float]:  # type: ignore[override]  # depends on the dialect
        """`m_schedule`, except in optax."""
        return {} if self.dialect == "optax" else {"m_schedule": 1.0}

    def momentum_at(self, t: Any) -> Any:
        """Return mu of step number `t`."""
        return self.beta_1 * (1 - 0.5 * 0.96 ** (t if self.dialect == "keras3" else t * self.schedule_decay))

    def coefficients(self, t: Any, m_schedule: Any = None) -> Mapping[str, Any]:
        if self.dialect == "optax":
            c1, next_c1 = 1 - self.beta_1**t, 1 - self.beta_1 ** (t + 1)
            return {"lr": self.learning_rate_at(t), "c1": c1, "next_c1": next_c1, "c2": 1 - self.beta_2**t}
        mu, next_mu = self.momentum_at(t), self.momentum_at(t + 1)
        product = m_schedule * mu
        return {
            "lr": self.learning_rate_at(t),
            "mu": mu,
            "next_mu": next_mu,
            "m_schedule": product,
            "g_correction": 1 - product,
            "m_correction": 1 - product * next_mu,
            "c2": 1 - self.beta_2**t,
        }

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr, decoupled=self.decoupled_weight_decay)
        match self.dialect:
            case "keras2":
                m = self.beta_1 * slots.m + (1 - self.beta_1) * g
                v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
                m_bar = (1 - c.mu) * (g / c.g_correction) + c.next_mu * (m / c.m_correction)
                p = p - c.lr * m_bar / (xp.sqrt(v / c.c2) + self.epsilon)
            case "keras3":
                m = slots.m + (g - slots.m) * (1 - self.beta_1)
                v = slots.v + (xp.square(g) - slots.v) * (1 - self.beta_2)
                m_bar = c.next_mu * m / c.m_correction + (1 - c.mu) * g / c.g_correction
                p = p - m_bar * c.lr / (xp.sqrt(v / c.c2) + self.epsilon)
            case "torch":
                m = slots.m + (1 - self.beta_1) * (g - slots.m)
                v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
                denominator = xp.sqrt(v / c.c2) + self.epsilon
                p = p - (c.lr * (1 - c.mu) / c.g_correction) * g / denominator
                p = p - (c.lr * c.next_mu / c.m_correction) * m / denominator
            case "optax":
                m = self.beta_1 * slots.m + (1 - self.beta_1) * g
                v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
                m_bar = self.beta_1 * (m / c.next_c1) + (1 - self.beta_1) * (g / c.c1)
                mean_square = v / c.c2 + self.eps_root if self.eps_root else v / c.c2
                direction = m_bar / (xp.sqrt(mean_square) + self.epsilon)
                p = p - c.lr * (direction + self.weight_decay * p if self.weight_decay else direction)
        return p, {"m": m, "v": v}
