"""A rule that replaces slots of every shape without reading them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import portopt
from portopt.slot import slot


class Replacing(portopt.Optimizer):
    """What the last step was given, in slots of shapes of their own; vectors have none of them."""

    slots = (
        slot("squares", shape="of_squares"),
        slot("gradient", shape="of_gradient"),
        slot("row", drop=-1),
        slot("column", drop=-2),
        slot("rate", shape=()),
    )

    def of_squares(self, p: Any) -> tuple[int, ...]:
        return p.shape[0], p.shape[0]

    def of_gradient(self, p: Any) -> tuple[int, ...]:
        return tuple(p.shape)

    def slots_for(self, p: Any) -> Iterable[str]:
        return self.slots if p.ndim == 2 else ()

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        if p.ndim != 2:
            return p - c.lr * g, {}
        new = {
            "squares": g @ g.mT,
            "gradient": g,
            "row": xp.max(g, axis=-1, keepdims=True),
            "column": c.lr,
            "rate": c.lr,
        }
        return p - c.lr * g, new


class Numbering(portopt.Optimizer):
    """The same with numbers alone, so that nothing in its program but the slot itself has another shape."""

    slots = (slot("row", drop=-1),)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p - c.lr * g, {"row": c.lr}
