"""A program as CUDA C: readable, one line an operation, with the arithmetic of `arithmetic.cuh`.

A module has the kernel `update`, which runs the program on many parameters at once, and, if the program clips by the norm of
the gradients, `scalars_of_norm`, one block that computes on the device the scalars that need the norm.

Apart from the kernels' frame the source is plain C++: with a few macros it compiles for the host, and is tested there.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.names import SCALARS_OF_INPUTS, SCALARS_OF_NORM, UPDATE
from portopt.kernels.norm_dependence import STEP, NormDependence, norm_dependence
from portopt.kernels.passes import MOST_PARTS
from portopt.kernels.writer import Language, Writer, functions_for_conversions
from portopt.program import GIVEN, Kind, Label, Op, Program, bins

THREADS = 256
"""Threads in a block, and the most that a block may have."""
CHUNK = 8 * THREADS
"""Elements that a block works on before it looks for the next ones, where each is done for itself."""
ONLY_CHUNK = 4 * THREADS
"""The same in the kernel of an elementwise step, where they are all that the block works on: four of each thread."""
REDUCED_CHUNK = 16 * THREADS
"""The same where the block reduces them: a thread of the norm looks at sixteen before it adds their squares."""
BLOCKS_PER_MULTIPROCESSOR = 4
"""How many blocks a device is given for each of its multiprocessors where each block leaves a part of a result."""
PLACE = "{0}_four.at[k]"
"""The template of an element of an array in the loop of `loop_of_fours`."""
NUMBERS = ("float64", "float32", "float16", "bfloat16", "int64", "int32")
"""The dtypes of numbers that lie on the device, in the order of `number_at`."""
_BINS = {
    "BIN_WIDTH": bins.WIDTH,
    "BIN_OFFSET": bins.OFFSET,
    "LOWEST_EXPONENT": bins.LOWEST,
    "LOWEST_OF_SQUARES": bins.LOWEST_OF_SQUARES,
    "SCALING": bins.SCALING,
    "UNSCALED": bins.UNSCALED,
}
"""What sums are made with, under the names that it has in CUDA C."""


def cuda_source(program: Program, key: KernelKey, on_device: frozenset[str] = frozenset()) -> str:
    """Return the source of the kernels that run `program` on arrays of the dtypes of `key`.

    Subnormals become zero by comparison, whatever `key.flush` says.

    Args:
        program: what a step does.
        key: of the kernels.
        on_device: names of the scalar inputs that lie on the device, as those of a step that a graph repeats.
    """
    split = norm_dependence(program, on_device)
    writer = Writer(LANGUAGE, split.program, key)
    columns = writer.columns
    parts = [
        f"// {program.name} on {writer.dtypes['p']}, computed in {writer.real}.",
        f"// Arrays of a parameter: {', '.join(columns)}.",
        common_source(),
    ]
    parts += scalars_sources(writer, split)
    parts += functions_source(writer)
    of_device, read = scalars_of_device(writer, split)
    parameters = [f"const {LANGUAGE.storage[writer.real]} {writer.names[i]}" for i, _ in split.rounded_on_host]
    first = [*_known(writer), *(statement for _, statement in read)]
    update = _update(writer, [*parameters, *of_device], first, in_place=key.in_place)
    return "\n".join([*parts, update])


def source_for_inputs_on_device(program: Program, key: KernelKey, words: int) -> str:
    """Return the source of the kernel of a step of an elementwise `program` of which all that is given lies on the device.

    Each block computes the scalars, of the inputs but for the number of the step, float64, and of that number, 32 bits; the first
    one leaves the new scalars of the state.

    Args:
        program: what a step does.
        key: of the kernel.
        words: how many the table has, which is among the launch's arguments.
    """
    writer = Writer(LANGUAGE, norm_dependence(program).program, key)
    about = (
        f"// {program.name} on {writer.dtypes['p']}, computed in {writer.real}, all that is given lying on the device."
    )
    parameters = ["const double *inputs", "const int *step", "double *outputs"]
    parts = [about, common_source(words), source_file("scalars.cuh"), *functions_source(writer)]
    first = [*_known(writer), *_scalars(writer)]
    update = _update(writer, parameters, first, in_place=key.in_place, several_chunks=True)
    return "\n".join([*parts, update])


def _known(writer: Writer) -> list[str]:
    """Return comments that say what the rounded scalars are, where a name does not say it."""
    ops = writer.program.ops
    known = [(i, ops[j]) for i, j in writer.program.rounded_scalars if ops[j].name in (*GIVEN, "constant")]
    return [f"// {writer.names[i]}: {op.label}" for i, op in known]


def _scalars(writer: Writer) -> list[str]:
    """Return what a block does to compute the scalars of a step of which all that is given lies on the device."""
    real, rounded = LANGUAGE.storage[writer.real], writer.program.rounded_scalars
    lines = _scalars_of_inputs(writer)
    lines += [f"rounded[{k}] = {writer.rounded(i)};" for k, (_, i) in enumerate(rounded)]
    results = _outputs(writer)
    if results:
        lines += ["if (blockIdx.x == 0) {", *(f"    {line}" for line in results), "}"]
    if not lines:
        return []
    kept = [f"__shared__ {real} rounded[{len(rounded)}];"] if rounded else []
    return [
        *kept,
        "if (threadIdx.x == 0) {",
        *(f"    {line}" for line in lines),
        "}",
        "__syncthreads();",
        *(f"const {real} {writer.names[i]} = rounded[{k}];" for k, (i, _) in enumerate(rounded)),
    ]


def _scalars_of_inputs(writer: Writer) -> list[str]:
    """Return the statements that compute the scalars of a step of which all that is given lies on the device."""
    lines, position = [], 0
    for i, op in enumerate(writer.program.ops):
        if not op.kind.is_scalar or op.name == "constant" or i in writer.program.parameter_scalars:
            continue
        if op.name not in GIVEN:
            lines.append(writer.scalar(i))
        elif op.label == STEP:
            lines.append(writer.assigned(i, "*step"))
        else:
            lines.append(writer.assigned(i, f"flush(inputs[{position}])"))
            position += 1
    return lines


def _outputs(writer: Writer) -> list[str]:
    """Return the statements that leave the new scalars of the state, but for those that are of the parameter."""
    found = [i for i in writer.program.scalar_outputs.values() if i not in writer.program.parameter_scalars]
    return [f"outputs[{k}] = {writer.operand(i)};" for k, i in enumerate(found)]


def scalars_of_inputs_source(writer: Writer, split: NormDependence) -> str:
    """Return the kernel that computes all scalars, given where all lies that they are computed from, in one block.

    Its arguments are the inputs but for the number of the step, float64; that number, 32 bits; and the places for the new scalars
    of the state, for the rounded results and for those that are not rounded.

    Args:
        writer: of the program of the split.
        split: that of `all_on_device`.
    """
    real = LANGUAGE.storage[writer.real]
    parameters = ["const double *inputs", "const int *step", "double *outputs", f"{real} *rounded", "double *unrounded"]
    lines = [*_scalars_of_inputs(writer), *_outputs(writer)]
    lines += [f"rounded[{k}] = {writer.rounded(i)};" for k, (_, i) in enumerate(split.rounded_on_device)]
    lines += [f"unrounded[{k}] = {writer.operand(i)};" for k, i in enumerate(split.unrounded_on_device)]
    body = ["{", "    if (threadIdx.x == 0) {", *(f"        {line}" for line in lines), "    }", "}"]
    return "\n".join([f"{kernel_head(SCALARS_OF_INPUTS)}({listed(parameters)})", *body]) + "\n"


def device_scalars_source(program: Program, on_device: frozenset[str]) -> str:
    """Return the source of the kernel that computes a program's scalar outputs, given the names of its inputs on the device."""
    split = norm_dependence(program, on_device)
    writer = Writer(LANGUAGE, split.program, KernelKey((("p", "float64"),), in_place=True, flush="where"))
    return "\n".join([f"// Scalars of {program.name}.", common_source(), *scalars_sources(writer, split)])


