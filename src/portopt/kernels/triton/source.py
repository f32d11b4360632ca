"""A program as Triton kernels: readable, one line an operation, with the arithmetic of `triton_support.py`.

A module has the kernel `update`, which runs the program on many parameters at once, and, if the program clips by the norm of
the gradients, `scalars_of_norm`, one instance that computes on the device the scalars that need the norm.
"""

from __future__ import annotations

import keyword
import math

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.cuda.norm_dependence import NormDependence, norm_dependence
from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.names import array_names, identifiers
from portopt.program import Kind, Op, Program

CHUNK = 1024
"""Elements of one instance."""
WARPS = 8
UPDATE, SCALARS_OF_NORM = "update", "scalars_of_norm"
LARGEST_GRADIENT, SUM_SQUARES = "largest_gradient", "sum_squares"
"""Names of the kernels."""
TABLE_HEAD = 2
"""Columns of a table before the addresses: the number of a parameter's first chunk, and its number of elements."""

STORAGE = {"float16": "tl.float16", "bfloat16": "tl.uint16", "float32": "tl.float32", "float64": "tl.float64"}
_SCALAR_TYPES = {Kind.FLOAT: "tl.float64", Kind.INTEGER: "tl.int64", Kind.TRUTH: "tl.int1"}
_COMPARISONS = {"less": "<", "less_equal": "<=", "equal": "=="}
_FUNCTIONS = {"multiply": "product", "divide": "quotient", "sqrt": "square_root"}
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*"}
_IMPORTS = """\
import triton
import triton.language as tl
from portopt.kernels.triton.support import *

"""
_RESERVED = frozenset(keyword.kwlist).union(
    ("triton", "tl", "table", "rows", "row", "chunk", "start", "inside", "i", "scalars", "from_norm", "sums", "given"),
    (
        "largest",
        "results",
        "integer_power",
        "floor_divide",
        "power_of_two",
        "update",
        "abs",
        "max",
        "min",
        "float",
        "int",
    ),
)


