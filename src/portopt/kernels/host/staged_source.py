"""A program with reductions as the source of a numba kernel: a function for each loop over elements, one for what is between.

The kernel runs over a table of addresses and lengths, one row a parameter. Without a `stage`, it does all stages of each
parameter whose first element, counted through all parameters, lies between start and stop: threads take whole parameters. With
one it does that stage of the table's only parameter, on the elements from start to stop: threads share a large parameter, and
the reductions of their parts are combined, as integers, before the next stage.

What stages leave for later ones is in a workspace: what is kept of each reduction, for each part; scalars of the parameter;
results with fewer elements than it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from portopt.kernels.host import vector_source
from portopt.kernels.host.draw_source import drawing_functions_source
from portopt.kernels.host.reduction_source import (
    ABOVE,
    AHEAD,
    BELOW,
    BLOCK,
    INFINITE,
    LINES,
    reducing_functions_source,
    reduction,
)
from portopt.kernels.host.source import LANGUAGES, functions_source, step_scalars_source
from portopt.kernels.key import NEW, Flush, KernelKey
from portopt.kernels.stages import Loop, Space, Stages, again, can_cut, cut, elements, store_early
from portopt.kernels.writer import Language, Writer
from portopt.program import DRAWS, FUNCTIONS, REDUCTIONS, SUMS, Kind, Program
from portopt.program.expansion import expand_elementary, loads_to_flush

_FURTHER = frozenset((*FUNCTIONS, *DRAWS))

_APART = 16
"""Words between those that two threads write: a processor hands over two lines of its cache together."""


@functools.lru_cache(maxsize=512)
def stages_of(program: Program) -> Stages:
    """Return the stages of a program as a kernel does them."""
    return cut(expand_elementary(program))


@functools.lru_cache(maxsize=512)
def _early(program: Program, key: KernelKey) -> Stages:
    """Return the stages of a program with results stored as early as a kernel can."""
    dtypes = dict(key.dtypes)
    return store_early(
        stages_of(program), [name for name in program.array_outputs if dtypes[name] == key.compute_dtype]
    )


def steps_of(program: Program, key: KernelKey) -> tuple[tuple[str, int], ...]:
    """Return what a kernel does, in order: as `Stages.steps` has it, and `"settle"` after each loop in vectors."""
    stages, found = _early(program, key), list[tuple[str, int]]()
    for kind, k in stages.steps:
        found.append((kind, k))
        if kind == "loop" and _is_many(stages, k, key):
            found.append(("settle", k))
    return tuple(found)


def shared_steps(program: Program, key: KernelKey) -> tuple[bool, ...]:
    """Return, of each step of a kernel, whether the parts of a large parameter share it: else the first part does it."""
    return tuple(kind in ("loop", "settle") for kind, _ in steps_of(program, key))


def _is_many(stages: Stages, k: int, key: KernelKey) -> bool:
    """Tell whether a loop is done in vectors where there are many elements."""
    return vector_source.can_be_many(stages, stages.loops[k], key) and again(stages, k) is not None


def can_be_staged(program: Program) -> bool:
    """Tell whether there can be a kernel for a program."""
    return can_cut(expand_elementary(program), _FURTHER)


@dataclasses.dataclass(frozen=True)
class Workspace:
    """The memory that a kernel needs for a parameter, in words of 64 bits.

    Attributes:
        part: for each part of the work.
        whole: besides.
    """

    part: int
    whole: int

    def words(self, parts: int) -> int:
        """Return the number of words for work in parts."""
        return self.part * parts + self.whole


def workspace(stages: Stages, lengths: Sequence[int]) -> Workspace:
    """Return the memory that the kernel needs for a parameter of some lengths."""
    ops = stages.program.ops
    part = sum(
        reduction(ops[i].name, "float64").words * elements(stages.spaces[i] or (), lengths) for i in stages.reductions
    )
    whole = len(stages.program.parameter_scalars)
    part += vector_source.words_of_loops(stages)
    whole += sum(elements(stages.spaces[i] or (), lengths) for i in stages.kept)
    return Workspace(part + _APART, whole + _APART)


def row_width(stages: Stages, columns: Sequence[str]) -> int:
    """Return the length of a row of the table: addresses, lengths, and for programs that draw the parameter's number."""
    return len(columns) + len(stages.space) + int(stages.program.has_draws)


def staged_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernel's functions."""
    return _Source(_early(program, key), steps_of(program, key), key).text()