def words_source(count: int) -> str:
    """Return the source of the kernel that writes words into the device's memory, of which a launch carries so many."""
    return "\n".join([*defines({"THREADS": THREADS, "WORDS": count}), "", source_file("words.cuh")])


def common_source(words: int | None = None) -> str:
    """Return what all modules begin with, given how many words a table has in a launch's arguments, if it is there."""
    constants = {"THREADS": THREADS, "CHUNK": CHUNK, "ONLY_CHUNK": ONLY_CHUNK, "REDUCED_CHUNK": REDUCED_CHUNK}
    if words is not None:
        constants["WORDS"] = words
    table = "table.cuh" if words is None else "table_in_arguments.cuh"
    return "\n".join(
        [*defines(constants), "", *map(source_file, ("arithmetic.cuh", table, "memory.cuh", "vectors.cuh"))]
    )


def reductions_source() -> str:
    """Return what modules that reduce have after that."""
    return "\n".join(
        [*defines({**_BINS, "MOST_PARTS": MOST_PARTS}), "", *map(source_file, ("scalars.cuh", "reductions.cuh"))]
    )


def defines(constants: Mapping[str, int]) -> list[str]:
    """Return the lines that give constants their names."""
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


def _update(
    writer: Writer, parameters: Sequence[str], first: Sequence[str], *, in_place: bool, several_chunks: bool = False
) -> str:
    """Return the kernel of a step.

    Args:
        writer: of the program.
        parameters: of the kernel, after the table.
        first: what is done before the first chunk.
        in_place: results overwrite what they replace.
        several_chunks: a block has as many as there are for it, since much comes before the first; otherwise one.
    """
    columns = writer.columns
    written = set(writer.program.array_outputs if in_place else columns[len(writer.dtypes) :])
    body = ["const int row = row_of(table, chunk);"]
    for position, column in enumerate(columns):
        kind = f"{'' if column in written else 'const '}{LANGUAGE.storage[writer.dtype(column)]}"
        body.append(of_row(kind, writer.array(column), position))
    chunk = "CHUNK" if several_chunks else "ONLY_CHUNK"
    body += [
        f"const long long start = (chunk - first_chunk_of(table, row)) * {chunk};",
        f"const long long end = start + {chunk} < elements_of(table, row) ? start + {chunk} : elements_of(table, row);",
        *_fours(writer, in_place=in_place),
    ]
    body = in_each_chunk(body) if several_chunks else in_one_chunk(body)
    head = f"{kernel_head(UPDATE)}({listed(['const __grid_constant__ Table table', *parameters])})"
    return "\n".join([head, "{", *(f"    {line}" for line in [*first, *body]), "}"]) + "\n"


