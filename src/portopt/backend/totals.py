"""The totals that a program asks for, each by the method of a backend that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from portopt.backend.protocol import Backend, Work
from portopt.program import Program


def total(
    backend: Backend,
    name: str,
    programs: Sequence[tuple[Program, Sequence[Mapping[str, Any]]]],
    scalars_of: Callable[[Program], Sequence[Any]],
) -> Any:
    """Return the value of one of a step's totals.

    Args:
        backend: of the arrays.
        name: of the total.
        programs: of the step, each with the arrays of its parameters by name.
        scalars_of: returns the scalars of a part of a program, which needs no total that is not known yet.
    """
    operations = [(program.totals[name], program, parameters) for program, parameters in programs]
    operation = operations[0][0].name
    read = [program.ops[op.args[0]].reads for op, program, _ in operations]
    if operation == "total_norm" and None not in read:
        return backend.gradient_norm(
            [arrays[str(of)] for of, (_, _, parameters) in zip(read, operations, strict=True) for arrays in parameters]
        )
    parts = [(program.part(op.args[0]), parameters) for op, program, parameters in operations]
    return backend.total(operation, [Work(part, scalars_of(part), parameters) for part, parameters in parts])
