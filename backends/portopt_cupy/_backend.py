from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from portopt.backend import ArrayAPIBackend, ArrayInfo, MemoryRange


class CupyBackend(ArrayAPIBackend):
    """CuPy arrays. CuPy's elementwise kernels are compiled one operation at a time, so nothing can be contracted."""

    def __init__(self) -> None:
        super().__init__(
            "cupy",
            lambda: importlib.import_module("array_api_compat.cupy"),
            install_command='pip install "portopt[cupy]"',
        )

    @property
    def _cupy(self) -> Any:
        return importlib.import_module("cupy")

    def owns(self, leaf: object) -> bool:
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(leaf, cupy.ndarray)

    def version(self) -> str:
        return str(self._cupy.__version__)

    def devices(self) -> Mapping[str, str | None]:
        runtime = self._cupy.cuda.runtime
        try:
            count = runtime.getDeviceCount()
        except runtime.CUDARuntimeError as error:
            return {"cuda": f"no CUDA device was found ({error})"}
        return {f"cuda:{i}": None for i in range(count)}

    def _has_dtype(self, name: str) -> bool:
        return name != "bfloat16"

    def dtype_name(self, array: Any) -> str:
        return str(array.dtype.name)

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(array.shape, array.dtype.name, f"cuda:{array.device.id}")

    def full(self, like: Any, value: float, dtype: str) -> Any:
        with like.device:
            return self._cupy.full(like.shape, value, dtype=dtype)

    def to_numpy(self, array: Any) -> Any:
        return self._cupy.asnumpy(array)

    def from_numpy(self, array: Any, device: str | None) -> Any:
        usable = [name for name, reason in self.devices().items() if reason is None]
        name = f"{device}:0" if device == "cuda" else device
        if name not in usable:
            raise ValueError(f"cupy cannot use the device {device!r}; usable are {usable or 'none'}")
        with self._cupy.cuda.Device(int(name.partition(":")[2])):
            return self._cupy.array(array)

    def memory_range(self, array: Any) -> MemoryRange:
        device = f"cuda:{array.device.id}"
        return MemoryRange(device, *(self._cupy.byte_bounds(array) if array.size else (0, 0)))

    def share_memory(self, a: Any, b: Any) -> bool:
        return bool(self._cupy.shares_memory(a, b))


backend = CupyBackend()
