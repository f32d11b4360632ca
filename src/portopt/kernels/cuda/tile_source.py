"""Passes that reduce rows and columns of matrices at once, as CUDA C, with `axes.cuh`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from portopt.kernels.cuda.source import LANGUAGE
from portopt.kernels.pass_writer import Definition, PassWriter, along, length, own, parts, size, stored, together
from portopt.kernels.passes import HEIGHT, TILES, Pass, Tiling
from portopt.kernels.stages import Space
from portopt.program import SUMS, Kind

_ROWS = {1: 4, 2: 4}
"""How many rows of a tile are loaded at once, given of how many arrays; of more it is two, of float64 half as many."""


class TileSource(PassWriter):
    """Writes the passes that reduce tiles, and those that join what they leave."""

    @abstractmethod
    def initial(self, i: int) -> str:
        """Return what is kept of a reduction before there is anything."""

    @abstractmethod
    def result(self, i: int, count: str) -> str:
        """Return a result in float64, an integer or a truth, given how many elements it is of."""

    @abstractmethod
    def part_type(self, i: int) -> str:
        """Return the type of what is kept of a reduction."""

    @abstractmethod
    def written(self, outputs: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Return the arrays of results: the type of an element, and its value."""

    @abstractmethod
    def extent(self, elements: str) -> list[str]:
        """Return the statements that say where a chunk begins and ends."""

    def tiles(self, step: Pass) -> list[str]:
        """Return the body of a pass over tiles."""
        return _TilePass(self, step).body()

    # What kernels know of a parameter

    def tile_definitions(self) -> list[Definition]:
        """Return what is known of a parameter's tiles."""
        last = len(self.stages.space) - 1
        tilings = {tiling.outer: tiling for tiling in self.passes.tiled.values()}
        found = []
        if tilings:
            found.append(("strips_of", f"const long long strips_of = {_parts_of(length(last), '4 * lanes_here()')};"))
        for tiling in tilings.values():
            outer = tiling.outer
            found += [
                (name, f"const long long {name} = {value};")
                for name, value in (
                    (_rows(tiling), _product(length(k) for k in range(outer, last))),
                    (_down(tiling), _parts_of(_rows(tiling), str(HEIGHT))),
                    (
                        _tile_chunks(tiling),
                        _parts_of(_product([*map(length, range(outer)), _down(tiling), "strips_of"]), str(TILES)),
                    ),
                )
            ]
        return found

    def chunks(self, i: int) -> str:
        """Return how many chunks leave a part of a reduction."""
        return _tile_chunks(self.passes.tiled[i]) if i in self.passes.tiled else "chunks_of"

    def line_definitions(self, place: str) -> list[Definition]:
        """Return where tiles leave parts of rows and columns, given where the memory for them begins."""
        found = []
        places = [place]
        for i, tiling in self.passes.tiled.items():
            if i not in self.passes.partial:
                kind = self.line_type(i)
                value = f"({kind} *)(values_of + {' + '.join(places)})"
                found.append((_lines(i), f"{kind} *const {_lines(i)} = {value};"))
                words = f"{'2 * ' if kind == 'PartOfSum' else ''}{self._number_of_parts(i, tiling)}"
                places.append(f"({self.is_finished(i, tiling)} ? 0 : ({words} + 1) / 2 * 2)")
        return found

    def line_type(self, i: int) -> str:
        """Return the type of what tiles leave of rows or columns."""
        return "PartOfSum" if self.program.ops[i].name in SUMS else self.part_type(i)

    def leading(self) -> Space:
        """Return all lengths but the last."""
        return self.stages.space[:-1]

    def is_of_columns(self, i: int) -> bool:
        """Tell whether a reduction is of columns."""
        return self.stages.space[-1] in (self.stages.spaces[i] or ())

    def is_finished(self, i: int, tiling: Tiling) -> str:
        """Return the condition that a tile finds what is reduced as a whole."""
        if self.is_of_columns(i):
            return f"{_down(tiling)} == 1"
        return "strips_of == 1" if self.stages.spaces[i] == self.leading() else "false"

    def _number_of_parts(self, i: int, tiling: Tiling) -> str:
        if self.is_of_columns(i):
            return f"{size(self.stages.spaces[i] or ())} * {_down(tiling)}"
        return _product([*map(length, self.leading()), "strips_of"])

    def begun(self, i: int) -> str:
        """Return the statement that begins what a thread has of a reduction."""
        return f"{self.part_type(i)} {own(i)} = {self.initial(i)};"

    def stored_at(self, i: int, place: str, count: str | None = None) -> str:
        """Return the statement that stores a result, given where, and how many elements it is of, if not all along a length."""
        space = self.stages.spaces[i] or ()
        if count is None:
            count = f"({_product(length(k) for k in self.stages.space if k not in space)})"
        value, is_mask = self.result(i, count), self.program.ops[i].kind is Kind.MASK
        value = f"({LANGUAGE.storage[self.real]})({value})" if is_mask else f"round_to_{self.real}({value})"
        return f"{stored(i)}[{place}] = {value};"

    # What tiles leave, joined

    def joined(self, step: Pass) -> list[str]:
        """Return the body of a pass that joins what tiles leave of rows or of columns."""
        tiling, leading = step.tiling, self.leading()
        assert tiling is not None
        if self.stages.space[-1] in step.space:
            count, places = _down(tiling), []
            place = f"j * {size(step.space)} + result_of"
        else:
            along_space = tuple(k for k in leading if k not in step.space)
            others = _product(map(length, along_space))
            count = f"strips_of * {others}"
            places = [
                *self.along_lengths(step.space, "result_of"),
                ("strip_of", f"const long long strip_of = divided(j, {others});"),
                ("other_of", f"const long long other_of = j - strip_of * ({others});"),
                *self.along_lengths(along_space, "other_of"),
            ]
            place = f"strip_of * {_product(map(length, leading))} + {self.index(leading, self.stages.space, None)}"
        adding = [f"join_part({own(i)}, {_lines(i)}[place_of]);" for i in step.reductions]
        element = [f"const long long place_of = {place};", *adding]
        lines = [
            *self.extent("ACROSS"),
            f"const long long count_of = {count};",
            "const unsigned int most_of = blockDim.x < 2 * ACROSS ? blockDim.x / 2 : ACROSS;",
            "unsigned int results_at_once_of = 1;",
            "while (results_at_once_of < most_of && results_at_once_of < end - start)",
            "    results_at_once_of *= 2;",
            "for (long long line_of = start; line_of < end; line_of += results_at_once_of) {",
            "    const long long result_of = line_of + threadIdx.x % results_at_once_of;",
            *(f"    {self.begun(i)}" for i in step.reductions),
            "    if (result_of < end) {",
            "        const long long further_of = blockDim.x / results_at_once_of;",
            "#pragma unroll 4",
            "        for (long long j = threadIdx.x / results_at_once_of; j < count_of; j += further_of) {",
            *(f"            {line}" for line in [*self.used(element, places), *element]),
            "        }",
            "    }",
        ]
        lines += [
            f"    const {self.part_type(i)} {together(i)} = over_block({own(i)}, results_at_once_of);"
            for i in step.reductions
        ]
        lines.append("    if (threadIdx.x < results_at_once_of && result_of < end) {")
        lines += [f"        {self.stored_at(i, 'result_of')}" for i in step.reductions]
        return [*lines, "    }", "}"]


