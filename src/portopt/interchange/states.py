"""Slots of a rule as the optimizer of a framework keeps them, and back: which parameters have them, and in which shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from portopt.interchange.correspondence import Correspondence
from portopt.optimizer import Optimizer
from portopt.program.facts import Facts
from portopt.program.interpreter import shape_of
from portopt.slot import every_parameter_has_all, slot_dims, slot_shape, slots_of_shape


def is_called(name: str, last: str) -> bool:
    """Tell whether the last parts of a slot's name are these."""
    return name == last or name.endswith(f".{last}")


def merged(slots: Sequence[Sequence[Any]]) -> list[Any]:
    """Return for each parameter what one of some slots has of it; None if none has."""
    return [next((leaf for leaf in of if leaf is not None), None) for of in zip(*slots, strict=True)]


class OwnSlots:
    """What a rule keeps of some parameters, made of what a framework keeps.

    Args:
        correspondence: of the framework's optimizer.
        opt: the rule.
        shapes: of the parameters, None for a leaf that is no parameter. None: they are not known.

    Raises:
        ValueError: which slots a parameter has depends on its shape, and that is not known.
    """

    def __init__(
        self, correspondence: Correspondence, opt: Optimizer, shapes: Sequence[tuple[int, ...] | None] | None
    ) -> None:
        self._correspondence, self._opt, self._shapes = correspondence, opt, shapes
        if shapes is None and not every_parameter_has_all(opt):
            raise ValueError(
                f"which slots of {type(opt).__name__} a parameter has depends on its shape: give params, the parameters that the "
                f"{correspondence.name} updates"
            )
        self._held = None if shapes is None else [() if s is None else slots_of_shape(opt, s) for s in shapes]

    def is_held(self, name: str) -> bool:
        """Tell whether any parameter has a slot."""
        return self._held is None or any(name in names for names in self._held)

    def missing(self, name: str, leaves: Sequence[Any]) -> list[int]:
        """Return which parameters lack a slot that they should have."""
        return [i for i, leaf in enumerate(leaves) if leaf is None and (self._held is None or name in self._held[i])]

    def of(self, name: str, leaves: Sequence[Any], *, negated: bool) -> list[Any]:
        """Return a slot, None for parameters that have none, given what the framework keeps.

        Raises:
            ValueError: the framework keeps something of a parameter for which the rule has nothing, or of another shape.
        """
        return [self._own(name, i, leaf, negated=negated) for i, leaf in enumerate(leaves)]

    def _own(self, name: str, i: int, leaf: Any, *, negated: bool) -> Any:
        shape = None if self._shapes is None else self._shapes[i]
        if leaf is None or (self._held is not None and name not in self._held[i]):
            if leaf is not None and name not in self._correspondence.counterpart.placeholders:
                raise unequal(self._correspondence, name, i, shape)
            return None
        if shape is not None:
            leaf = reshaped(leaf, slot_shape(self._opt, name, shape), self._correspondence, name, i)
        return -leaf if negated else leaf


def native_leaf(correspondence: Correspondence, opt: Optimizer, name: str, leaf: Any, parameter: Any) -> Any:
    """Return a slot of a parameter in the shape in which the framework keeps it."""
    if leaf is None or not correspondence.counterpart.keeps_axes:
        return leaf
    shape = tuple(parameter.shape)
    dims = slot_dims(opt, name, Facts(type(opt).__name__, shape))
    return leaf if dims is None else leaf.reshape(shape_of(dims, shape))


def reshaped(leaf: Any, shape: tuple[int, ...], correspondence: Correspondence, name: str, i: int) -> Any:
    """Return what a framework keeps in the shape that the rule's slot has, which may lack axes of length one."""
    there = tuple(leaf.shape)
    if there == shape:
        return leaf
    if math.prod(there) != math.prod(shape):
        raise ValueError(
            f"{correspondence.name} keeps an array of shape {there} of parameter {i}, but the slot {name!r} of "
            f"{correspondence.rule.__name__} has {shape}: translated are states of the same parameters"
        )
    return leaf.reshape(shape)


def filled(correspondence: Correspondence, last: str, leaves: Sequence[Any], first: Sequence[Any]) -> list[Any]:
    """Return what a framework is to keep under a name of each parameter, None for nothing.

    Args:
        correspondence: of the framework's optimizer.
        last: the last part of the name.
        leaves: what the rule has of each parameter.
        first: what the framework keeps of each before the first step.

    Raises:
        ValueError: the framework keeps something of a parameter of which the rule has nothing, or the other way round.
    """
    names = [ours for ours, theirs in correspondence.slots.items() if theirs.removeprefix("-") == last]
    for i, (leaf, of) in enumerate(zip(leaves, first, strict=True)):
        if (leaf is None) != (of is None) and not (
            leaf is None and not set(names).isdisjoint(correspondence.counterpart.placeholders)
        ):
            raise unequal(correspondence, names[0], i, tuple((of if leaf is None else leaf).shape))
    return [of if leaf is None else leaf for leaf, of in zip(leaves, first, strict=True)]


def unequal(correspondence: Correspondence, name: str, i: int, shape: tuple[int, ...] | None) -> ValueError:
    """Return the error for a parameter of which only one of the two keeps something."""
    return ValueError(
        f"portopt has no counterpart of how {correspondence.name} updates parameter {i}, of shape {shape}: only one of the two "
        f"keeps {name!r} ({correspondence.slots[name].removeprefix('-')!r} there) of it, so they have different formulas for it"
    )


def by_framework(
    correspondence: Correspondence, opt: Optimizer, slots: Mapping[str, list[Any]], parameters: Sequence[Any]
) -> dict[str, list[Any]]:
    """Return slots by the last part of the name that the framework has for them."""
    found: dict[str, list[list[Any]]] = {}
    for ours, target in correspondence.slots.items():
        if ours in slots:
            pairs = zip(slots[ours], parameters, strict=True)
            leaves = [native_leaf(correspondence, opt, ours, leaf, p) for leaf, p in pairs]
            negated = [None if leaf is None else -leaf for leaf in leaves] if target.startswith("-") else leaves
            found.setdefault(target.removeprefix("-"), []).append(negated)
    return {theirs: merged(of) for theirs, of in found.items()}
