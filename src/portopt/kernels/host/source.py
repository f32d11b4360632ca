"""A program as the source of a numba kernel: readable Python, one line an operation.

The kernel runs over a table of addresses, one row a parameter, so that any number of parameters takes one call, and over a
range of elements counted through all of them, so that threads can share the work in any way without changing a bit.
Scalars are computed in it too, in float64.

Two ways to make subnormals zero give the same bits. `"register"`: the processor flushes operands and results while the
kernel runs (x86's FTZ and DAZ bits). `"where"`: each operation compares, on any processor.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping

from portopt.kernels.key import NEW, KernelKey
from portopt.program import Kind, Op, Program
from portopt.program.expansion import expand_elementary, loads_to_flush

_ARITHMETIC = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_SCALED = {"multiply": "product", "divide": "quotient"}
_COMPARISONS = {"less": "<", "less_equal": "<=", "equal": "=="}


def kernel_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernel's two functions, `update_parameter` and `kernel`."""
    return _Writer(expand_elementary(program), key).source()


class _Writer:
    def __init__(self, program: Program, key: KernelKey) -> None:
        self.program = program
        self.key = key
        self.arrays = _array_names(key)
        self.names = _identifiers(program, self.arrays)
        self.real = key.compute_dtype
        self.by_where = key.flush == "where"
        self.flushed_loads = loads_to_flush(program)
        self.rounded = [i for i, _ in program.rounded_scalars]

    def source(self) -> str:
        program, key = self.program, self.key
        columns = key.columns(program)
        dtypes = dict(key.dtypes)
        storage = [dtypes[name.removeprefix(NEW)] for name in columns]
        rounded = [self.names[i] for i in self.rounded]
        lines = [
            f'"""{program.name} on {dtypes["p"]}, computed in {self.real}; subnormals flushed by {key.flush}."""',
            "",
            "",
            f"def update_parameter({', '.join(['first', 'last', *map(self._column, columns), *rounded])}):",
            '    """Update elements first to last of one parameter."""',
            "    for i in range(first, last):",
            *(f"        {line}" for line in self._body()),
            "",
            "",
            "def kernel(table, sizes, count, start, stop, inputs, step, outputs):",
            f'    """Update elements start to stop of `count` parameters. Columns: {", ".join(columns)}."""',
        ]
        if not self.by_where:
            lines.append("    control = flush_subnormals()")
        lines += [f"    {line}" for line in self._scalars()]
        lines += [
            "    offset = 0",
            "    for k in range(count):",
            "        size = sizes[k]",
            "        first = max(start - offset, 0)",
            "        last = min(stop - offset, size)",
            "        offset += size",
            "        if first < last:",
            "            update_parameter(",
            "                first,",
            "                last,",
        ]
        for column, dtype in enumerate(storage):
            lines.append(f"                pointer_to_{dtype}(table[k * {len(columns)} + {column}]),")
        lines += [f"                {name}," for name in rounded]
        lines.append("            )")
        if not self.by_where:
            lines.append("    restore(control)")
        return "\n".join(lines) + "\n"

    def _scalars(self) -> list[str]:
        lines: list[str] = []
        position = 0
        for i, op in enumerate(self.program.ops):
            if not op.kind.is_scalar or op.name == "constant":
                continue
            name = self.names[i]
            if op.name == "input" and op.label == "t":
                lines.append(f"{name} = step")
            elif op.name == "input":
                lines.append(f"{name} = flush_float64(inputs[{position}])")
                position += 1
            else:
                lines.append(f"{name} = {self._scalar_expression(op)}")
        for i, scalar in self.program.rounded_scalars:
            lines.append(f"{self.names[i]} = round_to_{self.real}({self._operand(scalar)})")
        for position, i in enumerate(self.program.scalar_outputs.values()):
            lines.append(f"outputs[{position}] = {self._operand(i)}")
        return lines

    def _operand(self, i: int) -> str:
        op = self.program.ops[i]
        if op.name != "constant":
            return self.names[i]
        value = op.label
        if isinstance(value, float) and not math.isfinite(value):
            return f"float64_{'nan' if value != value else 'inf' if value > 0 else 'minus_inf'}"
        return repr(value)

    def _scalar_expression(self, op: Op) -> str:
        args = [self._operand(i) for i in op.args]
        integer = op.kind is Kind.INTEGER
        match op.name:
            case "multiply" | "divide" if not integer and self.by_where:
                return f"{_SCALED[op.name]}_float64({args[0]}, {args[1]})"
            case "add" | "subtract" if not integer and self.by_where:
                return f"flush_float64({args[0]} {_ARITHMETIC[op.name]} {args[1]})"
            case "add" | "subtract" | "multiply" | "divide":
                return f"{args[0]} {_ARITHMETIC[op.name]} {args[1]}"
            case "floor_divide":
                return f"{args[0]} // {args[1]}"
            case "less" | "less_equal" | "equal":
                return f"{args[0]} {_COMPARISONS[op.name]} {args[1]}"
            case "where":
                # Each conditional expression would be two more blocks, and numba's time grows with their square.
                return f"select_{'int64' if integer else 'float64'}({args[0]}, {args[1]}, {args[2]})"
            case "negative":
                return f"-{args[0]}"
            case "to_float":
                return f"flush_float64(float({args[0]}))"
            case "sqrt" | "floor":
                return f"{op.name}(float({args[0]}))"
            case "integer_power":
                return f"integer_power(float({args[0]}), {args[1]})"
            case _:
                raise NotImplementedError(f"the host kernel has no scalar operation {op.name!r}")

    def _body(self) -> list[str]:
        lines = [f"{self.names[i]} = {self._array_expression(i, op)}" for i, op in self.program.array_ops()]
        dtypes = dict(self.key.dtypes)
        for name, i in self.program.array_outputs.items():
            target = self._column(name if self.key.in_place else NEW + name)
            lines.append(f"{target}[i] = {self._store(dtypes[name], self.names[i])}")
        return lines

    def _column(self, column: str) -> str:
        return "new_" * column.startswith(NEW) + self.arrays[column.removeprefix(NEW)]

    def _store(self, dtype: str, value: str) -> str:
        return value if dtype == self.real else f"{self.real}_to_{dtype}({value})"

    def _array_expression(self, i: int, op: Op) -> str:
        args = [self.names[j] for j in op.args]
        match op.name:
            case "load":
                dtype = dict(self.key.dtypes)[str(op.label)]
                value = f"{self.arrays[str(op.label)]}[i]"
                if dtype != self.real:
                    value = f"{dtype}_to_{self.real}({value})"
                # What is converted is subnormal only if the dtype before has the same range.
                same_range = dtype == self.real or (dtype, self.real) == ("bfloat16", "float32")
                may_be_subnormal = same_range and (self.by_where or i in self.flushed_loads)
                return f"flush_{self.real}({value})" if may_be_subnormal else value
            case "multiply" | "divide" if self.by_where:
                return f"{_SCALED[op.name]}_{self.real}({args[0]}, {args[1]})"
            case "add" | "subtract" if self.by_where:
                return f"flush_{self.real}({args[0]} {_ARITHMETIC[op.name]} {args[1]})"
            case "add" | "subtract" | "multiply" | "divide":
                return f"{args[0]} {_ARITHMETIC[op.name]} {args[1]}"
            case "sqrt":
                return f"sqrt({args[0]})"
            case "negative":
                return f"-{args[0]}"
            case "absolute":
                return f"abs({args[0]})"
            case "less" | "less_equal" | "equal":
                return f"{args[0]} {_COMPARISONS[op.name]} {args[1]}"
            case "logical_and" | "logical_or":
                return f"{args[0]} {'&' if op.name == 'logical_and' else '|'} {args[1]}"
            case "logical_not":
                return f"not {args[0]}"
            case "where":
                return f"{args[1]} if {args[0]} else {args[2]}"
            case _:
                raise NotImplementedError(f"the host kernel has no array operation {op.name!r}")