class _TilePass:
    """Writes one pass over tiles.

    Args:
        source: what it is a part of.
        step: the pass.
    """

    def __init__(self, source: TileSource, step: Pass) -> None:
        assert step.tiling is not None
        self._source, self._step, self._tiling = source, step, step.tiling
        self._ops, self._spaces, self._names = source.program.ops, source.stages.spaces, source.names
        self._last = source.stages.space[-1]
        self._real = LANGUAGE.storage[source.real]
        self._written = source.written(step.outputs)
        # Arrays with all elements, with the types of those; and what reads others, with what they are of.
        self._types: dict[str, str] = {}
        narrow: dict[int, Space] = {}
        for i in [*step.operations, *step.external]:
            space, column = self._spaces[i] or (), self._ops[i].reads
            if i not in step.external and column is None:
                continue
            if space != source.stages.space:
                narrow[i] = space
            elif column is None:
                self._types[stored(i)] = self._real
            else:
                self._types[source.writer.array(column)] = LANGUAGE.storage[source.writer.dtype(column)]
        self._of_row = [i for i, space in narrow.items() if self._last not in space]
        outer = set(range(self._tiling.outer))
        self._of_tile = [i for i in narrow if i not in self._of_row and outer.issuperset(narrow[i][:-1])]
        self._rows = _ROWS.get(len(self._types), 2) // (2 if source.real == "float64" else 1)
        # What is reduced.
        self._sums = {i for i in step.reductions if self._ops[i].name in SUMS}
        self._partial = [i for i in step.reductions if i in source.passes.partial]
        lines = [i for i in step.reductions if i not in self._partial]
        self._columns = [i for i in lines if source.is_of_columns(i)]
        self._lines = [i for i in lines if i not in self._columns]
        self._summands = list(dict.fromkeys(self._reduced(i) for i in step.reductions if i in self._sums))

    def body(self) -> list[str]:
        """Return what a block does with a chunk of tiles."""
        source, down, rows = self._source, _down(self._tiling), _rows(self._tiling)
        arrays = dict.fromkeys([*self._types, *self._written])
        aligned = " && ".join([*(f"is_aligned({name})" for name in arrays), "columns_of % 4 == 0"])
        lines = [
            *source.rounded(self._step),
            f"const long long columns_of = {length(self._last)};",
            f"const bool aligned = {aligned};",
            "const int beside = aligned ? 1 : (int)lanes_here();",
            *map(source.begun, self._partial),
            *source.extent(str(TILES)),
            "for (long long tile_of = start + threadIdx.x / lanes_here(); tile_of < end;",
            "     tile_of += blockDim.x / lanes_here()) {",
            "    const long long above_of = divided(tile_of, strips_of), strip_of = tile_of - above_of * strips_of;",
            f"    const long long outer_of = divided(above_of, {down}), place_down_of = above_of - outer_of * {down};",
            "    const long long first_column_of = strip_of * 4 * lanes_here();",
            "    const long long column_of = first_column_of + threadIdx.x % lanes_here() * (aligned ? 4 : 1);",
            "    const long long columns_left_of = columns_of - column_of;",
            "    const int left_of = columns_left_of < 4 * LANES ? (int)columns_left_of : 4 * LANES;",
            "    const bool whole = aligned && left_of >= 4;",
            f"    const long long first_of = outer_of * {rows} + place_down_of * {HEIGHT};",
            f"    const long long rows_left_of = {rows} - place_down_of * {HEIGHT};",
            f"    const long long last_of = first_of + (rows_left_of < {HEIGHT} ? rows_left_of : {HEIGHT});",
            *_indented([*self._begin_columns(), *self._rounds(), *self._end_columns()]),
            "}",
        ]
        lines += [f"const {source.part_type(i)} {together(i)} = over_whole_block({own(i)});" for i in self._partial]
        if self._partial:
            left = [f"{parts(i)}[chunk - first_chunk_of(table, row)] = {together(i)};" for i in self._partial]
            lines += ["if (threadIdx.x == 0) {", *_indented(left), "}"]
        return lines

    def _reduced(self, i: int) -> int:
        return self._ops[i].args[0]

    def _value(self, i: int) -> str:
        """Return what an operation is for the `k`-th element of a four in the `r`-th row."""
        source, space = self._source, self._spaces[i] or ()
        whole = source.stages.space
        array = "{0}_fours[r].at[k]" if space == whole else f"{{0}}[{source.index(space, whole, None)}]"
        if i in self._step.external:
            element = array.format(stored(i))
            return f"{element} != 0" if self._ops[i].kind is Kind.MASK else element
        return source.writer.array_expression(i, array if self._ops[i].reads is not None else None)

    def _assigned(self, operations: Iterable[int]) -> list[str]:
        return [self._source.writer.assigned(i, self._value(i)) for i in operations]

    # Columns

    def _column(self) -> Definition:
        return along(self._last), f"const long long {along(self._last)} = column_of + k * beside;"

    def _begin_columns(self) -> list[str]:
        """Return what is done before the first row: what is of a column is read, and what is kept of it begun."""
        source, lines = self._source, []
        for i in self._of_tile:
            kind = LANGUAGE.types.get(self._ops[i].kind) or self._real
            lines.append(f"{kind} {_of_column(self._names[i])}[4];")
        if self._of_tile:
            read = self._assigned(self._of_tile)
            read += [f"{_of_column(self._names[i])}[k] = {self._names[i]};" for i in self._of_tile]
            outer = source.along_lengths(tuple(range(self._tiling.outer)), "outer_of")
            lines += _each_column([*source.used(read, [*outer, self._column()]), *read])
        for i in self._columns:
            if i in self._sums:
                lines += [f"Column<{self._real}> {own(i)}[4];", *_unrolled("k", 4, [f"begin({own(i)}[k]);"])]
            else:
                lines += [f"{source.part_type(i)} {own(i)}[4];", *self._begun_each(i, "k", 4)]
        return lines

    def _begun_each(self, i: int, index: str, count: int) -> list[str]:
        return _unrolled(index, count, [f"{own(i)}[{index}] = {self._source.initial(i)};"])

    def _end_columns(self) -> list[str]:
        """Return what is done with what a lane has found of its columns."""
        lines = []
        for i in self._columns:
            column = f"{own(i)}[k]"
            value = f"sum_of_bins({column}.bins, {column}.exponent, {column}.special)" if i in self._sums else column
            result = "outer_of * columns_of + column_of + k * beside"
            left = self._left(i, value, result, f"place_down_of * {size(self._spaces[i] or ())} + {result}")
            lines += _each_column(left)
        return lines

    # Rows

    def _rounds(self) -> list[str]:
        """Return the loop of rows, some of which are loaded at once."""
        lines = self._loaded()
        lines += [f"{self._real} {_summands(j)}[{4 * self._rows}] = {{}};" for j in self._summands]
        for i in self._lines:
            if i not in self._sums:
                lines += [f"{self._source.part_type(i)} {own(i)}[{self._rows}];", *self._begun_each(i, "r", self._rows)]
        row = ["if (row_of + r < last_of) {", *_indented(self._row()), "}"]
        lines += _unrolled("r", self._rows, row)
        for i in self._columns:
            if i in self._sums:
                lines += _unrolled("k", 4, [f"add_column({own(i)}[k], {_summands(self._reduced(i))}, k);"])
        for i in self._partial:
            if i in self._sums:
                function = "add_squares" if self._ops[i].name == "norm" else "add_numbers"
                lines.append(f"{function}({own(i)}, {_summands(self._reduced(i))});")
        for i in self._lines:
            lines += ["{", *_indented(self._end_rows(i)), "}"]
        head = f"for (long long row_of = first_of; row_of < last_of; row_of += {self._rows}) {{"
        return ["#pragma unroll 1", head, *_indented(lines), "}"]

    def _loaded(self) -> list[str]:
        loads = [
            "const long long i = (row_of + r) * columns_of + column_of;",
            "if (whole && row_of + r < last_of) {",
            *(f"    {name}_fours[r] = four_of({name} + i);" for name in self._types),
            "} else {",
            "    const long long end_of = row_of + r < last_of ? i - column_of + columns_of : 0;",
            *(f"    {name}_fours[r] = each_of({name}, i, beside, end_of);" for name in self._types),
            "}",
        ]
        return [
            *(f"Four<{kind}> {name}_fours[{self._rows}];" for name, kind in self._types.items()),
            *_unrolled("r", self._rows, loads),
        ]

    def _row(self) -> list[str]:
        """Return what is done with the elements of a row."""
        source = self._source
        places = source.along_lengths(source.leading(), "line_of")
        lines = [
            *self._assigned(self._of_row),
            *(f"Four<{kind}> {name}_four;" for name, (kind, _) in self._written.items()),
            *_each_column(self._element()),
        ]
        if self._written:
            lines += [
                "const long long i = (row_of + r) * columns_of + column_of;",
                "if (whole) {",
                *(f"    put_four({name} + i, {name}_four);" for name in self._written),
                "} else {",
                *(
                    f"    put_each({name}, i, beside, i - column_of + columns_of, {name}_four);"
                    for name in self._written
                ),
                "}",
            ]
        return [*source.used(lines, [("line_of", "const long long line_of = row_of + r;"), *places]), *lines]

    def _element(self) -> list[str]:
        lines = []
        for i in sorted({*self._step.operations, *self._step.external}, key=lambda i: (self._ops[i].reads is None, i)):
            if i in self._of_tile:
                lines.append(self._source.writer.assigned(i, f"{_of_column(self._names[i])}[k]"))
            elif i not in self._of_row:
                lines += self._assigned([i])
        lines += [f"{name}_four.at[k] = {value};" for name, (_, value) in self._written.items()]
        lines += [f"{_summands(j)}[4 * r + k] = {self._names[j]};" for j in self._summands]
        for reductions, place in ((self._columns, "[k]"), (self._lines, "[r]"), (self._partial, "")):
            for i in reductions:
                if i not in self._sums:
                    lines.append(f"add({own(i)}{place}, {self._names[self._reduced(i)]});")
        return [*self._source.used(lines, [self._column()]), *lines]

    def _end_rows(self, i: int) -> list[str]:
        """Return what is done with what the lanes have found of some rows."""
        count, lines, value = self._rows, list[str](), f"{own(i)}[n]"
        if i in self._sums:
            lines += [f"Bins {own(i)}[{count}];", f"int exponents_of[{count}];"]
            lines.append(f"add_rows({own(i)}, exponents_of, {_summands(self._reduced(i))});")
            value = f"sum_of_row({own(i)}[n], exponents_of, r)"
        rows = _product(map(length, self._source.leading()))
        left = self._left(i, value, "row_of + r", f"strip_of * {rows} + row_of + r")
        return [
            *lines,
            f"over_rows({own(i)});",
            f"for (int n = 0; n < number_of_rows<{count}>(); n++) {{",
            f"    const int r = first_of_rows<{count}>() + n;",
            f"    if (is_first_with_rows<{count}>() && row_of + r < last_of) {{",
            *_indented(_indented(left)),
            "    }",
            "}",
        ]

    def _left(self, i: int, value: str, result: str, part: str) -> list[str]:
        """Return the statements that store what a tile has found, given where, if it is a result and if it is a part."""
        source = self._source
        finished = source.is_finished(i, self._tiling)
        found = f"const {source.part_type(i)} {together(i)} = {value};"
        left = f"{_lines(i)}[{part}] = part_of({together(i)});"
        if finished == "false":
            return [found, left]
        return [found, f"if ({finished})", f"    {source.stored_at(i, result)}", "else", f"    {left}"]


