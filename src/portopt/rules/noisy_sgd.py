"""Gradient descent with noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.hyperparameters import hyperparameter, seed_hyperparameter
from portopt.optimizer import Optimizer
from portopt.scalars import sqrt


class NoisySGD(Optimizer):
    """Gradient descent with normally distributed noise on the gradient, whose variance decays.

    `p - lr * (g + sqrt(eta / t**gamma) * noise)`; `t` is 1 at the first step.

    The formula is that of `optax.noisy_sgd`. The noise is another: it depends on the seed, the step, the parameter's place in
    the tree and the element alone, and is the same on every library and however the parameters are sharded.

    Args:
        learning_rate: in [0, inf), or a schedule.
        eta: variance of the noise at the first step, in [0, inf).
        gamma: power of the step with which the variance decays, in [0, inf).
        seed: an integer in [0, 2**53), from which the noise comes.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.NoisySGD(learning_rate=0.5, eta=0.01, seed=3), np.ones(3)
        >>> opt.apply(w, np.ones(3), opt.init(w))[0].round(4)
        array([0.6079, 0.5338, 0.5574])

    Reference:
        Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach, Martens, "Adding gradient noise improves learning for very deep
        networks", 2015, https://arxiv.org/abs/1511.06807
    """

    draws: ClassVar[Mapping[str, Any]] = {"noise": "normal"}

    eta: float = hyperparameter(default=0.01, at_least=0, kw_only=False)
    gamma: float = hyperparameter(default=0.55, at_least=0, kw_only=False)
    seed: int = seed_hyperparameter(default=0)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        return {"lr": self.learning_rate_at(t), "deviation": sqrt(self.eta / t**self.gamma)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, noise: Any) -> tuple[Any, Mapping[str, Any]]:
        return p - c.lr * (g + c.deviation * noise), {}
