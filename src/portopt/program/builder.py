"""The one recorder of operations: tracing, canonicalisation and expansion write programs with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from portopt.program.ir import Dim, Kind, Label, Op, Program, pruned


class UnsupportedOperationError(TypeError):
    """A rule uses something that programs cannot hold."""


class Node:
    """A recorded scalar."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class Builder:
    """The operations recorded so far; equal ones are recorded once. As a scalar arithmetic, it records scalars."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self._index: dict[Any, int] = {}

    def record(
        self, name: str, kind: Kind, *args: int, label: Label = None, dims: tuple[Dim, ...] | None = None
    ) -> int:
        """Append an operation and return its index, or the index of the same operation recorded earlier."""
        key = (name, kind, args, repr(label), dims)
        if key not in self._index:
            self._index[key] = len(self.ops)
            self.ops.append(Op(name, kind, args, label, dims))
        return self._index[key]

    def rounded_constant(self, value: float) -> int:
        """Record a number, rounded to the compute dtype."""
        return self.record("round", Kind.ARRAY, self.record("constant", Kind.FLOAT, label=value))

    def scalar(self, value: Any) -> int:
        """Return the index of a scalar: of a recorded one, or of a Python number, which is recorded as a constant."""
        if isinstance(value, Node):
            return value.index
        kind = Kind.INTEGER if isinstance(value, int) else Kind.FLOAT
        return self.record("constant", kind, label=value)

    def _record_scalar(self, name: str, *values: Any, kind: Kind | None = None) -> Node:
        args = tuple(map(self.scalar, values))
        if kind is None:
            integers = all(self.ops[i].kind is Kind.INTEGER for i in args[-2:])
            kind = Kind.INTEGER if integers else Kind.FLOAT
        return Node(self.record(name, kind, *args))

    # The scalar arithmetic

    def is_integer(self, value: Any) -> bool:
        return self.ops[self.scalar(value)].kind is Kind.INTEGER

    def is_condition(self, value: Any) -> bool:
        return isinstance(value, bool) or (isinstance(value, Node) and self.ops[value.index].kind is Kind.TRUTH)

    def add(self, a: Any, b: Any) -> Node:
        return self._record_scalar("add", a, b)

    def subtract(self, a: Any, b: Any) -> Node:
        return self._record_scalar("subtract", a, b)

    def multiply(self, a: Any, b: Any) -> Node:
        return self._record_scalar("multiply", a, b)

    def divide(self, a: Any, b: Any) -> Node:
        return self._record_scalar("divide", a, b, kind=Kind.FLOAT)

    def floor_divide(self, a: Any, b: Any) -> Node:
        if self.is_integer(a) and self.is_integer(b):
            return self._record_scalar("floor_divide", a, b)
        return self.floor(self.divide(a, b))

    def negative(self, a: Any) -> Node:
        return self._record_scalar("negative", a)

    def sqrt(self, a: Any) -> Node:
        return self._record_scalar("sqrt", a, kind=Kind.FLOAT)

    def floor(self, a: Any) -> Node:
        return self._record_scalar("floor", a, kind=Kind.FLOAT)

    def less(self, a: Any, b: Any) -> Node:
        return self._record_scalar("less", a, b, kind=Kind.TRUTH)

    def less_equal(self, a: Any, b: Any) -> Node:
        return self._record_scalar("less_equal", a, b, kind=Kind.TRUTH)

    def equal(self, a: Any, b: Any) -> Node:
        return self._record_scalar("equal", a, b, kind=Kind.TRUTH)

    def where(self, condition: Any, a: Any, b: Any) -> Node:
        return self._record_scalar("where", condition, a, b)

    def integer_power(self, base: Any, exponent: Any) -> Node:
        return self._record_scalar("integer_power", base, exponent, kind=Kind.FLOAT)

    def power(self, base: Any, exponent: Any) -> Node:
        return self._record_scalar("power", base, exponent, kind=Kind.FLOAT)

    def exp(self, a: Any) -> Node:
        return self._record_scalar("exp", a, kind=Kind.FLOAT)

    def log(self, a: Any) -> Node:
        return self._record_scalar("log", a, kind=Kind.FLOAT)

    def cos(self, a: Any) -> Node:
        return self._record_scalar("cos", a, kind=Kind.FLOAT)

    def sin(self, a: Any) -> Node:
        return self._record_scalar("sin", a, kind=Kind.FLOAT)

    def tanh(self, a: Any) -> Node:
        return self._record_scalar("tanh", a, kind=Kind.FLOAT)

    def cbrt(self, a: Any) -> Node:
        return self._record_scalar("cbrt", a, kind=Kind.FLOAT)

    def atan2(self, y: Any, x: Any) -> Node:
        return self._record_scalar("atan2", y, x, kind=Kind.FLOAT)

    def to_float(self, a: Any) -> Node:
        return self._record_scalar("to_float", a, kind=Kind.FLOAT)

    def concrete(self, value: Any) -> NoReturn:
        raise UnsupportedOperationError(
            "a rule asked for the value of a scalar while it was traced, but hyperparameters and the step are inputs of the "
            "compiled program: use portopt.scalars (where, sqrt, exp, log, cos, floor, minimum, maximum) in place of `if`, "
            "float() and math, and xp.where(condition, a, b) to choose between arrays"
        )


def rewritten(program: Program, builder: Builder, record: Callable[[Op, tuple[int, ...]], int]) -> Program:
    """Return a program whose operations `record` has written anew, without those that no output needs.

    Args:
        program: what to rewrite.
        builder: holds the new operations.
        record: given an operation and the new indices of its operands, records what takes its place and returns that index.
    """
    new_index: list[int] = []
    for op in program.ops:
        new_index.append(record(op, tuple(new_index[i] for i in op.args)))
    return pruned(
        program.name,
        builder.ops,
        {name: new_index[i] for name, i in program.array_outputs.items()},
        {name: new_index[i] for name, i in program.scalar_outputs.items()},
    )
