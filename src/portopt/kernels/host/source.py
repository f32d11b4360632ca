"""A program as the source of a numba kernel: readable Python, one line an operation.

The kernel runs over a table of addresses, one row a parameter, so that any number of parameters takes one call, and over a
range of elements counted through all of them, so that threads can share the work in any way without changing a bit.
Scalars are computed in it too, in float64.

Two ways to make subnormals zero give the same bits. `"register"`: the processor flushes operands and results while the
kernel runs (x86's FTZ and DAZ bits). `"where"`: each operation compares, on any processor.
"""

from __future__ import annotations

import dataclasses
import keyword
import math
from collections.abc import Mapping

from portopt.kernels.key import Flush, KernelKey
from portopt.kernels.writer import Language, Writer, functions_for_conversions
from portopt.program import GIVEN, Kind, Op, Program
from portopt.program.expansion import expand_elementary, loads_to_flush

_INFIX = {"add": "{0} + {1}", "subtract": "{0} - {1}", "multiply": "{0} * {1}", "divide": "{0} / {1}"}
_COMPARISONS = {"less": "{0} < {1}", "less_equal": "{0} <= {1}", "equal": "{0} == {1}"}


def kernel_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernel's two functions, `update_parameter` and `kernel`."""
    program = expand_elementary(program)
    by_where = key.flush == "where"
    flushed_loads = None if by_where else loads_to_flush(program)
    writer = Writer(LANGUAGES[key.flush], program, key, flushed_loads)
    columns = writer.columns
    rounded = [writer.names[i] for i, _ in program.rounded_scalars]
    lines = [
        f'"""{program.name} on {writer.dtypes["p"]}, computed in {writer.real}; subnormals flushed by {key.flush}."""',
        "",
        "",
        *functions_source(writer),
        f"def update_parameter({', '.join(['first', 'last', *map(writer.array, columns), *rounded])}):",
        '    """Update elements first to last of one parameter."""',
        "    for i in range(first, last):",
        *(f"        {line}" for line in writer.element()),
        "",
        "",
        "def kernel(table, sizes, count, start, stop, inputs, step, outputs):",
        f'    """Update elements start to stop of `count` parameters. Columns: {", ".join(columns)}."""',
    ]
    if not by_where:
        lines.append("    control = flush_subnormals()")
    lines += [f"    {line}" for line in step_scalars_source(writer)]
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
    for position, column in enumerate(columns):
        lines.append(f"                pointer_to_{writer.dtype(column)}(table[k * {len(columns)} + {position}]),")
    lines += [f"                {name}," for name in rounded]
    lines.append("            )")
    if not by_where:
        lines.append("    restore(control)")
    return "\n".join(lines) + "\n"


def functions_source(writer: Writer) -> list[str]:
    """Return the lines of the functions of elements that a program needs."""
    lines = []
    for function in writer.functions():
        lines.append(f"def {function.name}({', '.join(function.parameters)}):")
        lines += [f"    {line}" for line in function.lines]
        lines += [f"    return {function.result}", "", ""]
    return lines


def step_scalars_source(writer: Writer) -> list[str]:
    """Return the lines that compute the scalars of a step, rounded ones too, and those of the state."""
    program, lines, position = writer.program, [], 0
    of_parameter = program.parameter_scalars
    for i, op in enumerate(program.ops):
        if not op.kind.is_scalar or op.name == "constant" or i in of_parameter:
            continue
        if op.name == "input" and op.label == "t":
            lines.append(writer.assigned(i, "step"))
        elif op.name in GIVEN:
            lines.append(writer.assigned(i, f"flush_float64(inputs[{position}])"))
            position += 1
        else:
            lines.append(writer.scalar(i))
    lines += [
        writer.assigned(i, writer.rounded(scalar))
        for i, scalar in program.rounded_scalars
        if scalar not in of_parameter
    ]
    lines += [
        f"outputs[{position}] = {writer.operand(i)}"
        for position, i in enumerate(program.scalar_outputs.values())
        if i not in of_parameter
    ]
    return lines


def _constant(op: Op, kind: Kind) -> str:
    value = op.label
    if isinstance(value, float) and not math.isfinite(value):
        return f"float64_{'nan' if value != value else 'inf' if value > 0 else 'minus_inf'}"
    return repr(value)


_BY_REGISTER = Language(
    name="the host kernel",
    reserved=frozenset(
        (
            *keyword.kwlist,
            *("table", "sizes", "count", "start", "stop", "inputs", "step", "outputs", "control", "offset", "size"),
            *("first", "last", "k", "i", "kernel", "update_parameter", "range", "abs", "max", "min", "float", "sqrt"),
            *("floor", "integer_power", "flush_subnormals", "restore", "select_int64"),
            *("float64_nan", "float64_inf", "float64_minus_inf"),
        )
    ),
    arrays={
        **_INFIX,
        **_COMPARISONS,
        "sqrt": "sqrt({0})",
        "negative": "-{0}",
        "absolute": "abs({0})",
        "logical_and": "{0} & {1}",
        "logical_or": "{0} | {1}",
        "logical_not": "not {0}",
        "where": "{1} if {0} else {2}",
    },
    scalars={
        **_INFIX,
        **_COMPARISONS,
        "floor_divide": "{0} // {1}",
        # Each conditional expression would be two more blocks, and numba's time grows with their square.
        "where": "select_float64({0}, {1}, {2})",
        "negative": "-{0}",
        "to_float": "flush_float64(float({0}))",
        "sqrt": "sqrt(float({0}))",
        "floor": "floor(float({0}))",
        "integer_power": "integer_power(float({0}), {1})",
    },
    integers={**_INFIX, "where": "select_int64({0}, {1}, {2})"},
    constant=_constant,
    as_float="{0}",
    element="{0}[i]",
    store="{0}[i] = {1}",
    flush="flush_{real}({0})",
    conversions=functions_for_conversions(),
)
_BY_WHERE = dataclasses.replace(
    _BY_REGISTER,
    arrays={
        **_BY_REGISTER.arrays,
        "add": "flush_{real}({0} + {1})",
        "subtract": "flush_{real}({0} - {1})",
        "multiply": "product_{real}({0}, {1})",
        "divide": "quotient_{real}({0}, {1})",
    },
    scalars={
        **_BY_REGISTER.scalars,
        "add": "flush_float64({0} + {1})",
        "subtract": "flush_float64({0} - {1})",
        "multiply": "product_float64({0}, {1})",
        "divide": "quotient_float64({0}, {1})",
    },
)
LANGUAGES: Mapping[Flush, Language] = {"register": _BY_REGISTER, "where": _BY_WHERE}
