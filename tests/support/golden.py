"""The trajectories of Keras 2.3.1's own optimizer code in `golden/keras231`; see `golden/README.md`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from support.bits import Array

import portopt


@dataclass(frozen=True)
class Trajectory:
    """One file: a configuration, its data, and what Keras made of them."""

    path: Path

    def __str__(self) -> str:
        return self.path.stem

    @cached_property
    def _content(self) -> dict[str, Any]:
        with np.load(self.path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    @property
    def class_name(self) -> str:
        return str(self._content["class_name"])

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(json.loads(str(self._content["kwargs"])))

    @property
    def config(self) -> dict[str, Any]:
        return dict(json.loads(str(self._content["config"])))

    def _series(self, prefix: str) -> list[Array]:
        return [self._content[name] for name in sorted(self._content) if name.startswith(prefix)]

    @property
    def initial(self) -> list[Array]:
        return self._series("initial_")

    @property
    def gradients(self) -> list[list[Array]]:
        """Step by step, one array for each parameter."""
        return [list(step) for step in zip(*self._series("grads_"), strict=True)]

    @property
    def params(self) -> list[list[Array]]:
        """After each step, one array for each parameter."""
        return [list(step) for step in zip(*self._series("params_"), strict=True)]

    @property
    def weights(self) -> list[Array]:
        return self._series("weight_")

    def optimizer(self) -> portopt.Optimizer:
        optimizer: portopt.Optimizer = portopt.get({"class_name": self.class_name, "config": self.arguments})
        return optimizer


TRAJECTORIES = [Trajectory(path) for path in sorted((Path(__file__).parent / "golden" / "keras231").glob("*.npz"))]
