"""The seven rules of Keras 2.3.1 as plain float64 NumPy, written from its formulas and independent of portopt.

Each function updates `slots` and returns the new parameter. `t` is the number of the step, from 1; `lr` is the learning rate
after `decay`; `h` holds the other hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from support.bits import Array

Slots = dict[str, Array]
Hyperparameters = Mapping[str, Any]


def sgd(p: Array, g: Array, slots: Slots, t: int, lr: float, h: Hyperparameters) -> Array:
    v = slots["moment"] = h["momentum"] * slots["moment"] - lr * g
    return np.asarray((p + h["momentum"] * v) - lr * g if h["nesterov"] else p + v)


def rmsprop(p: Array, g: Array, slots: Slots, t: int, lr: float, h: Hyperparameters) -> Array:
    a = slots["accumulator"] = h["rho"] * slots["accumulator"] + (1 - h["rho"]) * g**2
    return np.asarray(p - lr * g / (np.sqrt(a) + h["epsilon"]))


def adagrad(p: Array, g: Array, slots: Slots, t: int, lr: float, h: Hyperparameters) -> Array:
    a = slots["accumulator"] = slots["accumulator"] + g**2
    return np.asarray(p - lr * g / (np.sqrt(a) + h["epsilon"]))


def adadelta(p: Array, g: Array, slots: Slots, t: int, lr: float, h: Hyperparameters) -> Array:
    d = slots["delta_accumulator"]
    a = slots["accumulator"] = h["rho"] * slots["accumulator"] + (1 - h["rho"]) * g**2
    w = g * np.sqrt(d + h["epsilon"]) / np.sqrt(a + h["epsilon"])
    slots["delta_accumulator"] = h["rho"] * d + (1 - h["rho"]) * w**2
    return np.asarray(p - lr * w)


def adam(p: Array, g: Array, slots: Slots, t: int, lr: float, h: Hyperparameters) -> Array:
    lr_t = lr * (np.sqrt(1 - h["beta_2"] ** t) / (1 - h["beta_1"] ** t))
    m = slots["m"] = h["beta_1"] * slots["m"] + (1 - h["beta_1"]) * g
    v = slots["v"] = h["beta_2"] * slots["v"] + (1 - h["beta_2"]) * g**2
    if h["amsgrad"]:
        v = slots["vhat"] = np.maximum(slots["vhat"], v)
    return np.asarray(p - lr_t * m / (np.sqrt(v) + h["epsilon"]))


def adamax(p: Array, g: Array, slots: Slots, t: int, lr: float, h: Hyperparameters) -> Array:
    m = slots["m"] = h["beta_1"] * slots["m"] + (1 - h["beta_1"]) * g
    u = slots["u"] = np.maximum(h["beta_2"] * slots["u"], np.abs(g))
    return np.asarray(p - lr / (1 - h["beta_1"] ** t) * m / (u + h["epsilon"]))


def nadam(p: Array, g: Array, slots: Slots, t: int, lr: float, h: Hyperparameters) -> Array:
    def momentum(step: int) -> float:
        return float(h["beta_1"] * (1 - 0.5 * 0.96 ** (step * h["schedule_decay"])))

    mu, next_mu = momentum(t), momentum(t + 1)
    product = np.prod([momentum(step) for step in range(1, t + 1)])
    m = slots["m"] = h["beta_1"] * slots["m"] + (1 - h["beta_1"]) * g
    v = slots["v"] = h["beta_2"] * slots["v"] + (1 - h["beta_2"]) * g**2
    m_bar = (1 - mu) * g / (1 - product) + next_mu * m / (1 - product * next_mu)
    return np.asarray(p - lr * m_bar / (np.sqrt(v / (1 - h["beta_2"] ** t)) + h["epsilon"]))


def formula_of(rule: str) -> Callable[..., Array] | None:
    """Return the function of a rule's name; None if Keras 2.3.1 has no such rule."""
    return globals().get(rule.lower())


def clipped(gradients: list[Array], clipnorm: float | None, clipvalue: float | None) -> list[Array]:
    if clipnorm is not None:
        norm = np.sqrt(sum(float(np.sum(g**2)) for g in gradients))
        gradients = [g * clipnorm / norm if norm >= clipnorm else g for g in gradients]
    if clipvalue is not None:
        gradients = [np.clip(g, -clipvalue, clipvalue) for g in gradients]
    return gradients


@dataclass
class KerasRun:
    """Parameters and slots that the plain formulas update step by step."""

    rule: str
    hyperparameters: Mapping[str, Any]
    params: list[Array]
    slot_names: tuple[str, ...]
    finished: int = 0
    slots: list[Slots] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = [{name: np.zeros_like(p) for name in self.slot_names} for p in self.params]

    def step(self, gradients: list[Array]) -> None:
        h = self.hyperparameters
        lr = h["learning_rate"] * (1 / (1 + h.get("decay", 0.0) * self.finished))
        self.finished += 1
        gradients = clipped(gradients, h.get("clipnorm"), h.get("clipvalue"))
        formula = formula_of(self.rule)
        assert formula is not None
        self.params = [
            formula(p, g, slots, self.finished, lr, h)
            for p, g, slots in zip(self.params, gradients, self.slots, strict=True)
        ]
