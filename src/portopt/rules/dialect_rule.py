"""`DialectRule`: what the rules with dialects share."""

from __future__ import annotations

from typing import Any

from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import dialect_option, hyperparameter, option
from portopt.optimizer import Optimizer


class DialectRule(Optimizer):
    """A rule with the formula, defaults and options of one of several frameworks.

    A subclass states which dialects it has, `dialect: Dialect = dialect_option(default="torch", others=("optax",))`; of what it
    inherits, it has what one of them has.

    Keras 3 and torch decay weights, and torch maximizes, before the formula of any rule (`prepare`). Clipping comes before
    that, and is the same in all dialects: that of Keras 2.

    Args:
        dialect: the framework whose formula, defaults and options the rule has.
        weight_decay: in [0, inf). keras3: `p - p * weight_decay * lr` before the step. torch: `g + weight_decay * p`.
        maximize: torch: whether to go up rather than down, `g = -g`.
    """

    dialect: Dialect = dialect_option(default="keras2", others=("keras3", "torch", "optax"))
    weight_decay: float | None = hyperparameter(default=per_dialect(keras3=0.0, torch=0.0), at_least=0, off=0.0)
    maximize: bool | None = option(default=per_dialect(torch=False))

    def prepare(self, p: Any, g: Any, lr: Any, *, decoupled: bool | None = False) -> tuple[Any, Any]:
        """Return parameter and gradient after what the dialect's framework does before the formula of any rule.

        Args:
            p: the parameter.
            g: the gradient.
            lr: the learning rate of the step.
            decoupled: torch: whether weight decay acts on the parameter rather than the gradient.
        """
        if self.maximize:
            g = -g
        match self.dialect:
            case "keras3" if self.weight_decay:
                p = p - p * self.weight_decay * lr
            case "torch" if self.weight_decay and decoupled:
                p = p * (1 - lr * self.weight_decay)
            case "torch" if self.weight_decay:
                g = g + self.weight_decay * p
        return p, g
