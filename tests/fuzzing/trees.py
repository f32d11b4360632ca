"""Trees of arrays as the fuzzer builds, describes and changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """A NamedTuple of a user's."""

    first: Any
    second: Any


def is_array(leaf: object) -> bool:
    """Tell whether a leaf is an array of one of the fuzzer's libraries."""
    return type(leaf).__name__ in ("ndarray", "Tensor")


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree of the same containers, its leaves mapped in the order in which they stand."""
    if isinstance(tree, dict):
        return type(tree)((k, mapped(function, v)) for k, v in tree.items())
    if isinstance(tree, Pair):
        return Pair(*(mapped(function, v) for v in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(function, v) for v in tree)
    return function(tree)


def places(tree: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield container, key and array for each array that can be replaced where it stands."""
    for key, value in (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    ):
        if is_array(value):
            if not isinstance(tree, tuple):
                yield tree, key, value
        else:
            yield from places(value)


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the names under which two fingerprints differ, of what both have."""
    return ", ".join(name for name in before if name in after and before[name] != after[name])


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree in the order in which they stand."""
    found: list[Any] = []
    mapped(found.append, tree)
    return found
