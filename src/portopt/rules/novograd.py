"""NovoGrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, epsilon_hyperparameter, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import maximum, sqrt, where
from portopt.schedules import LearningRate
from portopt.slot import Slot, slot


class NovoGrad(DialectRule):
    """NovoGrad: momentum of gradients that are normalized, each parameter's by a running mean of its squared norm.

    `v` is one number a parameter:

    - optax: `v = beta_2 * v + (1 - beta_2) * norm(g)**2`, but `norm(g)**2` at the first step;
      `m = beta_1 * m + (g / (sqrt(v + eps_root) + epsilon) + weight_decay * p)`; `p - lr * m`
    - torch: `v = beta_2 * v + (1 - beta_2) * norm(g)**2`, but `norm(g)**2` where it was 0;
      `m = beta_1 * m + (g / (sqrt(v) + epsilon) + weight_decay * p)`; `p - lr * m`

    torch.optim has no NovoGrad: the dialect torch is that of timm 1.0.31. In it, with amsgrad, `vmax = max(vmax, v)` takes the
    place of `v` under the root, and with grad_averaging what is added to the moment is multiplied by `1 - beta_1`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the moment, in [0, 1).
        beta_2: decay of the mean of the squared norm, in [0, 1).
        epsilon: in [0, inf); None means the dialect's default.
        weight_decay: in [0, inf).
        eps_root: optax: in [0, inf); added under the root.
        amsgrad: torch: whether the denominator never shrinks.
        grad_averaging: torch: whether the moment is a mean.
        decoupled_weight_decay: torch: whether weight decay is `p * (1 - lr * weight_decay)` before the step instead.
        dialect, maximize: see `DialectRule`.
        betas, eps, decoupled_decay: torch: other names for (beta_1, beta_2), epsilon and decoupled_weight_decay.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.NovoGrad(learning_rate=0.5), np.asarray([1.0, 1.0])
        >>> w, state = opt.apply(w, np.asarray([3.0, 4.0]), opt.init(w))
        >>> w.round(6), state.slots["v"]
        (array([0.7, 0.6]), array(25.))

    Reference:
        Ginsburg, Castonguay, Hrinchuk, Kuchaiev, Lavrukhin, Leary, Li, Nguyen, Zhang, Cohen, "Stochastic gradient methods with
        layer-wise adaptive moments for training of deep networks", 2019, https://arxiv.org/abs/1905.11286
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart("optax.novograd", {"m": "mu", "v": "nu"}, epsilon="beside the root"),
    )

    dialect: Dialect = dialect_option(default="optax", others=("torch",))
    learning_rate: LearningRate = hyperparameter(
        default=per_dialect(optax=0.01, torch=0.001), at_least=0, kw_only=False
    )
    beta_1: float = hyperparameter(default=per_dialect(optax=0.9, torch=0.95), at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=per_dialect(optax=0.25, torch=0.98), at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=per_dialect(optax=1e-6, torch=1e-8))
    weight_decay: float = hyperparameter(default=0.0, at_least=0, off=0.0)
    eps_root: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, off=0.0)
    amsgrad: bool | None = option(default=per_dialect(torch=False))
    grad_averaging: bool | None = option(default=per_dialect(torch=False))
    decoupled_weight_decay: bool | None = option(default=per_dialect(torch=False))
    betas: tuple[float, float] | None = alias("beta_1", "beta_2", dialect="torch", default=None, kw_only=True)
    eps: float | None = alias("epsilon", dialect="torch", default=None, kw_only=True)
    decoupled_decay: bool | None = alias("decoupled_weight_decay", dialect="torch", default=None, kw_only=True)

    @property
    def slots(self) -> tuple[str | Slot, ...]:  # type: ignore[override]  # depends on an option
        """`m` and `v`, and `vmax` with amsgrad."""
        v, vmax = slot("v", shape=()), slot("vmax", shape=())
        return ("m", v, vmax) if self.amsgrad else ("m", v)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        return {"lr": self.learning_rate_at(t), "is_first": t == 1}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        if self.maximize:
            g = -g
        size = xp.linalg.vector_norm(g)
        is_new = c.is_first if self.dialect == "optax" else slots.v == 0
        v = where(is_new, size * size, self.beta_2 * slots.v + (1 - self.beta_2) * (size * size))
        new = {"v": v}
        if self.amsgrad:
            v = new["vmax"] = maximum(slots.vmax, v)
        u = g / (sqrt(v + self.eps_root if self.eps_root else v) + self.epsilon)
        if self.weight_decay and self.decoupled_weight_decay:
            p = p * (1 - c.lr * self.weight_decay)
        elif self.weight_decay:
            u = u + self.weight_decay * p
        new["m"] = self.beta_1 * slots.m + ((1 - self.beta_1) * u if self.grad_averaging else u)
        return p - c.lr * new["m"], new
