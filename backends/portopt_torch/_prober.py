"""Looking at torch tensors on the CPU between two steps of a plan."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from portopt.host.plan import WrittenMemory


class TorchProber:
    """Looks at tensors between two steps of a plan.

    Args:
        parameters: name to tensor, of each parameter.
        columns: names of the table's columns.
        table: addresses, one row a parameter.
    """

    def __init__(self, parameters: Sequence[dict[str, Any]], columns: Sequence[str], table: Any) -> None:
        names = [name for name in columns if name != "g"]
        self._table = table
        self._gradient_column = list(columns).index("g")
        self._tensors = [weakref.ref(p[name]) for name in names for p in parameters]
        self._addresses = [p[name].data_ptr() for name in names for p in parameters]
        self._shapes = [p["p"].shape for p in parameters]
        self._all_shapes = self._shapes * len(names)
        self._dtypes = [p["p"].dtype for p in parameters]
        starts = np.array([p[name].data_ptr() for p in parameters for name in names], np.int64)
        sizes = np.array([p[name].numel() * p[name].element_size() for p in parameters for name in names], np.int64)
        self._memory = WrittenMemory(starts, starts + sizes)
        self._bytes = np.array([p["p"].numel() * p["p"].element_size() for p in parameters], np.int64)

    def unchanged(self) -> bool:
        tensors: list[Any] = [reference() for reference in self._tensors]
        self._live = tensors
        return [t.data_ptr() for t in tensors] == self._addresses and [t.shape for t in tensors] == self._all_shapes

    def read_gradients(self, gradients: list[Any]) -> bool:
        tensor, strided = torch.Tensor, torch.strided
        if not all(isinstance(g, tensor) for g in gradients):
            return False
        if [g.shape for g in gradients] != self._shapes or [g.dtype for g in gradients] != self._dtypes:
            return False
        if not all(g.layout is strided and g.is_cpu and g.is_contiguous() for g in gradients):
            return False
        self._table[:, self._gradient_column] = [g.data_ptr() for g in gradients]
        return not self._memory.overlaps(self._table[:, self._gradient_column], self._bytes)

    def written(self) -> None:
        torch.autograd.graph.increment_version(self._live)
        self._live = []
