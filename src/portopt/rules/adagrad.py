"""Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter
from portopt.optimizer import Optimizer


class Adagrad(Optimizer):
    """Adagrad: the gradient divided by the root of the sum of its squares so far.

    `accumulator = accumulator + g**2`; then `p - lr * g / (sqrt(accumulator) + epsilon)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        decay: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adagrad(learning_rate=0.5, epsilon=0), np.asarray([1.0])
        >>> opt.apply(w, np.asarray([4.0]), opt.init(w))[0]
        array([0.5])

    Reference:
        Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011,
        https://jmlr.org/papers/v12/duchi11a.html
    """

    slots = ("accumulator",)
    keras_short_list = (0, 0.0)

    learning_rate: Any = hyperparameter(default=0.01, at_least=0, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=None)
    decay: float = hyperparameter(default=0.0, at_least=0, off=0.0, kw_only=True)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        accumulator = slots.accumulator + xp.square(g)
        return p - c.lr * g / (xp.sqrt(accumulator) + self.epsilon), {"accumulator": accumulator}
