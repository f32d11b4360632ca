"""A program with reductions as the source of a numba kernel: a function for each loop over elements, one for what is between.

The kernel runs over a table of addresses and lengths, one row a parameter. Without a `stage`, it does all stages of each
parameter whose first element, counted through all parameters, lies between start and stop: threads take whole parameters. With
one it does that stage of the table's only parameter, on the elements from start to stop: threads share a large parameter, and
the reductions of their parts are combined, as integers, before the next stage.

What stages leave for later ones is in a workspace: what is kept of each reduction, for each part; scalars of the parameter;
results with fewer elements than it.
"""

from __future__ import annotations

from collections.abc import Sequence

from portopt.kernels.host import vector_source
from portopt.kernels.host.draw_source import drawing_functions_source
from portopt.kernels.host.function_source import Function, length_name, range_name, size_name
from portopt.kernels.host.loop_source import LoopWriter
from portopt.kernels.host.reduction_source import reducing_functions_source, reduction
from portopt.kernels.host.source import functions_source, step_scalars_source
from portopt.kernels.host.staged_steps import APART, early_stages, is_many, row_width, steps_of
from portopt.kernels.host.staged_variables import Variables
from portopt.kernels.host.vector_loop_source import VectorWriter
from portopt.kernels.key import KernelKey
from portopt.kernels.stages import Loop, Stages, again
from portopt.program import REDUCTIONS, Kind, Program

_KERNEL_ARGUMENTS = (
    "table", "sizes", "count", "start", "stop", "inputs", "step", "outputs", "stage", "workspace", "part", "parts",
)  # fmt: skip


def staged_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernel's functions."""
    return _Source(early_stages(program, key), steps_of(program, key), key).text()