_WORDS = (
    *(
        "line",
        "origin",
        "begin",
        "end",
        "j",
        "workspace",
        "stage",
        "part",
        "parts",
        "values",
        "words",
        "at",
        "number",
        "zero",
        "one",
        "place",
    ),
    *("bins", "buffer", "rest", "int", "numpy_int64", "float64", "sum_of", "root_of", "add", "add_row"),
    *("add_squares", "add_row_squares", "exponent_of", "raise_bins", "note_special", "clear_bins"),
    *("add_lines", "add_lines_squares", "height", "level", "below", "magnitudes"),
    *("combine_bins", "clear_numbers", "combine_counts", "combine_max", "combine_min", "max_of_row"),
    *("min_of_row", "add_row_of_counts"),
    *("words_of", "fraction_of", "draw_uniform", "draw_normal", "step_scalars"),
    *vector_source.RESERVED,
)


@functools.cache
def _language(flush: Flush) -> Language:
    language = LANGUAGES[flush]
    return dataclasses.replace(language, name="the host kernel", reserved=language.reserved | frozenset(_WORDS))


class _Function:
    """The lines of a function, and what they use of the kernel's variables."""

    def __init__(self, name: str, description: str, own: Sequence[str] = ()) -> None:
        self.name = name
        self.own = tuple(own)
        self.lines: list[str] = []
        self.arguments: dict[str, None] = {}
        self._description = description

    def use(self, name: str) -> str:
        """Note that a variable of the kernel is used."""
        self.arguments[name] = None
        return name

    def text(self) -> list[str]:
        """Return the definition."""
        return [
            "",
            "",
            f"def {self.name}({', '.join([*self.own, *self.arguments])}):",
            f'    """{self._description}"""',
            *(f"    {line}" for line in self.lines),
        ]

    def calling(self, other: _Function, *own: str) -> list[str]:
        """Return the lines with which this function calls another one, given the other's own arguments."""
        self.arguments.update(other.arguments)
        return other.call(*own)

    def call(self, *own: str) -> list[str]:
        """Return the lines that call it."""
        arguments = [*own, *self.arguments]
        return [f"{self.name}(", *(f"    {argument}," for argument in arguments), ")"]


