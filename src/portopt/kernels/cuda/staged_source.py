"""A program that reduces, or draws, as CUDA C: a kernel for each of its passes, with `reductions.cuh` and `draws.cuh`.

All kernels of a module take the same arguments. A row of their table has the addresses of a parameter's arrays, its lengths,
the address of the memory for what kernels leave to later ones, and the parameter's number in its tree.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from portopt.kernels.cuda.source import (
    CHUNK,
    LANGUAGE,
    common_source,
    functions_source,
    listed,
    rows_of_table,
    scalars_of_norm_source,
    source_file,
)
from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.norm_dependence import norm_dependence
from portopt.kernels.passes import Pass, passes_of, words_of
from portopt.kernels.stages import Space
from portopt.kernels.writer import Writer
from portopt.program import DRAWS, Kind, Program

ACROSS = 32
"""Neighbouring results that a block reduces at once, where neighbouring elements belong to different ones."""

_SUMS = ("sum", "mean", "norm")
_LANGUAGE = dataclasses.replace(
    LANGUAGE,
    reserved=LANGUAGE.reserved
    | frozenset(re.findall(r"\w+", source_file("reductions.cuh") + source_file("draws.cuh")))
    | {"draws", "j", "own", "values"},
)


def columns_of(program: Program, key: KernelKey) -> int:
    """Return the number of words of a table's row, its number of elements and first chunk apart."""
    return len(key.columns(program)) + len(passes_of(program).stages.space) + 2


def rows_of_passes(program: Program, key: KernelKey) -> int:
    """Return how many parameters one launch can take."""
    split = norm_dependence(program)
    return rows_of_table(columns_of(program, key), len(split.rounded_on_host) + len(split.unrounded) + 1)


def chunk_of(step: Pass, space: Space) -> int:
    """Return how many of the elements of a pass are a chunk.

    Args:
        step: the pass.
        space: of the elements that it reduces, if it reduces lines.
    """
    if step.kind != "lines":
        return 1 if step.kind == "scalars" else CHUNK
    return ACROSS if space[-1] in step.space else 1


