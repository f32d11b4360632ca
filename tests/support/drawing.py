"""Random numbers as NumPy draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.bits import Array

import portopt
from portopt.program.draws import SEED, Place, draw
from portopt.program.primitives import Primitives


def drawn(
    distribution: str, place: Place, dtype: str = "float64", *, key: int, step: int = 1, stream: int = 0
) -> Array:
    """Return what a rule with these numbers gets from NumPy."""
    backend: Any = portopt.get_backend("numpy")
    primitives: Primitives = backend.primitives(dtype).widened_by(lambda: backend.primitives("float64"))
    with np.errstate(all="ignore"):
        return np.asarray(draw(primitives, distribution, key, step, stream, place, np.zeros((), dtype)))


def drawn_by(optimizer: portopt.Optimizer, name: str, step: int, place: Place, dtype: str = "float64") -> Array:
    """Return what an optimizer draws under a name at a step."""
    stream, seed = list(optimizer.draws).index(name), getattr(optimizer, SEED)
    return drawn(optimizer.draws[name], place, dtype, key=seed, step=step, stream=stream)