def triton_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernels that run `program` on arrays of the dtypes of `key`.

    Subnormals become zero by comparison, whatever `key.flush` says.
    """
    return _Writer(norm_dependence(program), key).source()


def norm_source(dtype: str) -> str:
    """Return the source of the kernels that reduce gradients of a dtype to what their norm is computed from."""
    load = _load(dtype, COMPUTE_DTYPE[dtype], "tl.load(g + i, mask=inside, other=0)")
    return f'''"""The norm of gradients in {dtype}."""

{_IMPORTS}
@triton.jit
def {LARGEST_GRADIENT}(table, rows, largest, CHUNK: tl.constexpr):
{_indented(_locate(1))}
    g = tl.load(table + row * {TABLE_HEAD + 1} + {TABLE_HEAD}).to(tl.pointer_type({STORAGE[dtype]}))
    x = {load}.to(tl.float64)
    tl.atomic_max(largest, tl.max(tl.abs(x).to(tl.int64, bitcast=True), axis=0))


@triton.jit
def {SUM_SQUARES}(table, rows, constants, largest, sums, CHUNK: tl.constexpr):
{_indented(_locate(1))}
    word = tl.load(largest)
    if (word > 0) & (word < INFINITY_WORD):
        g = tl.load(table + row * {TABLE_HEAD + 1} + {TABLE_HEAD}).to(tl.pointer_type({STORAGE[dtype]}))
        x = {load}.to(tl.float64)
        exponent = (word >> 52) - 1023
        first = exponent >> 1
        scaled = (x * power_of_two(-first)) * power_of_two(first - exponent)
        rest = product_float64(scaled, scaled)
        for k in tl.static_range(3):
            constant = tl.load(constants + k)
            rounded = (rest + constant) - constant
            tl.atomic_add(sums + k, tl.sum(rounded, axis=0))
            rest = rest - rounded
'''


def _indented(lines: list[str]) -> str:
    return "\n".join("    " + line for line in lines)


def _locate(columns: int) -> list[str]:
    """Find the parameter and the elements of an instance."""
    width = TABLE_HEAD + columns
    return [
        "chunk = tl.program_id(0)",
        "row = tl.load(rows + chunk)",
        f"start = (chunk - tl.load(table + row * {width})) * CHUNK",
        "i = start + tl.arange(0, CHUNK)",
        f"inside = i < tl.load(table + row * {width} + 1)",
    ]


def _load(dtype: str, compute_dtype: str, value: str) -> str:
    if dtype == "bfloat16":
        value = f"bfloat16_to_float32({value})"
    if dtype == compute_dtype or (dtype, compute_dtype) == ("bfloat16", "float32"):
        return f"flush_{compute_dtype}({value})"
    # No other conversion gives a subnormal: one that could rounds them to zero.
    return f"round_to_float32({value})" if dtype == "float64" else f"{value}.to(tl.{compute_dtype})"


class _Writer:
    def __init__(self, split: NormDependence, key: KernelKey) -> None:
        self.split = split
        self.program = split.program
        self.key = key
        self.dtypes = dict(key.dtypes)
        self.real = key.compute_dtype
        self.columns = key.columns(self.program)
        self.arrays = array_names(key, _RESERVED)
        self.names = identifiers(self.program, self.arrays, _RESERVED)

    def source(self) -> str:
        parts = [
            f'"""{self.program.name} on {self.dtypes["p"]}, computed in {self.real}.',
            "",
            f'Arrays of a parameter: {", ".join(self.columns)}.\n"""',
            "",
            _IMPORTS,
        ]
        if self.program.uses_gradient_norm:
            parts += [*self._scalars_of_norm(), "", ""]
        return "\n".join([*parts, *self._update()]) + "\n"

    # The update ------------------------------------------------------------------------------------------------

    def _update(self) -> list[str]:
        split, width = self.split, TABLE_HEAD + len(self.columns)
        from_norm = "from_norm, " if split.rounded_on_device else ""
        lines = _locate(len(self.columns))
        for position, column in enumerate(self.columns):
            kind = STORAGE[self.dtypes[column.removeprefix(NEW)]]
            lines.append(
                f"{self._column(column)} = tl.load(table + row * {width} + {TABLE_HEAD + position}).to(tl.pointer_type({kind}))"
            )
        for buffer, rounded in (("scalars", split.rounded_on_host), ("from_norm", split.rounded_on_device)):
            for position, (i, scalar) in enumerate(rounded):
                op = self.program.ops[scalar]
                known = f"  # {op.label}" if op.name in ("input", "constant") else ""
                lines.append(f"{self.names[i]} = tl.load({buffer} + {position}){known}")
        # Loads come first, so that all are on their way before the first operation.
        for i, op in sorted(self.program.array_ops(), key=lambda numbered: numbered[1].name != "load"):
            lines.append(f"{self.names[i]} = {self._array_expression(op)}")
        for name, i in self.program.array_outputs.items():
            target = self._column(name if self.key.in_place else NEW + name)
            lines.append(f"tl.store({target} + i, {self._store(self.dtypes[name], self.names[i])}, mask=inside)")
        head = f"def {UPDATE}(table, rows, scalars, {from_norm}CHUNK: tl.constexpr):"
        return ["@triton.jit", head, *(f"    {line}" for line in lines)]

    def _column(self, column: str) -> str:
        return "new_" * column.startswith(NEW) + self.arrays[column.removeprefix(NEW)]

    def _store(self, dtype: str, value: str) -> str:
        if dtype == self.real:
            return value
        return f"{value}.to(tl.float16)" if dtype == "float16" else f"float32_to_bfloat16({value})"

    def _array_expression(self, op: Op) -> str:
        args = [self.names[j] for j in op.args]
        match op.name:
            case "load":
                name = str(op.label)
                return _load(self.dtypes[name], self.real, f"tl.load({self.arrays[name]} + i, mask=inside)")
            case "multiply":
                # Of a product with a scalar, the block comes first: the operand that is scaled to look for tiny results.
                first, second = reversed(args) if self.program.ops[op.args[0]].name == "round" else args
                return f"product_{self.real}({first}, {second})"
            case "divide" | "sqrt":
                return f"{_FUNCTIONS[op.name]}_{self.real}({', '.join(args)})"
            case "add" | "subtract":
                return f"flush_{self.real}({args[0]} {_SIGNS[op.name]} {args[1]})"
            case "negative":
                return f"opposite_{self.real}({args[0]})"
            case "absolute":
                return f"tl.abs({args[0]})"
            case "less" | "less_equal" | "equal":
                return f"{args[0]} {_COMPARISONS[op.name]} {args[1]}"
            case "logical_and" | "logical_or":
                return f"{args[0]} {'&' if op.name == 'logical_and' else '|'} {args[1]}"
            case "logical_not":
                return f"{args[0]} == 0"
            case "where":
                return f"tl.where({', '.join(args)})"
            case _:
                raise NotImplementedError(f"Triton has no array operation {op.name!r}")

    # Scalars that need the norm --------------------------------------------------------------------------------

    def _scalars_of_norm(self) -> list[str]:
        split, ops = self.split, self.program.ops
        lines = []
        for position, i in enumerate(split.given):
            value = f"tl.load(given + {position})"
            if ops[i].kind is not Kind.FLOAT:
                value += ".to(tl.int64)" if ops[i].kind is Kind.INTEGER else " != 0"
            lines.append(f"{self.names[i]} = {value}")
        for i, op in enumerate(ops):
            if op.name == "input" and op.label == "gradient_norm":
                lines.append(f"{self.names[i]} = norm_of(tl.load(largest), sums)")
            elif i in split.dependent:
                lines.append(f"{self.names[i]} = {self._scalar_expression(op)}")
        for position, (_, scalar) in enumerate(split.rounded_on_device):
            lines.append(f"tl.store(results + {position}, round_to_{self.real}({self._scalar(scalar, Kind.FLOAT)}))")
        head = f"def {SCALARS_OF_NORM}(largest, sums, given, results):"
        return ["@triton.jit", head, *(f"    {line}" for line in lines)]

    def _scalar(self, i: int, kind: Kind) -> str:
        """Return scalar `i` as an operand of kind `kind`."""
        op = self.program.ops[i]
        if op.name == "constant":
            return f"tl.full((), {_constant(op.label, kind)}, {_SCALAR_TYPES[kind]})"
        return f"{self.names[i]}.to(tl.float64)" if kind is Kind.FLOAT and op.kind is not Kind.FLOAT else self.names[i]

    def _scalar_expression(self, op: Op) -> str:
        if op.kind is Kind.INTEGER and op.name in _SIGNS:
            left, right = (self._scalar(i, Kind.INTEGER) for i in op.args)
            return f"{left} {_SIGNS[op.name]} {right}"
        args = [self._scalar(i, Kind.FLOAT) for i in op.args]
        match op.name:
            case "multiply" | "divide" | "sqrt":
                return f"{_FUNCTIONS[op.name]}_float64({', '.join(args)})"
            case "add" | "subtract":
                return f"flush_float64({args[0]} {_SIGNS[op.name]} {args[1]})"
            case "floor":
                return f"tl.floor({args[0]})"
            case "to_float":
                return f"flush_float64({args[0]})"
            case "less" | "less_equal" | "equal":
                return f"{args[0]} {_COMPARISONS[op.name]} {args[1]}"
            case "negative":
                value = self._scalar(op.args[0], op.kind)
                return f"opposite_float64({value})" if op.kind is Kind.FLOAT else f"-{value}"
            case "where":
                chosen = [self._scalar(i, op.kind) for i in op.args[1:]]
                return f"tl.where({self._scalar(op.args[0], Kind.TRUTH)}, {', '.join(chosen)})"
            case "integer_power":
                return f"integer_power({args[0]}, {self._scalar(op.args[1], Kind.INTEGER)})"
            case "floor_divide":
                left, right = (self._scalar(i, Kind.INTEGER) for i in op.args)
                return f"floor_divide({left}, {right})"
            case _:
                raise NotImplementedError(f"Triton has no scalar operation {op.name!r}")


def _constant(value: str | float | None, kind: Kind) -> str:
    if kind is Kind.FLOAT and isinstance(value, float | int):
        value = float(value)
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    return repr(value)