def staged_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernels that run a program, of which `can_pass` is true, on arrays of the dtypes of `key`."""
    return _Source(program, key).text()


class _Source:
    def __init__(self, program: Program, key: KernelKey) -> None:
        self._split = norm_dependence(program)
        self._passes = passes_of(program)
        self._stages = self._passes.stages
        self._program = self._split.program
        self._writer = Writer(_LANGUAGE, self._program, key)
        self._names = self._writer.names
        self._real = key.compute_dtype
        self._type = LANGUAGE.storage[self._real]
        self._key = key
        self._places = self._passes.scalar_places
        self._known = self._definitions()
        self._columns = columns_of(program, key)
        self._rows = rows_of_passes(program, key)

    def text(self) -> str:
        writer = self._writer
        parts = [
            f"// {self._program.name} on {writer.dtypes['p']}, computed in {writer.real}.",
            f"// Arrays of a parameter: {', '.join(writer.columns)}.",
            common_source(self._columns, self._rows),
            f"#define ACROSS {ACROSS}\n",
            source_file("norm.cuh"),
            source_file("reductions.cuh"),
        ]
        if self._program.uses_gradient_norm:
            parts.append(scalars_of_norm_source(writer, self._split))
        parts += functions_source(writer)
        names = {op.name for op in self._program.ops}
        if not names.isdisjoint(DRAWS):
            parts.append(source_file("draws.cuh"))
        if "draw_normal" in names:
            parts.append(source_file("normal.cuh"))
        return "\n".join([*parts, *map(self._kernel, self._passes.passes)])

    # What kernels know of a parameter ------------------------------------------------------------------------------

    def _definitions(self) -> list[tuple[str, str]]:
        """Return what a row of the table says, in order: names and the statements that make them known."""
        writer, columns = self._writer, self._writer.columns
        written = set(self._program.array_outputs if self._key.in_place else columns[len(writer.dtypes) :])
        found = []
        for position, column in enumerate(columns):
            pointer = f"{'' if column in written else 'const '}{LANGUAGE.storage[writer.dtype(column)]} *"
            name = writer.array(column)
            found.append((name, f"{pointer}const {name} = ({pointer})table.address[row][{position}];"))
        at = len(columns)
        found += [
            (_length(k), f"const long long {_length(k)} = (long long)table.address[row][{at + k}];")
            for k in self._stages.space
        ]
        at += len(self._stages.space)
        found.append(("values_of", f"double *const values_of = (double *)table.address[row][{at}];"))
        found.append(("number_of", f"const unsigned int number_of = (unsigned int)table.address[row][{at + 1}];"))
        for space in self._spaces():
            product = " * ".join(map(_length, space)) or "1"
            found.append((_size(space), f"const long long {_size(space)} = {product};"))
        chunks = f"({_size(self._stages.space)} + CHUNK - 1) / CHUNK"
        found.append(("chunks_of", f"const long long chunks_of = {chunks};"))
        place = [f"values_of + {len(self._places)}"]
        for i in self._passes.partial:
            kind = _part_type(self._program.ops[i].name)
            found.append((_parts(i), f"{kind} *const {_parts(i)} = ({kind} *)({' + '.join(place)});"))
            place.append(f"{words_of(self._program.ops[i].name)} * chunks_of")
        for i in self._passes.stored:
            name = _stored(i)
            found.append((name, f"{self._type} *const {name} = ({self._type} *)({' + '.join(place)});"))
            place.append(_size(self._stages.spaces[i] or ()))
        return found

    def _spaces(self) -> list[Space]:
        stages = self._stages
        return sorted({stages.space, *(space for space in stages.spaces if space is not None), ()})

    def _used(self, body: Sequence[str], known: Iterable[tuple[str, str]]) -> list[str]:
        """Return those of the statements, in order, whose names a body or further ones of them use."""
        text, found = "\n".join(body), []
        for name, statement in reversed(list(known)):
            if re.search(rf"\b{name}\b", text):
                found.append(statement)
                text += statement.partition(" = ")[2]
        return found[::-1]

    # Kernels -------------------------------------------------------------------------------------------------------

    def _kernel(self, step: Pass) -> str:
        split, ops = self._split, self._program.ops
        parameters = ["const __grid_constant__ Table table"]
        parameters += [f"const {self._type} {self._names[i]}" for i, _ in split.rounded_on_host]
        parameters += [f"const {LANGUAGE.types[ops[i].kind]} {self._names[i]}" for i in split.unrounded]
        if split.rounded_on_device:
            parameters.append(f"const {self._type} *from_norm")
        body = {
            "elements": self._elements,
            "chunks": self._chunks,
            "lines": self._lines,
            "scalars": self._scalars,
        }[step.kind](step)
        known = [
            (self._names[i], f"const {self._type} {self._names[i]} = from_norm[{position}];")
            for position, (i, _) in enumerate(split.rounded_on_device)
        ]
        lines = [f'extern "C" __global__ void {step.name}({listed(parameters)})', "{"]
        lines += [f"    {line}" for line in self._used(body, known)]
        lines += [
            "    for (long long chunk = blockIdx.x; chunk < table.first_chunk[ROWS]; chunk += gridDim.x) {",
            "        const int row = find_row(table, chunk);",
            *(f"        {line}" for line in self._used(body, self._known)),
            *(f"        {line}" for line in body),
            "    }",
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _extent(self, size: str) -> list[str]:
        return [
            f"const long long start = (chunk - table.first_chunk[row]) * {size};",
            f"const long long end = start + {size} < table.size[row] ? start + {size} : table.size[row];",
        ]

    def _each(self, step: Pass, statements: Sequence[str]) -> list[str]:
        """Return the loop of a chunk's elements."""
        places = self._places_in(step.space, "i")
        lines = [*self._computed(step, step.space, "i"), *statements]
        return [
            "#pragma unroll 1",
            "for (long long i = start + threadIdx.x; i < end; i += blockDim.x) {",
            *(f"    {line}" for line in [*self._used(lines, places), *lines]),
            "}",
        ]

    def _elements(self, step: Pass) -> list[str]:
        stores = []
        for i in step.stored:
            value = f"({self._type}){self._names[i]}" if self._program.ops[i].kind is Kind.MASK else self._names[i]
            stores.append(f"{_stored(i)}[{self._index(step.space, step.space, 'i')}] = {value};")
        for name in step.outputs:
            column = name if self._key.in_place else NEW + name
            i = self._program.array_outputs[name]
            value = LANGUAGE.converted(self._real, self._writer.dtypes[name], self._names[i])
            target = f"{self._writer.array(column)}[{self._index(step.space, step.space, 'i')}]"
            stores.append(f"{target} = {value};")
        rounded = self._rounded([*step.operations, *(self._program.array_outputs[name] for name in step.outputs)])
        return [*rounded, *self._extent("CHUNK"), *self._each(step, stores)]

    def _chunks(self, step: Pass) -> list[str]:
        lines = [*self._rounded(step.operations, step.reductions), *self._extent("CHUNK")]
        lines += [self._begun(i) for i in step.reductions]
        lines += self._each(step, [self._added(i) for i in step.reductions])
        for i in step.reductions:
            kind, name = _part_type(self._program.ops[i].name), _together(i)
            lines.append(f"const {kind} {name} = over_block({_own(i)}, 1);")
        lines.append("if (threadIdx.x == 0) {")
        lines += [f"    {_parts(i)}[chunk - table.first_chunk[row]] = {_together(i)};" for i in step.reductions]
        return [*lines, "}"]

    def _lines(self, step: Pass) -> list[str]:
        whole = self._stages.source(step.reductions[0])
        along = tuple(k for k in whole if k not in step.space)
        chunk = chunk_of(step, whole)
        places = [*self._places_in(step.space, "result_of"), *self._places_in(along, "j")]
        element = [*self._computed(step, whole, None), *(self._added(i) for i in step.reductions)]
        across = "1" if chunk == 1 else "blockDim.x < 2 * ACROSS ? blockDim.x / 2 : ACROSS"
        count = " * ".join(map(_length, along)) or "1"
        lines = [
            *self._rounded(step.operations, step.reductions),
            *self._extent(str(chunk)),
            f"const unsigned int across_of = {across};",
            f"const long long count_of = {count};",
            "for (long long line_of = start; line_of < end; line_of += across_of) {",
            "    const long long result_of = line_of + threadIdx.x % across_of;",
            *(f"    {self._begun(i)}" for i in step.reductions),
            "    if (result_of < end) {",
            "#pragma unroll 1",
            "        for (long long j = threadIdx.x / across_of; j < count_of; j += blockDim.x / across_of) {",
            *(f"            {line}" for line in [*self._used(element, places), *element]),
            "        }",
            "    }",
        ]
        stores = []
        for i in step.reductions:
            kind, op = _part_type(self._program.ops[i].name), self._program.ops[i]
            lines.append(f"    const {kind} {_together(i)} = over_block({_own(i)}, across_of);")
            value = self._result(i, "count_of")
            if op.kind.is_scalar:
                stores.append(f"values_of[{self._places[i]}] = {_as_double(op.kind, value)};")
            else:
                value = f"({self._type})({value})" if op.kind is Kind.MASK else f"round_to_{self._real}({value})"
                stores.append(f"{_stored(i)}[result_of] = {value};")
        lines += ["    if (threadIdx.x < across_of && result_of < end) {", *(f"        {line}" for line in stores)]
        return [*lines, "    }", "}"]

    def _scalars(self, step: Pass) -> list[str]:
        ops, size = self._program.ops, _size(self._stages.space)
        lines = []
        for i in step.reductions:
            kind = _part_type(ops[i].name)
            begin = _initial(ops[i].name, self._real)
            lines.append(f"const {kind} {_together(i)} = over_parts({begin}, {_parts(i)}, chunks_of);")
        inner: list[str] = []
        known: set[int] = set()
        for i in step.reductions:
            value = self._result(i, size)
            if ops[i].kind.is_scalar:
                inner.append(self._writer.assigned(i, value))
                inner.append(f"values_of[{self._places[i]}] = {_as_double(ops[i].kind, self._names[i])};")
                known.add(i)
            else:
                value = f"({self._type})({value})" if ops[i].kind is Kind.MASK else f"round_to_{self._real}({value})"
                inner.append(f"{_stored(i)}[0] = {value};")
        for i in step.scalars:
            op = ops[i]
            if op.name == "widen":
                load = op.args[0]
                element = self._writer.array_expression(load, "{0}[0]")
                inner.append(self._writer.assigned(i, f"(double){element}"))
            else:
                inner += self._read([j for j in op.args if j in self._places], known)
                inner.append(self._writer.scalar(i))
            inner.append(f"values_of[{self._places[i]}] = {_as_double(op.kind, self._names[i])};")
            known.add(i)
        return [*lines, "if (threadIdx.x == 0) {", *(f"    {line}" for line in inner), "}"]

    # Scalars of the parameter ----------------------------------------------------------------------------------------

    def _read(self, scalars: Iterable[int], known: set[int]) -> list[str]:
        """Return the statements that take scalars of the parameter from where they were stored."""
        lines = []
        for i in scalars:
            if i in known:
                continue
            known.add(i)
            value = f"values_of[{self._places[i]}]"
            match self._program.ops[i].kind:
                case Kind.TRUTH:
                    value += " != 0.0"
                case Kind.INTEGER:
                    value = f"(long long){value}"
            lines.append(self._writer.assigned(i, value))
        return lines

    def _rounded(self, operations: Iterable[int], reductions: Iterable[int] = ()) -> list[str]:
        """Return the statements that round the scalars of the parameter which operations need."""
        ops = self._program.ops
        needed = [
            *operations,
            *(j for i in operations for j in ops[i].args),
            *(j for i in reductions for j in ops[i].args),
        ]
        known: set[int] = set()
        lines = []
        for i in dict.fromkeys(needed):
            if ops[i].name == "round" and ops[i].args[0] in self._places:
                scalar = ops[i].args[0]
                lines += self._read([scalar], known)
                lines.append(self._writer.assigned(i, self._writer.rounded(scalar)))
        return lines

    # Elements --------------------------------------------------------------------------------------------------------

    def _places_in(self, space: Space, index: str) -> list[tuple[str, str]]:
        """Return the statements for the place along each length of an element of a space, given its index."""
        if len(space) == 1:
            return [(_along(space[0]), f"const long long {_along(space[0])} = {index};")]
        found = []
        rest = index
        for k in reversed(space[1:]):
            further = f"rest_{k}_of"
            found.append((further, f"const long long {further} = divided({rest}, {_length(k)});"))
            found.append((_along(k), f"const long long {_along(k)} = {rest} - {further} * {_length(k)};"))
            rest = further
        if space:
            found.append((_along(space[0]), f"const long long {_along(space[0])} = {rest};"))
        return found

    def _index(self, space: Space, whole: Space, index: str | None) -> str:
        """Return the index in an array of a space of what belongs to an element of the whole, which has an index itself."""
        if not space:
            return "0"
        if space == whole and index is not None:
            return index
        text = _along(space[0])
        for k in space[1:]:
            text = f"({text}) * {_length(k)} + {_along(k)}"
        return text

    def _computed(self, step: Pass, whole: Space, index: str | None) -> list[str]:
        """Return the statements that compute the operations of a pass for one element, loads first."""
        ops = self._program.ops
        order = sorted({*step.operations, *step.external}, key=lambda i: (ops[i].reads is None, i))
        return [self._writer.assigned(i, self._expression(i, step, whole, index)) for i in order]

    def _expression(self, i: int, step: Pass, whole: Space, index: str | None) -> str:
        op, writer = self._program.ops[i], self._writer
        place = self._index(self._stages.spaces[i] or (), whole, index)
        if i in step.external:
            element = f"{_stored(i)}[{place}]"
            return f"{element} != ({self._type})0" if op.kind is Kind.MASK else element
        if op.reads is not None:
            return writer.array_expression(i, f"{{0}}[{place}]")
        if op.name in DRAWS:
            return self._drawn(i, place)
        return writer.array_expression(i)

    def _drawn(self, i: int, place: str) -> str:
        op, writer = self._program.ops[i], self._writer
        key, step, stream = op.args
        words = (
            f"words_of((unsigned long long)(long long){writer.operand(key)}, "
            f"(unsigned long long){writer.operand(step, Kind.INTEGER)}, {writer.operand(stream, Kind.INTEGER)}, number_of, "
            f"(unsigned long long)({place}))"
        )
        if op.name == "draw_normal":
            return f"round_to_{self._real}(normal_of({words}))"
        most = 2**53 - (1 if self._real == "float64" else 2**29)
        return f"round_to_{self._real}(uniform_of({words}, {most}ll))"

    # Reductions ------------------------------------------------------------------------------------------------------

    def _begun(self, i: int) -> str:
        name = self._program.ops[i].name
        return f"{_part_type(name)} {_own(i)} = {_initial(name, self._real)};"

    def _added(self, i: int) -> str:
        op = self._program.ops[i]
        function = "add_square" if op.name == "norm" else "add"
        return f"{function}({_own(i)}, {self._names[op.args[0]]});"

    def _result(self, i: int, count: str) -> str:
        """Return a result in float64, an integer or a truth, given how many elements it is of."""
        part = _together(i)
        match self._program.ops[i].name:
            case "sum":
                return f"sum_of({part})"
            case "mean":
                return f"quotient(sum_of({part}), (double){count})"
            case "norm":
                return f"root_of({part})"
            case "max" | "min":
                return f"number_of_{self._real}({part}.word)"
            case "any":
                return f"{part}.number > 0"
            case "all":
                return f"{part}.number == {count}"
            case _:
                return f"(double){part}.number" if not self._program.ops[i].kind.is_scalar else f"{part}.number"


