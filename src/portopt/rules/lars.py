"""LARS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import minimum, where
from portopt.schedules import LearningRate


class LARS(DialectRule):
    """LARS: gradient descent with momentum, whose rate is for each parameter in proportion to its norm over the gradient's.

    - optax: `u = g + weight_decay * p`; `trust = trust_coefficient * norm(p) / (norm(u) + epsilon)`;
      `moment = momentum * moment - lr * trust * u`; `p + moment`, with nesterov `(p + momentum * moment) - lr * trust * u`
    - torch: `trust = trust_coefficient * norm(p) / (norm(g) + norm(p) * weight_decay + epsilon)`;
      `u = (g + weight_decay * p) * trust`; `moment = momentum * moment + (1 - dampening) * u`, but `u` at the first step;
      `p - lr * moment`, with nesterov `p - lr * (u + momentum * moment)`

    The norms are those of one parameter. `trust` is 1 where one of the norms is 0. torch.optim has no LARS: the dialect torch is
    that of timm 1.0.31. In it `trust` is 1 without weight decay, too, unless always_adapt asks for it.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: in [0, 1]; 0 keeps no moment.
        nesterov: whether the step looks ahead along the moment; in torch, only with momentum and without dampening.
        trust_coefficient: in [0, inf).
        epsilon: in [0, inf); None means the dialect's default.
        weight_decay: in [0, inf).
        dampening: torch: in [0, 1]; the part of a gradient, after the first, that the moment leaves out.
        trust_clip: torch: whether `trust` is `min(trust / lr, 1)` (LARC).
        always_adapt: torch: whether `trust` counts without weight decay too.
        dialect, maximize: see `DialectRule`.
        trust_coeff, eps: torch: other names for trust_coefficient and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range, or does not go together with another.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.LARS(learning_rate=0.5, trust_coefficient=0.1), np.asarray([3.0, 4.0])
        >>> opt.apply(w, np.asarray([0.0, 0.001]), opt.init(w))[0].round(6)
        array([3.  , 3.75])

    Reference:
        You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017, https://arxiv.org/abs/1708.03888
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart("optax.lars", {"moment": "trace"}, counts=False, epsilon="beside the norm"),
    )
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        # The default coefficient hardly moves a parameter.
        {"learning_rate": 0.05, "trust_coefficient": 0.5, "weight_decay": 0.1},
        {"dialect": "torch", "learning_rate": 0.05, "trust_coefficient": 0.5, "weight_decay": 0.1, "momentum": 0.5},
        {"dialect": "torch", "learning_rate": 0.5, "trust_coefficient": 0.25, "always_adapt": True, "trust_clip": True},
    )

    dialect: Dialect = dialect_option(default="optax", others=("torch",))
    learning_rate: LearningRate = hyperparameter(default=per_dialect(optax=0.01, torch=1.0), at_least=0, kw_only=False)
    momentum: float = hyperparameter(
        default=per_dialect(optax=0.9, torch=0.0), at_least=0, at_most=1, off=0.0, kw_only=False
    )
    nesterov: bool = option(default=False, kw_only=False)
    trust_coefficient: float = hyperparameter(default=0.001, at_least=0)
    epsilon: float | None = epsilon_hyperparameter(default=per_dialect(optax=0.0, torch=1e-8))
    weight_decay: float = hyperparameter(default=0.0, at_least=0, off=0.0)
    dampening: float | None = hyperparameter(default=per_dialect(torch=0.0), at_least=0, at_most=1, off=0.0)
    trust_clip: bool | None = option(default=per_dialect(torch=False))
    always_adapt: bool | None = option(default=per_dialect(torch=False))
    trust_coeff: float | None = alias("trust_coefficient", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on an option
        """`moment`, with momentum."""
        return ("moment",) if self.momentum else ()

    def check_combination(self) -> None:
        if self.dialect == "torch" and self.nesterov and (not self.momentum or self.dampening):
            raise ValueError(
                "LARS nesterov needs momentum above 0 and no dampening in the dialect 'torch', but "
                f"momentum={self.momentum} and dampening={self.dampening} were given: change them, or leave nesterov out"
            )

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        gain = where(t == 1, 1.0, 1 - self.dampening) if self.dampening else None
        return {"lr": self.learning_rate_at(t), "gain": gain}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        if self.dialect == "optax":
            u = g + self.weight_decay * p if self.weight_decay else g
            size_p, size_u = xp.linalg.vector_norm(p), xp.linalg.vector_norm(u)
            adapted = self.trust_coefficient * size_p / (size_u + self.epsilon)
            step = c.lr * where((size_p == 0) | (size_u == 0), 1.0, adapted) * u
            if not self.momentum:
                return p - step, {}
            moment = self.momentum * slots.moment - step
            return (p + self.momentum * moment) - step if self.nesterov else p + moment, {"moment": moment}
        if self.maximize:
            g = -g
        u = self._adapted(xp, p, g, c.lr) if self.weight_decay or self.always_adapt else g
        if not self.momentum:
            return p - c.lr * u, {}
        moment = self.momentum * slots.moment + (c.gain * u if self.dampening else u)
        return p - c.lr * (u + self.momentum * moment if self.nesterov else moment), {"moment": moment}

    def _adapted(self, xp: Any, p: Any, g: Any, lr: Any) -> Any:
        """Return the direction of timm."""
        size_p, size_g = xp.linalg.vector_norm(p), xp.linalg.vector_norm(g)
        decay = self.weight_decay
        below = size_g + size_p * decay if decay else size_g
        trust = self.trust_coefficient * size_p / (below + self.epsilon)
        trust = where((size_p > 0) & (size_g > 0), trust, 1.0)
        if self.trust_clip:
            trust = minimum(trust / lr, 1.0)
        return (g + decay * p if decay else g) * trust
