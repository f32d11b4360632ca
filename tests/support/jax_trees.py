"""Trees of JAX's arrays compared bit by bit."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from support.bits import assert_same_bits


def assert_same_trees(actual: Any, expected: Any, *, any_integers: bool = False) -> None:
    """Compare structures, and leaves: arrays bit by bit, and integers as numbers where they are Python's or of any dtype."""
    structures: list[Any] = [jax.tree.structure(each) for each in (actual, expected)]
    assert structures[0] == structures[1]
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if isinstance(a, int) or isinstance(b, int) or (any_integers and np.asarray(b).dtype.kind == "i"):
            assert int(a) == int(b)
        else:
            assert_same_bits(np.asarray(a), np.asarray(b))
