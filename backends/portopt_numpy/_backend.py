from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portopt.backend import ArrayAPIBackend, ArrayInfo, Arrays


class NumpyBackend(ArrayAPIBackend):
    """NumPy arrays, memory-mapped ones included; masked arrays and matrices are refused."""

    def __init__(self) -> None:
        super().__init__("numpy", lambda: importlib.import_module("array_api_compat.numpy"))

    def owns(self, leaf: object) -> bool:
        return isinstance(leaf, np.ndarray)

    def version(self) -> str:
        return np.__version__

    def devices(self) -> Mapping[str, str | None]:
        return {"cpu": None}

    def dtypes(self) -> tuple[str, ...]:
        return tuple(name for name in super().dtypes())

    def _has_dtype(self, name: str) -> bool:
        return name != "bfloat16" or importlib.util.find_spec("ml_dtypes") is not None

    def dtype(self, name: str) -> Any:
        return importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)

    def describe(self, array: Any) -> ArrayInfo:
        if isinstance(array, np.ma.MaskedArray | np.matrix):
            raise TypeError(
                f"arrays of type {type(array).__name__} are not supported: their operations mean something else; "
                "convert with numpy.asarray"
            )
        return ArrayInfo(array.shape, array.dtype.name if array.dtype.isnative else str(array.dtype), "cpu")

    def full(self, like: Any, value: float, dtype: str) -> Any:
        return np.full(like.shape, value, dtype=self.dtype(dtype))

    def to_numpy(self, array: Any) -> Any:
        return np.array(array, copy=True)

    def from_numpy(self, array: Any, device: str) -> Any:
        if device != "cpu":
            raise ValueError(f"numpy has no device {device!r}; it has cpu")
        return np.array(array, copy=True)

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        return super().rounded_scalar(value, compute_dtype, like)

    def _stored(self, value: Any, like: Any) -> Any:
        return np.array(np.broadcast_to(value, like.shape), dtype=like.dtype, copy=True)

    def check_in_place(self, parameters: Sequence[Arrays], paths: Callable[[int], str]) -> None:
        super().check_in_place(parameters, paths)
        written: list[tuple[int, int, str, Any]] = []
        for i, arrays in enumerate(parameters):
            for name, array in arrays.items():
                if name == "g":
                    continue
                here = f"params{paths(i)}" if name == "p" else f"state.slots[{name!r}]{paths(i)}"
                if not array.flags.writeable:
                    raise TypeError(
                        f"{here} is a read-only NumPy array, so it cannot be changed in place; copy it, or use apply"
                    )
                low, high = np.lib.array_utils.byte_bounds(array)
                written.append((low, high, here, array))
        written.sort(key=lambda entry: entry[:2])
        for (_, high, here, array), (low, _, there, other) in zip(written, written[1:], strict=False):
            if low < high and array.size and other.size and np.shares_memory(array, other):
                raise ValueError(
                    f"{here} and {there} share memory, so an update in place would change it twice; "
                    "give each its own array, or use apply"
                )


backend = NumpyBackend()
