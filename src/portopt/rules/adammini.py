"""Adam-mini."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.hyperparameters import epsilon_hyperparameter, hyperparameter, option
from portopt.optimizer import Optimizer
from portopt.scalars import sqrt
from portopt.schedules import LearningRate
from portopt.slot import slot


class AdamMini(Optimizer):
    """Adam-mini: AdamW with one running mean of squares for a whole row of a parameter, which halves the memory of its slots.

    With `c1 = 1 - beta_1**t` and `c2 = 1 - beta_2**t`: `p = p * (1 - lr * weight_decay)`; `m = m + (1 - beta_1) * (g - m)`;
    `v = beta_2 * v + (1 - beta_2) * mean(g**2)`; `p - lr / c1 / (sqrt(v) / sqrt(c2) + epsilon) * m`.

    What has one mean, and one `v`, is the `partition`. By `"rows"` it is what has one index along the first axis: a neuron of a
    layer of torch, (out, in), a token of an embedding, a head of queries (heads, size, in). By `"columns"` it is what has one
    index along the last axis: a neuron of a layer of Keras or Flax, (in, out). By `"tensor"` it is the whole parameter. Elements
    of vectors have a mean each, except by `"tensor"`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of the gradient, in [0, 1).
        beta_2: decay of the mean of its square, in [0, 1).
        epsilon: in [0, inf); None means `portopt.epsilon()`.
        weight_decay: in [0, inf).
        partition: `"rows"`, `"columns"` or `"tensor"`.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range, or partition is none of its names.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.AdamMini(learning_rate=0.5), np.zeros((2, 3))
        >>> w, state = opt.apply(w, np.asarray([[1.0, -1.0, 1.0], [0.0, 0.0, 3.0]]), opt.init(w))
        >>> w.round(3), state.slots["v"].shape
        (array([[-0.5  ,  0.5  , -0.5  ],
               [ 0.   ,  0.   , -0.866]]), (2,))

    Reference:
        Zhang, Chen, Li, Ding, Wu, Kingma, Ye, Luo, Sun, "Adam-mini: use fewer learning rates to gain more", 2024,
        https://arxiv.org/abs/2406.16793; the formula is that of adam-mini 1.1.1, which finds the partition from the names of
        parameters, and gives one mean to what it does not know.
    """

    slots = ("m", slot("v", drop="averaged_axes"))
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 0.05, "partition": "tensor"},)

    learning_rate: LearningRate = hyperparameter(default=0.001, at_least=0, kw_only=False)
    beta_1: float = hyperparameter(default=0.9, at_least=0, below=1, kw_only=False)
    beta_2: float = hyperparameter(default=0.999, at_least=0, below=1, kw_only=False)
    epsilon: float | None = epsilon_hyperparameter(default=1e-8)
    weight_decay: float = hyperparameter(default=0.0, at_least=0, off=0.0)
    partition: str = option(default="rows", choices=("rows", "columns", "tensor"))

    def averaged_axes(self, p: Any) -> tuple[int, ...]:
        """Return the axes of a parameter along which there is one mean."""
        kept = {"rows": 0, "columns": p.ndim - 1}.get(self.partition)
        return tuple(axis for axis in range(p.ndim) if axis != kept)

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        lr, c1, c2 = self.learning_rate_at(t), 1 - self.beta_1**t, 1 - self.beta_2**t
        return {"lr": lr, "lr_t": lr / c1, "root_c2": sqrt(c2)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        axes = self.averaged_axes(p)
        square = xp.mean(xp.square(g), axis=axes, keepdims=True) if axes else xp.square(g)
        m = slots.m + (1 - self.beta_1) * (g - slots.m)
        v = self.beta_2 * slots.v + (1 - self.beta_2) * square
        if self.weight_decay:
            p = p * (1 - c.lr * self.weight_decay)
        return p - c.lr_t / (xp.sqrt(v) / c.root_c2 + self.epsilon) * m, {"m": m, "v": v}
