"""Torch's tensors, as launches of CUDA C ask for them."""

from __future__ import annotations

import sys
from typing import Any

from portopt.kernels.cuda.library import CudaLibrary


class TorchLibrary(CudaLibrary):
    """Torch."""

    def device(self, tensor: Any) -> int:
        return int(tensor.get_device())

    def size(self, tensor: Any) -> int:
        return int(tensor.numel())

    def address(self, tensor: Any) -> int:
        return int(tensor.data_ptr())

    def dense(self, tensor: Any) -> Any:
        return tensor.contiguous()

    def is_dense(self, tensor: Any) -> bool:
        return bool(tensor.is_contiguous())

    def copied(self, tensor: Any) -> Any:
        return tensor.clone()

    def dtype(self, tensor: Any) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    def memory(self, tensor: Any) -> tuple[str, int, int]:
        start = int(tensor.data_ptr())
        return str(tensor.device), start, start + tensor.numel() * tensor.element_size()

    def empty_like(self, tensor: Any, dtype: str | None = None) -> Any:
        kind = tensor.dtype if dtype is None else getattr(_torch(), dtype)
        return _torch().empty(tensor.shape, dtype=kind, device=tensor.device)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return _torch().empty(shape, dtype=getattr(_torch(), dtype), device=self.place(device))

    def place(self, device: int) -> str:
        """Return what torch calls a device, given its number; the host's is negative."""
        return "cpu" if device < 0 else f"cuda:{device}"

    def assign(self, target: Any, value: Any) -> None:
        target.copy_(value)

    def on(self, device: int) -> Any:
        return _torch().cuda.device(device)

    def words(self, memory: Any, count: int) -> list[int]:
        found: list[int] = memory[:count].tolist()
        return found

    def stream(self, device: int) -> int:
        return int(_torch()._C._cuda_getCurrentRawStream(device))


def _torch() -> Any:
    # Whoever has arrays has imported it; this takes a fraction of the time of an import.
    return sys.modules["torch"]


LIBRARY = TorchLibrary()
