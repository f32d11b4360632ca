"""Nested dicts, lists, tuples and NamedTuples of arrays: flattening, and naming a leaf in an error."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

Tree = TypeVar("Tree")
"""A tree of arrays; a step gives one of the type that it got."""

TreeDefinition = Any
"""The structure of a tree without its leaves; equal for trees of equal structure."""


class Trees(Protocol):
    """How one array library sees nested containers. `None` is a leaf."""

    def flatten(self, tree: Any) -> tuple[list[Any], TreeDefinition]:
        """Return the leaves, in a fixed order, and the structure."""

    def unflatten(self, definition: TreeDefinition, leaves: Sequence[Any]) -> Any:
        """Return the tree of this structure with these leaves."""

    def paths(self, tree: Any) -> list[str]:
        """Return for each leaf how Python code would reach it, such as `["layer1"]["kernel"]`."""


@functools.cache
def _optree() -> Any:
    """Return the library that knows the standard containers; it is imported at the first step."""
    import optree

    return optree


class StandardTrees:
    """dict, list, tuple, NamedTuple and the other containers that optree knows; dict entries in sorted order."""

    def flatten(self, tree: Any) -> tuple[list[Any], TreeDefinition]:
        leaves, definition = _optree().tree_flatten(tree, none_is_leaf=True)
        return leaves, definition

    def unflatten(self, definition: TreeDefinition, leaves: Sequence[Any]) -> Any:
        return _optree().tree_unflatten(definition, leaves)

    def paths(self, tree: Any) -> list[str]:
        accessors = _optree().tree_accessors(tree, none_is_leaf=True)
        return ["".join(map(_entry, accessor)) for accessor in accessors]


def _entry(entry: Any) -> str:
    return item(entry.entry) if isinstance(entry, _optree().MappingEntry) else str(entry.codify(""))


def item(key: object) -> str:
    """Return the subscript of a key as Python code: `["name"]` or `[3]`."""
    import json

    return f"[{json.dumps(key) if isinstance(key, str) else repr(key)}]"


def explain_difference(trees: Trees, first: Any, second: Any, first_name: str, second_name: str) -> str:
    """Say where two trees of different structure part."""
    first_paths, second_paths = trees.paths(first), trees.paths(second)
    for present, absent, here, there in (
        (first_paths, second_paths, first_name, second_name),
        (second_paths, first_paths, second_name, first_name),
    ):
        others = set(absent)
        missing = next((path for path in present if path not in others), None)
        if missing is not None:
            return f"{here}{missing} has no counterpart {there}{missing}"
    kinds = f"{type(first).__name__} and {type(second).__name__}"
    return (
        f"{first_name} and {second_name} have the same leaves in different containers ({kinds} at the root): "
        f"{trees.flatten(first)[1]} against {trees.flatten(second)[1]}"
    )


STANDARD_TREES = StandardTrees()
