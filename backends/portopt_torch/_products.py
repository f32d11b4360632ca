"""Products of a matrix of integers and its transpose, of which only half is computed: torch has no function for it."""

from __future__ import annotations

from typing import Any

import torch

_LEAST = 384
"""Rows of a block that is worth a product of its own."""


def multiply_by_transpose(a: torch.Tensor) -> torch.Tensor:
    """Return `a @ a.mT`; every sum must be exact, since another library adds in another order for a block."""
    if a.device.type != "cpu" or a.shape[-2] <= _LEAST:
        return torch.matmul(a, a.mT)
    result = a.new_empty((*a.shape[:-1], a.shape[-2]))
    _fill(result, a, 0, a.shape[-2])
    return result


def _fill(result: Any, a: Any, start: int, stop: int) -> None:
    """Compute the square of these rows and columns: two such squares on its diagonal, one block, and the block's mirror image."""
    if stop - start <= _LEAST:
        torch.matmul(a[..., start:stop, :], a[..., start:stop, :].mT, out=result[..., start:stop, start:stop])
        return
    middle = (start + stop) // 2
    _fill(result, a, start, middle)
    _fill(result, a, middle, stop)
    lower = result[..., middle:stop, start:middle]
    torch.matmul(a[..., middle:stop, :], a[..., start:middle, :].mT, out=lower)
    result[..., start:middle, middle:stop] = lower.mT
