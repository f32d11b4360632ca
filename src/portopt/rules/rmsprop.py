"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.schedules import LearningRate
from portopt.slot import slot


class RMSprop(DialectRule):
    """RMSprop: the gradient divided by a running root mean square of itself.

    `accumulator = rho * accumulator + (1 - rho) * g**2`, and with centered
    `average_gradient = rho * average_gradient + (1 - rho) * g`. With `a` for `accumulator`, if centered for
    `accumulator - average_gradient**2`:

    - keras2: `p - lr * g / (sqrt(a) + epsilon)`
    - keras3: `p - lr * g / sqrt(a + epsilon)`, with momentum `moment = momentum * moment + lr * g / sqrt(a + epsilon)`;
      `p - moment`
    - torch: `p - lr * g / (sqrt(a) + epsilon)`, with momentum `moment = momentum * moment + g / (sqrt(a) + epsilon)`;
      `p - lr * moment`
    - optax: `p - lr * (g / sqrt(a + epsilon))`, with momentum `moment = lr * (g / sqrt(a + epsilon)) + momentum * moment`;
      `p - moment`

    In optax, `eps_in_sqrt=False` puts epsilon where torch has it, `bias_correction` divides `accumulator` and `average_gradient`
    by `1 - rho**t`, and nesterov makes the last step `p - (lr * (...) + momentum * moment)`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        rho: decay of the running mean, in [0, 1).
        epsilon: in [0, inf); None means the dialect's default, which in keras2 is `portopt.epsilon()`.
        decay: keras2: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        momentum: keras3, torch, optax: in [0, 1].
        centered: keras3, torch, optax: whether the mean is subtracted, so that the root is a standard deviation.
        nesterov: optax: whether the step looks ahead along the moment.
        initial_accumulator_value: optax: in [0, inf); the accumulator at first.
        eps_in_sqrt: optax: whether epsilon is under the root.
        bias_correction: optax: whether running means are corrected for their start at zero.
        dialect, weight_decay, maximize: see `DialectRule`.
        alpha, eps: torch: other names for rho and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

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

    keras_short_list = (0, 0.0)

    counterparts = (
        Counterpart(
            "torch.optim.RMSprop",
            {"accumulator": "square_avg", "average_gradient": "grad_avg", "moment": "momentum_buffer"},
            epsilon="beside the root",
        ),
        Counterpart(
            "optax.rmsprop",
            # The trace is of the updates, which have the sign of the step.
            {"accumulator": "nu", "average_gradient": "mu", "moment": "-trace"},
            names={"rho": "decay", "initial_accumulator_value": "initial_scale"},
            near={"eps_in_sqrt": False},
            epsilon="beside the root",
        ),
        Counterpart(
            "keras.optimizers.RMSprop",
            {"accumulator": "velocity", "average_gradient": "average_gradient", "moment": "momentum"},
            epsilon="under the root",
        ),
        Counterpart("tf_keras.optimizers.legacy.RMSprop", {"accumulator": "rms"}, epsilon="beside the root"),
        Counterpart(
            "tf.compat.v1.train.RMSPropOptimizer", names={"rho": "decay"}, exact=False, epsilon="under the root"
        ),
    )

    dialect: Dialect = dialect_option(default="keras2", others=("keras3", "torch", "optax"))
    learning_rate: LearningRate = hyperparameter(
        default=per_dialect(keras2=0.001, keras3=0.001, torch=0.01, optax=0.001), at_least=0, kw_only=False
    )
    rho: float = hyperparameter(
        default=per_dialect(keras2=0.9, keras3=0.9, torch=0.99, optax=0.9), at_least=0, below=1, kw_only=False
    )
    epsilon: float | None = epsilon_hyperparameter(
        default=per_dialect(keras2=None, keras3=1e-7, torch=1e-8, optax=1e-8)
    )
    decay: float | None = hyperparameter(default=per_dialect(keras2=0.0), at_least=0, off=0.0)
    momentum: float | None = hyperparameter(
        default=per_dialect(keras3=0.0, torch=0.0, optax=0.0), at_least=0, at_most=1, off=0.0
    )
    centered: bool | None = option(default=per_dialect(keras3=False, torch=False, optax=False))
    nesterov: bool | None = option(default=per_dialect(optax=False))
    initial_accumulator_value: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, at_init=True)
    eps_in_sqrt: bool | None = option(default=per_dialect(optax=True))
    bias_correction: bool | None = option(default=per_dialect(optax=False))
    alpha: float | None = alias("rho", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on options
        """`accumulator`, `average_gradient` if centered, and `moment` with momentum."""
        accumulator = slot("accumulator", start=self.initial_accumulator_value or 0.0)
        return (accumulator, *["average_gradient"] * bool(self.centered), *["moment"] * bool(self.momentum))

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        return {"lr": self.learning_rate_at(t), "correction": 1 - self.rho**t}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        accumulator = self.rho * slots.accumulator + (1 - self.rho) * xp.square(g)
        new = {"accumulator": accumulator}
        a = accumulator / c.correction if self.bias_correction else accumulator
        if self.centered:
            average = new["average_gradient"] = self.rho * slots.average_gradient + (1 - self.rho) * g
            a = a - xp.square(average / c.correction if self.bias_correction else average)
        match self.dialect:
            case "keras2":
                p = p - c.lr * g / (xp.sqrt(a) + self.epsilon)
            case "keras3":
                step = c.lr * g / xp.sqrt(a + self.epsilon)
                if self.momentum:
                    step = new["moment"] = self.momentum * slots.moment + step
                p = p - step
            case "torch":
                denominator = xp.sqrt(a) + self.epsilon
                if self.momentum:
                    new["moment"] = self.momentum * slots.moment + g / denominator
                    p = p - c.lr * new["moment"]
                else:
                    p = p - c.lr * g / denominator
            case "optax":
                step = c.lr * (g / (xp.sqrt(a + self.epsilon) if self.eps_in_sqrt else xp.sqrt(a) + self.epsilon))
                if self.momentum:
                    moment = new["moment"] = step + self.momentum * slots.moment
                    step = step + self.momentum * moment if self.nesterov else moment
                p = p - step
        return p, new
