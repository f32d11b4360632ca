"""New arrays of a step, and the trees that they go into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from portopt.backend import Leaf
from portopt.kernels.host.readers import ArrayReader
from portopt.trees import TreeDefinition, Trees


class Results:
    """What steps make that leave their arguments as they are.

    Args:
        reader: makes the arrays.
        trees: of the library.
        definition: the structure of the parameters.
        count: how many leaves that has.
        slots: names of those of which there is a tree.
        outputs: what a step replaces: `"p"`, or a slot's name, and the parameter; all of one name together.

    Attributes:
        places: of each output in the list of new arrays, by name and number of the parameter in its tree.
    """

    def __init__(
        self,
        reader: ArrayReader,
        trees: Trees,
        definition: TreeDefinition,
        count: int,
        slots: Sequence[str],
        outputs: Sequence[tuple[str, Leaf]],
    ) -> None:
        self.new = reader.maker([leaf[name] for name, leaf in outputs])
        self.places = {(name, leaf.number): place for place, (name, leaf) in enumerate(outputs)}
        self._trees, self._definition, self._finished = trees, definition, reader.finished
        self._parts = []
        first = 0
        for name in ("p", *slots):
            numbers = [leaf.number for n, leaf in outputs if n == name]
            end = first + len(numbers)
            self._parts.append((name, first, end, None if len(numbers) == count else numbers))
            first = end

    def trees(self, new: Sequence[Any], params: Any, slots: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the trees of parameters and slots after a step, given the new arrays and the trees before it."""
        found = dict(slots)
        made = params
        for name, first, end, numbers in self._parts:
            arrays = new[first:end]
            if name == "p" and self._finished is not None:
                before = self._trees.flatten(params)[0]
                self._finished(before if numbers is None else [before[i] for i in numbers], arrays)
            if numbers is not None:
                leaves = self._trees.flatten(params if name == "p" else slots[name])[0]
                for number, array in zip(numbers, arrays, strict=True):
                    leaves[number] = array
                arrays = leaves
            tree = self._trees.unflatten(self._definition, arrays)
            if name == "p":
                made = tree
            else:
                found[name] = tree
        return made, found
