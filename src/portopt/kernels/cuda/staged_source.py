"""A program that reduces, or draws, as CUDA C: a kernel for each of its passes, with `reductions.cuh` and `draws.cuh`.

All kernels of a module take the same arguments. A row of their table has the addresses of a parameter's arrays, its lengths,
the address of the memory for what kernels leave to later ones, and the parameter's number in its tree.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from portopt.kernels import passes
from portopt.kernels.cuda.source import (
    BLOCKS_PER_MULTIPROCESSOR,
    CHUNK,
    LANGUAGE,
    PLACE,
    REDUCED_CHUNK,
    common_source,
    from_double,
    functions_source,
    in_one_chunk,
    kernel_head,
    listed,
    loop_of_fours,
    of_row,
    reductions_source,
    scalars_of_device,
    scalars_of_inputs_source,
    scalars_source,
    source_file,
)
from portopt.kernels.cuda.tables import Cut
from portopt.kernels.cuda.tile_source import TileSource
from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.norm_dependence import NormDependence, all_on_device, norm_dependence, with_given_totals
from portopt.kernels.pass_writer import Definition, length, own, parts, size, stored, together
from portopt.kernels.passes import ACROSS, Pass, Passes, reduced_chunk_of, words_of
from portopt.kernels.stages import Space
from portopt.program import DRAWS, SUMS, Kind, Program

_FOURTH = "of four"
"""The place of an element in the loop of `loop_of_fours`, in arrays that have all of them."""
_OF_FOURS = "of fours"
"""The same in the loop of a pass that reduces, in which a thread has several fours at once."""
_MOST_FOURS = 4
"""How many fours of one array a thread loads at once; of two arrays it is half as many of each, of more one."""
chunk_of = functools.partial(passes.chunk_of, elements=CHUNK)


def cut(passes: Passes, step: Pass, lengths: Sequence[Sequence[int]]) -> Cut:
    """Return for how many elements of each parameter a pass has something to do, and how many are a chunk, of all or of each."""
    stages, sizes = passes.stages, list(map(step.units, lengths))
    if step.kind == "chunks":
        return sizes, [reduced_chunk_of(size, REDUCED_CHUNK) for size in sizes]
    source = stages.source(step.reductions[0]) if step.kind == "lines" else stages.space
    return sizes, chunk_of(step, source)


LANGUAGE_OF_PASSES = dataclasses.replace(
    LANGUAGE,
    reserved=LANGUAGE.reserved
    | frozenset(re.findall(r"\w+", "".join(map(source_file, ("reductions.cuh", "axes.cuh", "draws.cuh")))))
    | {"draws", "j", "own", "values", "after", "lines_of_fours", "n", "r"},
)


def staged_source(program: Program, key: KernelKey, on_device: frozenset[str] = frozenset()) -> str:
    """Return the source of the kernels that run a program, of which `can_pass` is true, on arrays of the dtypes of `key`.

    Args:
        program: what a step does.
        key: of the kernels.
        on_device: names of the scalar inputs that lie on the device, as those of a step that a graph repeats.
    """
    return _Source(program, key, norm_dependence(program, on_device)).text()


def staged_source_for_inputs_on_device(program: Program, key: KernelKey, words: int) -> str:
    """Return the source of the kernels that run a program of which all that is given lies on the device.

    The kernel `SCALARS_OF_INPUTS` computes the scalars for the others; see `scalars_of_inputs_source`.

    Args:
        program: what a step does.
        key: of the kernels.
        words: how many the table has, which is among the launches' arguments.
    """
    return _Source(with_given_totals(program), key, all_on_device(program), words).text()


class _Source(TileSource):
    zero = "0"

    def __init__(self, program: Program, key: KernelKey, split: NormDependence, words: int | None = None) -> None:
        super().__init__(LANGUAGE_OF_PASSES, program, key, split)
        self._words = words
        self._type = LANGUAGE.storage[self.real]
        self._known = self._definitions()

    def text(self) -> str:
        writer = self.writer
        lines = [
            f"// {self.program.name} on {writer.dtypes['p']}, computed in {writer.real}.",
            f"// Arrays of a parameter: {', '.join(writer.columns)}.",
            common_source(self._words),
            f"#define ACROSS {ACROSS}\n",
            reductions_source(),
            *([source_file("axes.cuh")] if self.passes.tiled else []),
        ]
        if self._words is not None:
            lines.append(scalars_of_inputs_source(writer, self.split))
        elif self.program.uses_gradient_norm or self.split.on_device:
            lines.append(scalars_source(writer, self.split))
        lines += functions_source(writer)
        names = {op.name for op in self.program.ops}
        if not names.isdisjoint(DRAWS):
            lines.append(source_file("draws.cuh"))
        if "draw_normal" in names:
            lines += map(source_file, ("nearly_normal.cuh", "normal.cuh"))
        return "\n".join([*lines, *map(self._kernel, self.passes.passes)])

    # What kernels know of a parameter ------------------------------------------------------------------------------

    def _definitions(self) -> list[tuple[str, str]]:
        """Return what a row of the table says, in order: names and the statements that make them known."""
        writer, columns = self.writer, self.writer.columns
        written = set(self.program.array_outputs if self.key.in_place else columns[len(writer.dtypes) :])
        found = []
        for position, column in enumerate(columns):
            kind = f"{'' if column in written else 'const '}{LANGUAGE.storage[writer.dtype(column)]}"
            name = writer.array(column)
            found.append((name, of_row(kind, name, position)))
        at = len(columns)
        found += [
            (length(k), f"const long long {length(k)} = (long long)address_of(table, {at + k}, row);")
            for k in self.stages.space
        ]
        at += len(self.stages.space)
        found.append(("values_of", of_row("double", "values_of", at)))
        found.append(("number_of", f"const unsigned int number_of = (unsigned int)address_of(table, {at + 1}, row);"))
        for space in self.spaces():
            product = " * ".join(map(length, space)) or "1"
            found.append((size(space), f"const long long {size(space)} = {product};"))
        of = size(self.stages.space)
        found.append(("reduced_of", f"const long long reduced_of = reduced_chunk_of({of}, REDUCED_CHUNK);"))
        found.append(("chunks_of", f"const long long chunks_of = ({of} + reduced_of - 1) / reduced_of;"))
        found += self.tile_definitions()
        place = [str(len(self.places))]
        for i in self.passes.partial:
            kind = self.part_type(i)
            found.append((parts(i), f"{kind} *const {parts(i)} = ({kind} *)(values_of + {' + '.join(place)});"))
            place.append(f"{words_of(self.program.ops[i].name)} * {self.chunks(i)}")
        # Arrays begin at an even word, so that they are aligned.
        place = [f"({' + '.join(place)} + 1) / 2 * 2"]
        for i in self.passes.stored:
            name = stored(i)
            found.append((name, f"{self._type} *const {name} = ({self._type} *)(values_of + {' + '.join(place)});"))
            place.append(f"({size(self.stages.spaces[i] or ())} + 1) / 2 * 2")
        return found + self.line_definitions(" + ".join(place))

    # Kernels -------------------------------------------------------------------------------------------------------

    def _kernel(self, step: Pass) -> str:
        split, ops = self.split, self.program.ops
        parameters = ["const __grid_constant__ Table table"]
        parameters += [f"const {self._type} {self.names[i]}" for i, _ in split.rounded_on_host]
        parameters += [f"const {LANGUAGE.types[ops[i].kind]} {self.names[i]}" for i in split.unrounded]
        of_device, known = scalars_of_device(self.writer, split)
        parameters += of_device
        body = {
            "elements": self._elements,
            "chunks": self._chunks,
            "tiles": self.tiles,
            "joined": self.joined,
            "lines": self._lines,
            "scalars": self._scalars,
        }[step.kind](step)
        body = [*self._draws(step), *body]
        blocks = BLOCKS_PER_MULTIPROCESSOR if step.kind == "chunks" and self.real == "float32" else 1
        lines = [f"{kernel_head(step.name, blocks)}({listed(parameters)})", "{"]
        own = ["const int row = row_of(table, chunk);", *self.used(body, self._known), *body]
        lines += [f"    {line}" for line in [*self.used(body, known), *in_one_chunk(own, self._chunk_of(step))]]
        return "\n".join([*lines, "}"]) + "\n"

    def _chunk_of(self, step: Pass) -> str:
        """Return which chunk a block has: the first has the last one if the pass before left that in the device's cache."""
        at = self.passes.passes.index(step)
        before = {earlier.kind for earlier in self.passes.passes[:at] if earlier.space == step.space}
        backwards = step.kind == "elements" and not before.isdisjoint({"chunks", "tiles"})
        return "table.chunks - 1 - blockIdx.x" if backwards else "blockIdx.x"

    def extent(self, elements: str) -> list[str]:
        return [
            f"const long long start = (chunk - first_chunk_of(table, row)) * {elements};",
            f"const long long after = start + {elements};",
            "const long long end = after < elements_of(table, row) ? after : elements_of(table, row);",
        ]

    def _arrays(self, step: Pass) -> dict[str, str]:
        """Return the arrays with an element for each of a pass, and the types of their elements.

        They are loaded in fours; others have fewer elements, in places of their own.
        """
        found = {}
        for i in [*step.operations, *step.external]:
            if (self.stages.spaces[i] or ()) == step.space != ():
                if i in step.external:
                    found[stored(i)] = self._type
                elif (column := self.program.ops[i].reads) is not None:
                    found[self.writer.array(column)] = LANGUAGE.storage[self.writer.dtype(column)]
        return found

    def _each(self, step: Pass, written: Mapping[str, tuple[str, str]]) -> list[str]:
        """Return the loop of a chunk's elements in which results are stored.

        Args:
            step: the pass.
            written: the arrays of its results: the type of an element, and its value.
        """
        whole, types = step.space, self._arrays(step)
        loaded = list(types)
        target = PLACE if whole else "{0}[0]"
        lines = self.computed(step, whole, _FOURTH)
        lines += [f"{target.format(name)} = {value};" for name, (_, value) in written.items()]
        if whole:
            types |= {name: kind for name, (kind, _) in written.items()}
        before = [
            f"const Four<float> {_drawn(i)}_four = four_normals_at({_draw(i)}, i, beside);"
            for i in step.operations
            if self._is_of_four(i, self.index(self.stages.spaces[i] or (), whole, _FOURTH))
        ]
        places = [
            ("place_of", "const long long place_of = i + k * beside;"),
            *self._in_line(whole, self.along_lengths(whole, "place_of"), "lines_of_fours[0]"),
        ]
        body = ["if (i + k * beside >= end)", "    break;", *self.used(lines, places), *lines]
        before += self.used(body, self._fours_in_line(whole, "beside == 1", 1))
        return loop_of_fours(types, loaded, list(written) if whole else [], body, before=before)

    def _each_reduced(self, step: Pass) -> list[str]:
        """Return the loop of a chunk's elements in which they are reduced.

        A thread loads several fours before it computes anything, so that memory has enough to do.
        """
        ops, types = self.program.ops, self._arrays(step)
        fours = {1: _MOST_FOURS, 2: _MOST_FOURS // 2}.get(len(types), 1)
        at_once, functions, others = self._ways_to_reduce(step)
        lines = self.computed(step, step.space, _OF_FOURS)
        lines += [f"{_addends(i)}[k] = {self.names[ops[i].args[0]]};" for i in at_once]
        if others:
            lines += ["if (whole || further_of < left_of) {", *(f"    {line}" for line in others), "}"]
        places = [
            ("further_of", "const int further_of = k / 4 * 4 * (int)blockDim.x + k % 4 * beside;"),
            # Beyond the end it is that of an element that is there: others may have nothing beside them in smaller arrays.
            ("place_of", "const long long place_of = whole || further_of < left_of ? i + further_of : i;"),
            *self._in_line(step.space, self.along_lengths(step.space, "place_of"), "lines_of_fours[k / 4]"),
        ]
        element = [*self.used(lines, places), *lines]
        further = "4 * n * blockDim.x"
        body = [
            "const int left_of = (int)(end - i);",
            f"const bool whole = aligned && left_of >= {4 * (fours - 1)} * (int)blockDim.x + 4;",
            *(f"Four<{kind}> {name}_fours[{fours}];" for name, kind in types.items()),
            *(f"{self._type} {_addends(i)}[{4 * fours}];" for i in at_once),
            "if (whole) {",
            "#pragma unroll",
            f"    for (int n = 0; n < {fours}; n++) {{",
            *(f"        {name}_fours[n] = four_of({name} + i + {further});" for name in types),
            "    }",
            "} else {",
            "#pragma unroll",
            f"    for (int n = 0; n < {fours}; n++) {{",
            *(f"        {name}_fours[n] = each_of({name}, i + {further}, beside, end);" for name in types),
            "    }",
            "}",
            *self.used(element, self._fours_in_line(step.space, "whole", fours)),
            "#pragma unroll",
            f"for (int k = 0; k < {4 * fours}; k++) {{",
            *(f"    {line}" for line in element),
            "}",
        ]
        if at_once:
            body += [
                "if (!whole) {",
                "#pragma unroll",
                f"    for (int k = 0; k < {4 * fours}; k++)",
                "        if (k / 4 * 4 * (int)blockDim.x + k % 4 * beside >= left_of)",
                f"            {' = '.join(f'{_addends(i)}[k]' for i in at_once)} = 0;",
                "}",
            ]
        body += functions
        aligned = " && ".join(f"is_aligned({name})" for name in types) or "true"
        return [
            f"const bool aligned = {aligned};",
            "const int beside = aligned ? 1 : (int)blockDim.x;",
            "#pragma unroll 1",
            f"for (long long i = start + threadIdx.x * (aligned ? 4 : 1); i < end; i += {4 * fours} * blockDim.x) {{",
            *(f"    {line}" for line in body),
            "}",
        ]

    def _in_line(self, whole: Space, places: Sequence[Definition], line: str) -> list[Definition]:
        """Return definitions of places of an element of a four with one division for all of the four, where they allow it.

        Args:
            whole: of the elements.
            places: the definitions, a division for each element.
            line: what the division gives for the four.
        """
        further = f"rest_{whole[-1]}_of" if whole else ""
        return [
            (name, self.integer(name, f"in_line_of ? {line} : {statement.partition(' = ')[2][:-1]}"))
            if name == further
            else (name, statement)
            for name, statement in places
        ]

    def _fours_in_line(self, whole: Space, are_fours: str, fours: int) -> list[Definition]:
        """Return definitions of whether each of some fours lies along the last length as a whole, and of where that begins."""
        last, place = length(whole[-1]) if whole else "1", "i + 4 * n * blockDim.x"
        divided = (
            f"for (int n = 0; n < {fours}; n++) lines_of_fours[n] = in_line_of ? {self.quotient(place, last)} : 0;"
        )
        return [
            ("in_line_of", f"const bool in_line_of = {are_fours} && {last} % 4 == 0;"),
            ("lines_of_fours", f"long long lines_of_fours[{fours}];\n#pragma unroll\n{divided}"),
        ]

    def _ways_to_reduce(self, step: Pass) -> tuple[list[int], list[str], list[str]]:
        """Return the reductions of which several addends are added at once and how, and how the others add each element."""
        ops = self.program.ops
        at_once = [i for i in step.reductions if ops[i].name in SUMS]
        functions = ["add_squares" if ops[i].name == "norm" else "add_numbers" for i in at_once]
        after = [f"{function}({own(i)}, {_addends(i)});" for i, function in zip(at_once, functions, strict=True)]
        return at_once, after, [self._added(i) for i in step.reductions if i not in at_once]

    def _elements(self, step: Pass) -> list[str]:
        stores = {}
        for i in step.stored:
            value = f"({self._type}){self.names[i]}" if self.program.ops[i].kind is Kind.MASK else self.names[i]
            stores[stored(i)] = self._type, value
        stores |= self.written(step.outputs)
        return [*self.rounded(step), *self.extent("CHUNK"), *self._each(step, stores)]

    def written(self, outputs: Iterable[str]) -> dict[str, tuple[str, str]]:
        found = {}
        for name in outputs:
            column = name if self.key.in_place else NEW + name
            value = LANGUAGE.converted(
                self.real, self.writer.dtypes[name], self.names[self.program.array_outputs[name]]
            )
            found[self.writer.array(column)] = LANGUAGE.storage[self.writer.dtypes[name]], value
        return found

    def _chunks(self, step: Pass) -> list[str]:
        lines = [*self.rounded(step), *self.extent("reduced_of")]
        lines += [self.begun(i) for i in step.reductions]
        lines += self._each_reduced(step)
        for i in step.reductions:
            lines.append(f"const {self.part_type(i)} {together(i)} = over_whole_block({own(i)});")
        lines.append("if (threadIdx.x == 0) {")
        lines += [f"    {parts(i)}[chunk - first_chunk_of(table, row)] = {together(i)};" for i in step.reductions]
        return [*lines, "}"]

    def _lines(self, step: Pass) -> list[str]:
        whole = self.stages.source(step.reductions[0])
        along = tuple(k for k in whole if k not in step.space)
        chunk = chunk_of(step, whole)
        place = ("place_of", "const long long place_of = j + k * further_of;")
        places = [*self.along_lengths(step.space, "result_of"), place, *self.along_lengths(along, "place_of")]
        at_once, after, adding = self._ways_to_reduce(step)
        before = [f"{self._type} {_addends(i)}[4] = {{0, 0, 0, 0}};" for i in at_once]
        adding = [*(f"{_addends(i)}[k] = {self.names[self.program.ops[i].args[0]]};" for i in at_once), *adding]
        element = [*self.computed(step, whole, None), *adding]
        across = "1" if chunk == 1 else "blockDim.x < 2 * ACROSS ? blockDim.x / 2 : ACROSS"
        if step.small:
            across = "blockDim.x"
        count = " * ".join(map(length, along)) or "1"
        lines = [
            *self.rounded(step),
            *self.extent(str(chunk)),
            f"const unsigned int across_of = {across};",
            f"const long long count_of = {count};",
            "const long long further_of = blockDim.x / across_of;",
            "for (long long line_of = start; line_of < end; line_of += across_of) {",
            "    const long long result_of = line_of + threadIdx.x % across_of;",
            *(f"    {self.begun(i)}" for i in step.reductions),
            "    if (result_of < end) {",
            "#pragma unroll 1",
            "        for (long long j = threadIdx.x / across_of; j < count_of; j += 4 * further_of) {",
            *(f"            {line}" for line in before),
            "#pragma unroll",
            "            for (int k = 0; k < 4; k++) {",
            "                if (j + k * further_of >= count_of)",
            "                    break;",
            *(f"                {line}" for line in [*self.used(element, places), *element]),
            "            }",
            *(f"            {line}" for line in after),
            "        }",
            "    }",
        ]
        stores = []
        for i in step.reductions:
            kind = self.program.ops[i].kind
            lines.append(f"    const {self.part_type(i)} {together(i)} = over_block({own(i)}, across_of);")
            if kind.is_scalar:
                value = _as_double(kind, self.result(i, "count_of"))
                stores.append(f"values_of[{self.places[i]}] = {value};")
            else:
                stores.append(self.stored_at(i, "result_of", "count_of"))
        lines += ["    if (threadIdx.x < across_of && result_of < end) {", *(f"        {line}" for line in stores)]
        return [*lines, "    }", "}"]

    def _scalars(self, step: Pass) -> list[str]:
        ops, count = self.program.ops, size(self.stages.space)
        lines = []
        for i in step.reductions:
            parts_of = f"{self.initial(i)}, {parts(i)}, {self.chunks(i)}"
            lines.append(f"const {self.part_type(i)} {together(i)} = over_parts({parts_of});")
        inner: list[str] = []
        known: set[int] = set()
        for i in step.reductions:
            if ops[i].kind.is_scalar:
                inner.append(self.writer.assigned(i, self.result(i, count)))
                inner.append(f"values_of[{self.places[i]}] = {_as_double(ops[i].kind, self.names[i])};")
                known.add(i)
            else:
                inner.append(self.stored_at(i, "0", count))
        for i in step.scalars:
            op = ops[i]
            if op.name == "widen":
                load = op.args[0]
                element = self.writer.array_expression(load, "{0}[0]")
                inner.append(self.writer.assigned(i, f"(double){element}"))
            else:
                inner += self.read([j for j in op.args if j in self.places], known)
                inner.append(self.writer.scalar(i))
            inner.append(f"values_of[{self.places[i]}] = {_as_double(op.kind, self.names[i])};")
            known.add(i)
        return [*lines, "if (threadIdx.x == 0) {", *(f"    {line}" for line in inner), "}"]

    # Elements ------------------------------------------------------------------------------------------------------

    def integer(self, name: str, value: str) -> str:
        return f"const long long {name} = {value};"

    def quotient(self, a: str, b: str) -> str:
        return f"divided({a}, {b})"

    def element(self, array: str, place: str) -> str:
        template = {_FOURTH: PLACE, _OF_FOURS: "{0}_fours[k / 4].at[k % 4]"}.get(place, f"{{0}}[{place}]")
        return template.format(array)

    def kept_scalar(self, place: int, kind: Kind) -> str:
        value = f"values_of[{place}]"
        return from_double(kind, value)

    def _draws(self, step: Pass) -> list[str]:
        """Return the statements that say what a parameter's elements are drawn with."""
        found = []
        for i in step.operations:
            if (op := self.program.ops[i]).name in DRAWS:
                key, number, stream = map(self.writer.operand, op.args, (Kind.FLOAT, Kind.INTEGER, Kind.INTEGER))
                words = f"(unsigned long long)(long long){key}, (unsigned long long){number}"
                found.append(f"const Draw {_draw(i)} = {{{words}, {stream}, number_of}};")
        return found

    def _is_of_four(self, i: int, place: str) -> bool:
        """Tell whether an operation draws for four elements at once."""
        return place == _FOURTH and self.program.ops[i].name == "draw_normal" and self.real == "float32"

    def drawn(self, i: int, place: str) -> str:
        op = self.program.ops[i]
        if self._is_of_four(i, place):
            return PLACE.format(_drawn(i))
        element = f"(unsigned long long)({'place_of' if place in (_FOURTH, _OF_FOURS) else place})"
        if op.name == "draw_normal":
            return f"{self.real}_normal_at({_draw(i)}, {element})"
        most = 2**53 - (1 if self.real == "float64" else 2**29)
        return f"round_to_{self.real}(uniform_of(words_of({_draw(i)}, {element}), {most}ll))"

    # Reductions ------------------------------------------------------------------------------------------------------

    def part_type(self, i: int) -> str:
        reduction = self.program.ops[i].name
        return "Sum" if reduction in SUMS else {"max": "Largest", "min": "Smallest"}.get(reduction, "Count")

    def initial(self, i: int) -> str:
        reduction, kind = self.program.ops[i].name, self.part_type(i)
        if reduction in SUMS:
            # Also of float32 numbers: bins of squares that are all zero are not above any others.
            return f"no_sum({'LOWEST_OF_SQUARES' if reduction == 'norm' else 'LOWEST_EXPONENT'})"
        if reduction in ("max", "min"):
            sign = "-" if reduction == "max" else ""
            infinity = "INFINITE" if self.real == "float64" else "(float)INFINITE"
            return f"{kind}{{word_of({sign}{infinity})}}"
        return f"{kind}{{0}}"

    def _added(self, i: int) -> str:
        return f"add({own(i)}, {self.names[self.program.ops[i].args[0]]});"

    def result(self, i: int, count: str) -> str:
        """Return a result in float64, an integer or a truth, given how many elements it is of."""
        part = together(i)
        match self.program.ops[i].name:
            case "sum":
                return f"sum_of({part})"
            case "mean":
                return f"quotient(sum_of({part}), (double){count})"
            case "norm":
                return f"root_of({part})"
            case "max" | "min":
                return f"number_of_{self.real}({part}.word)"
            case "any":
                return f"{part}.word > 0"
            case "all":
                return f"{part}.word == {count}"
            case _:
                return f"(double){part}.word" if not self.program.ops[i].kind.is_scalar else f"{part}.word"


def _addends(i: int) -> str:
    """Return the name of what a thread has of a sum in a round."""
    return f"addends_{i}_of"


def _draw(i: int) -> str:
    """Return the name of what an operation draws with."""
    return f"draw_{i}_of"


def _drawn(i: int) -> str:
    """Return the name of what an operation draws for four elements."""
    return f"drawn_{i}_of"


def _as_double(kind: Kind, value: str) -> str:
    return {Kind.TRUTH: f"{value} ? 1.0 : 0.0", Kind.INTEGER: f"(double)({value})"}.get(kind, value)