class _Source:
    def __init__(self, stages: Stages, steps: Sequence[tuple[str, int]], key: KernelKey) -> None:
        self.steps = steps
        self.program = program = stages.program
        self.key = key
        by_where = key.flush == "where"
        self.language = _language(key.flush)
        self.writer = Writer(self.language, program, key, None if by_where else loads_to_flush(program))
        self.names = self.writer.names
        self.real = key.compute_dtype
        self.stages = stages
        self.functions: list[_Function] = []
        self.lines: set[bool] = set()
        """Whether there are loops over some lines at once that add up squares, or that add up elements."""
        self.scalar_places = {i: k for k, i in enumerate(sorted(program.parameter_scalars))}
        self.kept = frozenset(stages.kept)
        self.many: dict[int, _Function] = {}
        """Of each loop in vectors, the function that adds up what it has added up."""

    def text(self) -> str:
        calls = []
        for kind, k in self.steps:
            match kind:
                case "between":
                    calls.append(self._between(k))
                case "loop":
                    calls.append(self._full_loop(k))
                case "settle":
                    calls.append(self._settle(k))
                case _:
                    calls.append(self._small())
        functions = [line for function in self.functions for line in function.text()]
        elementary = "\n".join(["", "", *functions_source(self.writer)]).rstrip("\n")
        drawing = drawing_functions_source({op.name for op in self.program.ops}, self.real, self.language)
        head = f'"""{self.program.name} on {self.writer.dtypes["p"]}, computed in {self.real}; flushed by {self.key.flush}."""'
        kernel = self._kernel(calls)
        many = vector_source.FUNCTIONS if self.many else ""
        given = [reducing_functions_source(self.stages, self.real, self.lines), many, elementary, drawing]
        return "\n".join([head, *(text.rstrip("\n") for text in given if text), *functions, *kernel]) + "\n"

    # The kernel ---------------------------------------------------------------------------------------------------

    def _kernel(self, calls: Sequence[Sequence[str]]) -> list[str]:
        writer, columns = self.writer, self.writer.columns
        width = row_width(self.stages, columns)
        by_where = self.key.flush == "where"
        function, scalars = self._step_scalars(calls)
        lines = [*function, "", "", f"def kernel({', '.join(_KERNEL_ARGUMENTS)}):", '    """See above."""']
        if not by_where:
            lines.append("    control = flush_subnormals()")
        lines += [f"    {line}" for line in scalars]
        lines += [
            # Of one type with variables: numba would compile functions once more for a constant.
            "    zero = numpy_int64(0)",
            "    one = numpy_int64(1)",
            "    offset = 0",
            "    for k in range(count):",
            "        size = sizes[k]",
            "        if stage >= 0 or (start <= offset and offset < stop):",
        ]
        body = []
        for position, column in enumerate(columns):
            pointer = f"pointer_to_{writer.dtype(column)}(table[k * {width} + {position}])"
            body.append(f"{writer.array(column)} = {pointer}")
        body += [f"{_length(k)} = table[k * {width} + {len(columns) + k}]" for k in self.stages.space]
        if self.program.has_draws:
            body.append(f"place = table[k * {width} + {width - 1}]")
        spaces = {space for space in (*self.stages.spaces, self.stages.space) if space}
        spaces |= {loop.space for loop in self.stages.small if loop.space}
        body += [f"{_size(space)} = {' * '.join(map(_length, space))}" for space in sorted(spaces)]
        body += self._memory()
        body += [
            "first = start if stage >= 0 else 0",
            f"last = stop if stage >= 0 else {_size(self.stages.space)}",
            f"for number in range(max(stage, 0), stage + 1 if stage >= 0 else {len(calls)}):",
        ]
        for number, call in enumerate(calls):
            body.append(f"    {'if' if number == 0 else 'elif'} number == {number}:")
            body += [f"        {line}" for line in call]
        lines += [f"            {line}" for line in body]
        lines.append("        offset += size")
        if not by_where:
            lines.append("    restore(control)")
        return lines

    def _step_scalars(self, calls: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
        """Return a function that computes the scalars of the step, and what calls it.

        numba's time grows faster than a function's length, and a power alone takes three hundred lines.
        """
        lines = step_scalars_source(self.writer)
        if not lines:
            return [], []
        needed = {line.strip(" ,") for call in calls for line in call}
        found = [name for name in (line.split(" = ")[0] for line in lines) if name in needed]
        returned = ", ".join([*found, ""]) if len(found) == 1 else ", ".join(found)
        function = ["", "", "def step_scalars(inputs, step, outputs):", '    """Compute the scalars of the step."""']
        function += [f"    {line}" for line in [*lines, *([f"return {returned.rstrip()}"] if found else [])]]
        call = "step_scalars(inputs, step, outputs)"
        return function, [f"{returned.rstrip()} = {call}" if found else call]

    def _memory(self) -> list[str]:
        """Return the lines that give what is in the workspace its names."""
        ops, spaces = self.program.ops, self.stages.spaces
        sizes = [f"{reduction(ops[i].name, self.real).words} * {_size(spaces[i])}" for i in self.stages.reductions]
        own = vector_source.words_of_loops(self.stages) + _APART
        lines = [f"words = {' + '.join([*sizes, str(own)])}", "at = workspace + 8 * words * part"]
        for i, size in zip(self.stages.reductions, sizes, strict=True):
            lines += [f"{self.kept_name(i)} = pointer_to_int64(at)", f"at += 8 * {size}"]
        for k in vector_source.loops_with_words(self.stages):
            lines += [f"{_range(k)} = pointer_to_int64(at)", f"at += {8 * vector_source.words(self.stages.loops[k])}"]
        lines += ["values = pointer_to_float64(workspace + 8 * words * parts)"]
        lines.append(f"at = workspace + 8 * words * parts + {8 * len(self.scalar_places)}")
        for i in self.stages.kept:
            lines += [f"{self.value_name(i)} = pointer_to_{self.real}(at)", f"at += 8 * {_size(spaces[i])}"]
        return lines

    def kept_name(self, i: int) -> str:
        """Return the name of what is kept of a reduction."""
        return f"bins_{self.names[i]}_of"

    def column(self, function: _Function, name: str) -> str:
        """Return the array that a result is stored in, in a function."""
        return function.use(self.writer.array(name if self.key.in_place else NEW + name))

    def value_name(self, i: int) -> str:
        """Return the name of the results that are kept of an operation."""
        return f"{self.names[i]}_of"

    # Scalars of the parameter -------------------------------------------------------------------------------------

    def _scalar(self, function: _Function, i: int, known: set[int]) -> None:
        """Make a scalar known in a function: of the step, an argument; of the parameter, from where it was stored."""
        op = self.program.ops[i]
        if op.name == "constant" or i in known:
            return
        known.add(i)
        if i not in self.scalar_places:
            function.use(self.names[i])
            return
        value = f"{function.use('values')}[{self.scalar_places[i]}]"
        match op.kind:
            case Kind.TRUTH:
                value = f"{value} != 0.0"
            case Kind.INTEGER:
                value = f"numpy_int64({value})"
        function.lines.append(f"{self.names[i]} = {value}")

    def rounded(self, function: _Function, operations: Iterable[int]) -> None:
        """Make the rounded scalars known that operations need."""
        known: set[int] = set()
        done: set[int] = set()
        for i in operations:
            op = self.program.ops[i]
            for j in (i, *op.args) if op.name != "round" else (i,):
                rounded = self.program.ops[j]
                if rounded.name != "round" or j in done:
                    continue
                done.add(j)
                scalar = rounded.args[0]
                if scalar not in self.scalar_places:
                    function.use(self.names[j])
                    continue
                self._scalar(function, scalar, known)
                function.lines.append(self.writer.assigned(j, self.writer.rounded(scalar)))

    # Loops ---------------------------------------------------------------------------------------------------------

    def _loop(self, name: str, loop: Loop, description: str) -> _Function:
        function = _Function(name, description, ("first", "last"))
        self.functions.append(function)
        outputs = [self.program.array_outputs[name] for name in loop.outputs]
        self.rounded(function, [*loop.operations, *outputs, *(self.program.ops[i].args[0] for i in loop.reductions)])
        _LoopWriter(self, function, loop).write()
        return function

    def _full_loop(self, k: int) -> list[str]:
        """Write a loop over all elements; return the lines that do it."""
        loop = self.stages.loops[k]
        what = " ".join(["Reduce."] * bool(loop.reductions) + ["Store results."] * bool(loop.outputs))
        function = self._loop(f"loop_{k}", loop, what)
        if not _is_many(self.stages, k, self.key):
            return [*self._clear(loop), *function.call("first", "last")]
        many = self._many(k, function)
        exponents = [
            f"{_range(k)}[{vector_source.WORDS + number}] = {self.kept_name(i)}[0]"
            for number, i in enumerate(loop.reductions)
        ]
        return [
            *self._clear(loop),
            f"if last - first < {vector_source.MANY}:",
            *(f"    {line}" for line in function.call("first", "last")),
            "else:",
            *(f"    {line}" for line in many.call("first", "last")),
            *exponents,
        ]

    def _clear(self, loop: Loop, function: _Function | None = None) -> list[str]:
        """Return the lines that begin the reductions of a loop, in a function if not in the kernel."""
        lines = []
        for i in loop.reductions:
            if i in self.stages.left:
                continue
            name, size = self.kept_name(i), _size(self.stages.spaces[i])
            if function is not None:
                function.use(name)
                function.use(size)
            lines.append(reduction(self.program.ops[i].name, self.real).clear.format(kept=name, size=size))
        return lines

    # Loops over many elements

    def _many(self, k: int, plain: _Function) -> _Function:
        """Write a loop in vectors, given the other one."""
        loop, once_more = self.stages.loops[k], again(self.stages, k)
        assert once_more is not None  # `_is_many` says so
        self.many[k] = reducing = plain if not loop.outputs else self._loop(f"again_{k}", once_more, "Reduce again.")
        chunks = _Function(f"chunks_{k}", "Do a loop in vectors.", ("first", "last"))
        self.functions.append(chunks)
        anew = [*self._clear(loop, chunks), f"{chunks.use(_range(k))}[2] = start"]
        _VectorWriter(self, chunks, loop).write(reducing, anew)
        many = _Function(f"many_{k}", "Do a loop on many elements, most of them in vectors.", ("first", "last"))
        self.functions.append(many)
        pieces, head, lanes = vector_source.PIECES, vector_source.HEAD, vector_source.LANES
        begin, limits = "first + piece * k", many.use(_range(k))
        end = f"{begin} + {head} if k < {pieces} else last"
        many.lines += [
            f"{limits}[0] = first",
            f"{limits}[1] = last",
            f"{limits}[2] = -1",
            f"piece = (last - first) // {lanes * pieces} * {lanes}",
            # The last one is what is left of the last vector.
            f"for k in range({pieces + 1}):",
            *(f"    {line}" for line in many.calling(plain, begin, end)),
            f"for k in range({pieces}):",
            *(f"    {line}" for line in many.calling(chunks, f"{begin} + {head}", f"{begin} + piece")),
            f"for k in range(-1, {pieces + 1}):",
            f"    if (k < 0 and {limits}[2] >= 0) or (k >= 0 and 0 <= {limits}[2] <= {begin}):",
            *(
                f"        {line}"
                for line in many.calling(reducing, f"max({begin}, first)", f"{limits}[2] if k < 0 else {end}")
            ),
        ]
        return many

    def _settle(self, k: int) -> list[str]:
        """Write what makes a part of a loop in vectors fit to be combined with the others; return the lines that call it.

        All parts may do that at once: the exponents that they compare are those that the loop has left.
        """
        loop, reducing = self.stages.loops[k], self.many[k]
        function = _Function(
            f"settle_{k}", "Reduce a part again that must not be moved and has to be.", ("part", "parts")
        )
        self.functions.append(function)
        function.use("words")
        limits, behind = function.use(_range(k)), []
        for number, i in enumerate(loop.reductions):
            highest, place = f"highest_{self.names[i]}_of", vector_source.WORDS + number
            function.lines += [
                f"{highest} = {limits}[{place}]",
                "for j in range(-part, parts - part):",
                f"    {highest} = max({highest}, {limits}[words * j + {place}])",
            ]
            kept = function.use(self.kept_name(i))
            behind.append(f"({limits}[{place}] < {highest} and {kept}[4] & {vector_source.FIXED} != 0)")
        function.use("one")
        function.lines += [
            f"if {' or '.join(behind)}:",
            *(f"    {line}" for line in self._clear(loop, function)),
            *(f"    {line}" for line in function.calling(reducing, f"{limits}[0]", f"{limits}[1]")),
        ]
        return function.call("part", "parts")

    def _small(self) -> list[str]:
        calls = []
        for number, loop in enumerate(self.stages.small):
            function = self._loop(f"store_{number}", loop, "Store small results.")
            calls += function.call("zero", _size(loop.space))
        return calls

    def _between(self, k: int) -> list[str]:
        """Write what is done before a loop over all elements; return the lines that do it."""
        between = self.stages.between[k]
        calls: list[str] = []
        for i in between.finished:
            how = reduction(self.program.ops[i].name, self.real).combine
            calls.append(how.format(kept=self.kept_name(i), size=_size(self.stages.spaces[i])))
        for number, part in enumerate(between.parts):
            if isinstance(part, Loop):
                function = self._loop(f"between_{k}_{number}", part, "Compute what has fewer elements.")
                calls += self._clear(part)
                calls += function.call("zero", _size(part.space))
            else:
                calls += self._scalars(f"scalars_{k}_{number}", part).call()
        return calls

    def _scalars(self, name: str, part: Sequence[int]) -> _Function:
        function = _Function(name, "Compute scalars of the parameter.")
        self.functions.append(function)
        known: set[int] = set()
        for i in part:
            op = self.program.ops[i]
            if op.name in REDUCTIONS:
                value = self.result(function, i, function.use("zero"))
                value = f"({value})" if op.kind is Kind.TRUTH else value
                function.lines.append(self.writer.assigned(i, value))
            elif op.name == "widen":
                load = op.args[0]
                element = self.writer.array_expression(load, f"{function.use(self.writer.array(self._read(load)))}[0]")
                wide = element if self.real == "float64" else f"{self.real}_to_float64({element})"
                function.lines.append(self.writer.assigned(i, wide))
            else:
                for j in op.args:
                    self._scalar(function, j, known)
                function.lines.append(self.writer.scalar(i))
            known.add(i)
            stored = {Kind.TRUTH: "1.0 if {0} else 0.0", Kind.INTEGER: "float({0})"}.get(op.kind, "{0}")
            function.lines.append(f"{function.use('values')}[{self.scalar_places[i]}] = {stored.format(self.names[i])}")
        return function

    def _read(self, load: int) -> str:
        return str(self.program.ops[load].reads)

    def result(self, function: _Function, i: int, index: str) -> str:
        """Return a result of a reduction, given its index: in float64, an integer or a truth."""
        op, kept = self.program.ops[i], function.use(self.kept_name(i))
        spaces = self.stages.spaces[i] or ()
        reduced = [k for k in self.stages.source(i) if k not in spaces]
        count = " * ".join(function.use(_length(k)) for k in reduced) or "1"
        how = reduction(op.name, self.real).result
        value = how.format(kept=kept, size=use_size(function, self.stages.spaces[i]), i=index, count=f"({count})")
        return self.language.scalars["divide"].format(value, f"float({count})") if op.name == "mean" else value


class _LoopWriter:
    """Writes the body of a loop over elements."""

    def __init__(self, source: _Source, function: _Function, loop: Loop) -> None:
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
        return f"{_at(space)} + {self.position}" if self.inner in space else _at(space)

    # Lines of elements

    def _nest(self, body: Sequence[str], height: str = "1") -> None:
        lines = self.function.lines
        if not self.space:
            lines += ["begin = first", "end = last", *body]
            return
        if len(self.space) == 1:
            lines += ["begin = first", "end = last", *body]
            return
        inner = self.function.use(_length(self.space[-1]))
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
                length = self.function.use(_length(k))
                lines += [f"        index_{k}_of = rest % {length}", f"        rest = rest // {length}"]
                indices[k] = f"index_{k}_of"
            indices[outer[0]] = "rest"
        text = "\n".join(body)
        for space in self._spaces():
            if f"{_at(space)}" not in text:
                continue
            place = ""
            for k in space:
                if k == self.inner:
                    place = f"({place}) * {inner}" if place else "0"
                else:
                    place = f"({place}) * {self.function.use(_length(k))} + {indices[k]}" if place else indices[k]
            lines.append(f"        {_at(space)} = {place}")
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
        x, inner, squared = self.names[op.args[0]], self.function.use(_length(self.space[-1])), op.name == "norm"
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
            self.function.use(name) for j in (i, k) for name in (source.kept_name(j), _size(source.stages.spaces[j]))
        ]
        each = [
            f"below = {origin} + level * {inner}",
            f"{_at(self.space[:1])} = line + level",
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


class _VectorWriter:
    """Writes the body of a loop in vectors."""

    def __init__(self, source: _Source, function: _Function, loop: Loop) -> None:
        self._source = source
        self._function = function
        self._loop = loop
        language = vector_source.in_vectors(source.language)
        self._writer = Writer(language, source.program, source.key, loads_to_flush(source.program))
        self._language = language

    def write(self, reducing: _Function, anew: Sequence[str]) -> None:
        """Write it, given what adds up elements in the other way, and the lines that begin the sums anew."""
        source, function, writer, program = self._source, self._function, self._writer, self._source.program
        stored = {program.array_outputs[name]: name for name in self._loop.stored}
        element, sums = [], []
        source.rounded(
            function, [*self._loop.operations, *(program.array_outputs[name] for name in self._loop.outputs)]
        )
        arrays: list[str] = []
        for i in sorted({*self._loop.operations, *stored}):
            op = program.ops[i]
            if i in stored:
                arrays.append(source.column(function, stored[i]))
                value = self._language.element.format(arrays[-1])
            elif op.name == "round":
                continue
            else:
                if op.reads is not None:
                    arrays.append(function.use(writer.array(op.reads)))
                value = writer.array_expression(i)
            element.append(writer.assigned(i, value))
        stores = [
            self._language.store.format(source.column(function, name), source.names[program.array_outputs[name]])
            for name in self._loop.outputs
        ]
        for i in self._loop.reductions:
            op = program.ops[i]
            kept = function.use(source.kept_name(i))
            sums.append(vector_source.Sum(source.names[i], source.names[op.args[0]], kept, op.name == "norm"))
        function.use("zero")
        function.use("one")
        again = function.calling(reducing, "start", "stop")
        function.lines += vector_source.chunks(arrays, sums, element, stores, again, anew)


_KERNEL_ARGUMENTS = (
    "table", "sizes", "count", "start", "stop", "inputs", "step", "outputs", "stage", "workspace", "part", "parts",
)  # fmt: skip


def use_size(function: _Function, space: Space | None) -> str:
    """Return the number of elements of a space in a function."""
    return function.use(_size(space))


def _length(k: int) -> str:
    return f"length_{k}_of"


def _size(space: Space | None) -> str:
    return f"size_{'_'.join(map(str, space))}_of" if space else "one"


def _range(k: int) -> str:
    return f"range_{k}_of"


def _at(space: Space) -> str:
    return f"at_{'_'.join(map(str, space))}_of"
