"""Optimizers that are no rules: each runs one small program, so that a backend's operations are reached through its modes.

A `Program` is written by hand here, not traced, so that nothing but the backend is tested.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from portopt import Optimizer, Program, slot
from portopt.program import Kind, Op

OPERANDS = ("p", "g", "s", "r")
"""Names under which a program's array operands are given: parameter, gradient and two slots."""


class Assembler:
    """Writes programs."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def _append(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.ops) - 1

    def load(self, name: str) -> int:
        return self._append(Op("load", Kind.ARRAY, label=name))

    def array(self, name: str, *args: int) -> int:
        return self._append(Op(name, Kind.ARRAY, args))

    def mask(self, name: str, *args: int) -> int:
        return self._append(Op(name, Kind.MASK, args))

    def scalar_input(self, name: str, kind: Kind = Kind.FLOAT) -> int:
        return self._append(Op("input", kind, label=name))

    def number(self, value: int) -> int:
        return self._append(Op("constant", Kind.INTEGER, label=value))

    def real(self, value: float) -> int:
        return self._append(Op("constant", Kind.FLOAT, label=value))

    def scalar(self, name: str, kind: Kind, *args: int) -> int:
        return self._append(Op(name, kind, args))

    def along(self, name: str, array: int, axis: int, kind: Kind) -> int:
        """Append a reduction of a matrix along one of its axes."""
        return self._append(Op(name, kind, (array,), (axis,), tuple(-1 if i == axis else i for i in range(2))))

    def total(self, operation: str, name: str, array: int) -> int:
        return self._append(Op(operation, Kind.FLOAT, (array,), name))

    def constant(self, value: float) -> int:
        return self._append(Op("round", Kind.ARRAY, (self._append(Op("constant", Kind.FLOAT, label=value)),)))

    def as_numbers(self, mask: int) -> int:
        """Return 1 where a mask holds, else 0."""
        return self.array("where", mask, self.constant(1.0), self.constant(0.0))

    def program(
        self, name: str, array_outputs: Mapping[str, int], scalar_outputs: Mapping[str, int] | None = None
    ) -> Program:
        return Program(name, tuple(self.ops), array_outputs, scalar_outputs or {})


def array_probe(name: str, count: int, write: Callable[..., int]) -> Optimizer:
    """Return an optimizer whose step replaces the parameter by an operation on `count` operands.

    Args:
        name: what the program is called.
        count: number of operands, of at most four.
        write: called with an assembler and the operands' indices; appends the operation and returns its index.
    """
    assembler = Assembler()
    operands = [assembler.load(operand) for operand in OPERANDS[:count]]
    result = write(assembler, *operands)
    slots = OPERANDS[2:count]
    outputs = {"p": result, **{slot: operands[OPERANDS.index(slot)] for slot in slots}}
    return _probe(assembler.program(name, outputs), slots, ())


@functools.cache
def function_probe(names: tuple[str, ...]) -> Optimizer:
    """Return an optimizer whose step puts each elementary function of parameter and gradient into the slot of its name.

    Those of one operand are of the parameter, the power is of its magnitude.
    """
    assembler = Assembler()
    p, g = assembler.load("p"), assembler.load("g")
    operands = {"atan2": (p, g), "power": (assembler.array("absolute", p), g)}
    outputs = {name: assembler.array(name, *operands.get(name, (p,))) for name in names}
    return _probe(assembler.program("functions", {"p": p, **outputs}), names, ())


class ProductProbe(Optimizer):
    """Puts products of a parameter, its transpose and its gradient into slots; the parameter stays as it is."""

    slots = (
        slot("gram", shape="of_rows"),
        slot("product", shape="of_rows"),
        slot("inner", shape="of_columns"),
        slot("chain", shape="of_columns"),
    )

    def of_rows(self, p: Any) -> tuple[int, ...]:
        """Return the shape of a product of the parameter and a transpose."""
        return (*p.shape[:-1], p.shape[-2])

    def of_columns(self, p: Any) -> tuple[int, ...]:
        """Return the shape of a product of a transpose and the parameter."""
        return (*p.shape[:-2], p.shape[-1], p.shape[-1])

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p, {
            "gram": p @ p.mT,
            "product": p @ g.mT,
            "inner": xp.matrix_transpose(g) @ p,
            "chain": p.mT @ ((g @ p.mT) @ g),
        }


class IdentityProbe(Optimizer):
    """Puts an identity matrix of as many rows as the parameter has into a slot."""

    slots = (slot("identity", shape="of_rows"),)

    def of_rows(self, p: Any) -> tuple[int, int]:
        """Return the shape of the identity matrix."""
        return (p.shape[0], p.shape[0])

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p, {"identity": xp.eye(p.shape[0])}


@functools.cache
def draw_probe(names: tuple[str, ...]) -> Optimizer:
    """Return an optimizer whose step puts each kind of random numbers into the slot of its name, from the scalar slot `key`."""
    assembler = Assembler()
    key, step = assembler.scalar_input("key"), assembler.scalar_input("t", Kind.INTEGER)
    drawn = {name: assembler.array(name, key, step, assembler.number(i)) for i, name in enumerate(names)}
    return _probe(assembler.program("draws", {"p": assembler.load("p"), **drawn}, {"key": key}), names, ("key",))


@functools.cache
def slot_probe() -> Optimizer:
    """Return an optimizer whose step exchanges parameter and slot `s`, each converted to the other's dtype."""
    assembler = Assembler()
    p, s = assembler.load("p"), assembler.load("s")
    return _probe(assembler.program("exchange", {"p": s, "s": p}), ("s",), ())


