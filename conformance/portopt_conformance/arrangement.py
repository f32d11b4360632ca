"""In which arrays the words of an experiment lie: one where no element of a step knows of another, else some of unlike shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from portopt import Optimizer
from portopt_conformance.words import Words

ONE: Mapping[str, tuple[int, ...]] = {"w": (-1,)}
"""All words in one vector."""
UNLIKE: Mapping[str, tuple[int, ...]] = {"matrix": (48, 64), "stack": (3, 8, 16), "vector": (1000,)}
"""The first words in arrays of these shapes: a rule may look at the number of axes, at rows, or at a whole parameter."""


def is_elementwise(optimizer: Optimizer) -> bool:
    """Tell whether each element of a step depends on that element of the arrays only, and on what all parameters share."""
    return optimizer.program(shape=UNLIKE["matrix"]).is_elementwise


def shapes_for(optimizer: Optimizer) -> Mapping[str, tuple[int, ...]]:
    """Return name and shape of each parameter of an optimizer's experiments."""
    return ONE if is_elementwise(optimizer) else UNLIKE


def arranged(shapes: Mapping[str, tuple[int, ...]], words: Words, make: Callable[[Words], Any]) -> dict[str, Any]:
    """Return words as arrays of these shapes, the first words in the first one."""
    tree, start = {}, 0
    for name, shape in sorted(shapes.items()):
        size = words.size if shape == (-1,) else int(np.prod(shape))
        tree[name] = make(words[start : start + size].reshape(shape))
        start += size
    return tree


def rearranged(template: Mapping[str, Any], words: Words, make: Callable[[Words], Any]) -> dict[str, Any]:
    """Return words in arrays of the shapes that those of a slot have; None for a parameter that lacks the slot."""
    shapes = {name: tuple(array.shape) for name, array in template.items() if array is not None}
    return {**dict.fromkeys(template), **arranged(shapes, words, make)}


def gathered(tree: Mapping[str, Any], to_numpy: Callable[[Any], Words]) -> Words:
    """Return the words of all arrays of a tree as one vector, in the order of their names, which is what JAX leaves."""
    return np.concatenate([to_numpy(array).reshape(-1) for _, array in sorted(tree.items()) if array is not None])
