"""The totals that a program asks for, each by the method of a backend that computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from portopt.backend.protocol import Backend
from portopt.program import Op, Program

METHODS: Mapping[str, str] = {"total_norm": "gradient_norm"}
"""The name of the method, given an array of each parameter, by that of the operation."""


def total(backend: Backend, program: Program, op: Op, parameters: Sequence[Mapping[str, Any]]) -> Any:
    """Return the value of one of a program's totals, given the arrays of all parameters by name."""
    name = program.ops[op.args[0]].reads
    return getattr(backend, METHODS[op.name])([arrays[str(name)] for arrays in parameters])
