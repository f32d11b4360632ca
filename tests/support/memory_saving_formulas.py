"""Adafactor and SM3 as their frameworks have them, in plain NumPy, for one parameter.

Written from the papers and from what torch 2.13, Keras 3.15 and optax 0.2.8 compute; `test_memory_saving_rules.py` compares each
with the framework itself, and then the rules with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from support.bits import Array

State = dict[str, Any]


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


def along(x: Array, axis: int) -> Any:
    return np.mean(x, axis=axis, keepdims=True)


class TorchAdafactor:
    """`torch.optim.Adafactor`: factors whatever has two axes, and keeps epsilon out of the second moments."""

    def __init__(
        self, lr: float = 1e-2, beta2_decay: float = -0.8, eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0, weight_decay: float = 0.0, maximize: bool = False,
    ) -> None:  # fmt: skip
        self.lr, self.beta2_decay, self.d, self.weight_decay, self.maximize = lr, beta2_decay, d, weight_decay, maximize
        self.eps1, self.eps2 = np.finfo(np.float64).eps if eps[0] is None else eps[0], eps[1]

    def step(self, p: Array, g: Array, state: State, t: int, lr: float) -> Any:
        g = -g if self.maximize else g
        weight = t**self.beta2_decay
        alpha = max(self.eps2, rms(p)) * min(lr, 1 / np.sqrt(t))
        p = p * (1 - lr * self.weight_decay)
        squares = g * g
        if g.ndim > 1:
            for name, axis in (("row", -1), ("col", -2)):
                old = state.get(name, 0.0)
                state[name] = old + weight * (along(squares, axis) - old)
            mean = np.maximum(along(state["row"], -2), self.eps1)
            v = state["row"] * state["col"] / mean
        else:
            old = state.get("v", 0.0)
            v = state["v"] = old + weight * (squares - old)
        u = g / np.sqrt(np.maximum(v, self.eps1**2))
        return p - alpha / max(1.0, rms(u) / self.d) * u


class KerasAdafactor:
    """`keras.optimizers.Adafactor`: factors whatever has two axes, and adds epsilon to the squares."""

    def __init__(
        self, learning_rate: float = 1e-3, beta_2_decay: float = -0.8, epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3, clip_threshold: float = 1.0, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        self.lr, self.beta_2_decay, self.epsilon_1, self.epsilon_2 = learning_rate, beta_2_decay, epsilon_1, epsilon_2
        self.clip_threshold, self.weight_decay = clip_threshold, weight_decay

    def step(self, p: Array, g: Array, state: State, t: int, lr: float) -> Any:
        p = p - p * self.weight_decay * lr
        alpha = max(self.epsilon_2, rms(p)) * min(lr, 1 / np.sqrt(t))
        squares, beta = g**2 + self.epsilon_1, 1 - t**self.beta_2_decay
        if g.ndim > 1:
            for name, axis in (("row", -1), ("col", -2)):
                state[name] = beta * state.get(name, 0.0) + (1 - beta) * along(squares, axis)
            v = state["row"] / along(state["row"], -2) * state["col"]
        else:
            v = state["v"] = beta * state.get("v", 0.0) + (1 - beta) * squares
        u = g / np.sqrt(v)
        return p - alpha * u / max(1.0, rms(u) / self.clip_threshold)


class OptaxAdafactor:
    """`optax.adafactor`: factors the two longest axes, if both are long enough."""

    def __init__(
        self, learning_rate: float = 1.0, min_dim_size_to_factor: int = 128, decay_rate: float = 0.8,
        decay_offset: float = 0, multiply_by_parameter_scale: bool = True, clipping_threshold: float = 1.0,
        momentum: float | None = None, weight_decay_rate: float = 0.0, eps: float = 1e-30, factored: bool = True,
    ) -> None:  # fmt: skip
        self.lr, self.shortest, self.decay_rate, self.offset = (
            learning_rate, min_dim_size_to_factor, decay_rate, decay_offset,
        )  # fmt: skip
        self.scaled, self.threshold, self.momentum = multiply_by_parameter_scale, clipping_threshold, momentum
        self.weight_decay, self.eps, self.factored = weight_decay_rate, eps, factored

    def axes(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return the second longest and the longest axis; of equals, the later one is longer."""
        order = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
        if not self.factored or len(order) < 2 or shape[order[-2]] < self.shortest:
            return None
        return order[-2], order[-1]

    def step(self, p: Array, g: Array, state: State, t: int, lr: float) -> Any:
        decay = 1 - (t - self.offset) ** -self.decay_rate
        squares = g**2 + self.eps
        axes = self.axes(p.shape)
        if axes is None:
            v = state["v"] = decay * state.get("v", 0.0) + (1 - decay) * squares
            u = g * v**-0.5
        else:
            for name, axis in (("row", axes[1]), ("col", axes[0])):
                state[name] = decay * state.get(name, 0.0) + (1 - decay) * along(squares, axis)
            u = g * (state["row"] / along(state["row"], axes[0])) ** -0.5 * state["col"] ** -0.5
        u = u / max(1.0, rms(u) / self.threshold) * lr
        if self.scaled:
            u = u * max(rms(p), 1e-3)
        if self.momentum is not None:
            u = state["m"] = (1 - self.momentum) * u + self.momentum * state.get("m", 0.0)
        return p - (u + self.weight_decay * p)


class OptaxSM3:
    """`optax.sm3`, and what `optax.scale_by_sm3` has beside that."""

    def __init__(self, learning_rate: float, b1: float = 0.9, b2: float = 1.0, eps: float = 1e-8) -> None:
        self.lr, self.b1, self.b2, self.eps = learning_rate, b1, b2, eps

    def step(self, p: Array, g: Array, state: State, t: int, lr: float) -> Any:
        covers = state.get("mu", [np.zeros((1,) * p.ndim)])
        bound = np.minimum.reduce(np.broadcast_arrays(*covers, np.full(p.shape, np.inf)))
        v = (1 if self.b2 == 1 else 1 - self.b2) * g**2 + self.b2 * bound
        u = np.where(v > 0, g / np.sqrt(v + self.eps), 0.0)
        state["m"] = (1 - self.b1) * u + self.b1 * state.get("m", 0.0)
        others = [tuple(a for a in range(p.ndim) if a != axis) for axis in range(p.ndim)]
        state["mu"] = [v.max(axis=axes, keepdims=True) for axes in others] if p.ndim > 1 else [v]
        return p - lr * state["m"]


def trajectory(
    formula: Any, params: Sequence[Array], gradients: Sequence[Sequence[Array]], rate_at: Any
) -> list[list[Array]]:
    """Return the parameters after each step, for a formula that looks at one parameter at a time."""
    states: list[State] = [{} for _ in params]
    found = []
    params = list(params)
    for t, gradient in enumerate(gradients, start=1):
        lr = rate_at(t - 1, formula.lr)
        params = [np.asarray(formula.step(p, g, s, t, lr)) for p, g, s in zip(params, gradient, states, strict=True)]
        found.append(params)
    return found
