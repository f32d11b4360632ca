"""Passes that reduce rows and columns of matrices at once, as CUDA C, with `axes.cuh`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

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

    # What kernels know of a parameter

    def tile_definitions(self) -> list[Definition]:
        """Return what is known of a parameter's tiles."""
        last = len(self.stages.space) - 1
        tilings = dict.fromkeys(self.passes.tiled.values())
        found = []
        if tilings:
            found.append(("strips_of", f"const long long strips_of = {_parts_of(length(last), '4 * lanes_here()')};"))
        for tiling in tilings:
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
                kind = self._line_type(i)
                value = f"({kind} *)(values_of + {' + '.join(places)})"
                found.append((_lines(i), f"{kind} *const {_lines(i)} = {value};"))
                words = f"{'2 * ' if kind == 'PartOfSum' else ''}{self._number_of_parts(i, tiling)}"
                places.append(f"({self._is_finished(i, tiling)} ? 0 : ({words} + 1) / 2 * 2)")
        return found

    def _line_type(self, i: int) -> str:
        return "PartOfSum" if self.program.ops[i].name in SUMS else self.part_type(i)

    def _leading(self) -> Space:
        return self.stages.space[:-1]

    def _is_of_columns(self, i: int) -> bool:
        return self.stages.space[-1] in (self.stages.spaces[i] or ())

    def _is_finished(self, i: int, tiling: Tiling) -> str:
        """Return the condition that a tile finds what is reduced as a whole."""
        if self._is_of_columns(i):
            return f"{_down(tiling)} == 1"
        return "strips_of == 1" if self.stages.spaces[i] == self._leading() else "false"

    def _number_of_parts(self, i: int, tiling: Tiling) -> str:
        if self._is_of_columns(i):
            return f"{size(self.stages.spaces[i] or ())} * {_down(tiling)}"
        return _product([*map(length, self._leading()), "strips_of"])

    # Tiles

    def tiles(self, step: Pass) -> list[str]:
        """Return the body of a pass over tiles."""
        tiling = step.tiling
        assert tiling is not None
        ops, last = self.program.ops, self.stages.space[-1]
        real = LANGUAGE.storage[self.real]
        types, narrow = self._arrays(step)
        written = self.written(step.outputs)
        rows = _ROWS.get(len(types), 2) // (2 if self.real == "float64" else 1)
        partial = [i for i in step.reductions if i in self.passes.partial]
        lines = [i for i in step.reductions if i not in partial]
        sums = [i for i in step.reductions if ops[i].name in SUMS]
        sources = list(dict.fromkeys(ops[i].args[0] for i in sums))
        others = [i for i in lines if i not in sums]
        of_rows, of_columns = ([i for i in lines if self._is_of_columns(i) is wanted] for wanted in (False, True))

        of_tile = [i for i in narrow if last in narrow[i] and set(narrow[i][:-1]) <= set(range(tiling.outer))]
        of_row = [i for i in narrow if last not in narrow[i]]
        order = sorted({*step.operations, *step.external}, key=lambda i: (ops[i].reads is None, i))
        outer = self.along_lengths(tuple(range(tiling.outer)), "outer_of")
        column = (along(last), f"const long long {along(last)} = column_of + k * beside;")
        row_places = [
            ("line_of", "const long long line_of = row_of + r;"),
            *self.along_lengths(self._leading(), "line_of"),
        ]
        # An element
        element = []
        for i in order:
            if i in of_tile:
                element.append(self.writer.assigned(i, f"{self.names[i]}_columns_of[k]"))
            elif i not in of_row:
                element.append(self.writer.assigned(i, self._value(i, step)))
        element += [f"{name}_four.at[k] = {value};" for name, (_, value) in written.items()]
        element += [f"{_addends(j)}[4 * r + k] = {self.names[j]};" for j in sources]
        for i in others:
            x = self.names[ops[i].args[0]]
            element.append(f"add({own(i)}[{'k' if i in of_columns else 'r'}], {x});")
        element += [f"add({own(i)}, {self.names[ops[i].args[0]]});" for i in partial if i not in sums]
        element = [*self.used(element, [column]), *element]
        row = [
            *(self.writer.assigned(i, self._value(i, step)) for i in of_row),
            *(f"Four<{kind}> {name}_four;" for name, (kind, _) in written.items()),
            "#pragma unroll",
            "for (int k = 0; k < 4; k++)",
            "    if (k * beside < left_of) {",
            *(f"        {line}" for line in element),
            "    }",
        ]
        if written:
            row += [
                "const long long i = (row_of + r) * columns_of + column_of;",
                "if (whole) {",
                *(f"    put_four({name} + i, {name}_four);" for name in written),
                "} else {",
                *(f"    put_each({name}, i, beside, i - column_of + columns_of, {name}_four);" for name in written),
                "}",
            ]
        row = [*self.used(row, row_places), *row]
        of_each_column = [self.writer.assigned(i, self._value(i, step)) for i in of_tile]
        of_each_column += [f"{self.names[i]}_columns_of[k] = {self.names[i]};" for i in of_tile]

        tile = [f"{self._name_type(i)} {self.names[i]}_columns_of[4];" for i in of_tile]
        if of_tile:
            known = self.used(of_each_column, [*outer, column])
            tile += ["#pragma unroll", "for (int k = 0; k < 4; k++)", "    if (k * beside < left_of) {"]
            tile += [*(f"        {line}" for line in [*known, *of_each_column]), "    }"]
        for i in of_columns:
            kind = f"Column<{real}>" if i in sums else self.part_type(i)
            tile += [f"{kind} {own(i)}[4];", "#pragma unroll", "for (int k = 0; k < 4; k++)"]
            tile.append(f"    begin({own(i)}[k]);" if i in sums else f"    {own(i)}[k] = {self.initial(i)};")
        tile += ["#pragma unroll 1", f"for (long long row_of = first_of; row_of < last_of; row_of += {rows}) {{"]
        tile += [f"    {line}" for line in self._loaded(types, rows)]
        tile += [f"    {real} {_addends(j)}[{4 * rows}] = {{}};" for j in sources]
        for i in others:
            if i in of_rows:
                tile += [
                    f"    {self.part_type(i)} {own(i)}[{rows}];",
                    "#pragma unroll",
                    f"    for (int r = 0; r < {rows}; r++)",
                ]
                tile.append(f"        {own(i)}[r] = {self.initial(i)};")
        tile += ["#pragma unroll", f"    for (int r = 0; r < {rows}; r++)", "        if (row_of + r < last_of) {"]
        tile += [*(f"            {line}" for line in row), "        }"]
        tile += [f"    {line}" for i in of_columns if i in sums for line in self._column_added(i)]
        for i in partial:
            if i in sums:
                function = "add_squares" if ops[i].name == "norm" else "add_numbers"
                tile.append(f"    {function}({own(i)}, {_addends(ops[i].args[0])});")
        tile += [f"    {line}" for i in of_rows for line in self._row_left(i, rows, tiling, is_sum=i in sums)]
        tile.append("}")
        tile += [line for i in of_columns for line in self._column_left(i, tiling, is_sum=i in sums)]

        names = [*types, *(name for name in written if name not in types)]
        aligned = " && ".join([*(f"is_aligned({name})" for name in names), "columns_of % 4 == 0"])
        body = [
            *self.rounded(step),
            f"const long long columns_of = {length(last)};",
            f"const bool aligned = {aligned};",
            "const int beside = aligned ? 1 : (int)lanes_here();",
            *(self._begun(i) for i in partial),
            *self.extent(str(TILES)),
            "for (long long tile_of = start + threadIdx.x / lanes_here(); tile_of < end; tile_of += blockDim.x / lanes_here()) {",
            "    const long long matrix_tile_of = divided(tile_of, strips_of), strip_of = tile_of - matrix_tile_of * strips_of;",
            f"    const long long outer_of = divided(matrix_tile_of, {_down(tiling)});",
            f"    const long long tile_down_of = matrix_tile_of - outer_of * {_down(tiling)};",
            "    const long long first_column_of = strip_of * 4 * lanes_here();",
            "    const long long column_of = first_column_of + threadIdx.x % lanes_here() * (aligned ? 4 : 1);",
            "    const long long columns_left_of = columns_of - column_of;",
            "    const int left_of = columns_left_of < 4 * LANES ? (int)columns_left_of : 4 * LANES;",
            "    const bool whole = aligned && left_of >= 4;",
            f"    const long long first_of = outer_of * {_rows(tiling)} + tile_down_of * {HEIGHT};",
            f"    const long long rows_left_of = {_rows(tiling)} - tile_down_of * {HEIGHT};",
            f"    const long long last_of = first_of + (rows_left_of < {HEIGHT} ? rows_left_of : {HEIGHT});",
            *(f"    {line}" for line in tile),
            "}",
        ]
        for i in partial:
            kind = self.part_type(i)
            body.append(f"const {kind} {together(i)} = over_block({own(i)}, 1);")
        if partial:
            body.append("if (threadIdx.x == 0) {")
            body += [f"    {parts(i)}[chunk - first_chunk_of(table, row)] = {together(i)};" for i in partial]
            body.append("}")
        return body

    def _arrays(self, step: Pass) -> tuple[dict[str, str], dict[int, Space]]:
        """Return the arrays with all elements, with the types of those, and what reads others, with what they are of."""
        types: dict[str, str] = {}
        narrow: dict[int, Space] = {}
        for i in [*step.operations, *step.external]:
            space, column = self.stages.spaces[i] or (), self.program.ops[i].reads
            if i not in step.external and column is None:
                continue
            if space != self.stages.space:
                narrow[i] = space
            elif column is None:
                types[stored(i)] = LANGUAGE.storage[self.real]
            else:
                types[self.writer.array(column)] = LANGUAGE.storage[self.writer.dtype(column)]
        return types, narrow

    def _value(self, i: int, step: Pass) -> str:
        """Return what an operation is for the `k`-th element of a four in the `r`-th row."""
        space, whole = self.stages.spaces[i] or (), self.stages.space
        array = "{0}_fours[r].at[k]" if space == whole else f"{{0}}[{self.index(space, whole, None)}]"
        if i in step.external:
            element = array.format(stored(i))
            return f"{element} != 0" if self.program.ops[i].kind is Kind.MASK else element
        return self.writer.array_expression(i, array if self.program.ops[i].reads is not None else None)

    def _name_type(self, i: int) -> str:
        return LANGUAGE.types.get(self.program.ops[i].kind) or LANGUAGE.storage[self.real]

    def _loaded(self, types: dict[str, str], rows: int) -> list[str]:
        lines = [f"Four<{kind}> {name}_fours[{rows}];" for name, kind in types.items()]
        return [
            *lines,
            "#pragma unroll",
            f"for (int r = 0; r < {rows}; r++) {{",
            "    const long long i = (row_of + r) * columns_of + column_of;",
            "    if (whole && row_of + r < last_of) {",
            *(f"        {name}_fours[r] = four_of({name} + i);" for name in types),
            "    } else {",
            "        const long long end_of = row_of + r < last_of ? i - column_of + columns_of : 0;",
            *(f"        {name}_fours[r] = each_of({name}, i, beside, end_of);" for name in types),
            "    }",
            "}",
        ]

    def _begun(self, i: int) -> str:
        return f"{self.part_type(i)} {own(i)} = {self.initial(i)};"

    def _column_added(self, i: int) -> list[str]:
        addends = _addends(self.program.ops[i].args[0])
        return ["#pragma unroll", "for (int k = 0; k < 4; k++)", f"    add_column({own(i)}[k], {addends}, k);"]

    def _row_left(self, i: int, rows: int, tiling: Tiling, *, is_sum: bool) -> list[str]:
        """Return what is done with what the lanes have found of some rows."""
        lines = []
        if is_sum:
            lines += [f"Bins {own(i)}[{rows}];", f"int exponents_of[{rows}];"]
            lines.append(f"add_rows({own(i)}, exponents_of, {_addends(self.program.ops[i].args[0])});")
            value = f"sum_of_row({own(i)}[n], exponents_of, r)"
        else:
            value = f"{own(i)}[n]"
        rows_all = _product(map(length, self._leading()))
        lines += [
            f"over_rows({own(i)});",
            f"for (int n = 0; n < number_of_rows<{rows}>(); n++) {{",
            f"    const int r = first_of_rows<{rows}>() + n;",
            f"    if (is_first_with_rows<{rows}>() && row_of + r < last_of) {{",
            f"        const {self.part_type(i)} {together(i)} = {value};",
            *(f"        {line}" for line in self._left(i, tiling, "row_of + r", f"strip_of * {rows_all} + row_of + r")),
            "    }",
            "}",
        ]
        return ["{", *(f"    {line}" for line in lines), "}"]

    def _column_left(self, i: int, tiling: Tiling, *, is_sum: bool) -> list[str]:
        """Return what is done with what a lane has found of its columns."""
        value = (
            f"sum_of_bins({own(i)}[k].bins, {own(i)}[k].exponent, {own(i)}[k].special)" if is_sum else f"{own(i)}[k]"
        )
        result = "outer_of * columns_of + column_of + k * beside"
        part = f"tile_down_of * {size(self.stages.spaces[i] or ())} + {result}"
        return [
            "#pragma unroll",
            "for (int k = 0; k < 4; k++)",
            "    if (k * beside < left_of) {",
            f"        const {self.part_type(i)} {together(i)} = {value};",
            *(f"        {line}" for line in self._left(i, tiling, result, part)),
            "    }",
        ]

    def _left(self, i: int, tiling: Tiling, result: str, part: str) -> list[str]:
        finished = self._is_finished(i, tiling)
        left = f"{_lines(i)}[{part}] = part_of({together(i)});"
        if finished == "false":
            return [left]
        return [f"if ({finished})", f"    {self._stored_at(i, result)}", "else", f"    {left}"]

    def _stored_at(self, i: int, place: str) -> str:
        value = self.result(i, self._count(i))
        is_mask = self.program.ops[i].kind is Kind.MASK
        value = f"({LANGUAGE.storage[self.real]})({value})" if is_mask else f"round_to_{self.real}({value})"
        return f"{stored(i)}[{place}] = {value};"

    def _count(self, i: int) -> str:
        """Return of how many elements each result of a reduction is."""
        space = self.stages.spaces[i] or ()
        return f"({_product(length(k) for k in self.stages.space if k not in space)})"

    # What tiles leave, joined

    def joined(self, step: Pass) -> list[str]:
        """Return the body of a pass that joins what tiles leave of rows or of columns."""
        tiling, leading = step.tiling, self._leading()
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
            *(f"    {self._begun(i)}" for i in step.reductions),
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
        lines += [f"        {self._stored_at(i, 'result_of')}" for i in step.reductions]
        return [*lines, "    }", "}"]


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


def _addends(j: int) -> str:
    """Return the name of what a thread has of an operation that is summed up."""
    return f"summands_{j}_of"
