"""The backend: `ArrayAPIBackend` does the work, and asks for the few things that the library has in its own way."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from portopt import ArrayAPIBackend
from portopt.backend import PURE, Mode


class TinyBackend(ArrayAPIBackend):
    """Tiny arrays: float32 and float64, on one device, which cannot be changed in place."""

    modes: Mapping[str, Mode] = {"apply": PURE}

    def __init__(self) -> None:
        super().__init__(
            "tiny",
            lambda: importlib.import_module("portopt_tiny.arrays"),
            root="portopt_tiny",
            install_command="pip install portopt-tiny",
        )

    def version(self) -> str:
        return str(self.xp.__version__)

    def devices(self) -> Mapping[str, str | None]:
        return {"cpu": None}

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        return self.xp.asarray(np.full(like.shape if shape is None else shape, value), dtype=dtype)

    def to_numpy(self, array: Any) -> Any:
        return array.data.copy()

    def from_numpy(self, array: Any, device: str | None) -> Any:
        if device != "cpu":
            raise ValueError(f"tiny has no device {device!r}; it has cpu")
        return self.xp.asarray(array)


backend = TinyBackend()
