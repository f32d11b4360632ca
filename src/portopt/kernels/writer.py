"""Sources of kernels: what they share, whatever the language.

A target has a table, its `Language`, which says how each operation is written, and a frame, which puts the lines that a
`Writer` makes of a program into the functions of a kernel. A readable line stands for each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.names import array_names, identifiers
from portopt.kernels.norm_dependence import NormDependence
from portopt.program import FUNCTIONS, GIVEN, TOTALS, Kind, Op, Program
from portopt.program.expansion import function_program


@dataclass(frozen=True)
class Language:
    """How a target writes the operations of a program.

    Expressions are templates: `{0}`, `{1}` and `{2}` are the operands, `{real}` is the compute dtype.

    Attributes:
        name: what the target is called in messages.
        reserved: names that a source needs for itself.
        arrays: array operations. Where it has one, `"scale"` is the product of a rounded scalar and an array.
        scalars: scalar operations, in float64.
        integers: those that are written in another way if they give an integer.
        constant: returns a constant as an operand of a kind.
        as_float: an integer as an operand of a float64 operation.
        element: an element of an array, given the array.
        store: the statement that writes an element, given the array and the value.
        flush: a number of the compute dtype, zero if it was subnormal.
        conversions: from a dtype to another one.
        assignment: the statement that names a result, of `{type}`, `{name}` and `{value}`.
        types: of results.
        storage: of elements in memory, by dtype.
        repeated: a rounded scalar as the first operand of an array operation whose operands are all rounded scalars.
    """

    name: str
    reserved: frozenset[str]
    arrays: Mapping[str, str]
    scalars: Mapping[str, str]
    integers: Mapping[str, str]
    constant: Callable[[Op, Kind], str]
    as_float: str
    element: str
    store: str
    flush: str
    conversions: Mapping[tuple[str, str], str]
    assignment: str = "{name} = {value}"
    types: Mapping[Kind, str] = field(default_factory=dict)
    storage: Mapping[str, str] = field(default_factory=dict)
    repeated: str = "{0}"

    def loaded(self, dtype: str, compute_dtype: str, value: str, *, flush: bool = True) -> str:
        """Return a value of a dtype in the compute dtype, without subnormals unless arithmetic drops them anyway."""
        # What is converted is subnormal only if the dtype before has the same range.
        same_range = dtype == compute_dtype or (dtype, compute_dtype) == ("bfloat16", "float32")
        value = self.converted(dtype, compute_dtype, value)
        return self.flush.format(value, real=compute_dtype) if flush and same_range else value

    def converted(self, dtype: str, other: str, value: str) -> str:
        """Return a value of a dtype in another one."""
        return value if dtype == other else self.conversions[dtype, other].format(value)


@dataclass(frozen=True)
class Function:
    """An elementary function of elements.

    Attributes:
        name: of the function.
        real: the dtype of its arguments and its result.
        parameters: names of its arguments.
        lines: statements.
        result: the expression to return.
    """

    name: str
    real: str
    parameters: tuple[str, ...]
    lines: list[str]
    result: str


def functions_for_conversions() -> dict[tuple[str, str], str]:
    """Return the conversions of a target that has a function for each, called `float16_to_float32` and so on."""
    dtypes = ("float16", "bfloat16", "float32", "float64")
    return {(a, b): f"{a}_to_{b}({{0}})" for a in dtypes for b in dtypes if a != b}


class Writer:
    """Makes lines of a program.

    Args:
        language: the target's table.
        program: what the kernel does, its elementary functions written out.
        key: the dtypes and whether results overwrite what they replace.
        flushed_loads: the loads whose subnormals become zero by an operation of their own; None for all that may have any.

    Attributes:
        columns: names of the arrays of a parameter, those of results included, in the order in which a kernel gets them.
        names: the name of each operation's result.
        dtypes: of the arrays that a step reads.
        real: the compute dtype.
    """

    def __init__(
        self, language: Language, program: Program, key: KernelKey, flushed_loads: Container[int] | None = None
    ) -> None:
        self.program = program
        self.columns = key.columns(program)
        self.dtypes = dict(key.dtypes)
        self.real = key.compute_dtype
        self._language = language
        self._in_place = key.in_place
        self._flushed_loads = flushed_loads
        self._arrays = array_names(key, language.reserved)
        self.names = identifiers(program, self._arrays, language.reserved)

    def array(self, column: str) -> str:
        """Return the name of an array, given its column."""
        return "new_" * column.startswith(NEW) + self._arrays[column.removeprefix(NEW)]

    def dtype(self, column: str) -> str:
        """Return the dtype of an array, given its column."""
        return self.dtypes[column.removeprefix(NEW)]

    # Arrays ------------------------------------------------------------------------------------------------------

    def element(self, *, loads_first: bool = False, place: str | None = None) -> list[str]:
        """Return the statements that do a step on one element.

        Args:
            loads_first: whether loads come before all other operations, so that all are on their way before the first branch.
            place: template of where an array's element is loaded from and stored to, if that is not the language's.
        """
        ops = list(self.program.array_ops())
        if loads_first:
            ops.sort(key=lambda numbered: numbered[1].name != "load")
        lines = [self.assigned(i, self.array_expression(i, place)) for i, _ in ops]
        store = self._language.store if place is None else f"{place} = {{1}};"
        for name, i in self.program.array_outputs.items():
            target = self.array(name if self._in_place else NEW + name)
            value = self._language.converted(self.real, self.dtypes[name], self.names[i])
            lines.append(store.format(target, value))
        return lines

    def array_expression(self, i: int, element: str | None = None) -> str:
        """Return the value of an array operation.

        Args:
            i: the operation.
            element: template of an element of an array, if a load is not to be of the language's.
        """
        op = self.program.ops[i]
        if op.name == "load":
            name = str(op.label)
            flush = self._flushed_loads is None or i in self._flushed_loads
            value = (element or self._language.element).format(self._arrays[name])
            return self._language.loaded(self.dtypes[name], self.real, value, flush=flush)
        if op.name in FUNCTIONS:
            return f"{_function_name(op.name, self.real)}({', '.join(self.names[j] for j in op.args)})"
        table, name = self._language.arrays, op.name
        is_rounded = [self.program.ops[j].name == "round" for j in op.args]
        if name == "multiply" and "scale" in table and is_rounded[0]:
            name = "scale"
        if name not in table:
            raise NotImplementedError(f"{self._language.name} has no array operation {op.name!r}")
        operands = [self.names[j] for j in op.args]
        if all(is_rounded):
            operands[0] = self._language.repeated.format(operands[0])
        return table[name].format(*operands, real=self.real)

    # Functions of elements -----------------------------------------------------------------------------------------

    def functions(self) -> list[Function]:
        """Return the elementary functions that the program needs of array elements."""
        used = {op.name for op in self.program.ops if not op.kind.is_scalar}
        wanted = [(name, self.real) for name in FUNCTIONS if name in used]
        if "draw_normal" in used:
            wanted += [(name, "float64") for name in ("log", "cos")]
        return [self._written(name, real) for name, real in dict.fromkeys(wanted)]

    def _written(self, name: str, real: str) -> Function:
        """Write a function as the scalar program that it is, in float64, rounded once."""
        language, program = self._language, function_program(name)
        writer = Writer(language, program, KernelKey((("p", real),), True, "where"))
        parameters = tuple(f"element_{label}" for label in program.scalar_inputs)
        lines = []
        for i, op in enumerate(program.ops):
            if op.name == "input":
                lines.append(writer.assigned(i, language.converted(real, "float64", f"element_{op.label}")))
            elif op.name != "constant":
                lines.append(writer.scalar(i))
        result = language.converted("float64", real, writer.operand(program.scalar_outputs["result"]))
        return Function(_function_name(name, real), real, parameters, lines, result)

    # Scalars -----------------------------------------------------------------------------------------------------

    def scalar(self, i: int) -> str:
        """Return the statement that computes a scalar."""
        language, op = self._language, self.program.ops[i]
        table = language.integers if op.kind is Kind.INTEGER and op.name in language.integers else language.scalars
        if op.name not in table:
            raise NotImplementedError(f"{language.name} has no scalar operation {op.name!r}")
        return self.assigned(i, table[op.name].format(*map(self.operand, op.args, _operand_kinds(op))))

    def operand(self, i: int, kind: Kind = Kind.FLOAT) -> str:
        """Return a scalar as an operand of a kind."""
        op = self.program.ops[i]
        if op.name == "constant":
            return self._language.constant(op, kind)
        is_converted = kind is Kind.FLOAT and op.kind is not Kind.FLOAT
        return self._language.as_float.format(self.names[i]) if is_converted else self.names[i]

    def rounded(self, i: int) -> str:
        """Return a scalar rounded to the compute dtype."""
        return f"round_to_{self.real}({self.operand(i)})"

    def scalars_on_device(self, split: NormDependence, norm: str, inputs: Mapping[str, str]) -> list[str]:
        """Return the statements that compute the scalars that need what is known on the device only.

        Args:
            split: which ones those are, of the same program.
            norm: the norm of the gradients, as an expression.
            inputs: the inputs that lie on the device, as expressions.
        """
        lines = []
        for i, op in enumerate(self.program.ops):
            if op.name in TOTALS and op.args:
                lines.append(self.assigned(i, norm))
            elif op.name in GIVEN and op.label in inputs:
                lines.append(self.assigned(i, inputs[str(op.label)]))
            elif i in split.dependent:
                lines.append(self.scalar(i))
        return lines

    def assigned(self, i: int, value: str) -> str:
        """Return the statement that gives an operation's result its name."""
        kind, language = self.program.ops[i].kind, self._language
        written = language.storage.get(self.real) if kind is Kind.ARRAY else language.types.get(kind)
        return language.assignment.format(type=written, name=self.names[i], value=value)


def _function_name(name: str, real: str) -> str:
    return f"{name}_of_{real}"


def _operand_kinds(op: Op) -> tuple[Kind, ...]:
    """Return of which kind the operands of a scalar operation must be."""
    match op.name:
        case "where":
            return Kind.TRUTH, op.kind, op.kind
        case "integer_power":
            return Kind.FLOAT, Kind.INTEGER
        case "floor_divide":
            return Kind.INTEGER, Kind.INTEGER
        case "negative":
            return (op.kind,)
        case "add" | "subtract" | "multiply" if op.kind is Kind.INTEGER:
            return Kind.INTEGER, Kind.INTEGER
        case _:
            return (Kind.FLOAT,) * len(op.args)
