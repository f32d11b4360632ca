"""SophiaG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, hyperparameter
from portopt.rules.dialect_rule import DialectRule
from portopt.schedules import LearningRate


class SophiaG(DialectRule):
    """Sophia: momentum over a running estimate of the Hessian's diagonal, each element of the step clipped.

    Every so many steps, a step is given `hessian`, from which the estimate `h` is made; in the others `h` stays.

    - torch: `h = beta_2 * h + (1 - beta_2) * hessian**2`; `p = p * (1 - lr * weight_decay)`; `m = beta_1 * m + (1 - beta_1) * g`;
      `p - lr * sign(m) * minimum(|m| / (gamma * batch_size * h + 1e-15), 1)`
    - optax: `m = beta_1 * m + (1 - beta_1) * g`; `step = clip((m / c1) / maximum(gamma * h, epsilon), clip_threshold)`;
      `p - lr * (step + weight_decay * p)`; then `h = beta_2 * h + (1 - beta_2) * hessian`

    In torch, whose formula is the authors', `hessian` is the gradient of the loss on labels that were sampled from the model. In
    optax it is an estimate of the diagonal itself, such as Hutchinson's; there `c1 = 1 - beta_1**t`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the estimate, in [0, 1).
        gamma: in [0, inf); how much of the estimate a step is divided by.
        batch_size: torch: in (0, inf); number of examples in the batch whose labels were sampled.
        epsilon: optax: in (0, inf); the least that is divided by.
        clip_threshold: optax: in [0, inf); 0: the step is not clipped.
        weight_decay: in [0, inf).
        dialect, maximize: see `DialectRule`.
        betas, rho, eps: other names for (beta_1, beta_2) and gamma in torch, and for epsilon in optax.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.SophiaG(learning_rate=0.5, weight_decay=0.0), np.asarray([1.0])
        >>> w, state = opt.apply(w, np.asarray([2.0]), opt.init(w), hessian=np.asarray([3.0]))
        >>> w.round(6), state.slots["h"]
        (array([0.998101]), array([0.09]))

    Reference:
        Liu, Li, Hall, Liang, Ma, "Sophia: a scalable stochastic second-order optimizer for language model pre-training", 2023,
        https://arxiv.org/abs/2305.14342
    """

    slots: ClassVar[tuple[str, ...]] = ("m", "h")
    inputs: ClassVar[tuple[str, ...]] = ("hessian",)

    dialect: Dialect = dialect_option(default="torch", others=("optax",))
    learning_rate: LearningRate = hyperparameter(default=1e-4, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.965, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.99, at_least=0, below=1, kw_only=False)
    gamma: float = hyperparameter(default=per_dialect(torch=0.04, optax=0.01), at_least=0)
    batch_size: float | None = hyperparameter(default=per_dialect(torch=5120.0), above=0)
    epsilon: float | None = hyperparameter(default=per_dialect(optax=1e-8), above=0)
    clip_threshold: float | None = hyperparameter(default=per_dialect(optax=1.0), at_least=0, off=0.0)
    weight_decay: float | None = hyperparameter(default=per_dialect(torch=0.1, optax=1e-4), at_least=0, off=0.0)
    betas: tuple[float, float] | None = alias("beta_1", "beta_2", dialect="torch", default=None, kw_only=True)
    rho: float | None = alias("gamma", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="optax", default=None, kw_only=True)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        found = {"lr": self.learning_rate_at(t)}
        if self.batch_size is not None:
            return {**found, "scale": self.gamma * self.batch_size}
        return {**found, "c1": 1 - self.beta_1**t}

    def update(
        self, xp: Any, p: Any, g: Any, slots: Any, c: Any, *, hessian: Any = None
    ) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr, decoupled=True)
        m = self.beta_1 * slots.m + (1 - self.beta_1) * g
        h = slots.h
        if self.dialect == "torch":
            if hessian is not None:
                h = self.beta_2 * h + (1 - self.beta_2) * xp.square(hessian)
            ratio = xp.abs(m) / (c.scale * h + 1e-15)
            return p - c.lr * xp.sign(m) * xp.minimum(ratio, 1.0), {"m": m, "h": h}
        step = m / c.c1 / xp.maximum(self.gamma * h, self.epsilon)
        if self.clip_threshold:
            step = xp.clip(step, -self.clip_threshold, self.clip_threshold)
        if self.weight_decay:
            step = step + self.weight_decay * p
        if hessian is not None:
            h = self.beta_2 * h + (1 - self.beta_2) * hessian
        return p - c.lr * step, {"m": m, "h": h}
