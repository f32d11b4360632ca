"""What a kernel is compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.program import Program

Flush = Literal["register", "where"]
"""How subnormals become zero: the processor's registers say so while the kernel runs, or each operation compares."""

NEW = "new "
"""Begins the name of a column for a result; with a space, no slot is called so by accident."""


@dataclass(frozen=True)
class KernelKey:
    """What a kernel is compiled for; `portopt.kernels.groups` makes keys, so that one kernel has one key.

    Attributes:
        dtypes: array name (`"p"`, `"g"`, slots, further inputs) to its dtype, in the order of the table's columns.
        in_place: whether results overwrite the parameter and slots; else they have columns of their own, after the inputs'.
        flush: how subnormals become zero.
    """

    dtypes: tuple[tuple[str, str], ...]
    in_place: bool
    flush: Flush

    @property
    def compute_dtype(self) -> str:
        """The dtype of the arithmetic."""
        return COMPUTE_DTYPE[dict(self.dtypes)["p"]]

    def columns(self, program: Program) -> tuple[str, ...]:
        """Names of the table's columns: inputs, then, if not in place, `NEW` and the name of each output."""
        inputs = tuple(name for name, _ in self.dtypes)
        return inputs if self.in_place else inputs + tuple(NEW + name for name in program.array_outputs)
