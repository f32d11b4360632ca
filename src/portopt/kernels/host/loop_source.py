"""Loops over elements as functions of a kernel: what they compute, store and reduce, one line of a matrix after the other."""

from __future__ import annotations

from collections.abc import Sequence

from portopt.kernels.host.function_source import Function, at_name, length_name, size_name, use_size
from portopt.kernels.host.reduction_source import ABOVE, AHEAD, BELOW, BLOCK, INFINITE, LINES
from portopt.kernels.host.staged_variables import Variables
from portopt.kernels.stages import Loop, Space
from portopt.program import DRAWS, REDUCTIONS, SUMS, Kind


class LoopWriter:
    """Writes the body of a loop over elements."""

    def __init__(self, source: Variables, function: Function, loop: Loop) -> None:
        self.source = source
        self.function = function
        self.loop = loop
        self.space = loop.space
        self.program = source.program
        self.names = source.names
        self.inner = loop.space[-1] if loop.space else None
        self.position = "j" if len(loop.space) > 1 else "i"
        """Of an element in its line."""
        self.stored = {self.program.array_outputs[name]: name for name in loop.stored}
        """Operations whose results are read where an earlier loop has stored them."""
        self.origin = "origin"
        """The first element of the line."""
        self.fetched: list[str] = []
        """The array of which later elements are fetched in each call that adds up elements."""

    def write(self) -> None:
        line: list[str] = []
        element: list[str] = []
        in_line = set(self._external())
        for i in sorted({*in_line, *self.loop.operations}):
            expression = self._expression(i, external=i in in_line)
            if expression is None:
                continue
            text = self.source.writer.assigned(i, expression)
            (element if self._varies(i) else line).append(text)
        stores = self._stores()
        pair = self._sums_of_lines_and_columns()
        if pair is not None:
            self._nest(self._in_lines(*pair, line, [*element, *stores]), "height")
            return
        if not self.loop.reductions:
            body = self._in_one(element, stores)
        elif self.loop.outputs:
            body = self._in_blocks([*element, *stores])
        else:
            body = self._in_blocks(element) + (self._in_one(element, stores) if stores else [])
        self._nest([*line, *body])

    def _external(self) -> list[int]:
        """Return the kept results of other loops that are needed here."""
        outputs = [self.program.array_outputs[name] for name in self.loop.outputs]
        sources = [self.program.ops[i].args[0] for i in self.loop.reductions]
        needed = [
            *(
                j
                for i in self.loop.operations
                if self.program.ops[i].name not in REDUCTIONS
                for j in self.program.ops[i].args
            ),
            *outputs,
            *sources,
        ]
        return [
            j
            for j in dict.fromkeys(needed)
            if (j in self.source.kept or j in self.stored) and j not in self.loop.operations
        ]

    def _varies(self, i: int) -> bool:
        """Tell whether an operation has another value for each element of a line."""
        return (
            self.inner is None or self.source.stages.is_uniform(i) or self.inner in (self.source.stages.spaces[i] or ())
        )

    def _expression(self, i: int, *, external: bool) -> str | None:
        op, source = self.program.ops[i], self.source
        space = source.stages.spaces[i] or ()
        if i in self.stored:
            return f"{self.source.column(self.function, self.stored[i])}[{self.index(space)}]"
        if external:
            element = f"{self.function.use(source.value_name(i))}[{self.index(space)}]"
            return f"{element} != 0.0" if op.kind is Kind.MASK else element
        if op.name in REDUCTIONS:
            value = source.result(self.function, i, self.index(space))
            return value if op.kind is Kind.MASK else f"round_to_{source.real}({value})"
        if op.name in DRAWS:
            number = (
                f"{op.name}({', '.join([*map(self._whole, op.args), self.function.use('place'), self.index(space)])})"
            )
            return source.language.converted("float64", source.real, number)
        if op.reads is not None:
            self.function.use(source.writer.array(op.reads))
            return source.writer.array_expression(i, f"{{0}}[{self.index(space)}]")
        return source.writer.array_expression(i)

    def _whole(self, i: int) -> str:
        """Return a scalar of the step that is a whole number."""
        op = self.program.ops[i]
        if op.name == "constant":
            return repr(op.label)
        name = self.function.use(self.names[i])
        return name if op.kind is Kind.INTEGER else f"numpy_int64({name})"

    def index(self, space: Space) -> str:
        """Return the index, in an array of a space, of what belongs to an element."""
        if space == self.space and space:
            return "i"
        if not space:
            return self.function.use("zero")
        return f"{at_name(space)} + {self.position}" if self.inner in space else at_name(space)

    # Lines of elements

    def _nest(self, body: Sequence[str], height: str = "1") -> None:
        lines = self.function.lines
        if not self.space:
            lines += ["begin = first", "end = last", *body]
            return
        if len(self.space) == 1:
            lines += ["begin = first", "end = last", *body]
            return
        inner = self.function.use(length_name(self.space[-1]))
        outer = self.space[:-1]
        lines += [
            "if first < last:",
            f"    line = first // {inner}",
            f"    origin = line * {inner}",
            "    while origin < last:",
            "        begin = max(first - origin, 0)",
            f"        end = min(last - origin, {inner})",
        ]
        indices = {outer[0]: "line"}
        if len(outer) > 1:
            lines.append("        rest = line")
            for k in reversed(outer[1:]):
                length = self.function.use(length_name(k))
                lines += [f"        index_{k}_of = rest % {length}", f"        rest = rest // {length}"]
                indices[k] = f"index_{k}_of"
            indices[outer[0]] = "rest"
        text = "\n".join(body)
        for space in self._spaces():
            if f"{at_name(space)}" not in text:
                continue
            place = ""
            for k in space:
                if k == self.inner:
                    place = f"({place}) * {inner}" if place else "0"
                else:
                    place = f"({place}) * {self.function.use(length_name(k))} + {indices[k]}" if place else indices[k]
            lines.append(f"        {at_name(space)} = {place}")
        lines += [f"        {line}" for line in body]
        lines += [f"        line += {height}", f"        origin += {inner}" + f" * {height}" * (height != "1")]

    def _spaces(self) -> list[Space]:
        spaces = {self.source.stages.spaces[i] for i in range(len(self.program.ops))}
        return sorted(space for space in spaces if space and space != self.space and set(space) <= set(self.space))

    def _each(self, begin: str, end: str, body: Sequence[str]) -> list[str]:
        """Return a loop over elements of a line."""
        lines = [f"for {self.position} in range({begin}, {end}):"]
        if self.position == "j":
            lines.append(f"    i = {self.origin} + j")
        return lines + [f"    {line}" for line in body]

    def _in_one(self, element: Sequence[str], stores: Sequence[str]) -> list[str]:
        return self._each("begin", "end", [*element, *stores])

    def _stores(self) -> list[str]:
        source, lines = self.source, []
        for i in self.loop.kept:
            value = f"real_{source.real}(1.0 if {self.names[i]} else 0.0)"
            value = value if self.program.ops[i].kind is Kind.MASK else self.names[i]
            lines.append(f"{self.function.use(source.value_name(i))}[{self.index(self.space)}] = {value}")
        for name in self.loop.outputs:
            target = self.source.column(self.function, name)
            value = source.language.converted(
                source.real, source.writer.dtypes[name], self.names[self.program.array_outputs[name]]
            )
            lines.append(f"{target}[{self.index(self.space)}] = {value}")
        return lines

    # Reductions

    def _in_blocks(self, element: Sequence[str]) -> list[str]:
        head: list[str] = []
        before: list[str] = []
        body = list(element)
        after: list[str] = []
        done: set[str] = set()
        for i in self.loop.reductions:
            self._reduce(i, head, before, body, after, done)
        return [
            *head,
            f"for start in range(begin, end, {BLOCK}):",
            f"    stop = min(start + {BLOCK}, end)",
            *(f"    {line}" for line in [*before, *self._each("start", "stop", body), *after]),
        ]

    def _sums_of_lines_and_columns(self) -> tuple[int, int] | None:
        """Return two sums of the same elements, along lines and along columns, that can be added to together."""
        if len(self.space) != 2 or self.source.real != "float32" or self.loop.kept:
            return None
        ops, spaces = self.program.ops, self.source.stages.spaces
        sums = [i for i in self.loop.reductions if ops[i].name in SUMS]
        for i in sums:
            for k in sums:
                is_alike = ops[i].args == ops[k].args and (ops[i].name == "norm") == (ops[k].name == "norm")
                if is_alike and spaces[i] == self.space[:1] and spaces[k] == self.space[1:]:
                    return i, k
        return None

    def _in_lines(self, i: int, k: int, line: Sequence[str], element: Sequence[str]) -> list[str]:
        """Return the loop over some lines at once, given the sums of lines and of columns."""
        source, op = self.source, self.program.ops[i]
        x, inner, squared = self.names[op.args[0]], self.function.use(length_name(self.space[-1])), op.name == "norm"
        source.lines.add(squared)
        buffer, largest, origin = f"buffer_{x}_of", f"largest_{x}_of", self.origin
        ahead = self._ahead(f"lines_{x}_of", f"{LINES} * {inner} + start")
        pitch = f"place_of({self.fetched[0]}, {inner}) - place_of({self.fetched[0]}, zero)" if self.fetched else "zero"
        self.function.use("zero")
        self.origin = "below"
        head: list[str] = []
        before = [f"{largest} = integer_float32(0)"]
        body = [*element, f"{buffer}[j - start] = {x}"]
        body.append(f"{largest} = larger_float32({largest}, magnitude_float32({x}))")
        after = [f"magnitudes[level] = magnitude_to_float32({largest})"]
        done = {buffer, largest}
        for other in self.loop.reductions:
            if other not in (i, k):
                self._reduce(other, head, before, body, after, done)
        sums = [
            self.function.use(name)
            for j in (i, k)
            for name in (source.kept_name(j), size_name(source.stages.spaces[j]))
        ]
        each = [
            f"below = {origin} + level * {inner}",
            f"{at_name(self.space[:1])} = line + level",
            *line,
            f"{buffer} = part_of_float32(lines_{x}_of, {BLOCK} * level)",
            *before,
            *self._each("start", "stop", body),
            *after,
        ]
        return [
            *head,
            f"lines_{x}_of = lines_float32()",
            "magnitudes = magnitudes_float32()",
            f"height = {LINES} if begin == 0 and origin + {LINES} * {inner} <= last else 1",
            f"for start in range(begin, end, {BLOCK}):",
            f"    stop = min(start + {BLOCK}, end)",
            "    for level in range(height):",
            *(f"        {text}" for text in each),
            f"    add_lines{'_squares' * squared}(",
            f"        lines_{x}_of, height, stop - start, magnitudes, {sums[0]}, {sums[1]}, line, {sums[2]}, {sums[3]}, start,",
            f"        {ahead}, {pitch},",
            "    )",
        ]

    def _ahead(self, buffer: str, distance: str) -> str:
        """Return the address from which on elements are fetched while a buffer is added: of one array after the other."""
        loads = (self.program.ops[i] for i in self.loop.operations if self.source.stages.spaces[i] == self.space)
        names = [self.source.writer.array(op.reads) for op in loads if op.reads is not None]
        names += [self.source.column(self.function, name) for name in self.stored.values()]
        if len(self.space) < 2 or not names:
            return f"place_of({buffer}, {self.function.use('zero')})"
        self.fetched.append(self.function.use(names[len(self.fetched) % len(names)]))
        return f"place_of({self.fetched[-1]}, {self.origin} + {distance})"

    def _reduce(
        self, i: int, head: list[str], before: list[str], body: list[str], after: list[str], done: set[str]
    ) -> None:
        source, real = self.source, self.source.real
        op = self.program.ops[i]
        x, j = self.names[op.args[0]], op.args[0]
        kept, space = self.function.use(source.kept_name(i)), source.stages.spaces[i] or ()
        size = use_size(self.function, space)
        along_row = self.inner in space and self.inner is not None
        row = f"{self.index(space)} - {self.position} + start" if along_row else self.index(space)
        row = row.replace(f" + {self.position} - {self.position}", "")
        place = f"{self.position} - start"
        buffer, largest = f"buffer_{x}_of", f"largest_{x}_of"

        def fill(value: str) -> None:
            if buffer not in done:
                done.add(buffer)
                head.append(f"{buffer} = buffer_{real}()")
                body.append(f"{buffer}[{place}] = {value}")

        match op.name:
            case "sum" | "mean" | "norm":
                squares = "_squares" if op.name == "norm" else ""
                at = self._in_memory(j)
                if at is None or along_row:
                    fill(x)
                    at = buffer
                if along_row:
                    after.append(f"add_row{squares}({at}, stop - start, {kept}, {size}, {row})")
                    return
                if largest not in done:
                    done.add(largest)
                    before.append(f"{largest} = integer_{real}(0)")
                    body.append(f"{largest} = larger_{real}({largest}, magnitude_{real}({x}))")
                ahead = f", {self._ahead(at, f'start + {AHEAD}')}" if real == "float32" else ""
                after.append(f"add{squares}({at}, stop - start, {largest}, {kept}, {size}, {row}{ahead})")
            case "max" | "min":
                if along_row:
                    fill(x)
                    after.append(f"{op.name}_of_row({buffer}, stop - start, {kept}, {row})")
                    return
                extreme, more = f"extreme_{self.names[i]}_of", "larger" if op.name == "max" else "smaller"
                first = -INFINITE[real] - 1 if op.name == "max" else INFINITE[real]
                nan = (ABOVE if op.name == "max" else BELOW)[real]
                before.append(f"{extreme} = integer_{real}({first})")
                body.append(f"{extreme} = {more}_{real}({extreme}, order_{real}({x}, {nan}))")
                function = "max" if op.name == "max" else "min"
                after.append(f"{kept}[{row}] = {function}({kept}[{row}], numpy_int64({extreme}))")
            case _:
                if along_row:
                    fill(f"real_{real}(1.0 if {x} else 0.0)")
                    after.append(f"add_row_of_counts({buffer}, stop - start, {kept}, {row})")
                    return
                found = f"found_{self.names[i]}_of"
                before.append(f"{found} = 0")
                body.append(f"{found} += 1 if {x} else 0")
                after.append(f"{kept}[{row}] += {found}")

    def _in_memory(self, i: int) -> str | None:
        """Return where the elements of a block are in memory, if they are an array's as it is."""
        op, source = self.program.ops[i], self.source
        if op.name != "load" or source.stages.spaces[i] != self.space or source.key.flush == "where" or not self.space:
            return None
        if source.writer.dtypes[str(op.reads)] != source.real or op.reads in self.loop.outputs:
            return None
        array = self.function.use(source.writer.array(str(op.reads)))
        return f"part_of_{source.real}({array}, {f'{self.origin} + start' if self.position == 'j' else 'start'})"
