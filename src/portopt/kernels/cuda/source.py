"""A program as CUDA C: readable, one line an operation, with the arithmetic of `arithmetic.cuh`.

A module has the kernel `update`, which runs the program on many parameters at once, and, if the program clips by the norm of
the gradients, `scalars_of_norm`, one thread that computes on the device the scalars that need the norm.

Apart from the kernels' frame the source is plain C++: with a few macros it compiles for the host, and is tested there.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from portopt.kernels.key import KernelKey
from portopt.kernels.names import SCALARS_OF_NORM, UPDATE
from portopt.kernels.norm_dependence import NormDependence, norm_dependence
from portopt.kernels.writer import Language, Writer, functions_for_conversions
from portopt.program import GIVEN, Kind, Label, Op, Program, bins

THREADS = 256
"""Threads in a block, and the most that a block may have."""
CHUNK = 8 * THREADS
"""Elements that a block works on before it looks for the next ones."""
MOST_BLOCKS = 65535
"""Of a grid; blocks take further chunks when there are more."""
_BINS = {
    "BIN_WIDTH": bins.WIDTH,
    "BIN_OFFSET": bins.OFFSET,
    "LOWEST_EXPONENT": bins.LOWEST,
    "LOWEST_OF_SQUARES": bins.LOWEST_OF_SQUARES,
    "SCALING": bins.SCALING,
    "UNSCALED": bins.UNSCALED,
}
"""What sums are made with, under the names that it has in CUDA C."""


def cuda_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernels that run `program` on arrays of the dtypes of `key`.

    Subnormals become zero by comparison, whatever `key.flush` says.
    """
    split = norm_dependence(program)
    writer = Writer(LANGUAGE, split.program, key)
    columns = writer.columns
    parts = [
        f"// {program.name} on {writer.dtypes['p']}, computed in {writer.real}.",
        f"// Arrays of a parameter: {', '.join(columns)}.",
        common_source(),
    ]
    if writer.program.uses_gradient_norm:
        parts += [bins_source(), scalars_of_norm_source(writer, split)]
    parts += functions_source(writer)
    return "\n".join([*parts, _update(writer, split, in_place=key.in_place)])


def common_source() -> str:
    """Return what all modules begin with."""
    constants = {"THREADS": THREADS, "CHUNK": CHUNK}
    return "\n".join([*_defines(constants), "", source_file("arithmetic.cuh"), source_file("table.cuh")])


def bins_source() -> str:
    """Return what modules with sums in bins have after that."""
    return "\n".join([*_defines(_BINS), "", source_file("norm.cuh")])


def _defines(constants: Mapping[str, int]) -> list[str]:
    return [f"#define {name} {value}" for name, value in constants.items()]


