"""Signum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.hyperparameters import hyperparameter
from portopt.optimizer import Optimizer


class Signum(Optimizer):
    """Signum: a step of one size in the direction of the sign of the gradient's running mean.

    `m = beta * m + (1 - beta) * g`; `p - lr * sign(m)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta: decay of the mean of the gradient, in [0, 1); with 0 the sign of the gradient itself counts.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Signum(learning_rate=0.25), np.asarray([1.0, 2.0, 3.0])
        >>> opt.apply(w, np.asarray([5.0, -0.001, 0.0]), opt.init(w))[0]
        array([0.75, 2.25, 3.  ])

    Reference:
        Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: compressed optimisation for non-convex problems", 2018,
        https://arxiv.org/abs/1802.04434
    """

    slots = ("m",)
    counterparts: ClassVar[tuple[Counterpart, ...]] = (Counterpart("optax.signum", {"m": "ema"}),)

    beta: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        m = self.beta * slots.m + (1 - self.beta) * g
        return p - c.lr * xp.sign(m), {"m": m}
