"""A program as CUDA C: readable, one line an operation, with the arithmetic of `arithmetic.cuh`.

A module has the kernel `update`, which runs the program on many parameters at once, and, if the program clips by the norm of
the gradients, `scalars_of_norm`, one thread that computes on the device the scalars that need the norm.

Apart from the kernels' frame the source is plain C++: with a few macros it compiles for the host, and is tested there.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.cuda.norm_dependence import NormDependence, norm_dependence
from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.names import array_names, identifiers
from portopt.program import Kind, Op, Program

THREADS = 256
"""Threads in a block, and the most that a block may have."""
CHUNK = 8 * THREADS
"""Elements that a block works on before it looks for the next ones."""
ARGUMENT_BYTES = 4096
"""The room that every CUDA device has for a kernel's arguments."""
UPDATE, SCALARS_OF_NORM = "update", "scalars_of_norm"
LARGEST_GRADIENT, SUM_SQUARES = "largest_gradient", "sum_squares"
"""Names of the kernels."""

STORAGE = {"float16": "float16_word", "bfloat16": "bfloat16_word", "float32": "float", "float64": "double"}
_SCALAR_TYPES = {Kind.FLOAT: "double", Kind.INTEGER: "long long", Kind.TRUTH: "bool"}
_COMPARISONS = {"less": "<", "less_equal": "<=", "equal": "=="}
_FUNCTIONS = {"multiply": "product", "divide": "quotient", "sqrt": "square_root", "absolute": "absolute"}
Operand = Callable[[int, Kind], str]
"""Returns a scalar, by its index, as an operand of a kind."""
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*"}


def rows_of_table(columns: int, scalars: int = 0) -> int:
    """Return how many parameters one launch can take.

    Args:
        columns: arrays of each parameter.
        scalars: other arguments of the kernel, of at most 8 bytes each.
    """
    return (ARGUMENT_BYTES - 8 * (scalars + 1)) // (8 * (columns + 2))


