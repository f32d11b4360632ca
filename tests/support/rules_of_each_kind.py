"""Small rules, one of each kind that a program can be: what every adapter has to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import portopt
from portopt.scalars import sqrt, where
from portopt.slot import slot


class Trusting(portopt.Optimizer):
    """Whole reductions and a condition of scalars, as LAMB has them."""

    slots = ("m", "v")

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        m = 0.9 * slots.m + 0.1 * g
        v = 0.99 * slots.v + 0.01 * g * g
        u = m / (xp.sqrt(v) + 1e-6) + 0.01 * p
        length, of_update = xp.linalg.vector_norm(p), sqrt(xp.sum(u * u))
        trust = where((length > 0) & (of_update > 0), length / of_update, 1.0)
        return p - c.lr * trust * u, {"m": m, "v": v}


class Factored(portopt.Optimizer):
    """Narrow slots, which vectors lack, as Adafactor has them; one that only vectors have."""

    slots = (slot("row", drop=-1, start=1e-8), slot("column", drop=-2), "v")

    def slots_for(self, p: Any) -> Iterable[str]:
        return ("row", "column") if p.ndim >= 2 else ("v",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        squares = g * g + 1e-30
        if p.ndim < 2:
            v = 0.9 * slots.v + 0.1 * squares
            return p - c.lr * g / xp.sqrt(v), {"v": v}
        row = 0.9 * slots.row + 0.1 * xp.mean(squares, axis=-1, keepdims=True)
        column = 0.9 * slots.column + 0.1 * xp.mean(squares, axis=-2, keepdims=True)
        scale = row / xp.mean(row, axis=-2, keepdims=True) * column
        return p - c.lr * g / xp.sqrt(scale), {"row": row, "column": column}


class Numbered(portopt.Optimizer):
    """A number a parameter, one that starts at a hyperparameter, and a slot that starts as the parameter."""

    slots = (slot("size", shape=(), start="learning_rate"), slot("z", start="p"))

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        size = 0.5 * slots.size + xp.max(abs(g))
        z = slots.z - c.lr * g
        return 0.5 * (p + z) - c.lr * g / size, {"size": size, "z": z}


class Totalling(portopt.Optimizer):
    """A scalar of the state that totals over all parameters move, as Prodigy has it."""

    slots = (slot("first", start="p"), "s")
    scalar_slots: ClassVar[Mapping[str, float]] = {"d": 1e-3}

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Mapping[str, Any]:
        return {"gained": xp.sum(g * (slots.first - p) * c.d), "moved": xp.sum(abs(slots.s))}

    def coefficients(self, t: Any, d: Any, gained: Any, moved: Any) -> Mapping[str, Any]:
        grown = d + abs(gained) / (moved + 1)
        return {"lr": self.learning_rate_at(t) * d, "d": grown}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p - c.lr * g, {"first": slots.first, "s": slots.s + g}


class Multiplying(portopt.Optimizer):
    """Products of matrices, as Muon has them; another program for what is no matrix."""

    slots = ("m",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        m = 0.9 * slots.m + g
        if p.ndim != 2:
            return p - c.lr * m, {"m": m}
        scaled = m * (1 / (xp.linalg.vector_norm(m) + 1e-7))
        return p - c.lr * (1.5 * scaled - 0.5 * (scaled @ scaled.mT) @ scaled), {"m": m}


RULES: tuple[type[portopt.Optimizer], ...] = (Trusting, Factored, Numbered, Totalling, Multiplying)
