"""A program cut into the kernels that do it on a GPU, one after the other: for all languages.

A *pass* is one launch for all parameters of a kind. Between two passes all blocks have finished, so that what one has left in
memory the next may read. No block waits for another inside a pass, and none adds to what another one wrote: what is reduced
over a whole parameter is left chunk by chunk, and combined by one block in the pass after; what has fewer elements than its
parameter is computed by whole blocks, or parts of them, for each element. So no bit depends on the size of a grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from portopt.kernels.norm_dependence import norm_dependence
from portopt.kernels.stages import Loop, Space, Stages, can_cut, cut, elements
from portopt.program import DRAWS, FUNCTIONS, REDUCTIONS, SUMS, Program

PassKind = Literal["elements", "chunks", "tiles", "joined", "lines", "scalars"]
MOST_PARTS = 2048
"""The most parts that chunks leave of a parameter's elements, which one block combines: larger ones have larger chunks."""
ACROSS = 32
"""Neighbouring results that a block reduces at once, where neighbouring elements belong to different ones."""
LANES = 32
"""Threads that do the rows of a tile together, each of them four columns."""
HEIGHT = 128
"""Rows of a tile. With this many, and as many columns, what a tile leaves of a sum has few bits."""
TILES = 8
"""Tiles of a chunk."""
SMALL = 16
"""Rows and columns of a matrix that is too small for tiles, if a pass can do without."""
LINES = 256
"""Rows, or columns, of a chunk where each is a thread's."""


