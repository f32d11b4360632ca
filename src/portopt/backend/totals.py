"""The totals that a program asks for, each by the method of a backend that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from portopt.backend.protocol import Work
from portopt.program import Program


class Totals(Protocol):
    """What finds totals over all parameters, as a backend does."""

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        """Return the norm of all gradients together."""

    def total(self, name: str, works: Sequence[Work]) -> Any:
        """Return another total, `"total_sum"` and so on."""


def total(
    backend: Totals,
    name: str,
    programs: Sequence[tuple[Program, Sequence[Mapping[str, Any]], Callable[[Program], Sequence[Any]]]],
) -> Any:
    """Return the value of one of a step's totals.

    Args:
        backend: of the arrays, or what takes its place.
        name: of the total.
        programs: of the step, each with the arrays of its parameters by name, and what returns the scalars of a part of the
            program, which needs no total that is not known yet.
    """
    operations = [program.totals[name] for program, _, _ in programs]
    operation = operations[0].name
    read = [program.ops[op.args[0]].reads for op, (program, _, _) in zip(operations, programs, strict=True)]
    is_whole = not any(getattr(arrays, "is_part", False) for _, parameters, _ in programs for arrays in parameters)
    if operation == "total_norm" and None not in read and is_whole:
        return backend.gradient_norm(
            [arrays[str(of)] for of, (_, parameters, _) in zip(read, programs, strict=True) for arrays in parameters]
        )
    works = []
    for op, (program, parameters, scalars_of) in zip(operations, programs, strict=True):
        part = program.part(op.args[0])
        works.append(Work(part, scalars_of(part), parameters))
    return backend.total(operation, works)
