"""A program as Triton kernels: readable, one line an operation, with the arithmetic of `support.py`.

A module has the kernel `update`, which runs the program on many parameters at once, and, if the program clips by the norm of
the gradients, `scalars_of_norm`, one instance that computes on the device the scalars that need the norm.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Sequence

from portopt.kernels.key import KernelKey
from portopt.kernels.names import SCALARS_OF_NORM, UPDATE
from portopt.kernels.norm_dependence import NormDependence, norm_dependence
from portopt.kernels.writer import Language, Writer
from portopt.program import GIVEN, Kind, Label, Op, Program

CHUNK = 1024
"""Elements of one instance."""
WARPS = 8
TABLE_HEAD = 2
"""Columns of a table before the addresses: the number of a parameter's first chunk, and its number of elements."""
IMPORTS = """\
import triton
import triton.language as tl
from portopt.kernels.triton.support import *

"""
"""What all modules begin with."""


def triton_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernels that run `program` on arrays of the dtypes of `key`.

    Subnormals become zero by comparison, whatever `key.flush` says.
    """
    split = norm_dependence(program)
    writer = Writer(LANGUAGE, split.program, key)
    parts = [
        f'"""{program.name} on {writer.dtypes["p"]}, computed in {writer.real}.',
        "",
        f'Arrays of a parameter: {", ".join(writer.columns)}.\n"""',
        "",
        IMPORTS,
    ]
    parts += functions_source(writer)
    if writer.program.uses_gradient_norm:
        parts += [*scalars_of_norm_source(writer, split), "", ""]
    return "\n".join([*parts, *_update(writer, split)]) + "\n"


def locate(columns: int) -> list[str]:
    """Return what finds the parameter and the elements of an instance, given the number of arrays of a parameter."""
    width = TABLE_HEAD + columns
    return [
        "chunk = tl.program_id(0)",
        "row = tl.load(rows + chunk)",
        f"start = (chunk - tl.load(table + row * {width})) * CHUNK",
        "i = start + tl.arange(0, CHUNK)",
        f"inside = i < tl.load(table + row * {width} + 1)",
    ]


def address(position: int, columns: int, dtype: str) -> str:
    """Return where one of the arrays of an instance's parameter lies."""
    storage = LANGUAGE.storage[dtype]
    return f"tl.load(table + row * {TABLE_HEAD + columns} + {TABLE_HEAD + position}).to(tl.pointer_type({storage}))"


def functions_source(writer: Writer) -> list[str]:
    """Return the lines of the functions of elements that a program needs."""
    lines = []
    for function in writer.functions():
        head = f"def {function.name}({', '.join(function.parameters)}):"
        lines += [*kernel_source(head, [*function.lines, f"return {function.result}"]), "", ""]
    return lines


def _update(writer: Writer, split: NormDependence) -> list[str]:
    columns = writer.columns
    lines = locate(len(columns))
    for position, column in enumerate(columns):
        lines.append(f"{writer.array(column)} = {address(position, len(columns), writer.dtype(column))}")
    for buffer, rounded in (("scalars", split.rounded_on_host), ("from_norm", split.rounded_on_device)):
        for position, (i, scalar) in enumerate(rounded):
            op = writer.program.ops[scalar]
            known = f"  # {op.label}" if op.name in (*GIVEN, "constant") else ""
            lines.append(f"{writer.names[i]} = tl.load({buffer} + {position}){known}")
    from_norm = "from_norm, " if split.rounded_on_device else ""
    head = f"def {UPDATE}(table, rows, scalars, {from_norm}CHUNK: tl.constexpr):"
    return kernel_source(head, [*lines, *writer.element(loads_first=True)])


def loaded_scalar(place: str, kind: Kind) -> str:
    """Return a scalar of a kind that lies in memory as a float64."""
    return f"tl.load({place})" + {Kind.INTEGER: ".to(tl.int64)", Kind.TRUTH: " != 0"}.get(kind, "")


