"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import hyperparameter, option
from portopt.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov momentum.

    `moment = momentum * moment - lr * g`; then `p + moment`, or with nesterov `(p + momentum * moment) - lr * g`. The
    learning rate is inside the moment, as in Keras, so a change of it acts on later gradients only.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: in [0, 1]; 0 is plain gradient descent.
        nesterov: whether the step looks ahead along the moment.
        decay: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.SGD(learning_rate=0.5, momentum=0.5), np.asarray([1.0])
        >>> w, state = opt.apply(w, np.asarray([1.0]), opt.init(w))
        >>> w, state = opt.apply(w, np.asarray([1.0]), state)
        >>> w
        array([-0.25])

    Reference:
        Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", 2013,
        https://proceedings.mlr.press/v28/sutskever13.html
    """

    slots = ("moment",)

    learning_rate: Any = hyperparameter(default=0.01, at_least=0, kw_only=False)
    momentum: float = hyperparameter(default=0.0, at_least=0, at_most=1, off=0.0, kw_only=False)
    nesterov: bool = option(default=False, kw_only=False)
    decay: float = hyperparameter(default=0.0, at_least=0, off=0.0, kw_only=True)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        step = c.lr * g
        moment = self.momentum * slots.moment - step if self.momentum else -step
        if self.nesterov:
            return ((p + self.momentum * moment) if self.momentum else p) - step, {"moment": moment}
        return p + moment, {"moment": moment}
