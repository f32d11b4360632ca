"""`slot`: what a rule keeps for each parameter, where that is not an array of the parameter's shape that is zero at first."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from portopt.program import Dim
from portopt.program.facts import Facts

Axes = int | tuple[int, ...] | str


class Slot(str):
    """The name of a slot, and what the slot is; `slot` makes one.

    Attributes:
        shape: `()` for one number a parameter, or the name of the method that returns the shape; None: see `drop` and `keep`.
        drop: the axes of the parameter that the slot lacks.
        keep: the axes of the parameter that the slot has; None for all but `drop`.
        start: what its elements are at first.
    """

    __slots__ = ("drop", "keep", "shape", "start")

    shape: tuple[()] | str | None
    drop: Axes
    keep: Axes | None
    start: float | str

    def __reduce__(self) -> tuple[Any, ...]:
        return _slot, (str(self), self.shape, self.drop, self.keep, self.start)


def slot(
    name: str,
    *,
    shape: tuple[()] | str | None = None,
    drop: Axes = (),
    keep: Axes | None = None,
    start: float | str = 0.0,
) -> Slot:
    """Return a slot of another shape than the parameter's, or one that does not start at zero, for a rule's `slots`.

    Args:
        name: of the slot, an identifier.
        shape: `()` for one number a parameter, which `update` sees as a scalar. Or the name of a method of the rule that
            returns the shape, given the parameter (`p.ndim`, `p.shape`, `p.size`).
        drop: axis or axes of the parameter that the slot lacks: a number, numbers, or the name of a method of the rule that
            returns them. In `update`, the slot has length one there.
        keep: the axis or axes that it has, given like `drop`; all others are dropped.
        start: a number; the name of a hyperparameter; or `"p"`: the slot starts as a copy of the parameter.

    Raises:
        TypeError: an argument is of a wrong type, or `shape`, `drop` and `keep` are given together.

    Example:
        >>> import numpy as np, portopt
        >>> class RowScaled(portopt.Optimizer):
        ...     '''Scales each row by the root of the mean of its squares, over all steps.'''
        ...
        ...     slots = (portopt.slot("row", drop=-1, start=1e-8),)
        ...
        ...     def update(self, xp, p, g, slots, c):
        ...         row = slots.row + xp.mean(g * g, axis=-1, keepdims=True)
        ...         return p - c.lr * g / xp.sqrt(row), {"row": row}
        >>> opt, w = RowScaled(0.5), np.ones((3, 4))
        >>> w, state = opt.apply(w, np.ones((3, 4)), opt.init(w))
        >>> state.slots["row"].shape
        (3,)
    """
    if sum((shape is not None, drop != (), keep is not None)) > 1:
        raise TypeError(
            f"the slot {name!r} was given more than one of shape, drop and keep: each says what shape it has"
        )
    if shape is not None and shape != () and not isinstance(shape, str):
        raise TypeError(
            f"the slot {name!r} was given the shape {shape!r}: allowed are (), one number a parameter, and the name of a method "
            "that returns the shape, given the parameter"
        )
    for what, axes in (("drop", drop), ("keep", keep)):
        numbers = axes if isinstance(axes, tuple) else (axes,)
        if axes is not None and not isinstance(axes, str) and not all(type(axis) is int for axis in numbers):
            raise TypeError(
                f"the slot {name!r} was given {what}={axes!r}: allowed are an axis, a tuple of axes, and the name of a method"
            )
    if isinstance(start, bool) or not isinstance(start, int | float | str):
        raise TypeError(
            f"the slot {name!r} was given start={start!r}: allowed are a number, 'p', and the name of a hyperparameter"
        )
    return _slot(name, shape, drop, keep, start)


def _slot(name: str, shape: Any, drop: Axes, keep: Axes | None, start: float | str) -> Slot:
    made = Slot(name)
    made.shape, made.drop, made.keep, made.start = shape, drop, keep, start
    return made


def renamed(name: str, new: str) -> str:
    """Return a slot under another name."""
    return _slot(new, name.shape, name.drop, name.keep, name.start) if isinstance(name, Slot) else new


class HasSlots(Protocol):
    """What is asked of a rule about its slots."""

    @property
    def nested(self) -> Mapping[str, Any]:
        """The rules that it is made of, by name."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that it keeps for each parameter."""

    @property
    def slots_for(self) -> Callable[[Any], Iterable[str]]:
        """Returns the names of the slots that a parameter has."""


