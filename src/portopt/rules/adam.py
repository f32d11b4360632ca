"""Adam and AMSGrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import sqrt
from portopt.schedules import LearningRate


class Adam(DialectRule):
    """Adam: the running mean of the gradient over the root of the running mean of its square.

    With `c1 = 1 - beta_1**t` and `c2 = 1 - beta_2**t`:

    - keras2: `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `p - lr * (sqrt(c2) / c1) * m / (sqrt(v) + epsilon)`
    - keras3: `m = m + (g - m) * (1 - beta_1)`; `v = v + (g**2 - v) * (1 - beta_2)`;
      `p - m * (lr * sqrt(c2) / c1) / (sqrt(v) + epsilon)`
    - torch: `m = m + (1 - beta_1) * (g - m)`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `p - lr / c1 * m / (sqrt(v) / sqrt(c2) + epsilon)`
    - optax: `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `p - lr * ((m / c1) / (sqrt(v / c2 + eps_root) + epsilon) + weight_decay * p)`

    The Keras dialects add epsilon to the root of the uncorrected `v` (the paper's "epsilon hat"), the others to that of the
    corrected one. With amsgrad, `vhat = max(vhat, v)` takes the place of `v`; in optax `vhat = max(vhat, v / c2)` that of
    `v / c2`. In optax, nesterov makes `beta_1 * m / (1 - beta_1**(t + 1)) + (1 - beta_1) * g / c1` of `m / c1`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        amsgrad: whether the denominator never shrinks.
        epsilon: in [0, inf); None means the dialect's default, which in keras2 is `portopt.epsilon()`.
        decay: keras2: in [0, inf); the learning rate is divided by `1 + decay * finished steps`.
        weight_decay: in [0, inf). keras3: `p - p * weight_decay * lr` before the step. torch: `g + weight_decay * p`.
            optax: in the step.
        decoupled_weight_decay: torch: whether weight decay is `p * (1 - lr * weight_decay)` before the step instead (AdamW).
        nesterov: optax: whether the step looks ahead (Nadam); not together with amsgrad.
        eps_root: optax: in [0, inf); added under the root.
        dialect, maximize: see `DialectRule`.
        betas, eps: torch: other names for (beta_1, beta_2) and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range, or does not go together with another.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adam(learning_rate=0.1), np.asarray([1.0])
        >>> w, state = opt.apply(w, np.asarray([5.0]), opt.init(w))
        >>> w.round(6)
        array([0.9])

    Reference:
        Kingma, Ba, "Adam: a method for stochastic optimization", 2014, https://arxiv.org/abs/1412.6980;
        Reddi, Kale, Kumar, "On the convergence of Adam and beyond", 2018, https://openreview.net/forum?id=ryQu7f-RZ;
        Loshchilov, Hutter, "Decoupled weight decay regularization", 2017, https://arxiv.org/abs/1711.05101
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "torch.optim.AdamW",
            {"m": "exp_avg", "v": "exp_avg_sq", "vhat": "max_exp_avg_sq"},
            fixed={"decoupled_weight_decay": True},
            epsilon="beside the corrected root",
        ),
        Counterpart(
            "torch.optim.Adam",
            {"m": "exp_avg", "v": "exp_avg_sq", "vhat": "max_exp_avg_sq"},
            epsilon="beside the corrected root",
        ),
        Counterpart(
            "optax.amsgrad",
            {"m": "mu", "v": "nu", "vhat": "nu_max"},
            fixed={"amsgrad": True},
            lacks=("nesterov", "weight_decay"),
            epsilon="beside the corrected root",
        ),
        Counterpart(
            "optax.adam",
            {"m": "mu", "v": "nu"},
            fixed={"amsgrad": False, "weight_decay": 0.0},
            epsilon="beside the corrected root",
        ),
        Counterpart(
            "optax.adamw",
            {"m": "mu", "v": "nu"},
            fixed={"amsgrad": False},
            epsilon="beside the corrected root",
        ),
        Counterpart(
            "keras.optimizers.Adam",
            {"m": "momentum", "v": "velocity", "vhat": "velocity_hat"},
            epsilon="beside the root",
        ),
        Counterpart(
            "keras.optimizers.AdamW",
            {"m": "momentum", "v": "velocity", "vhat": "velocity_hat"},
            epsilon="beside the root",
        ),
        Counterpart("tf_keras.optimizers.legacy.Adam", {"m": "m", "v": "v", "vhat": "vhat"}, epsilon="beside the root"),
        Counterpart("tf.compat.v1.train.AdamOptimizer", fixed={"amsgrad": False}, epsilon="beside the root"),
    )

    dialect: Dialect = dialect_option(default="keras2", others=("keras3", "torch", "optax"))
    learning_rate: LearningRate = hyperparameter(default=0.001, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1, kw_only=False)
    amsgrad: bool = option(default=False, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(
        default=per_dialect(keras2=None, keras3=1e-7, torch=1e-8, optax=1e-8)
    )
    decay: float | None = hyperparameter(default=per_dialect(keras2=0.0), at_least=0, off=0.0)
    weight_decay: float | None = hyperparameter(
        default=per_dialect(keras3=0.0, torch=0.0, optax=0.0), at_least=0, off=0.0
    )
    decoupled_weight_decay: bool | None = option(default=per_dialect(torch=False))
    nesterov: bool | None = option(default=per_dialect(optax=False))
    eps_root: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, off=0.0)
    betas: tuple[float, float] | None = alias("beta_1", "beta_2", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on an option
        """`m` and `v`, and `vhat` with amsgrad."""
        return ("m", "v", "vhat") if self.amsgrad else ("m", "v")

    @property
    def keras_placeholder_slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on an option
        """Keras lists `vhat` in any case."""
        return () if self.amsgrad else ("vhat",)

    def check_combination(self) -> None:
        if self.amsgrad and self.nesterov:
            raise ValueError("Adam amsgrad and nesterov do not go together, but both were given: leave one of them out")

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        lr = self.learning_rate_at(t)
        c1, c2 = 1 - self.beta_1**t, 1 - self.beta_2**t
        match self.dialect:
            case "keras2":
                return {"lr": lr, "lr_t": lr * (sqrt(c2) / c1)}
            case "keras3":
                return {"lr": lr, "lr_t": lr * sqrt(c2) / c1}
            case "torch":
                return {"lr": lr, "lr_t": lr / c1, "root_c2": sqrt(c2)}
            case "optax":
                return {"lr": lr, "c1": c1, "c2": c2, "next_c1": 1 - self.beta_1 ** (t + 1)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr, decoupled=self.decoupled_weight_decay)
        match self.dialect:
            case "keras2" | "optax":
                m = self.beta_1 * slots.m + (1 - self.beta_1) * g
                v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
            case "keras3":
                m = slots.m + (g - slots.m) * (1 - self.beta_1)
                v = slots.v + (xp.square(g) - slots.v) * (1 - self.beta_2)
            case "torch":
                m = slots.m + (1 - self.beta_1) * (g - slots.m)
                v = self.beta_2 * slots.v + (1 - self.beta_2) * xp.square(g)
        new = {"m": m, "v": v}
        if self.dialect == "optax":
            v = v / c.c2
        if self.amsgrad:
            v = new["vhat"] = xp.maximum(slots.vhat, v)
        match self.dialect:
            case "keras2":
                p = p - c.lr_t * m / (xp.sqrt(v) + self.epsilon)
            case "keras3":
                p = p - m * c.lr_t / (xp.sqrt(v) + self.epsilon)
            case "torch":
                p = p - c.lr_t * m / (xp.sqrt(v) / c.root_c2 + self.epsilon)
            case "optax":
                m = self.beta_1 * (m / c.next_c1) + (1 - self.beta_1) * (g / c.c1) if self.nesterov else m / c.c1
                direction = m / (xp.sqrt(v + self.eps_root if self.eps_root else v) + self.epsilon)
                p = p - c.lr * (direction + self.weight_decay * p if self.weight_decay else direction)
        return p, new
