"""SM3."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect
from portopt.hyperparameters import dialect_option, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.slot import slot

_MOST_AXES = 8
"""Of a parameter with more, each element has an accumulator."""


class SM3(DialectRule):
    """SM3: Adagrad that keeps one number for each row, each column, and so on, rather than one for each element.

    With `bound`, the least of the accumulators that an element has, one of each axis:

    - optax: `v = g**2 + bound`, with `beta_2` `v = (1 - beta_2) * g**2 + beta_2 * bound`; `u = g / sqrt(v + epsilon)`,
      0 where `v` is 0; `m = beta_1 * m + (1 - beta_1) * u`; `p - lr * m`

    Then an accumulator is the largest `v` of its row, column and so on: `mu0` along the first axis, `mu1` along the second. Of a
    parameter with fewer than two axes, or more than eight, `accumulator` is `v` itself.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the steps, in [0, 1).
        beta_2: decay of the accumulators, in [0, 1). None: they only grow, as in Adagrad.
        epsilon: in [0, inf).
        dialect: see `DialectRule`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.SM3(learning_rate=0.5, beta_1=0.0), np.zeros((2, 3))
        >>> w, state = opt.apply(w, np.asarray([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), opt.init(w))
        >>> w[0].round(4), state.slots["mu0"], state.slots["mu1"]
        (array([-0.5,  0. , -0.5]), array([4., 0.]), array([1., 0., 4.]))

    Reference:
        Anil, Gupta, Koren, Singer, "Memory-efficient adaptive optimization", 2019, https://arxiv.org/abs/1901.11150
    """

    slots = ("m", "accumulator", *(slot(f"mu{axis}", keep=axis) for axis in range(_MOST_AXES)))
    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "optax.sm3",
            {"m": "nu", "accumulator": "mu.0", **{f"mu{axis}": f"mu.{axis}" for axis in range(_MOST_AXES)}},
            # The accumulator of a vector, and the first one of others, have one place.
            placeholders=("accumulator", "mu0"),
            names={"beta_1": "momentum"},
            lacks=("beta_2", "epsilon"),
            counts=False,
            epsilon="under the root",
        ),
    )

    dialect: Dialect = dialect_option(default="optax")
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1)
    beta_2: float | None = hyperparameter(default=None, at_least=0, below=1, off=None)
    epsilon: float = hyperparameter(default=1e-8, at_least=0)

    def slots_for(self, p: Any) -> tuple[str, ...]:
        """Return the names of the slots that a parameter of this shape has."""
        return ("m", *self._accumulators(p))

    def _accumulators(self, p: Any) -> tuple[str, ...]:
        return tuple(f"mu{axis}" for axis in range(p.ndim)) if 2 <= p.ndim <= _MOST_AXES else ("accumulator",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        names = self._accumulators(p)
        bound = functools.reduce(xp.minimum, [getattr(slots, name) for name in names])
        decay = self.beta_2
        v = xp.square(g) + bound if decay is None else (1 - decay) * xp.square(g) + decay * bound
        u = xp.where(v > 0, g / xp.sqrt(v + self.epsilon), 0.0)
        m = self.beta_1 * slots.m + (1 - self.beta_1) * u
        if len(names) == 1:
            return p - c.lr * m, {"m": m, "accumulator": v}
        axes = range(p.ndim)
        largest = {
            name: xp.max(v, axis=tuple(other for other in axes if other != axis), keepdims=True)
            for axis, name in enumerate(names)
        }
        return p - c.lr * m, {"m": m, **largest}
