"""Adadelta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter
from portopt.optimizer import Optimizer


class Adadelta(Optimizer):
    """Adadelta: steps in the units of the parameter, from running means of squared gradients and squared steps.

    `accumulator = rho * accumulator + (1 - rho) * g**2`;
    `change = g * sqrt(delta_accumulator + epsilon) / sqrt(accumulator + epsilon)`;
    `delta_accumulator = rho * delta_accumulator + (1 - rho) * change**2`; then `p - lr * change`.

    Args:
        learning_rate: in [0, inf), or a schedule. The paper has none, which is 1.
        rho: decay of both running means, in [0, 1).
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        decay: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adadelta(rho=0.5, epsilon=0.5), np.asarray([1.0])
        >>> opt.apply(w, np.asarray([1.0]), opt.init(w))[0].round(4)
        array([0.2929])

    Reference:
        Zeiler, "ADADELTA: an adaptive learning rate method", 2012, https://arxiv.org/abs/1212.5701
    """

    slots = ("accumulator", "delta_accumulator")
    keras_short_list = (0, 0.0)

    learning_rate: Any = hyperparameter(default=1.0, at_least=0, kw_only=False)
    rho: float = hyperparameter(default=0.95, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=None)
    decay: float = hyperparameter(default=0.0, at_least=0, off=0.0, kw_only=True)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        accumulator = self.rho * slots.accumulator + (1 - self.rho) * xp.square(g)
        change = g * xp.sqrt(slots.delta_accumulator + self.epsilon) / xp.sqrt(accumulator + self.epsilon)
        delta_accumulator = self.rho * slots.delta_accumulator + (1 - self.rho) * xp.square(change)
        return p - c.lr * change, {"accumulator": accumulator, "delta_accumulator": delta_accumulator}