class _Source(Variables):
    """Writes the source of a kernel."""

    def __init__(self, stages: Stages, steps: Sequence[tuple[str, int]], key: KernelKey) -> None:
        super().__init__(stages, key)
        self.steps = steps
        self.functions: list[Function] = []
        self.many: dict[int, Function] = {}
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
        body += [f"{length_name(k)} = table[k * {width} + {len(columns) + k}]" for k in self.stages.space]
        if self.program.has_draws:
            body.append(f"place = table[k * {width} + {width - 1}]")
        spaces = {space for space in (*self.stages.spaces, self.stages.space) if space}
        spaces |= {loop.space for loop in self.stages.small if loop.space}
        body += [f"{size_name(space)} = {' * '.join(map(length_name, space))}" for space in sorted(spaces)]
        body += self._memory()
        body += [
            "first = start if stage >= 0 else 0",
            f"last = stop if stage >= 0 else {size_name(self.stages.space)}",
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
        sizes = [f"{reduction(ops[i].name, self.real).words} * {size_name(spaces[i])}" for i in self.stages.reductions]
        own = vector_source.words_of_loops(self.stages) + APART
        lines = [f"words = {' + '.join([*sizes, str(own)])}", "at = workspace + 8 * words * part"]
        for i, size in zip(self.stages.reductions, sizes, strict=True):
            lines += [f"{self.kept_name(i)} = pointer_to_int64(at)", f"at += 8 * {size}"]
        for k in vector_source.loops_with_words(self.stages):
            lines += [
                f"{range_name(k)} = pointer_to_int64(at)",
                f"at += {8 * vector_source.words(self.stages.loops[k])}",
            ]
        lines += ["values = pointer_to_float64(workspace + 8 * words * parts)"]
        lines.append(f"at = workspace + 8 * words * parts + {8 * len(self.scalar_places)}")
        for i in self.stages.kept:
            lines += [f"{self.value_name(i)} = pointer_to_{self.real}(at)", f"at += 8 * {size_name(spaces[i])}"]
        return lines

    # Loops ---------------------------------------------------------------------------------------------------------

    def _loop(self, name: str, loop: Loop, description: str) -> Function:
        function = Function(name, description, ("first", "last"))
        self.functions.append(function)
        outputs = [self.program.array_outputs[name] for name in loop.outputs]
        self.rounded(function, [*loop.operations, *outputs, *(self.program.ops[i].args[0] for i in loop.reductions)])
        LoopWriter(self, function, loop).write()
        return function

    def _full_loop(self, k: int) -> list[str]:
        """Write a loop over all elements; return the lines that do it."""
        loop = self.stages.loops[k]
        what = " ".join(["Reduce."] * bool(loop.reductions) + ["Store results."] * bool(loop.outputs))
        function = self._loop(f"loop_{k}", loop, what)
        if not is_many(self.stages, k, self.key):
            return [*self._clear(loop), *function.call("first", "last")]
        many = self._many(k, function)
        exponents = [
            f"{range_name(k)}[{vector_source.WORDS + number}] = {self.kept_name(i)}[0]"
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

    def _clear(self, loop: Loop, function: Function | None = None) -> list[str]:
        """Return the lines that begin the reductions of a loop, in a function if not in the kernel."""
        lines = []
        for i in loop.reductions:
            if i in self.stages.left:
                continue
            name, size = self.kept_name(i), size_name(self.stages.spaces[i])
            if function is not None:
                function.use(name)
                function.use(size)
            lines.append(reduction(self.program.ops[i].name, self.real).clear.format(kept=name, size=size))
        return lines

    # Loops over many elements

    def _many(self, k: int, plain: Function) -> Function:
        """Write a loop in vectors, given the other one."""
        loop, once_more = self.stages.loops[k], again(self.stages, k)
        assert once_more is not None  # `_is_many` says so
        self.many[k] = reducing = plain if not loop.outputs else self._loop(f"again_{k}", once_more, "Reduce again.")
        chunks = Function(f"chunks_{k}", "Do a loop in vectors.", ("first", "last"))
        self.functions.append(chunks)
        anew = [*self._clear(loop, chunks), f"{chunks.use(range_name(k))}[2] = start"]
        VectorWriter(self, chunks, loop).write(reducing, anew)
        many = Function(f"many_{k}", "Do a loop on many elements, most of them in vectors.", ("first", "last"))
        self.functions.append(many)
        pieces, head, lanes = vector_source.PIECES, vector_source.HEAD, vector_source.LANES
        begin, limits = "first + piece * k", many.use(range_name(k))
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
        function = Function(
            f"settle_{k}", "Reduce a part again that must not be moved and has to be.", ("part", "parts")
        )
        self.functions.append(function)
        function.use("words")
        limits, behind = function.use(range_name(k)), []
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
            calls += function.call("zero", size_name(loop.space))
        return calls

    def _between(self, k: int) -> list[str]:
        """Write what is done before a loop over all elements; return the lines that do it."""
        between = self.stages.between[k]
        calls: list[str] = []
        for i in between.finished:
            how = reduction(self.program.ops[i].name, self.real).combine
            calls.append(how.format(kept=self.kept_name(i), size=size_name(self.stages.spaces[i])))
        for number, part in enumerate(between.parts):
            if isinstance(part, Loop):
                function = self._loop(f"between_{k}_{number}", part, "Compute what has fewer elements.")
                calls += self._clear(part)
                calls += function.call("zero", size_name(part.space))
            else:
                calls += self._scalars(f"scalars_{k}_{number}", part).call()
        return calls

    def _scalars(self, name: str, part: Sequence[int]) -> Function:
        function = Function(name, "Compute scalars of the parameter.")
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
                    self.scalar(function, j, known)
                function.lines.append(self.writer.scalar(i))
            known.add(i)
            stored = {Kind.TRUTH: "1.0 if {0} else 0.0", Kind.INTEGER: "float({0})"}.get(op.kind, "{0}")
            function.lines.append(f"{function.use('values')}[{self.scalar_places[i]}] = {stored.format(self.names[i])}")
        return function

    def _read(self, load: int) -> str:
        return str(self.program.ops[load].reads)
