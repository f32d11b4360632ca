"""A program with products in the order in which it is run by kernels: what is done for each element between them is fused.

A *segment* is all that is computed for each element of arrays of one shape between two products, transposes, reshapes or
reductions, as an elementwise program of its own. What only a segment needs is computed in it; what something else needs, an
output or an operand of a product, is a result of the segment.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from portopt.program.ir import ARRAY_OPERATIONS, FUNCTIONS, REDUCTIONS, Dim, Kind, Op, Program
from portopt.program.products import operands_of


@dataclass(frozen=True)
class Segment:
    """An elementwise part of a program.

    Attributes:
        program: the part: its arrays are called `x0`, `x1` and so on, its results `y0`, `y1`, and its scalars `s0`, `s1`.
        arrays: for each of its arrays, the name of an array of the parameter, or the operation whose result it is.
        scalars: for each of its scalars, the operation that computes it.
        outputs: for each result, the operation whose result it is.
        sliced: for each result, the inner axes for which products need its slices.
        is_read: for each result, whether anything needs more of it than these slices.
        only_scales: whether it is there for a product, which it scales back and slices, and does nothing else.
    """

    program: Program
    arrays: tuple[str | int, ...]
    scalars: tuple[int, ...]
    outputs: tuple[int, ...]
    sliced: tuple[tuple[int, ...], ...] = ()
    is_read: tuple[bool, ...] = ()
    only_scales: bool = False


@dataclass(frozen=True)
class Schedule:
    """What a program is run as, in order.

    Attributes:
        steps: operations by index, and segments.
        done: for each step, the operations whose results nothing after it needs.
        unscaled: products that a segment may scale back.
    """

    steps: tuple[int | Segment, ...]
    done: tuple[tuple[int, ...], ...]
    unscaled: frozenset[int] = frozenset()


@functools.lru_cache(maxsize=512)
def plain_schedule(program: Program) -> Schedule:
    """Return the operations one by one."""
    steps = tuple(range(len(program.ops)))
    return Schedule(steps, _done(program, steps))


@functools.lru_cache(maxsize=512)
def fused_schedule(program: Program) -> Schedule:
    """Return the operations with those in segments that can be; without segments where there is no product."""
    if all(op.name != "matmul" for op in program.ops):
        return plain_schedule(program)
    steps, unscaled = _joined(program, tuple(_Fusing(program).steps()))
    return Schedule(steps, _done(program, steps), unscaled)


def _joined(program: Program, steps: Sequence[int | Segment]) -> tuple[tuple[int | Segment, ...], frozenset[int]]:
    """Return the steps with what products need of segments and segments of products, and the products that these scale back."""
    ops = program.ops
    sliced: dict[int, set[int]] = {}
    for operands in operands_of(program).values():
        for operand in operands:
            sliced.setdefault(operand.source, set()).add(operand.axis)
    in_segments = collections.Counter(
        j for step in steps if isinstance(step, Segment) for j in step.arrays if isinstance(j, int)
    )
    alone = [step for step in steps if isinstance(step, int)]
    read = {j for i in alone if ops[i].name != "matmul" for j in ops[i].args} | {*program.array_outputs.values()}
    in_products = {j for i in alone if ops[i].name == "matmul" for j in ops[i].args}
    found: list[int | Segment] = []
    unscaled: set[int] = set()
    for step in steps:
        if isinstance(step, int):
            found.append(step)
            if ops[step].name != "matmul":
                continue
            if step in sliced:
                only_load = Program("Segment", (Op("load", Kind.ARRAY, label="x0"),), {"y0": 0})
                step = Segment(only_load, (step,), (), (step,), only_scales=True)
            else:
                if in_segments[step] == 1 and step not in read | in_products:
                    unscaled.add(step)
                continue
            unscaled.update(step.outputs)
        found.append(
            replace(
                step,
                sliced=tuple(tuple(sorted(sliced.get(i, ()))) for i in step.outputs),
                is_read=tuple(i in read or i in in_segments for i in step.outputs),
            )
        )
    return tuple(found), frozenset(unscaled)


class _Fusing:
    def __init__(self, program: Program) -> None:
        self._ops = program.ops
        self._outputs = set(program.array_outputs.values())
        self._uniform = self._find_uniform()
        self._fused = [self._is_fused(op) for op in self._ops]
        self._levels = self._find_levels()

    def _find_uniform(self) -> list[bool]:
        """Tell of each operation whether it makes numbers of numbers: what has no array among its operands."""
        found: list[bool] = []
        for op in self._ops:
            elementwise = op.name in ARRAY_OPERATIONS and op.reads is None
            found.append(elementwise and (op.name == "round" or all(found[j] for j in op.args)))
        return found

    def _is_fused(self, op: Op) -> bool:
        """Tell whether a segment computes an operation: all its arrays have the shape of its result."""
        if op.reads is not None:
            return op.dims is None
        arrays = [j for j in op.args if not self._ops[j].kind.is_scalar and not self._uniform[j]]
        of_elements = op.name in ARRAY_OPERATIONS or op.name in FUNCTIONS
        return of_elements and bool(arrays) and all(self._ops[j].dims == op.dims for j in arrays)

    def _is_alone(self, i: int) -> bool:
        """Tell whether an operation on arrays is a step of its own."""
        op = self._ops[i]
        return op.name in REDUCTIONS or not (op.kind.is_scalar or self._fused[i] or self._uniform[i])

    def _find_levels(self) -> list[int]:
        """Return, for each operation, how many operations that are in no segment it needs one after the other."""
        levels: list[int] = []
        for i, op in enumerate(self._ops):
            alone = self._is_alone(i)
            levels.append(max((levels[j] for j in op.args), default=0) + alone)
        return levels

    def steps(self) -> Iterable[int | Segment]:
        ops = self._ops
        pending = [*filter(self._is_alone, range(len(ops))), *self._outputs]
        needed: set[int] = set()
        # What is needed as an array of its own, with what that is computed from if no segment does it.
        while pending:
            i = pending.pop()
            if i in needed:
                continue
            needed.add(i)
            if not self._fused[i]:
                pending.extend(j for j in ops[i].args if not ops[j].kind.is_scalar or ops[i].kind.is_scalar)
        results = sorted(i for i in needed if self._fused[i] and ops[i].reads is None)
        segments: dict[tuple[int, tuple[Dim, ...] | None], list[int]] = {}
        for i in results:
            segments.setdefault((self._levels[i], ops[i].dims), []).append(i)
        plain = sorted(i for i, op in enumerate(ops) if op.kind.is_scalar or (i in needed and i not in results))
        for level in range(max(self._levels, default=0) + 1):
            yield from (i for i in plain if self._levels[i] == level)
            for (of, _), outputs in segments.items():
                if of == level:
                    yield self._segment(outputs, set(results))

    def _segment(self, outputs: Sequence[int], results: set[int]) -> Segment:
        own = set(outputs)
        wanted: set[int] = set()
        pending = list(outputs)
        while pending:
            i = pending.pop()
            if i in wanted:
                continue
            wanted.add(i)
            if self._computes(i, own, results):
                pending.extend(self._ops[i].args)
        found: list[Op] = []
        place: dict[int, int] = {}
        arrays: list[str | int] = []
        scalars: list[int] = []
        # Segments that do the same are the same program, wherever its numbers and arrays came from.
        for i in sorted(wanted, key=lambda i: (self._rank(i), i)):
            op = self._ops[i]
            place[i] = len(found)
            if op.kind.is_scalar:
                if op.name == "constant":
                    found.append(op)
                else:
                    found.append(Op("input", Kind.FLOAT, label=f"s{len(scalars)}"))
                    scalars.append(i)
            elif self._computes(i, own, results) and op.reads is None:
                found.append(Op(op.name, op.kind, tuple(place[j] for j in op.args), op.label))
            else:
                found.append(Op("load", Kind.ARRAY, label=f"x{len(arrays)}"))
                arrays.append(i if op.reads is None or not self._fused[i] else op.reads)
        named = {f"y{k}": place[i] for k, i in enumerate(outputs)}
        return Segment(Program("Segment", tuple(found), named), tuple(arrays), tuple(scalars), tuple(outputs))

    def _rank(self, i: int) -> int:
        op = self._ops[i]
        return 0 if op.kind.is_scalar else 1 if op.name == "round" else 2

    def _computes(self, i: int, own: set[int], results: set[int]) -> bool:
        """Tell whether a segment computes an operation, rather than getting its result."""
        if self._ops[i].kind.is_scalar:
            return False
        return i in own or self._uniform[i] or (self._fused[i] and i not in results)


def _done(program: Program, steps: Sequence[int | Segment]) -> tuple[tuple[int, ...], ...]:
    needed = set(program.array_outputs.values())
    found: list[tuple[int, ...]] = []
    for step in reversed(steps):
        used = (
            program.ops[step].args
            if isinstance(step, int)
            else (*(j for j in step.arrays if isinstance(j, int)), *step.scalars)
        )
        done = tuple(j for j in set(used) if j not in needed)
        needed.update(done)
        found.append(done)
    return tuple(reversed(found))
