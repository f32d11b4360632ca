"""A program with reductions, cut into loops over the elements of a parameter: for all targets.

A reduction is known once all elements were looked at. So a step on a parameter is a sequence of loops over its elements; in
each, what is needed is computed anew from the parameter's arrays, so that nothing of the parameter's size is kept between
them. All but the last compute reductions only, the last one stores. Between two loops come the scalars of the parameter, and
what has fewer elements than it: `Between`, the parts of which are done one after the other.

Axes that all arrays of a program either have or lack together are one: loops go over *lengths*, mostly one or two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from portopt.program import ARRAY_OPERATIONS, REDUCTIONS, Dim, Program

Space = tuple[int, ...]
"""Which of a parameter's lengths an array has, by number."""


@dataclass(frozen=True)
class Loop:
    """A loop over elements.

    Attributes:
        space: the elements.
        operations: what is computed for each, in order: array operations, and in a loop between others the reductions that are
            finished here, one for each element.
        reductions: what is reduced.
        kept: operations whose results are needed after the loop.
        outputs: names of the results that are stored.
        stored: names of the results that an earlier loop has stored and this one reads.
    """

    space: Space
    operations: tuple[int, ...] = ()
    reductions: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Between:
    """What is done between two loops over all elements.

    Attributes:
        finished: the reductions of the loop before; and, in the order in which they are done:
        parts: loops over fewer elements, and lists of scalars.
    """

    finished: tuple[int, ...]
    parts: tuple[Loop | tuple[int, ...], ...]


