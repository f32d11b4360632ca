"""Formulas of packages that the tests do not install, in float64 NumPy, one parameter at a time and with arrays only.

Each was run against the package that its docstring names, for 50 steps from the parameters and with the gradients of
`support.dialect_settings` and each setting of the rule: the distances stand there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from support.bits import Array


def norm(x: Array) -> float:
    return math.sqrt(float(np.sum(x * x)))


def lars(
    p: Array, gradients: Sequence[Array], rates: Sequence[float], *, momentum: float = 0.0, nesterov: bool = False,
    trust_coefficient: float = 1e-3, epsilon: float = 1e-8, weight_decay: float = 0.0, dampening: float = 0.0,
    trust_clip: bool = False, always_adapt: bool = False, maximize: bool = False,
) -> Iterator[Array]:  # fmt: skip
    """Yield the parameter after each step of `timm.optim.Lars`: within 1e-14 of timm 1.0.31.

    timm has no maximize, which is the negative gradient.
    """
    moment = None
    for g, lr in zip(gradients, rates, strict=True):
        u = -g if maximize else g
        if weight_decay != 0 or always_adapt:
            size, steepness = norm(p), norm(u)
            ratio = 1.0
            if size > 0 and steepness > 0:
                ratio = trust_coefficient * size / (steepness + size * weight_decay + epsilon)
            if trust_clip:
                ratio = min(ratio / lr, 1.0)
            u = ratio * (u + weight_decay * p)
        if momentum != 0:
            moment = u if moment is None else momentum * moment + (1 - dampening) * u
            u = u + momentum * moment if nesterov else moment
        p = p - lr * u
        yield p


def novograd(
    p: Array, gradients: Sequence[Array], rates: Sequence[float], *, beta_1: float = 0.95, beta_2: float = 0.98,
    epsilon: float = 1e-8, weight_decay: float = 0.0, amsgrad: bool = False, grad_averaging: bool = False,
    decoupled_weight_decay: bool = False, maximize: bool = False,
) -> Iterator[Array]:  # fmt: skip
    """Yield the parameter after each step of `timm.optim.NvNovoGrad`: within 1e-14 of timm 1.0.31.

    timm keeps the mean of the squared norm in torch's default dtype, which was float64 for that. It has no maximize.
    """
    m, v, largest = np.zeros_like(p), 0.0, 0.0
    for g, lr in zip(gradients, rates, strict=True):
        u = -g if maximize else g
        square = float(np.sum(u**2))
        v = square if v == 0 else beta_2 * v + (1 - beta_2) * square
        largest = max(largest, v)
        # NumPy's float64 divides a zero gradient by zero, as torch does.
        with np.errstate(invalid="ignore"):
            u = u / np.float64(math.sqrt(largest if amsgrad else v) + epsilon)
        if decoupled_weight_decay:
            p = (1 - lr * weight_decay) * p
        else:
            u = u + weight_decay * p
        m = beta_1 * m + (1 - beta_1 if grad_averaging else 1) * u
        p = p - lr * m
        yield p


def stable_adamw(
    p: Array, gradients: Sequence[Array], rates: Sequence[float], *, beta_1: float = 0.9, beta_2: float = 0.99,
    epsilon: float = 1e-6, weight_decay: float = 0.01,
) -> Iterator[Array]:  # fmt: skip
    """Yield the parameter after each step of `optimi.StableAdamW`: within 1e-14 of torch-optimi 0.3.3, without Triton."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        hat_1, hat_2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in (beta_1, beta_2))
        m = hat_1 * m + (1 - hat_1) * g
        v = hat_2 * v + (1 - hat_2) * g**2
        rms = math.sqrt(float(np.mean(g**2 / np.maximum(v, epsilon**2))))
        rate = lr / max(1.0, rms)
        p = (1 - rate * weight_decay) * p
        p = p - rate * (m / (np.sqrt(v) + epsilon))
        yield p


def adam_mini(
    p: Array, gradients: Sequence[Array], rates: Sequence[float], *, beta_1: float = 0.9, beta_2: float = 0.999,
    epsilon: float = 1e-8, weight_decay: float = 0.0, partition: str = "rows",
) -> Iterator[Array]:  # fmt: skip
    """Yield the parameter after each step of `Adam_mini`: within 1e-14 of adam-mini 1.1.1.

    Rows are what it does with parameters of the name mlp, and vectors among them those of the name bias; tensor is what it does
    with those whose name it does not know. Columns are the rows of the transposed parameter.
    """
    axes: Any = {"rows": tuple(range(1, p.ndim)), "columns": tuple(range(p.ndim - 1)), "tensor": None}[partition]
    m, v = np.zeros_like(p), np.zeros_like(np.mean(p, axis=axes, keepdims=True))
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        p = (1 - lr * weight_decay) * p
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * np.mean(g**2, axis=axes, keepdims=True)
        p = p - lr * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        yield p


FORMULAS: dict[tuple[str, str | None], Any] = {
    ("LARS", "torch"): lars,
    ("NovoGrad", "torch"): novograd,
    ("StableAdamW", None): stable_adamw,
    ("AdamMini", None): adam_mini,
}
"""The formula of each rule and dialect that has one here, taking the rule's arguments."""
