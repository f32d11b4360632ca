"""Trees as the compiled look reads them: a script of containers, keys and leaves."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from portopt.trees import STANDARD_TREES

_LEAF, _LIST, _TUPLE, _DICT = range(4)
DEEPEST = 64
"""How deep containers may be nested."""


class Script:
    """A tree's containers, keys and leaves in the order in which the compiled function meets them.

    Args:
        tree: dicts, lists and tuples of leaves.
        numbering: the same tree with the number of each leaf in its place, -1 for one that is not looked at.
    """

    def __init__(self, tree: Any, numbering: Any) -> None:
        self.nodes = array("q")
        self.keep_alive: list[object] = []
        self.known = self._add(tree, numbering, 0, 0)

    def __len__(self) -> int:
        return len(self.nodes) // 5

    def _add(self, tree: Any, numbering: Any, key: int, depth: int) -> bool:
        """Append a node; return whether all containers are of kinds that the compiled function knows."""
        kind: type[Any] = type(tree)
        if type(numbering) is int:
            self.nodes.extend((_LEAF, 1, 0, numbering, key))
            return True
        if depth == DEEPEST or type(numbering) is not kind:
            return False
        self.keep_alive.append(kind)
        if kind in (dict, OrderedDict):
            self.nodes.extend((_DICT, id(kind), len(tree), 0, key))
            self.keep_alive.extend(tree)
            # What C sees of an ordered dict is the order of insertion.
            items = [(k, numbering[k], v) for k, v in dict.items(tree)]
            return all(self._add(v, n, id(k), depth + 1) for k, n, v in items)
        if kind is list:
            return self._add_items(_LIST, tree, numbering, key, depth)
        if issubclass(kind, tuple):
            return self._add_items(_TUPLE, tree, numbering, key, depth)
        return False

    def _add_items(self, kind: int, items: Sequence[Any], numbering: Sequence[Any], key: int, depth: int) -> bool:
        self.nodes.extend((kind, id(type(items)), len(items), 0, key))
        done = 0
        while done < len(items):
            run = _run(numbering, done)
            if run > 1:
                self.nodes.extend((_LEAF, run, 0, numbering[done], 0))
            elif not self._add(items[done], numbering[done], 0, depth + 1):
                return False
            done += max(run, 1)
        return True


def _run(numbering: Sequence[Any], first: int) -> int:
    """Return how many leaves there are from one on that are looked at and whose numbers follow each other.

    The last item of a container is none of them: the compiled function ends the container with its node.
    """
    end = first
    while (
        end < len(numbering) - 1
        and type(numbering[end]) is int
        and 0 <= numbering[end] == numbering[first] + end - first
    ):
        end += 1
    return end - first


def numbered(tree: Any) -> Any:
    """Return the tree with the number of each leaf in its place, in the order of `STANDARD_TREES`."""
    leaves, definition = STANDARD_TREES.flatten(tree)
    return STANDARD_TREES.unflatten(definition, list(range(len(leaves))))


def with_numbers(tree: Any, numbers: Sequence[int]) -> Any:
    """Return the tree with numbers in the places of its leaves."""
    _, definition = STANDARD_TREES.flatten(tree)
    return STANDARD_TREES.unflatten(definition, list(numbers))
