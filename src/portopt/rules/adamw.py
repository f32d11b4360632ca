"""AdamW."""

from __future__ import annotations

from typing import ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import dialect_option, fixed, hyperparameter, option
from portopt.rules.adam import Adam


class AdamW(Adam):
    """AdamW: Adam with weight decay that acts on the parameter, and not through the gradient.

    With `c1 = 1 - beta_1**t` and `c2 = 1 - beta_2**t`:

    - torch: `p = p * (1 - lr * weight_decay)`; `m = m + (1 - beta_1) * (g - m)`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `p - lr / c1 * m / (sqrt(v) / sqrt(c2) + epsilon)`
    - keras3: `p = p - p * weight_decay * lr`; `m = m + (g - m) * (1 - beta_1)`; `v = v + (g**2 - v) * (1 - beta_2)`;
      `p - m * (lr * sqrt(c2) / c1) / (sqrt(v) + epsilon)`
    - optax: `m = beta_1 * m + (1 - beta_1) * g`; `v = beta_2 * v + (1 - beta_2) * g**2`;
      `p - lr * ((m / c1) / (sqrt(v / c2 + eps_root) + epsilon) + weight_decay * p)`

    These are Adam's, whose description says what amsgrad and nesterov are.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        amsgrad: torch, keras3: whether the denominator never shrinks.
        epsilon: in [0, inf); None means the dialect's default.
        weight_decay: in [0, inf).
        nesterov: optax: whether the step looks ahead (NadamW).
        eps_root: optax: in [0, inf); added under the root.
        dialect, maximize: see `DialectRule`.
        betas, eps: torch: other names for (beta_1, beta_2) and epsilon.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.AdamW(learning_rate=0.5, weight_decay=0.5), np.asarray([1.0])
        >>> opt.apply(w, np.asarray([5.0]), opt.init(w))[0].round(6)
        array([0.25])

    Reference:
        Loshchilov, Hutter, "Decoupled weight decay regularization", 2017, https://arxiv.org/abs/1711.05101
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "torch.optim.AdamW",
            {"m": "exp_avg", "v": "exp_avg_sq", "vhat": "max_exp_avg_sq"},
            epsilon="beside the corrected root",
        ),
        Counterpart("optax.adamw", {"m": "mu", "v": "nu"}, epsilon="beside the corrected root"),
        Counterpart(
            "keras.optimizers.AdamW",
            {"m": "momentum", "v": "velocity", "vhat": "velocity_hat"},
            epsilon="beside the root",
        ),
    )

    dialect: Dialect = dialect_option(default="torch", others=("keras3", "optax"))
    amsgrad: bool = option(default=per_dialect(torch=False, keras3=False), kw_only=False)
    weight_decay: float | None = hyperparameter(
        default=per_dialect(torch=0.01, keras3=0.004, optax=1e-4), at_least=0, off=0.0
    )
    decoupled_weight_decay: bool | None = fixed(True)