def cuda_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernels that run `program` on arrays of the dtypes of `key`.

    Subnormals become zero by comparison, whatever `key.flush` says.
    """
    return _Writer(norm_dependence(program), key).source()


def norm_source(dtype: str) -> str:
    """Return the source of the kernels that reduce gradients of a dtype to what their norm is computed from."""
    return "\n".join(
        [
            f"// The norm of gradients in {dtype}.",
            _common(1, rows_of_table(1, 4)),
            _file("norm.cuh"),
            f"typedef {STORAGE[dtype]} gradient;",
            "",
            f"__device__ __forceinline__ double load(gradient g) {{ return (double){_load(dtype, COMPUTE_DTYPE[dtype], 'g')}; }}",
            "",
            _file("norm_kernels.cuh"),
        ]
    )


@functools.cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _common(columns: int, rows: int) -> str:
    constants = {
        "THREADS": THREADS,
        "CHUNK": CHUNK,
        "ROWS": rows,
        "FIRST_STEP": 1 << rows.bit_length() - 1,
        "COLUMNS": columns,
    }
    defines = [f"#define {name} {value}" for name, value in constants.items()]
    return "\n".join([*defines, "", _file("arithmetic.cuh"), _file("table.cuh")])


def _load(dtype: str, compute_dtype: str, value: str) -> str:
    # What is converted is subnormal only if the dtype before has the same range.
    same_range = dtype == compute_dtype or (dtype, compute_dtype) == ("bfloat16", "float32")
    if dtype != compute_dtype:
        value = f"{dtype}_to_{compute_dtype}({value})"
    return f"flush({value})" if same_range else value


class _Writer:
    def __init__(self, split: NormDependence, key: KernelKey) -> None:
        self.split = split
        self.program = split.program
        self.key = key
        self.dtypes = dict(key.dtypes)
        self.real = STORAGE[key.compute_dtype]
        self.columns = key.columns(self.program)
        self.arrays = array_names(key, _RESERVED)
        self.names = identifiers(self.program, self.arrays, _RESERVED)

    def source(self) -> str:
        split, key = self.split, self.key
        rows = rows_of_table(len(self.columns), len(split.rounded_on_host) + 1)
        parts = [
            f"// {self.program.name} on {self.dtypes['p']}, computed in {key.compute_dtype}.",
            f"// Arrays of a parameter: {', '.join(self.columns)}.",
            _common(len(self.columns), rows),
        ]
        if self.program.uses_gradient_norm:
            parts += [_file("norm.cuh"), self._scalars_of_norm()]
        return "\n".join([*parts, self._update()])

    # The update ------------------------------------------------------------------------------------------------

    def _update(self) -> str:
        split = self.split
        parameters = ["const __grid_constant__ Table table"]
        parameters += [f"const {self.real} {self.names[i]}" for i, _ in split.rounded_on_host]
        if split.rounded_on_device:
            parameters.append(f"const {self.real} *from_norm")
        inputs = [self._column(name) for name in self.columns]
        width = [STORAGE[self.dtypes[name.removeprefix(NEW)]] for name in self.columns]
        written = set(self.columns if self.key.in_place else self.columns[len(self.key.dtypes) :]) - {"g"}
        lines = [f'extern "C" __global__ void {UPDATE}({_listed(parameters)})', "{"]
        lines += self._comments()
        lines += [
            f"    const {self.real} {self.names[i]} = from_norm[{position}];"
            for position, (i, _) in enumerate(split.rounded_on_device)
        ]
        lines += [
            "    for (long long chunk = blockIdx.x; chunk < table.first_chunk[ROWS]; chunk += gridDim.x) {",
            "        const int row = find_row(table, chunk);",
        ]
        for position, (column, name, kind) in enumerate(zip(self.columns, inputs, width, strict=True)):
            pointer = f"{'' if column in written else 'const '}{kind} *"
            lines.append(f"        {pointer}const {name} = ({pointer})table.address[row][{position}];")
        lines += [
            "        const long long start = (chunk - table.first_chunk[row]) * CHUNK;",
            "        const long long end = start + CHUNK < table.size[row] ? start + CHUNK : table.size[row];",
            "#pragma unroll 1",
            "        for (long long i = start + threadIdx.x; i < end; i += blockDim.x) {",
            *(f"            {line}" for line in self._body()),
            "        }",
            "    }",
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _comments(self) -> list[str]:
        """Say what the rounded scalars are, where a name does."""
        ops = self.program.ops
        known = [(i, ops[j]) for i, j in self.program.rounded_scalars if ops[j].name in ("input", "constant")]
        return [f"    // {self.names[i]}: {op.label}" for i, op in known]

    def _body(self) -> list[str]:
        # Loads come first, so that all are on their way before the first branch.
        ops = sorted(self.program.array_ops(), key=lambda numbered: numbered[1].name != "load")
        lines = []
        for i, op in ops:
            kind = "bool" if op.kind is Kind.MASK else self.real
            lines.append(f"const {kind} {self.names[i]} = {self._array_expression(op)};")
        for name, i in self.program.array_outputs.items():
            dtype, value = self.dtypes[name], self.names[i]
            if dtype != self.key.compute_dtype:
                value = f"{self.key.compute_dtype}_to_{dtype}({value})"
            lines.append(f"{self._column(name if self.key.in_place else NEW + name)}[i] = {value};")
        return lines

    def _column(self, column: str) -> str:
        return "new_" * column.startswith(NEW) + self.arrays[column.removeprefix(NEW)]

    def _array_expression(self, op: Op) -> str:
        args = [self.names[j] for j in op.args]
        match op.name:
            case "load":
                name = str(op.label)
                return _load(self.dtypes[name], self.key.compute_dtype, f"{self.arrays[name]}[i]")
            case "multiply" | "divide" | "sqrt" | "absolute":
                return f"{_FUNCTIONS[op.name]}({', '.join(args)})"
            case "add" | "subtract":
                return f"flush({args[0]} {_SIGNS[op.name]} {args[1]})"
            case "negative":
                return f"-{args[0]}"
            case "less" | "less_equal" | "equal":
                return f"{args[0]} {_COMPARISONS[op.name]} {args[1]}"
            case "logical_and" | "logical_or":
                return f"{args[0]} {'&&' if op.name == 'logical_and' else '||'} {args[1]}"
            case "logical_not":
                return f"!{args[0]}"
            case "where":
                return f"{args[0]} ? {args[1]} : {args[2]}"
            case _:
                raise NotImplementedError(f"CUDA C has no array operation {op.name!r}")

    # Scalars that need the norm --------------------------------------------------------------------------------

    def _scalars_of_norm(self) -> str:
        split, ops = self.split, self.program.ops
        parameters = ["const GradientNorm *norm"]
        parameters += [f"const {_SCALAR_TYPES[ops[i].kind]} {self.names[i]}" for i in split.given]
        parameters.append(f"{self.real} *results")
        lines = [f'extern "C" __global__ void {SCALARS_OF_NORM}({_listed(parameters)})', "{"]
        for i, op in enumerate(ops):
            if op.name == "input" and op.label == "gradient_norm":
                lines.append(f"    const double {self.names[i]} = norm_of(norm);")
            elif i in split.dependent:
                lines.append(
                    f"    const {_SCALAR_TYPES[op.kind]} {self.names[i]} = {scalar_expression(op, self._scalar)};"
                )
        for position, (_, scalar) in enumerate(split.rounded_on_device):
            rounding = f"round_to_{self.key.compute_dtype}"
            lines.append(f"    results[{position}] = {rounding}({self._scalar(scalar, Kind.FLOAT)});")
        return "\n".join([*lines, "}"]) + "\n"

    def _scalar(self, i: int, kind: Kind) -> str:
        """Return scalar `i` as an operand of kind `kind`."""
        op = self.program.ops[i]
        text = self.names[i] if op.name != "constant" else _constant(op.label)
        return f"(double){text}" if kind is Kind.FLOAT and op.kind is not Kind.FLOAT else text


def _constant(value: str | float | None) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        word = "7ff8" if value != value else "7ff0" if value > 0 else "fff0"
        return f"__longlong_as_double((long long)0x{word}000000000000ull)"
    if isinstance(value, bool):
        return str(int(value))
    return f"({value!r})" if isinstance(value, float | int) and value < 0 else repr(value)


def scalar_expression(op: Op, operand: Operand) -> str:
    """Return a scalar operation as an expression of C, in float64 or integers."""
    if op.kind is Kind.INTEGER and op.name in _SIGNS:
        return f"{operand(op.args[0], Kind.INTEGER)} {_SIGNS[op.name]} {operand(op.args[1], Kind.INTEGER)}"
    args = [operand(i, Kind.FLOAT) for i in op.args]
    match op.name:
        case "multiply" | "divide" | "sqrt":
            return f"{_FUNCTIONS[op.name]}({', '.join(args)})"
        case "add" | "subtract":
            return f"flush({args[0]} {_SIGNS[op.name]} {args[1]})"
        case "floor":
            return f"floor({args[0]})"
        case "to_float":
            return f"flush({args[0]})"
        case "less" | "less_equal" | "equal":
            return f"{args[0]} {_COMPARISONS[op.name]} {args[1]}"
        case "negative":
            return f"-{operand(op.args[0], op.kind)}"
        case "where":
            chosen = [operand(i, op.kind) for i in op.args[1:]]
            return f"{operand(op.args[0], Kind.TRUTH)} ? {chosen[0]} : {chosen[1]}"
        case "integer_power":
            return f"integer_power({args[0]}, {operand(op.args[1], Kind.INTEGER)})"
        case "floor_divide":
            return f"floor_divide({operand(op.args[0], Kind.INTEGER)}, {operand(op.args[1], Kind.INTEGER)})"
        case _:
            raise NotImplementedError(f"CUDA C has no scalar operation {op.name!r}")


def _listed(parameters: Sequence[str]) -> str:
    return "\n    " + ",\n    ".join(parameters)


_RESERVED = frozenset(
    re.findall(
        r"\w+",
        "alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr "
        "continue decltype default delete do double else enum explicit export extern false float for friend "
        "goto if inline int long mutable namespace new noexcept not nullptr operator or private protected "
        "public register return short signed sizeof static struct switch template this throw true try "
        "typedef typeid typename union unsigned using virtual void volatile while xor table chunk row start "
        "end i from_norm norm results flush product quotient square_root absolute update load gradient fabs "
        "fabsf floor sqrt sqrtf copysign copysignf integer_power floor_divide find_row norm_of power_of_two",
    )
)