def in_one_chunk(body: Sequence[str], chunk: str = "blockIdx.x") -> list[str]:
    """Return what a block does that has one chunk: with fewer registers than a loop, so that more blocks are at work at once."""
    return [f"const long long chunk = {chunk};", *body]


def in_each_chunk(body: Sequence[str]) -> list[str]:
    """Return what a block does that takes further chunks as long as there are any."""
    loop = "for (long long chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {"
    return [loop, *(f"    {line}" for line in body), "}"]


def _fours(writer: Writer, *, in_place: bool) -> list[str]:
    """Return the loop of a chunk's elements, four of them in each round of a thread."""
    program = writer.program
    loaded = [str(op.label) for op in program.ops if op.name == "load"]
    stored = [name if in_place else NEW + name for name in program.array_outputs]
    types = {writer.array(column): LANGUAGE.storage[writer.dtype(column)] for column in [*loaded, *stored]}
    names, results = ([writer.array(column) for column in columns] for columns in (loaded, stored))
    kept = [
        writer.array(name) for name, i in program.array_outputs.items() if in_place and program.ops[i].reads == name
    ]
    return loop_of_fours(types, names, results, writer.element(loads_first=True, place=PLACE), kept=kept)


def loop_of_fours(
    types: Mapping[str, str],
    loaded: Sequence[str],
    stored: Sequence[str],
    body: Sequence[str],
    *,
    before: Sequence[str] = (),
    kept: Container[str] = (),
) -> list[str]:
    """Return the loop of a chunk's elements, four of them in each round of a thread.

    Args:
        types: of the elements of the arrays.
        loaded: names of arrays.
        stored: names of arrays.
        body: statements, on the `k`-th of the four, for each.
        before: statements before those.
        kept: names of those stored that are what was loaded, but for subnormals: hardly any needs to be written.
    """
    aligned = " && ".join(f"is_aligned({name})" for name in types) or "true"
    loads = [
        "if (whole) {",
        *(f"    {name}_four = four_of({name} + i);" for name in loaded),
        "} else {",
        *(f"    {name}_four = each_of({name}, i, beside, end);" for name in loaded),
        "}",
    ]

    def asked(name: str) -> str:
        return f"if (differ({name}_four, {name}_before)) " if name in kept else ""

    stores = [
        "if (whole) {",
        *(f"    {asked(name)}put_four({name} + i, {name}_four);" for name in stored),
        "} else {",
        *(f"    put_each({name}, i, beside, end, {name}_four);" for name in stored),
        "}",
    ]
    lines = [
        *(["const bool whole = aligned && i + 4 <= end;"] if loaded or stored else []),
        *(f"Four<{kind}> {name}_four;" for name, kind in types.items()),
        *(loads if loaded else []),
        *(f"const Four<{kind}> {name}_before = {name}_four;" for name, kind in types.items() if name in kept),
        *before,
        "#pragma unroll",
        "for (int k = 0; k < 4; k++) {",
        *(f"    {line}" for line in body),
        "}",
        *(stores if stored else []),
    ]
    return [
        f"const bool aligned = {aligned};",
        "const long long beside = aligned ? 1 : blockDim.x;",
        "#pragma unroll 1",
        "for (long long i = start + threadIdx.x * (aligned ? 4 : 1); i < end; i += 4 * blockDim.x) {",
        *(f"    {line}" for line in lines),
        "}",
    ]


