"""Torch's tensors in host memory, taken for those of a played CUDA device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bits import Array
from support.recording_driver import STREAM, Recording, recording_driver

import portopt
import portopt_torch
from portopt_torch import _cuda
from portopt_torch._backend import TorchBackend


class HostTorch(_cuda.TorchLibrary):
    """Torch on the played device, which waits for nothing unless a test says so."""

    may_wait = False
    waits = 0
    current_stream = STREAM

    @property
    def allocated(self) -> int:
        """How many pieces of memory were asked for."""
        return len(self._kept)

    def __init__(self) -> None:
        # As in torch's own allocator of a device, memory is not taken away from what is queued.
        self._kept: list[Any] = []
        self._of_graphs: list[Any] = []

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        self._kept.append(super().empty(shape, dtype, device))
        if self.is_capturing(device):
            self._of_graphs.append(self._kept[-1])
        return self._kept[-1]

    def spoil(self) -> None:
        """Let other work have written what is in the memory of graphs, as it may between two replays."""
        for tensor in self._of_graphs:
            tensor.view(torch.uint8).fill_(0x55)

    def device(self, tensor: Any) -> int:
        return 0

    def place(self, device: int) -> str:
        return "cpu"

    def on(self, device: int) -> Any:
        return contextlib.nullcontext()

    def stream(self, device: int) -> int:
        return self.current_stream

    def words(self, memory: Any, count: int) -> list[int]:
        assert self.may_wait, "the host waited for the device"
        self.waits += 1
        return super().words(memory, count)


@contextlib.contextmanager
def host_torch(directory: Path) -> Iterator[tuple[HostTorch, Recording]]:
    """Let torch's tensors be on the played device; fails if torch's own operations do what a kernel should."""

    def refuse(name: str) -> None:
        original = getattr(TorchBackend, name)

        def refused(self: Any, *arguments: Any) -> Any:
            assert portopt.backend.is_interpreted(), "torch's own operations were used in place of the kernel"
            return original(self, *arguments)

        patch.setattr(TorchBackend, name, refused)

    library = HostTorch()
    with pytest.MonkeyPatch.context() as patch, recording_driver(directory) as recording:
        patch.setattr(_cuda, "LIBRARY", library)
        patch.setattr(TorchBackend, "_runs_kernels", lambda self, tensor: True)
        patch.setattr(TorchBackend, "_is_captured", lambda self, tensors: library.is_capturing(0))
        refuse("rounded_scalars")
        refuse("parts_of_total")
        yield library, recording


def to_torch(array: Any) -> Any:
    return portopt_torch.backend.from_numpy(np.asarray(array), "cpu")


def to_numpy(tensor: Any) -> Array:
    return np.asarray(portopt_torch.backend.to_numpy(tensor))
