"""Products of matrices of integers in float64, of a matrix and its transpose only half: torch has no function for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from portopt.kernels.host import memory
from portopt.program.products import product_shape

_LEAST = 192
"""Rows of a block that is worth a product of its own."""


def multiply_matrices(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `a @ b`."""
    return torch.matmul(a, b, out=_empty(product_shape(a.shape, b.shape), a))


def multiply_by_transpose(a: torch.Tensor) -> torch.Tensor:
    """Return `a @ a.mT`; every sum must be exact, since another library adds in another order for a block."""
    if a.device.type != "cpu" or a.shape[-2] <= _LEAST:
        return multiply_matrices(a, a.mT)
    result = lower_half(a)
    _mirror(result, 0, a.shape[-2])
    return result


def lower_half(a: torch.Tensor) -> torch.Tensor:
    """Return what `multiply_by_transpose` does; above the diagonal may be anything."""
    result = _empty((*a.shape[:-1], a.shape[-2]), a)
    _fill(result, a, 0, a.shape[-2])
    return result


def _fill(result: Any, a: Any, start: int, stop: int) -> None:
    """Compute the square of these rows and columns: two such squares on its diagonal, and the block that is below them."""
    if stop - start <= _LEAST:
        torch.matmul(a[..., start:stop, :], a[..., start:stop, :].mT, out=result[..., start:stop, start:stop])
        return
    middle = (start + stop) // 2
    _fill(result, a, start, middle)
    _fill(result, a, middle, stop)
    torch.matmul(a[..., middle:stop, :], a[..., start:middle, :].mT, out=result[..., middle:stop, start:middle])


def _mirror(result: Any, start: int, stop: int) -> None:
    """Copy the blocks that `_fill` computed to the other side of the diagonal."""
    if stop - start > _LEAST:
        middle = (start + stop) // 2
        _mirror(result, start, middle)
        _mirror(result, middle, stop)
        result[..., start:middle, middle:stop] = result[..., middle:stop, start:middle].mT


def _empty(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return torch.from_numpy(memory.empty(shape, np.float64))