def of_row(kind: str, name: str, position: int) -> str:
    """Return the statement that names the memory at an address in a row of the table, which begins with elements of a kind."""
    return f"{kind} *const {name} = memory_at<{kind}>(address_of(table, {position}, row));"


def kernel_head(name: str, blocks: int = 1) -> str:
    """Return what the definition of a kernel begins with, up to its parameters, given how many blocks run on a multiprocessor."""
    bounds = "THREADS" if blocks == 1 else f"THREADS, {blocks}"
    return f'extern "C" __global__ void __launch_bounds__({bounds}) {name}'


def scalars_sources(writer: Writer, split: NormDependence) -> list[str]:
    """Return what computes scalars on the device, if some are computed there."""
    if writer.program.uses_gradient_norm:
        return [reductions_source(), scalars_source(writer, split)]
    return [source_file("scalars.cuh"), scalars_source(writer, split)] if split.on_device else []


def scalars_source(writer: Writer, split: NormDependence) -> str:
    """Return the kernel that computes the scalars that need what is known on the device only, in one block.

    Its arguments are, as far as the program and `split` make them necessary: what blocks have found of the norm, and how many;
    where the number of the last step is, where the new one is put, which may be the same place, where each input is that lies on
    the device, and its dtype, by number among `NUMBERS`, and where each new scalar of the state is put; the scalars of the host;
    and the places for the rounded results and for those that are not rounded.
    """
    ops, types = writer.program.ops, LANGUAGE.types
    inputs = {name: f"flush(number_at(number_{k}_of, dtype_{k}_of))" for k, name in enumerate(split.numbers_on_device)}
    lines = writer.scalars_on_device(split, "root_of(sum)", {**inputs, STEP: "*step + 1"} if split.on_device else {})
    parameters = []
    if writer.program.uses_gradient_norm:
        parameters += ["const Sum *squares", "const long long count"]
    if split.on_device:
        parameters += ["const long long *step", "long long *new_step"]
        lines.append("*new_step = *step + 1;")
    for k in range(len(inputs)):
        parameters += [f"const void *number_{k}_of", f"const long long dtype_{k}_of"]
    for k, i in enumerate(split.state_outputs.values()):
        parameters.append(f"double *new_{k}_of")
        lines.append(f"*new_{k}_of = {writer.operand(i)};")
    parameters += [f"const {types[ops[i].kind]} {writer.names[i]}" for i in split.given]
    if split.rounded_on_device:
        parameters.append(f"{LANGUAGE.storage[writer.real]} *rounded")
        lines += [f"rounded[{k}] = {writer.rounded(i)};" for k, (_, i) in enumerate(split.rounded_on_device)]
    if split.unrounded_on_device:
        parameters.append("double *unrounded")
        lines += [f"unrounded[{k}] = {writer.operand(i)};" for k, i in enumerate(split.unrounded_on_device)]
    combined = "    const Sum sum = over_parts(no_sum(LOWEST_OF_SQUARES), squares, count);"
    lines = [
        f"{kernel_head(SCALARS_OF_NORM)}({listed(parameters)})",
        "{",
        *([combined] if writer.program.uses_gradient_norm else []),
        "    if (threadIdx.x == 0) {",
        *(f"        {line}" for line in lines),
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def scalars_of_device(writer: Writer, split: NormDependence) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the parameters by which a kernel reads what that one has computed, and the names and statements that do so."""
    parameters, known = [], []
    if split.rounded_on_device:
        kind = LANGUAGE.storage[writer.real]
        parameters.append(f"const {kind} *rounded")
        for k, (i, _) in enumerate(split.rounded_on_device):
            known.append((writer.names[i], f"const {kind} {writer.names[i]} = rounded[{k}];"))
    if split.unrounded_on_device:
        parameters.append("const double *unrounded")
        for k, i in enumerate(split.unrounded_on_device):
            value = from_double(writer.program.ops[i].kind, f"unrounded[{k}]")
            known.append((writer.names[i], writer.assigned(i, value)))
    return parameters, known


def from_double(kind: Kind, value: str) -> str:
    """Return a scalar of a kind, given it as a float64 number."""
    return {Kind.TRUTH: f"{value} != 0.0", Kind.INTEGER: f"(long long){value}"}.get(kind, value)


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
    "add": "plus({0}, {1})",
    "subtract": "minus({0}, {1})",
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
            "differ alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr "
            "continue decltype default delete do double else enum explicit export extern false float for friend "
            "goto if inline int long mutable namespace new noexcept not nullptr operator or private protected "
            "public register return short signed sizeof static struct switch template this throw true try "
            "typedef typeid typename union unsigned using virtual void volatile while xor table chunk row start "
            "end i k aligned beside whole memory_at Table Four is_aligned put_each product_is_tiny quotient_is_tiny "
            "squares count sum rounded unrounded step new_step number_at inputs outputs scalars "
            "results flush plus minus FLUSHED product quotient square_root absolute update load gradient fabs "
            "fabsf floor sqrt sqrtf copysign copysignf integer_power floor_divide root_of over_parts no_sum",
        )
    )
    | frozenset(_BINS)
    | {"MOST_PARTS"},
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
