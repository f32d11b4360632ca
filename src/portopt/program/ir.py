"""A traced rule: a flat, printable list of named operations on scalars and arrays.

A `Program` says what one step does to one parameter and nothing else: no dtype, no device, no library. Scalars
(hyperparameters, bias corrections) are float64; arrays are in the compute dtype. A scalar enters array arithmetic only
through `round`, which rounds it once to the compute dtype; a parameter, gradient or slot enters through `load` and leaves
through `store`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

__all__ = [
    "ARRAY_OPERATIONS",
    "DRAWS",
    "FUNCTIONS",
    "GIVEN",
    "PRODUCTS",
    "REDUCTIONS",
    "TOTALS",
    "Dim",
    "Kind",
    "Op",
    "Program",
]


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
"""The operations that a canonical program has for each element: all that a backend has to get right for most rules."""

FUNCTIONS: Mapping[str, str] = {
    "exp": "e to the power a",
    "log": "the natural logarithm of a",
    "tanh": "the hyperbolic tangent of a",
    "cbrt": "the cube root of a",
    "atan2": "the angle of the point (b, a)",
    "power": "a to the power b, for a >= 0",
}
"""Elementary functions of array elements, computed in float64 and rounded once."""

DRAWS: Mapping[str, str] = {
    "draw_normal": "normally distributed random numbers of mean 0 and variance 1",
    "draw_uniform": "random numbers between 0, inclusive, and 1, exclusive",
}
"""Random numbers for each element, given the key, the step and the number of the draw among those of the rule."""

SUMS = frozenset({"sum", "mean", "norm"})
"""Those of the reductions that add up."""
REDUCTIONS: Mapping[str, str] = {
    "sum": "the sum of the elements, in any order of summation the same bits",
    "mean": "the sum over the number of elements",
    "norm": "the square root of the sum of the squares",
    "max": "the largest element",
    "min": "the smallest element",
    "any": "whether a mask holds somewhere",
    "all": "whether a mask holds everywhere",
    "count": "the number of elements where a mask holds",
}
"""What is computed from many elements: all of an array, which gives a scalar, or those along the axes of the label."""

PRODUCTS: Mapping[str, str] = {
    "matmul": "the matrix product of the last two axes, in any order of summation the same bits",
    "transpose": "the axes in the order of the label",
    "reshape": "the elements in row-major order, in the shape of the label",
    "eye": "a square matrix of the shape of the label, with a number on the diagonal, else +0",
}
"""Operations on matrices."""

TOTALS: Mapping[str, str] = {
    "total_norm": "the Euclidean norm of an array of all parameters together, in any order of summation the same bits",
    "total_sum": "the sum of an array of all parameters together, in any order of summation the same bits",
    "total_max": "the largest element of an array of all parameters together",
}
"""The operations that reduce an array of every parameter to one float64 scalar, which a step computes before the others."""

GIVEN = frozenset({"input", *TOTALS})
"""The scalar operations whose value a step is given under the operation's label, rather than computed from operands."""

_LOADS = ("load", "plain_load")

_Value = TypeVar("_Value")

_INFIX = {
    "matmul": "@", "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "less": "<", "less_equal": "<=", "equal": "==",
    "logical_and": "&", "logical_or": "|", "integer_power": "**", "power": "**",
}  # fmt: skip