def scalars_of_norm_source(writer: Writer, split: NormDependence) -> list[str]:
    """Return the lines of the kernel that computes the scalars that need the norm."""
    lines = [
        writer.assigned(i, loaded_scalar(f"given + {position}", writer.program.ops[i].kind))
        for position, i in enumerate(split.given)
    ]
    lines += writer.scalars_of_norm(split, "norm_of(tl.load(largest), sums)", "tl.store(results + {0}, {1})")
    return kernel_source(f"def {SCALARS_OF_NORM}(largest, sums, given, results):", lines)


def kernel_source(head: str, lines: Sequence[str]) -> list[str]:
    """Return the lines of a function, given its head."""
    return ["@triton.jit", head, *(f"    {line}" for line in lines)]


def _constant(op: Op, kind: Kind) -> str:
    return f"tl.full((), {_number(op.label, kind)}, {_SCALAR_TYPES[kind]})"


def _number(value: Label, kind: Kind) -> str:
    if kind is Kind.FLOAT and isinstance(value, float | int):
        value = float(value)
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    return repr(value)


_SCALAR_TYPES = {Kind.FLOAT: "tl.float64", Kind.INTEGER: "tl.int64", Kind.TRUTH: "tl.int1"}
_COMPARISONS = {"less": "{0} < {1}", "less_equal": "{0} <= {1}", "equal": "{0} == {1}"}
LANGUAGE = Language(
    name="Triton",
    reserved=frozenset(
        (
            *keyword.kwlist,
            *("triton", "tl", "table", "rows", "row", "chunk", "start", "inside", "i", "scalars", "from_norm", "sums"),
            *("given", "largest", "results", "integer_power", "floor_divide", "power_of_two", "update", "abs", "max"),
            *("min", "float", "int"),
        )
    ),
    arrays={
        **_COMPARISONS,
        "add": "flush_{real}({0} + {1})",
        "subtract": "flush_{real}({0} - {1})",
        "multiply": "product_{real}({0}, {1})",
        # The block comes first: the operand that is scaled to look for tiny results.
        "scale": "product_{real}({1}, {0})",
        "divide": "quotient_{real}({0}, {1})",
        "sqrt": "square_root_{real}({0})",
        "negative": "opposite_{real}({0})",
        "absolute": "tl.abs({0})",
        "logical_and": "{0} & {1}",
        "logical_or": "{0} | {1}",
        "logical_not": "{0} == 0",
        "where": "tl.where({0}, {1}, {2})",
    },
    scalars={
        **_COMPARISONS,
        "add": "flush_float64({0} + {1})",
        "subtract": "flush_float64({0} - {1})",
        "multiply": "product_float64({0}, {1})",
        "divide": "quotient_float64({0}, {1})",
        "sqrt": "square_root_float64({0})",
        "floor": "tl.floor({0})",
        "to_float": "flush_float64({0})",
        "negative": "opposite_float64({0})",
        "where": "tl.where({0}, {1}, {2})",
        "integer_power": "integer_power({0}, {1})",
        "floor_divide": "floor_divide({0}, {1})",
    },
    integers={"add": "{0} + {1}", "subtract": "{0} - {1}", "multiply": "{0} * {1}", "negative": "-{0}"},
    constant=_constant,
    as_float="{0}.to(tl.float64)",
    element="tl.load({0} + i, mask=inside)",
    store="tl.store({0} + i, {1}, mask=inside)",
    flush="flush_{real}({0})",
    conversions={
        ("float16", "float32"): "{0}.to(tl.float32)",
        ("float16", "float64"): "{0}.to(tl.float64)",
        ("bfloat16", "float32"): "bfloat16_to_float32({0})",
        ("bfloat16", "float64"): "bfloat16_to_float32({0}).to(tl.float64)",
        ("float32", "float16"): "{0}.to(tl.float16)",
        ("float32", "bfloat16"): "float32_to_bfloat16({0})",
        ("float32", "float64"): "{0}.to(tl.float64)",
        # Zero in place of a subnormal.
        ("float64", "float32"): "round_to_float32({0})",
    },
    # Triton's interpreter takes a comparison of two scalars for a number where it meets a block.
    repeated="tl.broadcast_to({0}, (CHUNK,))",
    storage={"float16": "tl.float16", "bfloat16": "tl.uint16", "float32": "tl.float32", "float64": "tl.float64"},
)
