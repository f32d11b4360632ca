"""Torch's tensors in host memory, taken for those of played CUDA devices."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bits import Array
from support.recording_driver import STREAM, Recording, recording_driver, stream_of

import portopt
import portopt_torch
from portopt_torch import _cuda
from portopt_torch._backend import TorchBackend


class HostTorch(_cuda.TorchLibrary):
    """Torch on played devices, which wait for nothing unless a test says so.

    Attributes:
        current_stream: that of the first device; the others have one as well.
    """

    may_wait = False
    waits = 0
    current_stream = STREAM

    @property
    def allocated(self) -> int:
        """How many pieces of memory were asked for."""
        return len(self._kept)

    def __init__(self) -> None:
        # Nothing else is put where memory has been: who uses it after its end finds what `empty` leaves there.
        self._kept: list[Any] = []
        self._all_placed: list[Any] = []
        self._of_graphs: list[Any] = []
        self._placed: dict[int, int] = {}
        self.recording: Recording | None = None

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        memory = self.put(super().empty(shape, dtype, device), device)
        self._kept.append(memory)
        if self.is_capturing(device):
            self._of_graphs.append(memory)
            return memory
        if not memory.numel():
            return memory
        content = memory.reshape(-1).view(torch.uint8)
        seen = content.numpy()[:]
        # Once nobody has a tensor of it, other work may write it.
        weakref.finalize(seen, content.fill_, 0x55).atexit = False
        return torch.from_numpy(seen).view(memory.dtype).reshape(shape)

    def put(self, tensor: Any, device: int) -> Any:
        """Take the memory of a tensor for that of a device, for as long as devices are played; one without elements has none."""
        assert self.recording is not None
        if tensor.numel():
            start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
            self._placed[start] = device
            self._all_placed.append(tensor)
            self.recording.say_memory(start, size, device)
        return tensor

    def spoil(self) -> None:
        """Let other work have written what is in the memory of graphs, as it may between two replays."""
        for tensor in self._of_graphs:
            tensor.view(torch.uint8).fill_(0x55)

    def device(self, tensor: Any) -> int:
        return self._placed.get(tensor.untyped_storage().data_ptr(), 0)

    def are_captured(self, tensors: Iterable[Any]) -> bool:
        """Tell whether the work of one of the devices of tensors is being captured."""
        return any(map(self.is_capturing, set(map(self.device, tensors))))

    def copied(self, tensor: Any) -> Any:
        return self._beside(tensor, super().copied(tensor))

    def dense(self, tensor: Any) -> Any:
        return self._beside(tensor, super().dense(tensor))

    def empty_like(self, tensor: Any, dtype: str | None = None) -> Any:
        return self._beside(tensor, super().empty_like(tensor, dtype))

    def _beside(self, tensor: Any, new: Any) -> Any:
        device = self.device(tensor)
        return self.put(new, device) if device and new is not tensor else new

    def place(self, device: int) -> str:
        return "cpu"

    def on(self, device: int) -> Any:
        return contextlib.nullcontext()

    def stream(self, device: int) -> int:
        return stream_of(device, self.current_stream)

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
        library.recording = recording
        patch.setattr(_cuda, "LIBRARY", library)
        patch.setattr(TorchBackend, "_runs_kernels", lambda self, tensor: True)
        patch.setattr(
            TorchBackend,
            "_is_captured",
            lambda self, tensors: any(map(library.is_capturing, set(map(library.device, tensors)))),
        )
        refuse("rounded_scalars")
        refuse("parts_of_total")
        yield library, recording


def to_torch(array: Any) -> Any:
    return portopt_torch.backend.from_numpy(np.asarray(array), "cpu")


def to_numpy(tensor: Any) -> Array:
    return np.asarray(portopt_torch.backend.to_numpy(tensor))
