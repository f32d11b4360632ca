"""Elementary functions of a program's scalars, written out in the operations that generated code has."""

from __future__ import annotations

import functools
import inspect

from portopt.arithmetic import elementary
from portopt.arithmetic.host import HOST
from portopt.program.builder import Builder, Node, rewritten
from portopt.program.ir import FUNCTIONS, PRODUCTS, REDUCTIONS, SUMS, Dim, Kind, Label, Op, Program, pruned


class _FoldingBuilder(Builder):
    """Computes what depends on constants alone at once: generated code gets shorter, and so does the time to compile it."""

    def record(
        self, name: str, kind: Kind, *args: int, label: Label = None, dims: tuple[Dim, ...] | None = None
    ) -> int:
        operands = [self.ops[i] for i in args]
        known = [op.name == "constant" for op in operands]
        if name == "where" and kind.is_scalar and known[0]:
            return args[1] if operands[0].label else args[2]
        if kind.is_scalar and args and all(known):
            value = getattr(HOST, name)(*(op.label for op in operands))
            return super().record("constant", kind, label=value)
        return super().record(name, kind, *args, label=label, dims=dims)


def expand_elementary(program: Program) -> Program:
    """Return the same program with `exp`, `log` and the like replaced by what `elementary.py` does."""
    builder = _FoldingBuilder()

    def record(op: Op, args: tuple[int, ...]) -> int:
        if op.kind.is_scalar and op.name in elementary.FUNCTIONS:
            node: Node = elementary.FUNCTIONS[op.name](builder, *map(Node, args))
            return node.index
        return builder.record(op.name, op.kind, *args, label=op.label, dims=op.dims)

    return rewritten(program, builder, record)


@functools.cache
def function_program(name: str) -> Program:
    """Return an elementary function as a program of scalars, with the inputs `x` and, if it has two, `y`, and `result`."""
    function, builder = elementary.FUNCTIONS[name], _FoldingBuilder()
    count = len(inspect.signature(function).parameters) - 1
    inputs = [Node(builder.record("input", Kind.FLOAT, label=label)) for label in "xy"[:count]]
    return pruned(name, builder.ops, {}, {"result": function(builder, *inputs).index})


def loads_to_flush(program: Program) -> frozenset[int]:
    """Return the loads whose subnormals could reach a result on a processor that flushes operands and results.

    Arithmetic flushes its operands there, sums included, so a load needs an instruction of its own only if operations that merely
    pass bits on (selection, sign) lead from it to an output.
    """
    passed_on: set[int] = set()
    many = {*(REDUCTIONS.keys() - SUMS), *PRODUCTS, *FUNCTIONS, "widen"}
    pending = [*program.array_outputs.values(), *(i for op in program.ops if op.name in many for i in op.args)]
    while pending:
        i = pending.pop()
        op = program.ops[i]
        if i in passed_on or op.kind is not Kind.ARRAY:
            continue
        passed_on.add(i)
        if op.name in ("negative", "absolute"):
            pending.extend(op.args)
        elif op.name == "where":
            pending.extend(op.args[1:])
    return frozenset(i for i in passed_on if program.ops[i].name == "load")