Dim = int | str
"""The length of an axis: that of the parameter's axis of this number; one, for -1; or the number that the string holds."""
Label = str | float | int | tuple[Dim, ...] | None
"""What an operation has beside its operands; see `Op`."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: its name, the kind of its result, and the indices of its operands in `Program.ops`.

    `label` is the name of an input, a total, a draw or a loaded array, the value of a constant, the axes of a reduction (None:
    all) or transpose, or the shape of a reshape or identity matrix. `dims` is the shape of an array; None is the parameter's own.
    """

    name: str
    kind: Kind
    args: tuple[int, ...] = ()
    label: Label = None
    dims: tuple[Dim, ...] | None = None

    @property
    def reads(self) -> str | None:
        """The name of the array that the operation reads; None if it reads none."""
        return str(self.label) if self.name in _LOADS else None


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
        found: int | None = self.__dict__.get("_hash")
        if found is None:
            outputs = tuple(self.array_outputs.items()), tuple(self.scalar_outputs.items())
            found = self._keep("_hash", hash((self.name, self.ops, *outputs)))
        return found

    def _keep(self, name: str, value: _Value) -> _Value:
        # Not a `cached_property`: in Python 3.11 that has a lock, which a child gets locked that is forked at the wrong moment.
        object.__setattr__(self, name, value)
        return value

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
    def further_inputs(self) -> tuple[str, ...]:
        """Names of the arrays that a step reads beside parameter, gradient and what it replaces."""
        found: tuple[str, ...] | None = self.__dict__.get("_further_inputs")
        if found is None:
            known = {"p", "g", *self.array_outputs}
            found = self._keep("_further_inputs", tuple(n for n in dict.fromkeys(self.array_inputs) if n not in known))
        return found

    @property
    def parameter_scalars(self) -> frozenset[int]:
        """Indices of the scalars that are not those of the step, but of the parameter: reductions, and what needs them."""
        found: frozenset[int] | None = self.__dict__.get("_parameter_scalars")
        return self._keep("_parameter_scalars", _parameter_scalars(self.ops)) if found is None else found

    @property
    def is_elementwise(self) -> bool:
        """Whether each element of each result is computed from that element of the parameter's arrays, and step scalars."""
        found: bool | None = self.__dict__.get("_is_elementwise")
        return self._keep("_is_elementwise", _is_elementwise(self)) if found is None else found

    def is_given_or_gradient_norm(self, total: Op) -> bool:
        """Tell whether a total is a number by now, or the norm of arrays as they are read."""
        return not total.args or (total.name == "total_norm" and self.ops[total.args[0]].reads is not None)

    @property
    def has_draws(self) -> bool:
        """Whether a step needs random numbers, which depend on the parameter's place in its tree."""
        return not self.is_elementwise and any(op.name in DRAWS for op in self.ops)

    @property
    def uses_gradient_norm(self) -> bool:
        """Whether a step needs the norm of all gradients together."""
        return any(op.name == "total_norm" and op.args for op in self.ops)

    @property
    def rounded_scalars(self) -> tuple[tuple[int, int], ...]:
        """Index of each `round` operation of a scalar of the step, and that of the scalar."""
        rounds = ((i, op.args[0]) for i, op in enumerate(self.ops) if op.name == "round")
        return tuple((i, j) for i, j in rounds if j not in self.parameter_scalars)

    def array_ops(self) -> Iterator[tuple[int, Op]]:
        """Yield index and operation of everything computed per element."""
        return ((i, op) for i, op in enumerate(self.ops) if not op.kind.is_scalar and op.name != "round")

    def names(self) -> list[str]:
        """Return a readable, unique name for each operation's result."""
        names: list[str] = []
        counters = {"s": 0, "a": 0, "r": 0}
        for i, op in enumerate(self.ops):
            if op.name in GIVEN or op.reads is not None:
                names.append(str(op.label))
            elif op.name == "constant":
                names.append(repr(op.label))
            else:
                letter = "r" if i in self.parameter_scalars else "s" if op.kind.is_scalar else "a"
                names.append(f"{letter}{counters[letter]}")
                counters[letter] += 1
        return names

    @property
    def after_totals(self) -> Program:
        """The program of a step whose totals are known: without what only they are computed from."""
        found: Program | None = self.__dict__.get("_after_totals")
        return self._keep("_after_totals", _after_totals(self)) if found is None else found

    def part(self, index: int) -> Program:
        """Return the program that computes an array of this one, its only result, `"x"`."""
        return pruned(self.name, self.ops, {"x": index}, {})

    def __str__(self) -> str:
        names = self.names()
        stages = _stages(self.ops)
        total_lines: list[str] = []
        scalar_lines: list[str] = []
        # Of each stage, scalars of the parameter and arrays.
        found: list[tuple[list[str], list[str]]] = [([], []) for _ in range(max(stages, default=0) + 1)]
        for index, (name, op) in enumerate(zip(names, self.ops, strict=True)):
            if op.name in ("input", "constant") or op.reads is not None:
                continue
            operands = [names[i] for i in op.args]
            symbol = _INFIX.get(op.name)
            if isinstance(op.label, tuple):
                what = "axes" if op.name in (*REDUCTIONS, "transpose") else "shape"
                operands.append(f"{what}={op.label}".replace("'", ""))
            text = f" {symbol} ".join(operands) if symbol else f"{op.name}({', '.join(operands)})"
            if op.name in TOTALS:
                lines_of = total_lines
            elif op.kind.is_scalar and index not in self.parameter_scalars:
                lines_of = scalar_lines
            else:
                lines_of = found[stages[index]][0 if op.kind.is_scalar else 1]
            lines_of.append(f"    {name} = {text}")
        for output, i in self.scalar_outputs.items():
            scalar_lines.append(f"    {output} <- {names[i]}")
        for output, i in self.array_outputs.items():
            found[-1][1].append(f"    store {output} <- {names[i]}")
        lines = [f"program {self.name}"]
        given = [name for name in self.scalar_inputs if name not in self.totals]
        lines += [f"  scalars, float64, given {', '.join(given)}", *total_lines, *scalar_lines]
        loaded = f"arrays, compute dtype, loaded {', '.join(self.array_inputs)}"
        for stage, (of_parameter, arrays) in enumerate(found):
            if of_parameter:
                lines += [f"  scalars of the parameter, float64, after stage {stage}", *of_parameter]
            if len(found) == 1:
                lines += [f"  {loaded}", *arrays]
            elif arrays:
                lines += [f"  stage {stage + 1}, {loaded if stage == 0 else 'arrays'}", *arrays]
        return "\n".join(lines)


