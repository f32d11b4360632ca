"""Parameters of torch with gradients, and tensors compared bit by bit."""

from __future__ import annotations

from typing import Any

from support.bits import assert_same_bits, ordinary
from support.libraries import BY_NAME
from torch import nn

TORCH = BY_NAME["torch"]


def parameters(shapes: tuple[tuple[int, ...], ...], dtype: str, seed: int = 0) -> list[Any]:
    return [nn.Parameter(TORCH.arrays(ordinary(shape, dtype, seed + i))) for i, shape in enumerate(shapes)]


def give_gradients(params: list[Any], step: int) -> list[Any]:
    """Set the gradients of a step, and return them."""
    for i, p in enumerate(params):
        p.grad = TORCH.arrays(ordinary(tuple(p.shape), str(p.dtype).removeprefix("torch."), 1000 * step + i + 1))
    return [p.grad for p in params]


def copies(params: list[Any]) -> list[Any]:
    return [p.detach().clone() for p in params]


def assert_same(actual: list[Any], expected: list[Any]) -> None:
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(TORCH.numpy(a), TORCH.numpy(b), f"tensor {i}")
