"""Prodigy, D-Adaptation and DoG, which estimate the distance to the solution from all parameters, in plain NumPy.

Written from the papers and from what optax 0.2.8 and the authors' own packages compute, prodigyopt 1.1.2, dadaptation 3.2 and
formll/dog 1.1.0, which does as optax. `test_distance_rules.py` compares with optax; prodigyopt and dadaptation, which the tests
do without, were compared by hand: float64, 50 steps, the same settings, at most 1e-15 apart, relative to the largest element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from support.bits import Array

Arrays = list[Array]


def dot(a: Arrays, b: Arrays) -> float:
    return float(sum(np.sum(x * y) for x, y in zip(a, b, strict=True)))


def norm(a: Arrays) -> float:
    return float(np.sqrt(dot(a, a)))


class _Adam:
    """What Prodigy and D-Adapted Adam share."""

    def __init__(
        self, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, d0: float = 1e-6,
        weight_decay: float = 0.0, decouple: bool = True, bias_correction: bool = False,
        growth_rate: float = np.inf,
    ) -> None:  # fmt: skip
        self.lr, (self.beta1, self.beta2), self.eps, self.d0 = lr, betas, eps, d0
        self.weight_decay, self.decouple, self.bias_correction = weight_decay, decouple, bias_correction
        self.growth_rate = growth_rate
        self.d, self.d_max, self.numerator = d0, d0, 0.0

    def start(self, params: Arrays) -> None:
        self.p0 = params
        self.m, self.v, self.s = ([np.zeros_like(p) for p in params] for _ in range(3))

    def rate(self, t: int, lr: float) -> float:
        corrected = np.sqrt(1 - self.beta2**t) / (1 - self.beta1**t) if self.bias_correction else 1.0
        return float(self.d * lr * corrected)

    def gradient(self, params: Arrays, gradient: Arrays) -> Arrays:
        if self.decouple:
            return gradient
        return [g + self.weight_decay * p for p, g in zip(params, gradient, strict=True)]

    def decayed(self, params: Arrays, rate: float) -> Arrays:
        return [p - self.weight_decay * rate * p if self.decouple else p for p in params]


class Prodigy(_Adam):
    """Both packages' Prodigy: optax's always corrects the bias and has no bound on the growth."""

    def __init__(
        self, *, beta3: float | None = None, d_coef: float = 1.0, safeguard_warmup: bool = False, **others: Any
    ) -> None:
        super().__init__(**others)
        self.beta3 = np.sqrt(self.beta2) if beta3 is None else beta3
        self.d_coef, self.safeguard_warmup = d_coef, safeguard_warmup

    def step(self, params: Arrays, gradient: Arrays, t: int, lr: float) -> Arrays:
        d, rate, gradient = self.d, self.rate(t, lr), self.gradient(params, gradient)
        apart = [p0 - p for p0, p in zip(self.p0, params, strict=True)]
        self.numerator = self.beta3 * self.numerator + d / self.d0 * rate * dot(gradient, apart)
        self.m = [self.beta1 * m + (1 - self.beta1) * d * g for m, g in zip(self.m, gradient, strict=True)]
        self.v = [self.beta2 * v + (1 - self.beta2) * (d * g) ** 2 for v, g in zip(self.v, gradient, strict=True)]
        weight = d / self.d0 * (d if self.safeguard_warmup else rate)
        self.s = [self.beta3 * s + weight * g for s, g in zip(self.s, gradient, strict=True)]
        estimate = self.d_coef * self.numerator / sum(np.sum(np.abs(s)) for s in self.s)
        start = max(d, estimate) if d == self.d0 else d
        self.d_max = max(self.d_max, estimate)
        self.d = min(self.d_max, start * self.growth_rate)
        return [
            p - rate * m / (np.sqrt(v) + self.d * self.eps)
            for p, m, v in zip(self.decayed(params, rate), self.m, self.v, strict=True)
        ]


class DAdaptAdam(_Adam):
    """Both packages' Adam with D-Adaptation: optax's always corrects the bias and has no bound on the growth."""

    def step(self, params: Arrays, gradient: Arrays, t: int, lr: float) -> Arrays:
        d, rate, gradient, beta3 = self.d, self.rate(t, lr), self.gradient(params, gradient), np.sqrt(self.beta2)
        progress = dot(gradient, [s / (np.sqrt(v) + self.eps) for s, v in zip(self.s, self.v, strict=True)])
        self.numerator = beta3 * self.numerator + (1 - beta3) * rate * progress
        self.m = [self.beta1 * m + (1 - self.beta1) * rate * g for m, g in zip(self.m, gradient, strict=True)]
        self.v = [self.beta2 * v + (1 - self.beta2) * g * g for v, g in zip(self.v, gradient, strict=True)]
        self.s = [beta3 * s + (1 - beta3) * rate * g for s, g in zip(self.s, gradient, strict=True)]
        estimate = self.numerator / ((1 - beta3) * sum(np.sum(np.abs(s)) for s in self.s))
        self.d = max(d, min(estimate, d * self.growth_rate))
        return [
            p - m / (np.sqrt(v) + self.eps) for p, m, v in zip(self.decayed(params, rate), self.m, self.v, strict=True)
        ]


class DoG:
    """`optax.contrib.dog`, whose `init_step` is one of the three."""

    def __init__(
        self, lr: float = 1.0, relative_distance: float = 1e-6, distance: float | None = None,
        first_rate: float | None = None, eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        self.lr, self.relative_distance, self.distance, self.first_rate = lr, relative_distance, distance, first_rate
        self.eps, self.weight_decay, self.squares = eps, weight_decay, 0.0

    def start(self, params: Arrays) -> None:
        self.p0 = params
        self.farthest = self.relative_distance * (1 + norm(params))
        if self.distance is not None:
            self.farthest = self.distance
        if self.first_rate is not None:
            self.farthest = 0.0

    def step(self, params: Arrays, gradient: Arrays, t: int, lr: float) -> Arrays:
        gradient = [g + self.weight_decay * p for p, g in zip(params, gradient, strict=True)]
        self.farthest = max(self.farthest, norm([p - p0 for p, p0 in zip(params, self.p0, strict=True)]))
        self.squares += norm(gradient) ** 2
        rate = self.farthest / np.sqrt(self.squares + self.eps)
        if t == 1 and self.first_rate is not None:
            rate = self.first_rate
        return [p - lr * rate * g for p, g in zip(params, gradient, strict=True)]


def trajectory(
    formula: Any, params: Sequence[Array], gradients: Sequence[Sequence[Array]], rate_at: Any
) -> list[list[Array]]:
    """Return the parameters after each step."""
    current = list(params)
    formula.start(current)
    found = []
    for t, gradient in enumerate(gradients, start=1):
        current = formula.step(current, list(gradient), t, rate_at(t - 1, formula.lr))
        found.append(current)
    return found