def _part_type(reduction: str) -> str:
    return "Sum" if reduction in _SUMS else {"max": "Largest", "min": "Smallest"}.get(reduction, "Count")


def _initial(reduction: str, real: str) -> str:
    if reduction in _SUMS:
        # Squares of float32 numbers are not that small.
        return f"no_sum({-2112 if (reduction, real) == ('norm', 'float64') else -896})"
    if reduction in ("max", "min"):
        sign = "-" if reduction == "max" else ""
        infinity = "INFINITE" if real == "float64" else "(float)INFINITE"
        return f"{_part_type(reduction)}{{word_of({sign}{infinity})}}"
    return "Count{0}"


def _as_double(kind: Kind, value: str) -> str:
    return {Kind.TRUTH: f"{value} ? 1.0 : 0.0", Kind.INTEGER: f"(double)({value})"}.get(kind, value)


def _length(k: int) -> str:
    return f"length_{k}_of"


def _along(k: int) -> str:
    return f"along_{k}_of"


def _size(space: Space) -> str:
    return f"size_{'_'.join(map(str, space))}_of" if space else "size_of"


def _parts(i: int) -> str:
    return f"parts_{i}_of"


def _stored(i: int) -> str:
    return f"stored_{i}_of"


def _own(i: int) -> str:
    return f"own_{i}_of"


def _together(i: int) -> str:
    return f"together_{i}_of"
