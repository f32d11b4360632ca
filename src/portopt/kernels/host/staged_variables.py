"""The variables of kernels with reductions: what values of a program are called, and how functions get them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from portopt.kernels.host import vector_source
from portopt.kernels.host.function_source import Function, length_name, use_size
from portopt.kernels.host.reduction_source import reduction
from portopt.kernels.host.source import LANGUAGES
from portopt.kernels.key import NEW, Flush, KernelKey
from portopt.kernels.stages import Stages
from portopt.kernels.writer import Language, Writer
from portopt.program import Kind
from portopt.program.expansion import loads_to_flush

_WORDS = (
    *("line", "origin", "begin", "end", "j", "workspace", "stage", "part", "parts", "values", "words", "at"),
    *("number", "zero", "one", "place"),
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


class Variables:
    """The variables of a kernel's functions: what values of a program are called, and how functions get them."""

    def __init__(self, stages: Stages, key: KernelKey) -> None:
        self.program = program = stages.program
        self.key = key
        by_where = key.flush == "where"
        self.language = _language(key.flush)
        self.writer = Writer(self.language, program, key, None if by_where else loads_to_flush(program))
        self.names = self.writer.names
        self.real = key.compute_dtype
        self.stages = stages
        self.lines: set[bool] = set()
        """Whether there are loops over some lines at once that add up squares, or that add up elements."""
        self.scalar_places = {i: k for k, i in enumerate(sorted(program.parameter_scalars))}
        self.kept = frozenset(stages.kept)

    def kept_name(self, i: int) -> str:
        """Return the name of what is kept of a reduction."""
        return f"bins_{self.names[i]}_of"

    def column(self, function: Function, name: str) -> str:
        """Return the array that a result is stored in, in a function."""
        return function.use(self.writer.array(name if self.key.in_place else NEW + name))

    def value_name(self, i: int) -> str:
        """Return the name of the results that are kept of an operation."""
        return f"{self.names[i]}_of"

    def scalar(self, function: Function, i: int, known: set[int]) -> None:
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

    def rounded(self, function: Function, operations: Iterable[int]) -> None:
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
                self.scalar(function, scalar, known)
                function.lines.append(self.writer.assigned(j, self.writer.rounded(scalar)))

    def result(self, function: Function, i: int, index: str) -> str:
        """Return a result of a reduction, given its index: in float64, an integer or a truth."""
        op, kept = self.program.ops[i], function.use(self.kept_name(i))
        spaces = self.stages.spaces[i] or ()
        reduced = [k for k in self.stages.source(i) if k not in spaces]
        count = " * ".join(function.use(length_name(k)) for k in reduced) or "1"
        how = reduction(op.name, self.real).result
        value = how.format(kept=kept, size=use_size(function, self.stages.spaces[i]), i=index, count=f"({count})")
        return self.language.scalars["divide"].format(value, f"float({count})") if op.name == "mean" else value
