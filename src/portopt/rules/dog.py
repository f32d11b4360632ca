"""DoG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect
from portopt.hyperparameters import dialect_option, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import maximum, sqrt, where
from portopt.schedules import LearningRate
from portopt.slot import slot


class DoG(DialectRule):
    """DoG, distance over gradients: gradient descent with the farthest distance from the start over the size of all gradients.

    With the parameter `p0` before the first step, and norms over all parameters together:

    - optax: `g = g + weight_decay * p`; `farthest = max(farthest, norm(p - p0))`; `squares = squares + norm(g)**2`;
      `rate = farthest / sqrt(squares + epsilon)`; `p - lr * rate * g`

    At first `farthest` is `relative_distance * (1 + norm(p0))`, or `initial_distance`, or 0 if the `rate` of the first step is
    `initial_rate`. The authors recommend to average the parameters.

    Args:
        learning_rate: in [0, inf), or a schedule; what the rate is multiplied by.
        relative_distance: in [0, inf).
        initial_distance: in [0, inf); None: `relative_distance` counts.
        initial_rate: in [0, inf); None: one of the distances counts.
        epsilon: in [0, inf).
        weight_decay: in [0, inf).
        dialect: see `DialectRule`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range, or both `initial_distance` and `initial_rate` are given.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.DoG(initial_distance=0.5, epsilon=0.0), np.asarray([1.0, 1.0])
        >>> opt.apply(w, np.asarray([3.0, -4.0]), opt.init(w))[0].round(6)
        array([0.7, 1.4])

    Reference:
        Ivgi, Hinder, Carmon, "DoG is SGD's best friend: a parameter-free dynamic step size schedule", 2023,
        https://arxiv.org/abs/2302.12022
    """

    slots = (slot("p0", start="p"),)
    scalar_slots: ClassVar[Mapping[str, float]] = {"farthest": 0.0, "squares": 0.0}
    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "optax.contrib.dog",
            {"p0": "init_params", "farthest": "max_dist", "squares": "sum_sq_norm_grads"},
            begins="is_init_step",
            names={
                "relative_distance": "init_step.heuristic",
                "initial_distance": "init_step.distance",
                "initial_rate": "init_step.learning_rate",
                "epsilon": "eps",
            },
            counts=False,
            epsilon="under the root",
        ),
    )

    dialect: Dialect = dialect_option(default="optax")
    learning_rate: LearningRate = hyperparameter(default=1.0, at_least=0, kw_only=False)
    relative_distance: float = hyperparameter(default=1e-6, at_least=0)
    initial_distance: float | None = hyperparameter(default=None, at_least=0, off=None)
    initial_rate: float | None = hyperparameter(default=None, at_least=0, off=None)
    epsilon: float = hyperparameter(default=1e-8, at_least=0)
    weight_decay: float | None = hyperparameter(default=0.0, at_least=0, off=0.0)

    def check_combination(self) -> None:
        if self.initial_distance is not None and self.initial_rate is not None:
            raise ValueError(
                "DoG begins with a distance or with a rate, but both "
                f"initial_distance={self.initial_distance} and initial_rate={self.initial_rate} were given: leave one out"
            )

    def _gradient(self, p: Any, g: Any) -> Any:
        return g + self.weight_decay * p if self.weight_decay else g

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Mapping[str, Any]:
        norm = xp.linalg.vector_norm
        found = {"distance": norm(p - slots.p0), "slope": norm(self._gradient(p, g))}
        if self.initial_distance is None and self.initial_rate is None:
            found["size"] = norm(slots.p0)
        return found

    def coefficients(
        self, t: Any, farthest: Any, squares: Any, distance: Any, slope: Any, size: Any = None
    ) -> Mapping[str, Any]:
        if self.initial_rate is None:
            begin = self.relative_distance * (1 + size) if self.initial_distance is None else self.initial_distance
            farthest = where(t == 1, begin, farthest)
        farthest, squares = maximum(farthest, distance), squares + slope**2
        rate = farthest / sqrt(squares + self.epsilon)
        if self.initial_rate is not None:
            rate = where(t == 1, self.initial_rate, rate)
        return {"rate": self.learning_rate_at(t) * rate, "farthest": farthest, "squares": squares}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p - c.rate * self._gradient(p, g), {"p0": slots.p0}