@dataclass(frozen=True)
class Stages:
    """A program as a sequence of loops.

    Attributes:
        program: what was cut.
        axes: the parameter's axes that each length is of; None if the only length is the number of elements.
        space: all lengths.
        loops: over all elements.
        between: what is done before each of them.
        spaces: of each array operation and reduction, the elements of its result; None for the others.
        small: loops over fewer elements that store results, after the last loop over all.
    """

    program: Program
    axes: tuple[tuple[int, ...], ...] | None
    space: Space
    loops: tuple[Loop, ...]
    between: tuple[Between, ...]
    spaces: tuple[Space | None, ...]
    small: tuple[Loop, ...]

    def lengths(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the lengths of a parameter of a shape."""
        if self.axes is None:
            return (math.prod(shape),)
        return tuple(math.prod(shape[axis] for axis in group) for group in self.axes)

    def sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the number of elements of the results and arrays of a parameter that has another one, by name."""
        lengths = self.lengths(shape)
        found = {loop.outputs[0]: elements(loop.space, lengths) for loop in self.small}
        for op, space in zip(self.program.ops, self.spaces, strict=True):
            if op.reads is not None and space is not None and space != self.space:
                found[op.reads] = elements(space, lengths)
        return found

    def is_uniform(self, i: int) -> bool:
        """Tell whether an array operation has one value for all elements: it is computed where that is needed."""
        return self._is_uniform[i]

    def source(self, i: int) -> Space:
        """Return the elements that a reduction is of."""
        j = self.program.ops[i].args[0]
        dims = self.program.ops[j].dims
        return self.space if dims is None else self.spaces[j] or ()

    @functools.cached_property
    def _is_uniform(self) -> list[bool]:
        return _uniform(self.program)

    @property
    def steps(self) -> tuple[tuple[str, int], ...]:
        """What is done, in order: `"between"` or `"loop"` and its number; last, if there are small results, `"small"`."""
        found: list[tuple[str, int]] = []
        for k, (between, loop) in enumerate(zip(self.between, self.loops, strict=True)):
            if between.parts:
                found.append(("between", k))
            if loop.reductions or loop.outputs:
                found.append(("loop", k))
        return (*found, *([("small", 0)] if self.small else []))

    @functools.cached_property
    def left(self) -> tuple[int, ...]:
        """The reductions that are results: whoever wants them finishes them, having added those of other parameters."""
        return left_reductions(self.program)

    @property
    def reductions(self) -> tuple[int, ...]:
        """All reductions, those that are results first."""
        found = (i for i, op in enumerate(self.program.ops) if op.name in REDUCTIONS)
        return tuple(sorted(found, key=lambda i: i not in self.left))

    @property
    def kept(self) -> tuple[int, ...]:
        """The array operations whose results are kept between loops."""
        return tuple(
            i for between in self.between for part in between.parts if isinstance(part, Loop) for i in part.kept
        )


def left_reductions(program: Program) -> tuple[int, ...]:
    """Return the reductions among the results of a program."""
    return tuple(dict.fromkeys(i for i in program.scalar_outputs.values() if i in program.parameter_scalars))


def can_cut(program: Program, further: Container[str] = ()) -> bool:
    """Tell whether a program can be done in loops over a parameter's elements.

    Args:
        program: the program.
        further: operations that loops can hold, beside `ARRAY_OPERATIONS`.
    """
    for op in program.ops:
        if op.name in ("load", "widen", "round") or op.kind.is_scalar:
            pass
        elif op.name in REDUCTIONS:
            if op.dims is None:
                return False
        elif op.name not in ARRAY_OPERATIONS and op.name not in further:
            return False
        if any(dim != -1 and dim != axis for axis, dim in enumerate(op.dims or ())):
            return False
    narrow = [op.dims for op in program.ops if op.dims is not None]
    if len({len(dims) for dims in narrow if dims}) > 1:
        return False
    if _in_order_of_reading(program) is None:
        return False
    # The shape of a result that is a number for all its elements, and was not read, is not known.
    read, uniform = {op.reads for op in program.ops}, _uniform(program)
    outputs = program.array_outputs.items()
    return not narrow or all(
        name in ("p", *read) or program.ops[i].dims is not None or not uniform[i] for name, i in outputs
    )


@functools.lru_cache(maxsize=512)
def cut(program: Program) -> Stages:
    """Cut a program, of which `can_cut` is true."""
    axes = _lengths(program)
    space = tuple(range(1 if axes is None else len(axes)))
    spaces = tuple(_space(program, i, axes, space) for i in range(len(program.ops)))
    cutter = _Cutter(program, axes, space, spaces)
    return Stages(
        program, axes, space, cutter.loops(), cutter.between(), spaces, cutter.small_outputs()
    )  # fmt: skip


def store_early(stages: Stages, names: Container[str]) -> Stages:
    """Return the stages with results stored by the first loop that computes them, where later ones then read less.

    A result of the parameter's size is stored as soon as it is known if no later loop needs what its array held before, the
    gradient, or a further input: those may be in the memory that is written.

    Args:
        stages: as `cut` returns them.
        names: of the results whose arrays hold them exactly.
    """
    program, last = stages.program, len(stages.loops) - 1
    first: dict[str, int] = {}
    for name in stages.loops[last].outputs:
        i = program.array_outputs[name]
        computing = next((k for k in range(last) if i in stages.loops[k].operations), last)
        if computing < last and name in names and program.ops[i].reads is None and not stages.is_uniform(i):
            first[name] = computing
    while first:
        loops = _storing(stages, first)
        changed = {
            name
            for name, k in first.items()
            if any(not _may_follow(program, loop, name, first) for loop in loops[k + 1 :])
        }
        if not changed:
            return replace(stages, loops=loops)
        first = {name: k for name, k in first.items() if name not in changed}
    return stages


def _may_follow(program: Program, loop: Loop, name: str, first: Container[str]) -> bool:
    """Tell whether a loop may come after a result was stored: it reads nothing that may be where that is."""
    reads = {program.ops[i].reads for i in loop.operations} - {None}
    return name not in reads and all(read == "p" or read in program.array_outputs for read in reads)


def _storing(stages: Stages, first: dict[str, int]) -> tuple[Loop, ...]:
    program = stages.program
    found = []
    for k, loop in enumerate(stages.loops):
        before = {program.array_outputs[name]: name for name, at in first.items() if at < k}
        outputs = tuple(name for name in loop.outputs if name not in first)
        wanted = [program.array_outputs[name] for name in outputs]
        own = tuple(name for name, at in first.items() if at == k)
        wanted += [program.ops[i].args[0] for i in loop.reductions]
        found.append(_reading(program, loop, wanted, before, (*own, *outputs)))
    return tuple(found)


def _reading(
    program: Program, loop: Loop, wanted: Iterable[int], before: Mapping[int, str], outputs: tuple[str, ...]
) -> Loop:
    """Return a loop that does only what some results need, and reads those that were stored before, given their names."""
    pending = list(wanted)
    operations: set[int] = set()
    stored: dict[str, None] = {}
    while pending:
        i = pending.pop()
        if i in before:
            stored[before[i]] = None
        elif i in loop.operations and i not in operations:
            operations.add(i)
            pending.extend(() if program.ops[i].name in REDUCTIONS else program.ops[i].args)
    return replace(loop, operations=tuple(sorted(operations)), outputs=outputs, stored=tuple(sorted(stored)))


def again(stages: Stages, k: int) -> Loop | None:
    """Return the loop that reduces what a loop over all elements has reduced, once that is done; None if there is none.

    It reads the results that the loop has stored, and so must need nothing that may lie in their memory.
    """
    loop, program = stages.loops[k], stages.program
    if not loop.outputs:
        return loop
    stored = {program.array_outputs[name]: name for name in (*loop.stored, *loop.outputs)}
    found = _reading(program, loop, [program.ops[i].args[0] for i in loop.reductions], stored, ())
    return found if all(_may_follow(program, found, name, loop.outputs) for name in loop.outputs) else None


def _in_order_of_reading(program: Program) -> list[str] | None:
    """Return the names of all results, those with fewer elements that are what an array held before it is overwritten first.

    None if such ones take the place of each other, for they are stored one after the other.
    """
    reads = {name: program.ops[i].reads for name, i in program.array_outputs.items() if program.ops[i].dims is not None}
    pending, found = list(program.array_outputs), list[str]()
    while pending:
        # Nobody who is left reads these.
        free = [name for name in pending if all(other == name or reads.get(other) != name for other in pending)]
        if not free:
            return None
        found += free
        pending = [name for name in pending if name not in free]
    return found


_Axes = tuple[tuple[int, ...], ...] | None


def _output_dims(program: Program, name: str) -> tuple[Dim, ...] | None:
    """Return the shape of a result, also where its value is a number for all its elements."""
    i = program.array_outputs[name]
    if program.ops[i].dims is None and _uniform(program)[i]:
        return next((op.dims for op in program.ops if op.reads == name), None)
    return program.ops[i].dims


def _lengths(program: Program) -> _Axes:
    """Return the groups of neighbouring axes that all arrays have or lack together; None if none has fewer than another."""
    shapes = {op.dims for op in program.ops if op.dims}
    if not shapes:
        return None
    groups: list[list[int]] = []
    before = None
    for axis in range(len(next(iter(shapes)))):
        having = {dims for dims in shapes if dims[axis] != -1}
        if having == before:
            groups[-1].append(axis)
        else:
            groups.append([axis])
        before = having
    return tuple(map(tuple, groups))


def _space(program: Program, i: int, axes: _Axes, space: Space) -> Space | None:
    op = program.ops[i]
    if op.kind.is_scalar:
        return () if op.name in REDUCTIONS else None
    return _space_of(op.dims, axes, space)


def _space_of(dims: tuple[Dim, ...] | None, axes: _Axes, space: Space) -> Space:
    if dims is None:
        return space
    return tuple(k for k, group in enumerate(axes or ()) if dims and dims[group[0]] != -1)


def _uniform(program: Program) -> list[bool]:
    found: list[bool] = []
    for op in program.ops:
        elementwise = not op.kind.is_scalar and op.name not in REDUCTIONS and op.reads is None
        found.append(elementwise and (op.name == "round" or all(found[j] for j in op.args)))
    return found


class _Cutter:
    def __init__(self, program: Program, axes: _Axes, space: Space, spaces: Sequence[Space | None]) -> None:
        self._program = program
        self._axes = axes
        self._space = space
        self._spaces = spaces
        self._uniform = _uniform(program)
        self._left = frozenset(left_reductions(program))
        self._levels = self._find_levels()
        self._number = max(self._levels, default=0) + 1
        """Of loops over all elements."""

    def _is_full(self, i: int) -> bool:
        """Tell whether an operation is computed for each element of the parameter."""
        op = self._program.ops[i]
        return not op.kind.is_scalar and not self._uniform[i] and op.dims is None

    def _is_between(self, i: int) -> bool:
        """Tell whether an operation is done between loops over all elements."""
        op = self._program.ops[i]
        if op.kind.is_scalar:
            return i in self._program.parameter_scalars
        return not self._uniform[i] and op.dims is not None and op.reads is None

    def _find_levels(self) -> list[int]:
        """Return, of each operation, how many loops over all elements come before its result can be computed."""
        levels: list[int] = []
        for op in self._program.ops:
            level = max((levels[j] for j in op.args), default=0)
            if op.name in REDUCTIONS and self._program.ops[op.args[0]].dims is None:
                level += 1
            levels.append(level)
        # What only something after a later loop needs is done there, with it.
        users: list[list[int]] = [[] for _ in levels]
        for i, op in enumerate(self._program.ops):
            for j in op.args:
                users[j].append(i)
        for i in reversed(range(len(levels))):
            if users[i] and self._is_between(i) and all(map(self._is_between, users[i])):
                levels[i] = max(levels[i], min(levels[j] - self._is_of_full(j) for j in users[i]))
        return levels

    def _is_of_full(self, i: int) -> bool:
        """Tell whether an operation is a reduction of all elements."""
        op = self._program.ops[i]
        return op.name in REDUCTIONS and self._program.ops[op.args[0]].dims is None

    def _from_loop(self, level: int) -> list[int]:
        """Return the reductions of all elements that a loop computes."""
        ops = self._program.ops
        return [
            i
            for i, op in enumerate(ops)
            if op.name in REDUCTIONS and ops[op.args[0]].dims is None and self._levels[i] == level
        ]

    def _closure(self, wanted: Iterable[int], belongs: Callable[[int], bool]) -> tuple[int, ...]:
        """Return operations of a loop, in order: those wanted and those they need."""
        found: set[int] = set()
        pending = list(wanted)
        while pending:
            i = pending.pop()
            op = self._program.ops[i]
            if i in found or op.name == "round" or not (self._uniform[i] or op.reads is not None or belongs(i)):
                continue
            found.add(i)
            if op.name not in REDUCTIONS:
                pending.extend(op.args)
        return tuple(sorted(found))

    def loops(self) -> tuple[Loop, ...]:
        """Return the loops over all elements."""
        found = []
        for level in range(1, self._number):
            reductions = self._from_loop(level)
            sources = [self._program.ops[i].args[0] for i in reductions]
            found.append(Loop(self._space, self._closure(sources, self._is_full), tuple(reductions)))
        outputs = tuple(name for name in self._program.array_outputs if _output_dims(self._program, name) is None)
        stored = [self._program.array_outputs[name] for name in outputs]
        found.append(Loop(self._space, self._closure(stored, self._is_full), outputs=outputs))
        return tuple(found)

    def small_outputs(self) -> tuple[Loop, ...]:
        """Return the loops that store results with fewer elements."""
        found = []
        for name in _in_order_of_reading(self._program) or ():
            i, dims = self._program.array_outputs[name], _output_dims(self._program, name)
            if dims is not None:
                space = _space_of(dims, self._axes, self._space)
                found.append(Loop(space, self._closure([i], lambda _: False), outputs=(name,)))
        return tuple(found)

    def between(self) -> tuple[Between, ...]:
        """Return what is done before each loop over all elements."""
        return tuple(
            Between(
                tuple(i for i in self._from_loop(level) if i not in self._left) if level else (), self._parts(level)
            )
            for level in range(self._number)
        )

    def _parts(self, level: int) -> tuple[Loop | tuple[int, ...], ...]:
        """Return the parts of what is done at a level: each operation in the first one in which its operands are known."""
        ops = self._program.ops
        chosen = [i for i, op in enumerate(ops) if self._levels[i] == level and self._is_between(i)]
        spaces: list[Space | None] = []
        members: list[list[int]] = []
        reduced: list[list[int]] = []
        place: dict[int, int] = {}
        """The part that computes an operation, or reduces what it is of."""
        for i in chosen:
            op, of_small = ops[i], ops[i].name in REDUCTIONS and ops[ops[i].args[0]].dims is not None
            # What reduces a small array is finished after the loop over its elements: two places.
            if of_small:
                source = op.args[0]
                at = self._first(spaces, self._spaces[source] or (), [(source, False)], place, reduced)
                if at == len(spaces):
                    spaces.append(self._spaces[source] or ())
                    members.append([])
                    reduced.append([])
                reduced[at].append(i)
                needed = [(i, True)]
                place[i] = at
            if i in self._left:
                continue
            if not of_small:
                needed = [(j, False) for j in self._small_operands(op.args)]
            space = None if op.kind.is_scalar else self._spaces[i] or ()
            at = self._first(spaces, space, needed, place, reduced)
            if at == len(spaces):
                spaces.append(space)
                members.append([])
                reduced.append([])
            members[at].append(i)
            place[i] = at
        parts: list[Loop | tuple[int, ...]] = []
        for at, space in enumerate(spaces):
            if space is None:
                parts.append(tuple(members[at]))
                continue
            sources = [ops[i].args[0] for i in reduced[at]]
            own = set(members[at])
            kept = tuple(i for i in members[at] if self._is_needed_elsewhere(i, own))
            operations = self._closure([*own, *sources], own.__contains__)
            parts.append(Loop(space, operations, tuple(reduced[at]), kept))
        return tuple(parts)

    def _small_operands(self, operands: Iterable[int]) -> list[int]:
        """Return what has to be computed before, of operands and of the uniform operations among them."""
        found = []
        pending = list(operands)
        while pending:
            j = pending.pop()
            if self._uniform[j]:
                pending.extend(self._program.ops[j].args)
            else:
                found.append(j)
        return found

    def _first(
        self,
        spaces: Sequence[Space | None],
        space: Space | None,
        needed: Iterable[tuple[int, bool]],
        place: dict[int, int],
        reduced: Sequence[Sequence[int]],
    ) -> int:
        """Return the first part of a space in which all that is needed is known; their number if there is none yet."""
        first = 0
        for j, is_reduced_here in needed:
            if j in place:
                same = not is_reduced_here and spaces[place[j]] == space
                first = max(first, place[j] + (0 if same else 1))
        return next((at for at in range(first, len(spaces)) if spaces[at] == space), len(spaces))

    def _is_needed_elsewhere(self, i: int, own: set[int]) -> bool:
        if i in self._program.array_outputs.values():
            return True
        reductions_of_it = [op for op in self._program.ops if i in op.args and op.name in REDUCTIONS]
        users = [k for k, op in enumerate(self._program.ops) if i in op.args and op not in reductions_of_it]
        return any(k not in own for k in users)


def elements(space: Space, lengths: Sequence[int]) -> int:
    """Return the number of elements of a space."""
    return math.prod(lengths[k] for k in space)
