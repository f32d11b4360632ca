"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import dialect_option, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import where
from portopt.schedules import LearningRate


class SGD(DialectRule):
    """Stochastic gradient descent, with momentum and Nesterov momentum.

    - keras2: `moment = momentum * moment - lr * g`; `p + moment`, with nesterov `(p + momentum * moment) - lr * g`
    - keras3: `moment = moment * momentum - g * lr`; `p + moment`, with nesterov `p + (moment * momentum - g * lr)`
    - torch: `moment = momentum * moment + (1 - dampening) * g`, but `g` at the first step; `p - lr * moment`, with nesterov
      `p - lr * (g + momentum * moment)`
    - optax: `moment = g + momentum * moment`; `p - lr * moment`, with nesterov `p - lr * (g + momentum * moment)`

    In the Keras dialects the learning rate is inside the moment, so a change of it acts on later gradients only. Without momentum
    all are `p - lr * g`, and only keras2 has a moment.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: in [0, 1]; 0 is plain gradient descent.
        nesterov: whether the step looks ahead along the moment; in torch, only with momentum and without dampening.
        decay: keras2: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        dampening: torch: in [0, 1]; the part of a gradient, after the first, that the moment leaves out.
        dialect, weight_decay, maximize: see `DialectRule`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range, or does not go together with another.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

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

    # Plain gradient descent keeps no slots in most dialects, and nobody waits for it.
    worth_measuring: ClassVar[Mapping[str, Any]] = {"momentum": 0.9}
    counterparts = (
        Counterpart("torch.optim.SGD", {"moment": "momentum_buffer"}, counts=False, needs={"nesterov": "momentum"}),
        Counterpart("optax.sgd", {"moment": "trace"}, counts=False),
        Counterpart("keras.optimizers.SGD", {"moment": "momentum"}),
        Counterpart("tf_keras.optimizers.legacy.SGD", {"moment": "momentum"}),
        Counterpart("tf.compat.v1.train.GradientDescentOptimizer", fixed={"momentum": 0.0}, lacks=("nesterov",)),
        Counterpart("tf.compat.v1.train.MomentumOptimizer", names={"nesterov": "use_nesterov"}),
    )

    dialect: Dialect = dialect_option(default="keras2", others=("keras3", "torch", "optax"))
    learning_rate: LearningRate = hyperparameter(
        default=per_dialect(keras2=0.01, keras3=0.01, torch=0.001, optax=0.01), at_least=0, kw_only=False
    )
    momentum: float = hyperparameter(default=0.0, at_least=0, at_most=1, off=0.0, kw_only=False)
    nesterov: bool = option(default=False, kw_only=False)
    decay: float | None = hyperparameter(default=per_dialect(keras2=0.0), at_least=0, off=0.0)
    dampening: float | None = hyperparameter(default=per_dialect(torch=0.0), at_least=0, at_most=1, off=0.0)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on options
        """`moment`; in other dialects than keras2, only with momentum."""
        return ("moment",) if self.momentum or self.dialect == "keras2" else ()

    def check_combination(self) -> None:
        if self.dialect == "torch" and self.nesterov and (not self.momentum or self.dampening):
            raise ValueError(
                "SGD nesterov needs momentum above 0 and no dampening in the dialect 'torch', but "
                f"momentum={self.momentum} and dampening={self.dampening} were given: change them, or leave nesterov out"
            )

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        gain = where(t == 1, 1.0, 1 - self.dampening) if self.dampening else None
        return {"lr": self.learning_rate_at(t), "gain": gain}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        match self.dialect:
            case "keras2":
                step = c.lr * g
                moment = self.momentum * slots.moment - step if self.momentum else -step
                if self.nesterov:
                    return ((p + self.momentum * moment) if self.momentum else p) - step, {"moment": moment}
                return p + moment, {"moment": moment}
            case _ if not self.momentum:
                return p - c.lr * g, {}
            case "keras3":
                moment = slots.moment * self.momentum - g * c.lr
                step = moment * self.momentum - g * c.lr if self.nesterov else moment
                return p + step, {"moment": moment}
            case "torch":
                moment = self.momentum * slots.moment + (c.gain * g if self.dampening else g)
                direction = g + self.momentum * moment if self.nesterov else moment
                return p - c.lr * direction, {"moment": moment}
            case "optax":
                moment = g + self.momentum * slots.moment
                direction = g + self.momentum * moment if self.nesterov else moment
                return p - c.lr * direction, {"moment": moment}
