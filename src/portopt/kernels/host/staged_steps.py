"""The steps in which a kernel on the host does a program with reductions, and what it needs: memory, and rows of a table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from portopt.kernels.host import vector_source
from portopt.kernels.host.reduction_source import reduction
from portopt.kernels.key import KernelKey
from portopt.kernels.stages import Stages, again, can_cut, cut, elements, store_early
from portopt.program import DRAWS, FUNCTIONS, Program
from portopt.program.expansion import expand_elementary

_FURTHER = frozenset((*FUNCTIONS, *DRAWS))

APART = 16
"""Words between those that two threads write: a processor hands over two lines of its cache together."""


@functools.lru_cache(maxsize=512)
def stages_of(program: Program) -> Stages:
    """Return the stages of a program as a kernel does them."""
    return cut(expand_elementary(program))


@functools.lru_cache(maxsize=512)
def early_stages(program: Program, key: KernelKey) -> Stages:
    """Return the stages of a program with results stored as early as a kernel can."""
    dtypes = dict(key.dtypes)
    return store_early(
        stages_of(program), [name for name in program.array_outputs if dtypes[name] == key.compute_dtype]
    )


def steps_of(program: Program, key: KernelKey) -> tuple[tuple[str, int], ...]:
    """Return what a kernel does, in order: as `Stages.steps` has it, and `"settle"` after each loop in vectors."""
    stages, found = early_stages(program, key), list[tuple[str, int]]()
    for kind, k in stages.steps:
        found.append((kind, k))
        if kind == "loop" and is_many(stages, k, key):
            found.append(("settle", k))
    return tuple(found)


def shared_steps(program: Program, key: KernelKey) -> tuple[bool, ...]:
    """Return, of each step of a kernel, whether the parts of a large parameter share it: else the first part does it."""
    return tuple(kind in ("loop", "settle") for kind, _ in steps_of(program, key))


def is_many(stages: Stages, k: int, key: KernelKey) -> bool:
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
    return Workspace(part + APART, whole + APART)


def row_width(stages: Stages, columns: Sequence[str]) -> int:
    """Return the length of a row of the table: addresses, lengths, and for programs that draw the parameter's number."""
    return len(columns) + len(stages.space) + int(stages.program.has_draws)