@dataclass(frozen=True)
class Tiling:
    """A parameter as matrices, and those cut into tiles: rows and columns are reduced at once.

    Columns are of the last length, rows of those before it.

    Attributes:
        outer: how many of the first lengths count matrices.
        small_apart: whether small matrices are not cut: each row and each column is done by itself, in further passes.
    """

    outer: int
    small_apart: bool = False

    def is_apart(self, lengths: Sequence[int]) -> bool:
        """Tell whether a parameter's matrices are small, and done apart."""
        return self.small_apart and lengths[-1] <= SMALL and self.rows(lengths) <= SMALL

    def rows(self, lengths: Sequence[int]) -> int:
        """Return the number of a matrix's rows."""
        return math.prod(lengths[self.outer : -1])

    def across(self, lengths: Sequence[int]) -> int:
        """Return the number of tiles side by side."""
        return -(-lengths[-1] // (4 * LANES))

    def down(self, lengths: Sequence[int]) -> int:
        """Return the number of tiles one below the other in a matrix."""
        return -(-self.rows(lengths) // HEIGHT)

    def tiles(self, lengths: Sequence[int]) -> int:
        """Return the number of all tiles."""
        return math.prod(lengths[: self.outer]) * self.down(lengths) * self.across(lengths)

    def parts(self, space: Space, lengths: Sequence[int]) -> int:
        """Return how many parts tiles leave of what is reduced to the elements of a space."""
        if self._is_finished(space, lengths):
            return 0
        if len(lengths) - 1 in space:
            return elements(space, lengths) * self.down(lengths)
        return math.prod(lengths[:-1]) * self.across(lengths)

    def joined(self, space: Space, lengths: Sequence[int]) -> int:
        """Return for how many elements of a space parts are to be joined."""
        return 0 if self._is_finished(space, lengths) else elements(space, lengths)

    def _is_finished(self, space: Space, lengths: Sequence[int]) -> bool:
        """Tell whether tiles find what is reduced to the elements of a space, each its own."""
        last = len(lengths) - 1
        return self.down(lengths) == 1 if last in space else self.across(lengths) == 1 and len(space) == last


@dataclass(frozen=True)
class Pass:
    """One kernel of a program.

    Attributes:
        name: of the kernel.
        kind: `"elements"` computes and stores something for each element of a space; `"chunks"` reduces each chunk of a
            parameter; `"tiles"` reduces rows and columns of each tile of a parameter, and the tiles of a chunk as wholes, and
            stores results; `"joined"` combines what tiles gave of rows or columns; `"lines"` reduces, for each element of a
            space, what lies along the other axes of a larger one; `"scalars"` combines what chunks gave, and computes scalars
            of the parameter.
        space: the elements that are computed, and counted by launches; of `"chunks"` and `"tiles"`, all.
        operations: what is computed for each element, in order.
        external: what is computed from, beside: results that earlier passes stored.
        reductions: what is reduced; of `"scalars"`, what is combined.
        stored: operations whose results later passes need.
        outputs: names of the results.
        scalars: operations of `"scalars"`.
        tiling: of `"tiles"` and `"joined"`, and of `"lines"` that small matrices have, or others.
        small: whether `"lines"` with a tiling are those of small matrices.
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
    tiling: Tiling | None = None
    small: bool = False

    def units(self, lengths: Sequence[int]) -> int:
        """Return for how many elements, or tiles, of a parameter of some lengths the kernel has something to do."""
        if self.tiling is not None and self.tiling.is_apart(lengths) != self.small:
            return 0
        if self.tiling is not None and self.kind != "lines":
            return self.tiling.tiles(lengths) if self.kind == "tiles" else self.tiling.joined(self.space, lengths)
        return 1 if self.kind == "scalars" else elements(self.space, lengths)


@dataclass(frozen=True)
class Passes:
    """A program as kernels.

    Attributes:
        stages: the program, cut.
        passes: the kernels, in order.
        stored: operations whose results are kept in memory between kernels, one for each element.
        partial: reductions of which each chunk leaves its part.
        tiled: reductions that tiles do, and how.
    """

    stages: Stages
    passes: tuple[Pass, ...]
    stored: tuple[int, ...]
    partial: tuple[int, ...]
    tiled: Mapping[int, Tiling]

    @property
    def scalar_places(self) -> dict[int, int]:
        """The place of each scalar of the parameter among those in memory."""
        return {i: k for k, i in enumerate(sorted(self.stages.program.parameter_scalars))}

    def words(self, lengths: Sequence[int], chunk: int) -> int:
        """Return how many words of 64 bits a parameter needs between kernels, if no fewer elements are reduced at once."""
        spaces, ops = self.stages.spaces, self.stages.program.ops
        kept = sum(_even(elements(spaces[i] or (), lengths)) for i in self.stored)
        parts = sum(words_of(ops[i].name) * self._chunks(i, lengths, chunk) for i in self.partial)
        lines = sum(
            _even(words_of_line(ops[i].name) * tiling.parts(spaces[i] or (), lengths))
            for i, tiling in self.tiled.items()
            if i not in self.partial
        )
        return _even(len(self.scalar_places) + parts) + kept + lines

    def _chunks(self, i: int, lengths: Sequence[int], chunk: int) -> int:
        """Return how many chunks leave a part of a reduction."""
        if i in self.tiled:
            return -(-self.tiled[i].tiles(lengths) // TILES)
        return number_of_parts(elements(self.stages.space, lengths), chunk)


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


def words_of_line(reduction: str) -> int:
    """Return how many words are kept of what a tile gives of a row or a column: those of a sum have fewer bits."""
    return 2 if reduction in SUMS else 1


def chunk_of(step: Pass, space: Space, elements: int) -> int:
    """Return how many of the elements of a pass are a chunk, but for passes that reduce chunks: `reduced_chunk_of`.

    Args:
        step: the pass.
        space: of the elements that it reduces, if it reduces lines.
        elements: how many are a chunk where each element is done for itself.
    """
    if step.kind != "lines":
        sizes = {"elements": elements, "tiles": TILES, "joined": ACROSS, "scalars": 1}
        return sizes[step.kind]
    if step.small:
        return LINES
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
        self._tiled: dict[int, Tiling] = {}

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
                if not any(step.outputs == loop.outputs != () for step in self._passes):
                    self._loop(loop if k else self._with_outputs(loop))
                pending = tuple(i for i in loop.reductions if self._is_partial(i))
            else:
                for loop in self._stages.small:
                    self._loop(loop)
        if pending:  # a result
            self._add("scalars", (), reductions=pending)
        return Passes(self._stages, tuple(self._passes), self._stored, self._partial, self._tiled)

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
        tiling: Tiling | None = None,
        small: bool = False,
    ) -> None:
        operations, external = self._needed(wanted, () if loop is None else loop.operations)
        self._passes.append(
            Pass(
                f"stage_{len(self._passes)}", kind, space, operations, external, tuple(reductions), tuple(stored),
                tuple(outputs), tuple(scalars), tiling, small,
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
        """Add what a loop of the host's kernels is here: one pass for each space of results, or one for all of them."""
        stored = [i for i in loop.kept if self._ops[i].name not in REDUCTIONS]
        outputs = [self._stages.program.array_outputs[name] for name in loop.outputs]
        partial = [i for i in loop.reductions if self._is_partial(i)]
        others = [i for i in loop.reductions if i not in partial]
        tiling = None if stored else self._tiling(loop, others)
        if tiling is not None:
            tiling = replace(tiling, small_apart=not partial and not outputs)
            lines = [i for i in others if self._fits(i, tiling)]
            others = [i for i in others if i not in lines]
            reductions = [*lines, *partial]
            self._tiled |= dict.fromkeys(reductions, tiling)
            wanted = [*self._sources(reductions), *outputs]
            self._add("tiles", loop.space, wanted, loop, reductions=reductions, outputs=loop.outputs, tiling=tiling)
            for space, chosen in self._of_spaces(lines):
                self._add("joined", space, reductions=chosen, tiling=tiling)
                if tiling.small_apart:
                    self._lines(space, chosen, loop, tiling, small=True)
        else:
            if stored or outputs:
                self._add("elements", loop.space, [*stored, *outputs], loop, stored=stored, outputs=loop.outputs)
            if partial:
                self._add("chunks", loop.space, self._sources(partial), loop, reductions=partial)
        for space, chosen in self._of_spaces(others):
            apart = next((found for found in self._tiled.values() if self._is_within(loop.space, space, found)), None)
            self._lines(space, chosen, loop, apart)
            if apart is not None:
                self._lines(space, chosen, loop, apart, small=True)

    def _lines(
        self, space: Space, reductions: Sequence[int], loop: Loop, tiling: Tiling | None, *, small: bool = False
    ) -> None:
        sources = self._sources(reductions)
        self._add("lines", space, sources, loop, reductions=reductions, tiling=tiling, small=small)

    def _is_within(self, whole: Space, space: Space, tiling: Tiling) -> bool:
        """Tell whether what is reduced of rows or columns is of one matrix, and those of small matrices are done apart."""
        along = set(whole).difference(space)
        return tiling.small_apart and whole != self._stages.space and min(along, default=-1) >= tiling.outer

    def _with_outputs(self, loop: Loop) -> Loop:
        """Return the first loop with the results of the second, the last one, if those need nothing that is reduced.

        Nothing may read a parameter's arrays after that: all that the first loop reduces is done in tiles.
        """
        if len(self._stages.loops) != 2:
            return loop
        last = self._stages.loops[1]
        operations = tuple(sorted({*loop.operations, *last.operations}))
        outputs = [self._stages.program.array_outputs[name] for name in last.outputs]
        own, external = self._needed(outputs, operations)
        with_outputs = replace(loop, operations=operations, outputs=last.outputs)
        lines = [i for i in loop.reductions if not self._is_partial(i)]
        tiling = self._tiling(with_outputs, lines)
        scalars = {i for j in own for i in self._ops[j].args if self._ops[i].name == "round"}
        known = {i for part in self._stages.between[0].parts if isinstance(part, Loop) for i in part.kept}
        is_late = not known.issuperset(external) or any(
            self._ops[i].args[0] in self._stages.program.parameter_scalars for i in scalars
        )
        if not outputs or is_late or tiling is None or not all(self._fits(i, tiling) for i in lines):
            return loop
        return with_outputs

    def _of_spaces(self, reductions: Sequence[int]) -> Iterator[tuple[Space, list[int]]]:
        """Yield reductions of one space after those of another."""
        spaces = self._stages.spaces
        for space in dict.fromkeys(spaces[i] or () for i in reductions):
            yield space, [i for i in reductions if (spaces[i] or ()) == space]

    def _tiling(self, loop: Loop, lines: Sequence[int]) -> Tiling | None:
        """Return how a loop reduces rows and columns at once; None if it does not."""
        if loop.space != self._stages.space or any(self._ops[i].name in DRAWS for i in loop.operations):
            return None
        last = len(loop.space) - 1
        # Of columns, lengths before the last one that they have count matrices.
        spaces = [space for i in lines if last in (space := self._stages.spaces[i] or ())]
        found = next(
            (Tiling(len(space) - 1) for space in spaces if space[:-1] == loop.space[: len(space) - 1]), Tiling(0)
        )
        return found if any(self._fits(i, found) for i in lines) else None

    def _fits(self, i: int, tiling: Tiling) -> bool:
        """Tell whether a reduction is of rows or of columns."""
        if self._ops[i].name == "norm":
            return False
        space, last = self._stages.spaces[i] or (), self._stages.space[-1]
        return last not in space or space == (*self._stages.space[: tiling.outer], last)

    def _sources(self, reductions: Iterable[int]) -> list[int]:
        return [self._ops[i].args[0] for i in reductions]
