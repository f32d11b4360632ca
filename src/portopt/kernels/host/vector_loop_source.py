"""Loops in vectors as functions of a kernel; `vector_source.py` says what such a loop does."""

from __future__ import annotations

from collections.abc import Sequence

from portopt.kernels.host import vector_source
from portopt.kernels.host.function_source import Function
from portopt.kernels.host.staged_variables import Variables
from portopt.kernels.stages import Loop
from portopt.kernels.writer import Writer
from portopt.program.expansion import loads_to_flush


class VectorWriter:
    """Writes the body of a loop in vectors."""

    def __init__(self, source: Variables, function: Function, loop: Loop) -> None:
        self._source = source
        self._function = function
        self._loop = loop
        language = vector_source.in_vectors(source.language)
        self._writer = Writer(language, source.program, source.key, loads_to_flush(source.program))
        self._language = language

    def write(self, reducing: Function, anew: Sequence[str]) -> None:
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
