"""Looking at torch tensors on the CPU between two steps of a plan."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from portopt.host.plan import merged_ranges


class TorchProber:
    """Looks at tensors between two steps of a plan.

    Args:
        parameters: name to tensor, of each parameter.
        columns: names of the table's columns.
        table: addresses, one row a parameter.
    """

    def __init__(self, parameters: Sequence[Mapping[str, Any]], columns: Sequence[str], table: Any) -> None:
        names = [name for name in columns if name != "g"]
        tensors = [p[name] for name in names for p in parameters]
        self._column = table[:, list(columns).index("g")]
        self._tensors = [weakref.ref(t) for t in tensors]
        self._addresses = [t.data_ptr() for t in tensors]
        self._shapes = [p["p"].shape for p in parameters]
        self._dtype = parameters[0]["g"].dtype
        starts, ends = merged_ranges([(t.data_ptr(), t.numel() * t.element_size()) for t in tensors])
        self._starts, self._ends = np.array(starts), np.array(ends)
        self._bytes = np.array([p["g"].numel() * p["g"].element_size() for p in parameters], np.int64)
        self._live: list[Any] = []

    def fits(self, gradients: list[Any]) -> bool:
        written: list[Any] = [reference() for reference in self._tensors]
        if [t.data_ptr() for t in written] != self._addresses:
            return False
        # The parameters come first. Nobody but portopt gives slots another shape.
        if [t.shape for t in written[: len(self._shapes)]] != self._shapes:
            return False
        tensor, dtype, strided = torch.Tensor, self._dtype, torch.strided
        for g in gradients:
            if not isinstance(g, tensor) or g.dtype is not dtype or not g.is_cpu or g.layout is not strided:
                return False
            if not g.is_contiguous():
                return False
        if [g.shape for g in gradients] != self._shapes:
            return False
        self._column[:] = addresses = [g.data_ptr() for g in gradients]
        first = np.searchsorted(self._ends, addresses, side="right")
        near = first < len(self._starts)
        if np.any(self._starts[first[near]] < (self._column + self._bytes)[near]):
            return False
        self._live = written
        return True

    def written(self) -> None:
        torch.autograd.graph.increment_version(self._live)
        self._live = []
