"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter
from portopt.optimizer import Optimizer


class RMSprop(Optimizer):
    """RMSprop: the gradient divided by a running root mean square of itself.

    `accumulator = rho * accumulator + (1 - rho) * g**2`; then `p - lr * g / (sqrt(accumulator) + epsilon)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        rho: decay of the running mean, in [0, 1).
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        decay: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.RMSprop(learning_rate=0.5, rho=0.75, epsilon=0), np.asarray([1.0])
        >>> w, state = opt.apply(w, np.asarray([4.0]), opt.init(w))
        >>> w, state.slots["accumulator"]
        (array([0.]), array([4.]))

    Reference:
        Tieleman, Hinton, "Lecture 6.5 - rmsprop", Neural Networks for Machine Learning, 2012,
        https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf
    """

    slots = ("accumulator",)
    keras_short_list = (0, 0.0)

    learning_rate: Any = hyperparameter(default=0.001, at_least=0, kw_only=False)
    rho: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=None)
    decay: float = hyperparameter(default=0.0, at_least=0, off=0.0, kw_only=True)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        accumulator = self.rho * slots.accumulator + (1 - self.rho) * xp.square(g)
        return p - c.lr * g / (xp.sqrt(accumulator) + self.epsilon), {"accumulator": accumulator}