def slot_dims(rule: HasSlots, name: str, p: Facts) -> tuple[Dim, ...] | None:
    """Return the shape that `update` sees of a slot of a parameter; None for the parameter's own."""
    rule, name = owner_of(rule, name)
    of = _declared(rule, name)
    if of is None:
        return None
    if of.shape is not None:
        return () if of.shape == () else tuple(str(operator.index(n)) for n in getattr(rule, str(of.shape))(p))
    if of.keep is not None:
        kept = _axes(rule, of, of.keep, p)
        dropped = {axis for axis in range(p.ndim) if axis not in kept}
    elif of.drop != ():
        dropped = _axes(rule, of, of.drop, p)
    else:
        return None
    return tuple(-1 if axis in dropped else axis for axis in range(p.ndim)) if dropped else None


def slot_shape(
    rule: HasSlots, name: str, shape: tuple[int, ...], part: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Return the shape in which a state keeps a slot of a parameter of a shape, or of the part of it of another shape."""
    dims, here = slot_dims(rule, name, Facts(type(rule).__name__, shape)), shape if part is None else part
    if dims is None:
        return here
    return tuple(int(d) if isinstance(d, str) else here[d] for d in dims if d != -1)


def slots_of_shape(rule: HasSlots, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the slots that a parameter of a shape has, in the order of `slots`, as plain strings."""
    return tuple(map(str, slots_of(rule, Facts(type(rule).__name__, shape))))


def slots_of(rule: HasSlots, p: Facts) -> tuple[str, ...]:
    """Return the names of the slots that a parameter has, in the order of `slots`."""
    names = set(_checked_slots(rule, rule.slots_for(p)))
    for head, inner in rule.nested.items():
        names = {name for name in names if not name.startswith(f"{head}.")}
        names.update(f"{head}.{name}" for name in slots_of(inner, p))
    return tuple(name for name in rule.slots if name in names)


def _checked_slots(rule: HasSlots, returned: Iterable[str]) -> tuple[str, ...]:
    names = tuple(returned)
    if unknown := [name for name in names if name not in rule.slots]:
        raise ValueError(
            f"{type(rule).__name__}.slots_for returned {unknown}, which are no slots of the rule: it has {list(rule.slots)}"
        )
    return names


def are_plain(rule: HasSlots) -> bool:
    """Tell whether every parameter has all slots, each of the parameter's shape."""
    return (
        hasattr(rule.slots_for, "is_default")
        and (Slot not in map(type, rule.slots) or all(map(_has_shape_of_parameter, rule.slots)))
        and (not rule.nested or all(map(are_plain, rule.nested.values())))
    )


def every_parameter_has_all(rule: HasSlots) -> bool:
    """Tell whether every parameter has all slots."""
    return hasattr(rule.slots_for, "is_default") and all(map(every_parameter_has_all, rule.nested.values()))


def _has_shape_of_parameter(name: str) -> bool:
    return not isinstance(name, Slot) or (name.shape, name.drop, name.keep) == (None, (), None)


def slot_start(rule: HasSlots, name: str) -> float | str:
    """Return what a slot is at first: a number, `"p"`, or the name of a hyperparameter."""
    rule, name = owner_of(rule, name)
    of = _declared(rule, name)
    return 0.0 if of is None else of.start


def owner_of(rule: HasSlots, name: str) -> tuple[HasSlots, str]:
    """Return the rule, of those that a rule is made of, that has a slot, and its name there."""
    while "." in name:
        head, _, name = name.partition(".")
        rule = rule.nested[head]
    return rule, name


def _declared(rule: HasSlots, name: str) -> Slot | None:
    return next((s for s in rule.slots if s == name and isinstance(s, Slot)), None)


def _axes(rule: HasSlots, of: Slot, axes: Axes, p: Facts) -> set[int]:
    found: Any = getattr(rule, axes)(p) if isinstance(axes, str) else axes
    numbers = (found,) if isinstance(found, int) else tuple(found)
    if not all(-p.ndim <= axis < p.ndim for axis in numbers):
        raise ValueError(
            f"the slot {str(of)!r} of {type(rule).__name__} is declared by the axes {numbers}, which a parameter of {p.ndim} "
            "axes does not have: leave the slot out for such parameters in slots_for(self, p)"
        )
    return {axis % p.ndim for axis in numbers}
