"""Trees, some leaves of which are None, on which frameworks' own optimizers are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree


def arrays(seed: int, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw: dict[str, Any] = {
        "kernel": rng.standard_normal((3, 4)),
        "layers": [rng.standard_normal(5), None, rng.standard_normal(())],
    }
    made: dict[str, Any] = mapped(lambda x: np.asarray(x).astype(dtype), draw)
    return made


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    return optree.tree_map(lambda x, *xs: None if x is None else function(x, *xs), tree, *others, none_is_leaf=True)


def leaves(tree: Any) -> list[Any]:
    found: list[Any] = optree.tree_leaves(tree)
    return found