@functools.cache
def gradient_probe() -> Optimizer:
    """Return an optimizer whose step puts the gradient into slot `s`, and what arithmetic makes of it, `g + g`, into slot `r`."""
    assembler = Assembler()
    p, g = assembler.load("p"), assembler.load("g")
    return _probe(assembler.program("gradient", {"p": p, "s": g, "r": assembler.array("add", g, g)}), ("s", "r"), ())


@functools.cache
def round_probe() -> Optimizer:
    """Return an optimizer whose step fills the parameter with the scalar slot `x`, rounded to the compute dtype."""
    assembler = Assembler()
    x = assembler.scalar_input("x")
    rounded = assembler.array("round", x)
    return _probe(assembler.program("round", {"p": rounded}, {"x": x}), (), ("x",))


@functools.cache
def norm_probe() -> Optimizer:
    """Return an optimizer whose step puts the norm of all gradients into the scalar slot `norm`."""
    assembler = Assembler()
    norm = assembler.total("total_norm", "gradient_norm", assembler.load("g"))
    return _probe(assembler.program("norm", {"p": assembler.load("p")}, {"norm": norm}), (), ("norm",))


REDUCED: Mapping[str, tuple[tuple[str, ...], Mapping[str, int]]] = {
    "reductions": (("sum", "norm", "max", "any", "count"), {"mean": 0, "min": 0, "all": 0, "norm": 1}),
    "other_reductions": (("mean", "min", "all"), {"sum": 1, "max": 1, "any": 1, "count": 0}),
}
"""Reductions that a probe has: those of a whole array or mask; and those along an axis, with the axis."""
_SCALARS = {"any": Kind.TRUTH, "all": Kind.TRUTH, "count": Kind.INTEGER}
"""The kinds of whole reductions that give no float64."""


@functools.cache
def reduction_probe(which: str) -> Optimizer:
    """Return an optimizer whose step reduces matrices: the parameter, or whether it is less than the gradient.

    It has the reductions that `REDUCED` has under `which`. Results go into slots of their names, `sum_of_all` or `mean_along`;
    sum and maximum of all gradients into scalar slots.
    """
    a = Assembler()
    p, g = a.load("p"), a.load("g")
    less = a.mask("less", p, g)
    everywhere = a.mask("logical_or", less, a.mask("logical_not", less))
    one, zero = a.constant(1.0), a.constant(0.0)
    arrays, masks, (whole, along) = {}, ("any", "all"), REDUCED[which]
    for name in whole:
        kind = _SCALARS.get(name, Kind.FLOAT)
        value = a.scalar(name, kind, less if name in masks else p)
        if kind is Kind.TRUTH:
            value = a.scalar("where", Kind.FLOAT, value, a.real(1.0), a.real(0.0))
        elif kind is Kind.INTEGER:
            value = a.scalar("to_float", Kind.FLOAT, value)
        arrays[f"{name}_of_all"] = a.array("round", value)
    for name, axis in along.items():
        kind = Kind.MASK if name in masks else Kind.ARRAY
        narrow = a.along(name, less if name in (*masks, "count") else p, axis, kind)
        chosen = (narrow, one, zero) if kind is Kind.MASK else (everywhere, narrow, narrow)
        arrays[f"{name}_along"] = a.array("where", *chosen)
    totals = {name: a.total(f"total_{name}", name, g) for name in ("sum", "max")}
    return _probe(a.program("reductions", {"p": p, **arrays}, totals), tuple(arrays), tuple(totals))


@functools.cache
def divisor_probe() -> Optimizer:
    """Return an optimizer that divides the parameter by its largest element, and by those of rows and of columns.

    It stores the quotients, and their negatives, for a quotient that is only stored may be done in another way.
    """
    a = Assembler()
    p = a.load("p")
    divisors = {
        "all": a.array("round", a.scalar("max", Kind.FLOAT, p)),
        "rows": a.along("max", p, 1, Kind.ARRAY),
        "columns": a.along("max", p, 0, Kind.ARRAY),
    }
    stored = {f"by_{name}": a.array("divide", p, divisor) for name, divisor in divisors.items()}
    negated = {
        f"negated_by_{name}": a.array("negative", a.array("divide", p, divisor)) for name, divisor in divisors.items()
    }
    return _probe(a.program("divisors", {"p": p, **stored, **negated}), (*stored, *negated), ())


def scalar_probe(functions: Mapping[str, Sequence[str]]) -> Optimizer:
    """Return an optimizer whose step puts functions of the scalar slots `x` and `y` and the step `t` into scalar slots.

    Args:
        functions: name of the result's slot to operation and operands, `x`, `y` or `t`.
    """
    ops = [Op("input", Kind.FLOAT, label="x"), Op("input", Kind.FLOAT, label="y"), Op("input", Kind.INTEGER, label="t")]
    index = {"x": 0, "y": 1, "t": 2}
    outputs = {"x": 0, "y": 1}
    for name, (operation, *operands) in functions.items():
        ops.append(Op(operation, Kind.FLOAT, tuple(index[operand] for operand in operands)))
        outputs[name] = len(ops) - 1
    ops.append(Op("load", Kind.ARRAY, label="p"))
    return _probe(Program("scalars", tuple(ops), {"p": len(ops) - 1}, outputs), (), ("x", "y", *functions))


def _probe(fixed: Program, array_slots: tuple[str, ...], scalars: tuple[str, ...]) -> Optimizer:
    class Probe(Optimizer):
        slots = array_slots
        scalar_slots = dict.fromkeys(scalars, 0.0)

        def program(self, overrides: Mapping[str, Any] | None = None, shape: tuple[int, ...] | None = None) -> Program:
            return fixed

        def fixed_program(self, overrides: Mapping[str, Any] | None = None) -> Program:
            return fixed

    return Probe()
