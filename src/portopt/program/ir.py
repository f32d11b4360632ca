"""A traced rule: a flat, printable list of named operations on scalars and arrays.

A `Program` says what one step does to one parameter and nothing else: no dtype, no device, no library. Scalars
(hyperparameters, bias corrections) are float64; arrays are in the compute dtype. A scalar enters array arithmetic only
through `round`, which rounds it once to the compute dtype; a parameter, gradient or slot enters through `load` and leaves
through `store`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["ARRAY_OPERATIONS", "GIVEN", "TOTALS", "Kind", "Op", "Program"]


class Kind(Enum):
    """What an operation yields."""

    INTEGER = "integer"
    FLOAT = "float64"
    TRUTH = "truth"
    ARRAY = "array"
    MASK = "mask"

    @property
    def is_scalar(self) -> bool:
        """Whether values of this kind are scalars."""
        return self not in (Kind.ARRAY, Kind.MASK)


ARRAY_OPERATIONS: Mapping[str, str] = {
    "load": "read an input, convert it to the compute dtype, and make subnormals zero",
    "round": "round a float64 scalar to the compute dtype",
    "add": "a + b",
    "subtract": "a - b",
    "multiply": "a * b",
    "divide": "a / b",
    "sqrt": "correctly rounded square root",
    "negative": "-a",
    "absolute": "|a|",
    "less": "a < b",
    "less_equal": "a <= b",
    "equal": "a == b",
    "logical_and": "a and b",
    "logical_or": "a or b",
    "logical_not": "not a",
    "where": "a where the condition holds, else b",
}
"""The array operations of a canonical program: all that a backend has to get right."""

TOTALS: Mapping[str, str] = {
    "total_norm": "the Euclidean norm of an array of all parameters together, in any order of summation the same bits",
}
"""The operations that reduce an array of every parameter to one float64 scalar, which a step computes before the others."""

GIVEN = frozenset({"input", *TOTALS})
"""The scalar operations whose value a step is given under the operation's label, rather than computed from operands."""

_INFIX = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "less": "<", "less_equal": "<=", "equal": "==",
    "logical_and": "&", "logical_or": "|", "integer_power": "**", "power": "**",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: its name, the kind of its result, and the indices of its operands in `Program.ops`.

    `label` is the name of an input or a total, or the value of a constant.
    """

    name: str
    kind: Kind
    args: tuple[int, ...] = ()
    label: str | float | int | None = None

    @property
    def reads(self) -> str | None:
        """The name of the array that the operation reads; None if it reads none."""
        return str(self.label) if self.kind is Kind.ARRAY and self.label is not None else None


@dataclass(frozen=True)
class Program:
    """One step of a rule on one parameter.

    Attributes:
        name: the rule's class name.
        ops: the operations, each after its operands.
        array_outputs: name (`"p"` or a slot's) of each array result and the index of its operation.
        scalar_outputs: name of each scalar of the state that the step replaces, and the index of its operation.
    """

    name: str
    ops: tuple[Op, ...]
    array_outputs: Mapping[str, int]
    scalar_outputs: Mapping[str, int] = field(default_factory=dict)

    def __hash__(self) -> int:
        # Not a `cached_property`: in Python 3.11 that has a lock, which a child gets locked that is forked at the wrong moment.
        found = self.__dict__.get("_hash")
        if found is None:
            found = hash((self.name, self.ops, tuple(self.array_outputs.items()), tuple(self.scalar_outputs.items())))
            object.__setattr__(self, "_hash", found)
        return int(found)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the hash: another process has others of the same strings.
        return type(self), (self.name, self.ops, self.array_outputs, self.scalar_outputs)

    @property
    def scalar_inputs(self) -> tuple[str, ...]:
        """Names of the scalars that a step is given, those of `totals` among them."""
        return tuple([str(op.label) for op in self.ops if op.name in GIVEN])

    @property
    def totals(self) -> Mapping[str, Op]:
        """Name and operation of each scalar that is computed from an array of every parameter."""
        return {str(op.label): op for op in self.ops if op.name in TOTALS}

    @property
    def array_inputs(self) -> tuple[str, ...]:
        """Names of the arrays that a step reads."""
        return tuple(op.reads for op in self.ops if op.reads is not None)

    @property
    def uses_gradient_norm(self) -> bool:
        """Whether a step needs the norm of all gradients together."""
        return any(op.name == "total_norm" for op in self.ops)

    @property
    def rounded_scalars(self) -> tuple[tuple[int, int], ...]:
        """Each `round` operation's index and that of the scalar it rounds."""
        return tuple((i, op.args[0]) for i, op in enumerate(self.ops) if op.name == "round")

    def array_ops(self) -> Iterator[tuple[int, Op]]:
        """Yield index and operation of everything computed per element."""
        return ((i, op) for i, op in enumerate(self.ops) if not op.kind.is_scalar and op.name != "round")

    def names(self) -> list[str]:
        """Return a readable, unique name for each operation's result."""
        names: list[str] = []
        counters = {"s": 0, "a": 0}
        for op in self.ops:
            if op.name in GIVEN or op.reads is not None:
                names.append(str(op.label))
            elif op.name == "constant":
                names.append(repr(op.label))
            else:
                letter = "s" if op.kind.is_scalar else "a"
                names.append(f"{letter}{counters[letter]}")
                counters[letter] += 1
        return names

    def __str__(self) -> str:
        names = self.names()
        scalar_lines: list[str] = []
        array_lines: list[str] = []
        for name, op in zip(names, self.ops, strict=True):
            if op.name in ("input", "constant") or op.reads is not None:
                continue
            operands = [names[i] for i in op.args]
            symbol = _INFIX.get(op.name)
            text = f" {symbol} ".join(operands) if symbol else f"{op.name}({', '.join(operands)})"
            (scalar_lines if op.kind.is_scalar else array_lines).append(f"    {name} = {text}")
        for output, i in self.scalar_outputs.items():
            scalar_lines.append(f"    {output} <- {names[i]}")
        for output, i in self.array_outputs.items():
            array_lines.append(f"    store {output} <- {names[i]}")
        lines = [f"program {self.name}"]
        given = [name for name in self.scalar_inputs if name not in self.totals]
        lines += [f"  scalars, float64, given {', '.join(given)}", *scalar_lines]
        lines += [f"  arrays, compute dtype, loaded {', '.join(self.array_inputs)}", *array_lines]
        return "\n".join(lines)
