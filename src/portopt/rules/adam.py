"""Adam and AMSGrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter, option
from portopt.optimizer import Optimizer
from portopt.scalars import sqrt


class Adam(Optimizer):
    """Adam: the running mean of the gradient over the root of the running mean of its square.

    `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
    with `lr_t = lr * (sqrt(1 - beta_2**t) / (1 - beta_1**t))`, `p - lr_t * m / (sqrt(v) + epsilon)`.
    With amsgrad, `vhat = max(vhat, v)` takes the place of `v` under the root. As in Keras, epsilon is added to the root of the
    uncorrected `v` (the paper's "epsilon hat").

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        amsgrad: whether the denominator never shrinks.
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        decay: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adam(learning_rate=0.1), np.asarray([1.0])
        >>> w, state = opt.apply(w, np.asarray([5.0]), opt.init(w))
        >>> w.round(6)
        array([0.9])

    Reference:
        Kingma, Ba, "Adam: a method for stochastic optimization", 2014, https://arxiv.org/abs/1412.6980;
        Reddi, Kale, Kumar, "On the convergence of Adam and beyond", 2018, https://openreview.net/forum?id=ryQu7f-RZ
    """

    learning_rate: Any = hyperparameter(default=0.001, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1, kw_only=False)
    amsgrad: bool = option(default=False, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=None)
    decay: float = hyperparameter(default=0.0, at_least=0, off=0.0, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on an option
        """`m` and `v`, and `vhat` with amsgrad."""
        return ("m", "v", "vhat") if self.amsgrad else ("m", "v")

    @property
    def keras_placeholder_slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on an option
        """Keras lists `vhat` in any case."""
        return () if self.amsgrad else ("vhat",)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        correction = sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return {"lr_t": self.learning_rate_at(t) * correction}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        m = self.beta_1 * slots.m + (1 - self.beta_1) * g
        v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
        if not self.amsgrad:
            return p - c.lr_t * m / (xp.sqrt(v) + self.epsilon), {"m": m, "v": v}
        vhat = xp.maximum(slots.vhat, v)
        return p - c.lr_t * m / (xp.sqrt(vhat) + self.epsilon), {"m": m, "v": v, "vhat": vhat}