@functools.cache
def source_file(name: str) -> str:
    """Return what is in a file of this package."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def functions_source(writer: Writer) -> list[str]:
    """Return the functions of elements that a program needs."""
    parts = []
    for function in writer.functions():
        real = LANGUAGE.storage[function.real]
        parameters = ", ".join(f"const {real} {name}" for name in function.parameters)
        lines = [f"__device__ __noinline__ {real} {function.name}({parameters})", "{"]
        lines += [*(f"    {line}" for line in function.lines), f"    return {function.result};", "}", ""]
        parts.append("\n".join(lines))
    return parts


def _update(writer: Writer, split: NormDependence, *, in_place: bool) -> str:
    real, columns, ops = LANGUAGE.storage[writer.real], writer.columns, writer.program.ops
    parameters = ["const __grid_constant__ Table table"]
    parameters += [f"const {real} {writer.names[i]}" for i, _ in split.rounded_on_host]
    if split.rounded_on_device:
        parameters.append(f"const {real} *from_norm")
    written = set(writer.program.array_outputs if in_place else columns[len(writer.dtypes) :])
    lines = [f'extern "C" __global__ void {UPDATE}({listed(parameters)})', "{"]
    # What the rounded scalars are, where a name does not say it.
    known = [(i, ops[j]) for i, j in writer.program.rounded_scalars if ops[j].name in (*GIVEN, "constant")]
    lines += [f"    // {writer.names[i]}: {op.label}" for i, op in known]
    lines += [
        f"    const {real} {writer.names[i]} = from_norm[{position}];"
        for position, (i, _) in enumerate(split.rounded_on_device)
    ]
    lines += [
        "    for (long long chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {",
        "        const int row = table.row[chunk];",
    ]
    for position, column in enumerate(columns):
        pointer = f"{'' if column in written else 'const '}{LANGUAGE.storage[writer.dtype(column)]} *"
        lines.append(
            f"        {pointer}const {writer.array(column)} = ({pointer})table.address[{position} * table.rows + row];"
        )
    lines += [
        "        const long long start = (chunk - table.first_chunk[row]) * CHUNK;",
        "        const long long end = start + CHUNK < table.size[row] ? start + CHUNK : table.size[row];",
        "#pragma unroll 1",
        "        for (long long i = start + threadIdx.x; i < end; i += blockDim.x) {",
        *(f"            {line}" for line in writer.element(loads_first=True)),
        "        }",
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def scalars_of_norm_source(writer: Writer, split: NormDependence) -> str:
    """Return the kernel that computes the scalars that need the norm."""
    ops, types = writer.program.ops, LANGUAGE.types
    parameters = ["const GradientNorm *norm"]
    parameters += [f"const {types[ops[i].kind]} {writer.names[i]}" for i in split.given]
    parameters.append(f"{LANGUAGE.storage[writer.real]} *results")
    lines = writer.scalars_of_norm(split, "norm_of(norm)", "results[{0}] = {1};")
    head = f'extern "C" __global__ void {SCALARS_OF_NORM}({listed(parameters)})'
    return "\n".join([head, "{", *(f"    {line}" for line in lines), "}"]) + "\n"


def listed(parameters: Sequence[str]) -> str:
    """Return the parameters of a kernel, a line each."""
    return "\n    " + ",\n    ".join(parameters)


def _constant(op: Op, kind: Kind) -> str:
    cast = "(double)" if kind is Kind.FLOAT and op.kind is not Kind.FLOAT else ""
    return cast + _number(op.label)


def _number(value: Label) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        word = "7ff8" if value != value else "7ff0" if value > 0 else "fff0"
        return f"__longlong_as_double((long long)0x{word}000000000000ull)"
    if isinstance(value, bool):
        return str(int(value))
    return f"({value!r})" if isinstance(value, float | int) and value < 0 else repr(value)


_COMMON = {
    "add": "flush({0} + {1})",
    "subtract": "flush({0} - {1})",
    "multiply": "product({0}, {1})",
    "divide": "quotient({0}, {1})",
    "sqrt": "square_root({0})",
    "negative": "-{0}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "equal": "{0} == {1}",
    "where": "{0} ? {1} : {2}",
}
LANGUAGE = Language(
    name="CUDA C",
    reserved=frozenset(
        re.findall(
            r"\w+",
            "alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr "
            "continue decltype default delete do double else enum explicit export extern false float for friend "
            "goto if inline int long mutable namespace new noexcept not nullptr operator or private protected "
            "public register return short signed sizeof static struct switch template this throw true try "
            "typedef typeid typename union unsigned using virtual void volatile while xor table chunk row start "
            "end i from_norm norm results flush product quotient square_root absolute update load gradient fabs "
            "fabsf floor sqrt sqrtf copysign copysignf integer_power floor_divide norm_of power_of_two",
        )
    )
    | frozenset(_BINS),
    arrays={
        **_COMMON,
        "absolute": "absolute({0})",
        "logical_and": "{0} && {1}",
        "logical_or": "{0} || {1}",
        "logical_not": "!{0}",
    },
    scalars={
        **_COMMON,
        "floor": "floor({0})",
        "to_float": "flush({0})",
        "integer_power": "integer_power({0}, {1})",
        "floor_divide": "floor_divide({0}, {1})",
    },
    integers={"add": "{0} + {1}", "subtract": "{0} - {1}", "multiply": "{0} * {1}"},
    constant=_constant,
    as_float="(double){0}",
    element="{0}[i]",
    store="{0}[i] = {1};",
    flush="flush({0})",
    conversions=functions_for_conversions(),
    assignment="const {type} {name} = {value};",
    types={Kind.FLOAT: "double", Kind.INTEGER: "long long", Kind.TRUTH: "bool", Kind.MASK: "bool"},
    storage={"float16": "float16_word", "bfloat16": "bfloat16_word", "float32": "float", "float64": "double"},
)
