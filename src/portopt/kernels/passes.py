"""A program cut into the kernels that do it on a GPU, one after the other: for all languages.

A *pass* is one launch for all parameters of a kind. Between two passes all blocks have finished, so that what one has left in
memory the next may read. No block waits for another inside a pass, and none adds to what another one wrote: what is reduced
over a whole parameter is left chunk by chunk, and combined by one block in the pass after; what has fewer elements than its
parameter is computed by whole blocks, or parts of them, for each element. So no bit depends on the size of a grid.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from portopt.kernels.norm_dependence import norm_dependence
from portopt.kernels.stages import Loop, Space, Stages, can_cut, cut, elements
from portopt.program import DRAWS, FUNCTIONS, REDUCTIONS, SUMS, Program

PassKind = Literal["elements", "chunks", "lines", "scalars"]
MOST_PARTS = 2048
"""The most parts that chunks leave of a parameter's elements, which one block combines: larger ones have larger chunks."""
ACROSS = 32
"""Neighbouring results that a block reduces at once, where neighbouring elements belong to different ones."""


@dataclass(frozen=True)
class Pass:
    """One kernel of a program.

    Attributes:
        name: of the kernel.
        kind: `"elements"` computes and stores something for each element of a space; `"chunks"` reduces each chunk of a
            parameter; `"lines"` reduces, for each element of a space, what lies along the other axes of a larger one;
            `"scalars"` combines what chunks gave, and computes scalars of the parameter.
        space: the elements that are computed, and counted by launches; of `"chunks"`, all.
        operations: what is computed for each element, in order.
        external: what is computed from, beside: results that earlier passes stored.
        reductions: what is reduced; of `"scalars"`, what is combined.
        stored: operations whose results later passes need.
        outputs: names of the results.
        scalars: operations of `"scalars"`.
    """

    name: str
    kind: PassKind
    space: Space
    operations: tuple[int, ...] = ()
    external: tuple[int, ...] = ()
    reductions: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    scalars: tuple[int, ...] = ()

    def units(self, lengths: Sequence[int]) -> int:
        """Return for how many elements of a parameter of some lengths the kernel has something to do."""
        return 1 if self.kind == "scalars" else elements(self.space, lengths)


@dataclass(frozen=True)
class Passes:
    """A program as kernels.

    Attributes:
        stages: the program, cut.
        passes: the kernels, in order.
        stored: operations whose results are kept in memory between kernels, one for each element.
        partial: reductions of which each chunk leaves its part.
    """

    stages: Stages
    passes: tuple[Pass, ...]
    stored: tuple[int, ...]
    partial: tuple[int, ...]

    @property
    def scalar_places(self) -> dict[int, int]:
        """The place of each scalar of the parameter among those in memory."""
        return {i: k for k, i in enumerate(sorted(self.stages.program.parameter_scalars))}

    def words(self, lengths: Sequence[int], chunk: int) -> int:
        """Return how many words of 64 bits a parameter needs between kernels, if so many elements are reduced at once, or more."""
        spaces = self.stages.spaces
        chunks = number_of_parts(elements(self.stages.space, lengths), chunk)
        kept = sum(_even(elements(spaces[i] or (), lengths)) for i in self.stored)
        parts = sum(words_of(self.stages.program.ops[i].name) for i in self.partial) * chunks
        return _even(len(self.scalar_places) + parts) + kept


def _even(words: int) -> int:
    """Return a number of words after which arrays are aligned as vectors must be."""
    return words + words % 2


def words_of(reduction: str) -> int:
    """Return how many words are kept of a part of a reduction: of sums, exponent, three integers and what is special."""
    return 5 if reduction in SUMS else 1


def reduced_chunk_of(elements: int, least: int) -> int:
    """Return how many of the elements of a parameter are reduced to one part, given the smallest such number."""
    chunk = least
    while elements > MOST_PARTS * chunk:
        chunk *= 2
    return chunk


