from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from portopt.backend import ArrayAPIBackend, ArrayInfo, Arrays


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

    def from_numpy(self, array: Any, device: str) -> Any:
        usable = [name for name, reason in self.devices().items() if reason is None]
        name = f"{device}:0" if device == "cuda" else device
        if name not in usable:
            raise ValueError(f"cupy cannot use the device {device!r}; usable are {usable or 'none'}")
        with self._cupy.cuda.Device(int(name.partition(":")[2])):
            return self._cupy.array(array)

    def check_in_place(self, parameters: Sequence[Arrays], paths: Callable[[int], str]) -> None:
        super().check_in_place(parameters, paths)
        written = []
        for i, arrays in enumerate(parameters):
            for name, array in arrays.items():
                if name != "g" and array.size:
                    here = f"params{paths(i)}" if name == "p" else f"state.slots[{name!r}]{paths(i)}"
                    low, high = self._cupy.byte_bounds(array)
                    written.append((low, high, here))
        written.sort()
        for (_, high, here), (low, _, there) in zip(written, written[1:], strict=False):
            if low < high:
                raise ValueError(
                    f"{here} and {there} share memory, so an update in place would change it twice; "
                    "give each its own array, or use apply"
                )


backend = CupyBackend()