def _indented(lines: Iterable[str]) -> list[str]:
    return [line if line.startswith("#") else f"    {line}" for line in lines]


def _unrolled(index: str, count: int, lines: Sequence[str]) -> list[str]:
    return ["#pragma unroll", f"for (int {index} = 0; {index} < {count}; {index}++) {{", *_indented(lines), "}"]


def _each_column(lines: Sequence[str]) -> list[str]:
    """Return what is done for each of a lane's columns that there are."""
    return _unrolled("k", 4, ["if (k * beside < left_of) {", *_indented(lines), "}"])


def _of_column(name: str) -> str:
    """Return the name of what a lane has read for each of its columns."""
    return f"{name}_columns_of"


def _product(factors: Iterable[str]) -> str:
    return " * ".join(factors) or "1"


def _parts_of(number: str, each: str) -> str:
    return f"({number} + {each} - 1) / ({each})"


def _rows(tiling: Tiling) -> str:
    return f"rows_{tiling.outer}_of"


def _down(tiling: Tiling) -> str:
    return f"down_{tiling.outer}_of"


def _tile_chunks(tiling: Tiling) -> str:
    return f"tile_chunks_{tiling.outer}_of"


def _lines(i: int) -> str:
    """Return the name of where tiles leave what they find of rows or columns."""
    return f"lines_{i}_of"


def _summands(j: int) -> str:
    """Return the name of what a thread has of an operation that is summed up."""
    return f"summands_{j}_of"