def _stages(ops: Sequence[Op]) -> list[int]:
    """Return for each operation how many reductions and products, one after the other, must be done before it."""
    stages: list[int] = []
    for op in ops:
        stages.append(max((stages[i] for i in op.args), default=0))
        if op.name in REDUCTIONS or op.name == "matmul":
            stages[-1] += 1
        if op.name in TOTALS:
            stages[-1] = 0
    return stages


def pruned(name: str, ops: Sequence[Op], arrays: Mapping[str, int], scalars: Mapping[str, int]) -> Program:
    """Return a program of those operations that an output needs."""
    live: set[int] = set()
    pending = [*arrays.values(), *scalars.values()]
    while pending:
        i = pending.pop()
        if i not in live:
            live.add(i)
            pending.extend(ops[i].args)
    kept = sorted(live)
    position = {old: new for new, old in enumerate(kept)}
    return Program(
        name=name,
        ops=tuple(replace(ops[i], args=tuple(position[a] for a in ops[i].args)) for i in kept),
        array_outputs={output: position[i] for output, i in arrays.items()},
        scalar_outputs={output: position[i] for output, i in scalars.items()},
    )


def _parameter_scalars(ops: Sequence[Op]) -> frozenset[int]:
    found: set[int] = set()
    for i, op in enumerate(ops):
        begins = op.name == "widen" or op.name in REDUCTIONS
        if op.kind.is_scalar and op.name not in TOTALS and (begins or not found.isdisjoint(op.args)):
            found.add(i)
    return frozenset(found)


def _is_elementwise(program: Program) -> bool:
    if program.parameter_scalars:
        return False
    if not all(map(program.is_given_or_gradient_norm, program.totals.values())):
        return False
    of_elements = {*ARRAY_OPERATIONS, *FUNCTIONS}
    return all(op.dims is None and (op.kind.is_scalar or op.name in of_elements) for op in program.ops)


def _after_totals(program: Program) -> Program:
    if all(map(program.is_given_or_gradient_norm, program.totals.values())):
        return program
    ops = [
        replace(op, args=()) if op.name in TOTALS and not program.is_given_or_gradient_norm(op) else op
        for op in program.ops
    ]
    return pruned(program.name, ops, program.array_outputs, program.scalar_outputs)
