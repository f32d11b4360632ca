"""Lookahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.hyperparameters import alias, hyperparameter
from portopt.nested import rule
from portopt.optimizer import Optimizer
from portopt.rules.adam import Adam
from portopt.rules.nadam import Nadam
from portopt.rules.sgd import SGD
from portopt.schedules import LearningRate
from portopt.slot import slot


class Lookahead(Optimizer):
    """Lookahead: several steps of another rule, then a part of the way back.

    The inner rule moves `p` in every step. In the steps whose number `t` is a multiple of `sync_period`, after that:
    `slow = slow + slow_step_size * (p - slow)`; `p = slow`.

    `slow`, in the state, is what the paper evaluates with. It starts as a copy of the parameters.

    Args:
        inner: the rule that does the steps. It must not clip: clipnorm and clipvalue are given to Lookahead.
        sync_period: in [1, inf), a whole number; the two meet in the steps whose number is a multiple of it.
        slow_step_size: in [0, 1]; how much of the way the slow weights go.
        learning_rate, lr: the inner rule's.
        clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range, or the inner rule clips.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Lookahead(portopt.SGD(1.0), sync_period=2), np.asarray([0.0])
        >>> state = opt.init(w)
        >>> for _ in range(2):
        ...     w, state = opt.apply(w, np.asarray([-1.0]), state)
        >>> w, state.slots["slow"]
        (array([1.]), array([1.]))

    Reference:
        Zhang, Lucas, Hinton, Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019, https://arxiv.org/abs/1907.08610
    """

    slots = (slot("slow", start="p"),)
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"inner": Nadam(), "sync_period": 2, "learning_rate": 0.05},
        {"inner": SGD(momentum=0.5), "sync_period": 1, "learning_rate": 0.05},
    )

    inner: Optimizer = rule(default=Adam(), kw_only=False)
    learning_rate: LearningRate = alias("inner.learning_rate", default=None, kw_only=True)
    sync_period: float = hyperparameter(default=6.0, at_least=1, whole=True, kw_only=False)
    slow_step_size: float = hyperparameter(default=0.5, at_least=0, at_most=1, kw_only=False)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        return {"meets": t % self.sync_period == 0}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        fast, inner = self.inner.update(xp, p, g, slots.inner, c.inner)
        slow = xp.where(c.meets, slots.slow + self.slow_step_size * (fast - slots.slow), slots.slow)
        return xp.where(c.meets, slow, fast), {"slow": slow, "inner": inner}