_RESERVED = frozenset(
    {
        "table",
        "sizes",
        "count",
        "start",
        "stop",
        "inputs",
        "step",
        "outputs",
        "control",
        "offset",
        "size",
        "first",
        "last",
    }
    | {"k", "i", "abs", "max", "min", "float", "sqrt", "floor", "integer_power", "flush_subnormals", "restore"}
)
_TYPE_SUFFIXES = ("_float16", "_bfloat16", "_float32", "_float64", "_i")


def _identifier(name: str, otherwise: str) -> str:
    """Return a name from a rule if the source can use it: no keyword, and nothing that the source itself uses."""
    plain = re.fullmatch(r"[A-Za-z]+(_[A-Za-z0-9]+)*", name) is not None and not keyword.iskeyword(name)
    used = name in _RESERVED or name.startswith("new_") or name.endswith(_TYPE_SUFFIXES)
    return name if plain and not used else otherwise


def _array_names(key: KernelKey) -> dict[str, str]:
    """Return the Python name of each array of a kernel, by its name in the program."""
    return {name: _identifier(name, f"slot_{k}") for k, (name, _) in enumerate(key.dtypes)}


def _identifiers(program: Program, arrays: Mapping[str, str]) -> list[str]:
    """Return a Python name for each operation's result; loaded values are named apart from the arrays."""
    names = program.names()
    for i, op in enumerate(program.ops):
        if op.name == "load":
            names[i] = f"{arrays[str(op.label)]}_i"
        elif op.name == "input":
            names[i] = _identifier(str(op.label), f"scalar_{i}")
    return names