def number_of_parts(elements: int, least: int) -> int:
    """Return to how many parts the elements of a parameter are reduced."""
    return -(-elements // reduced_chunk_of(elements, least))


def chunk_of(step: Pass, space: Space, elements: int) -> int:
    """Return how many of the elements of a pass are a chunk, but for passes that reduce chunks: `reduced_chunk_of`.

    Args:
        step: the pass.
        space: of the elements that it reduces, if it reduces lines.
        elements: how many are a chunk where each element is done for itself.
    """
    if step.kind != "lines":
        return {"elements": elements, "scalars": 1}[step.kind]
    return ACROSS if space[-1] in step.space else 1


_FURTHER = frozenset({*FUNCTIONS, *DRAWS})


@functools.lru_cache(maxsize=512)
def can_pass(program: Program) -> bool:
    """Tell whether kernels of a GPU can do a program that is not elementwise: it has no products."""
    return can_cut(norm_dependence(program).program, _FURTHER)


@functools.lru_cache(maxsize=512)
def passes_of(program: Program) -> Passes:
    """Return the kernels of a program, of which `can_pass` is true. Operations are those of `norm_dependence(program)`."""
    return _Maker(cut(norm_dependence(program).program)).made()


class _Maker:
    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._ops = stages.program.ops
        narrow = [i for i in stages.reductions if not self._ops[i].kind.is_scalar]
        self._stored = tuple(dict.fromkeys([*narrow, *(i for i in stages.kept if i not in narrow)]))
        self._partial = tuple(i for i in stages.reductions if self._is_partial(i))
        self._passes: list[Pass] = []

    def _is_partial(self, i: int) -> bool:
        """Tell whether a reduction is of all elements of the parameter to one."""
        return self._stages.spaces[i] == () and self._ops[self._ops[i].args[0]].dims is None

    def made(self) -> Passes:
        pending: tuple[int, ...] = ()
        for kind, k in self._stages.steps:
            if kind == "between":
                parts = list(self._stages.between[k].parts)
                if pending and not isinstance(parts[0], tuple):
                    parts.insert(0, ())
                for part in parts:
                    if isinstance(part, Loop):
                        self._loop(part)
                        continue
                    scalars = self._computed(part)
                    if pending or scalars:
                        self._add("scalars", (), reductions=pending, scalars=scalars)
                        pending = ()
            elif kind == "loop":
                loop = self._stages.loops[k]
                self._loop(loop)
                pending = tuple(i for i in loop.reductions if self._is_partial(i))
            else:
                for loop in self._stages.small:
                    self._loop(loop)
        if pending:  # a result
            self._add("scalars", (), reductions=pending)
        return Passes(self._stages, tuple(self._passes), self._stored, self._partial)

    def _computed(self, part: Iterable[int]) -> tuple[int, ...]:
        """Return the scalars that are not reductions, which other kernels finish."""
        return tuple(i for i in part if self._ops[i].name not in REDUCTIONS)

    def _add(
        self,
        kind: PassKind,
        space: Space,
        wanted: Iterable[int] = (),
        loop: Loop | None = None,
        *,
        reductions: Iterable[int] = (),
        stored: Iterable[int] = (),
        outputs: Iterable[str] = (),
        scalars: Iterable[int] = (),
    ) -> None:
        operations, external = self._needed(wanted, () if loop is None else loop.operations)
        self._passes.append(
            Pass(
                f"stage_{len(self._passes)}", kind, space, operations, external, tuple(reductions), tuple(stored),
                tuple(outputs), tuple(scalars),
            )
        )  # fmt: skip

    def _needed(self, wanted: Iterable[int], own: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what a loop computes of its operations for some of them, and what it needs of others."""
        operations: set[int] = set()
        external: set[int] = set()
        pending = list(wanted)
        while pending:
            i = pending.pop()
            op = self._ops[i]
            if op.kind.is_scalar or op.name == "round":
                continue
            if i in self._stored and (op.name in REDUCTIONS or i not in own):
                external.add(i)
            elif i not in operations:
                operations.add(i)
                pending.extend(op.args)
        return tuple(sorted(operations)), tuple(sorted(external))

    def _loop(self, loop: Loop) -> None:
        """Add what a loop of the host's kernels is here: one pass for each space of results."""
        stored = [i for i in loop.kept if self._ops[i].name not in REDUCTIONS]
        outputs = [self._stages.program.array_outputs[name] for name in loop.outputs]
        if stored or outputs:
            self._add("elements", loop.space, [*stored, *outputs], loop, stored=stored, outputs=loop.outputs)
        partial = [i for i in loop.reductions if self._is_partial(i)]
        if partial:
            self._add("chunks", loop.space, self._sources(partial), loop, reductions=partial)
        others = [i for i in loop.reductions if i not in partial]
        for space in dict.fromkeys(self._stages.spaces[i] or () for i in others):
            chosen = [i for i in others if (self._stages.spaces[i] or ()) == space]
            self._add("lines", space, self._sources(chosen), loop, reductions=chosen)

    def _sources(self, reductions: Iterable[int]) -> list[int]:
        return [self._ops[i].args[0] for i in reductions]
