"""Totals over all arrays of a planned step within its call: by one thread, or in passes of the job that updates.

The norm of arrays as they are read has kernels of its own (`norm.py`). Other totals are left by the kernels of programs whose
result is a reduction (`totals.py`): these have tables of their own, into which the addresses are copied from that of the step.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.host.kernel import GROUP_WORDS as CALL_WORDS
from portopt.kernels.host.kernel import Inputs, Passes, Work, group_words
from portopt.kernels.host.norm import GradientTable, infinity_of, norm_kernel, stride_of_guess
from portopt.kernels.host.norm_stages import GROUP_WORDS, HEAD_WORDS, NORM, PART_WORDS, SMALL_WORDS
from portopt.kernels.host.reduction_source import ABOVE, first_words
from portopt.program.bins import LOWEST, LOWEST_OF_SQUARES, WIDTH

TOTAL_WORDS = 9
"""Words that tell of a total: its kind; address and number of groups; address and number of the moves, or the number of elements;
offset of its memory in that of the step; address and number of the places of the result; address of what says where parts are."""

_NORM, _SUM, _ROOT, _LARGEST = range(4)
"""Kinds of totals: the norm of arrays as they are read, and what kernels of programs leave."""
_KINDS = {"sum": _SUM, "norm": _ROOT, "max": _LARGEST}
_WORK_WORDS, _FOUND_WORDS = 10, 4
"""Words of a kernel's work: the kernel; offset of its table in the total's memory; sizes, their number and sum; offsets of inputs
and outputs; offset of the workspace; what its result begins with, and how many words that has. And of what it leaves: what NaN is
in the order of numbers; where the first part is, how far apart parts are, and how many there are."""

TOTALS = f'''{NORM}

def gathered(moves, count, table, rows):
    """Copy addresses from the table of the step."""
    at = pointer_to_int64(moves)
    given = pointer_to_int64(table)
    own = pointer_to_int64(rows)
    for k in range(count):
        own[at[2 * k]] = given[at[2 * k + 1]]


def total_of_sums(is_root, works, count, base):
    """Return a sum, or the root of one, of which kernels have left bins."""
    exponent = {LOWEST_OF_SQUARES} if is_root else {LOWEST}
    special = 0
    for k in range(count):
        work = pointer_to_int64(works + {8 * _FOUND_WORDS} * k)
        for part in range(work[3]):
            kept = pointer_to_int64(base + work[1] + work[2] * part)
            # Bins of squares that are all zero, of float32 numbers too, are not above any others.
            if not is_root or (kept[1] | kept[2] | kept[3]) != 0:
                exponent = max(exponent, kept[0])
            special = special | (kept[4] & 7)
    if special != 0:
        return float64_nan if special & 1 or special == 6 else float64_inf if special == 2 else float64_minus_inf
    first = 0
    second = 0
    third = 0
    for k in range(count):
        work = pointer_to_int64(works + {8 * _FOUND_WORDS} * k)
        for part in range(work[3]):
            kept = pointer_to_int64(base + work[1] + work[2] * part)
            moved = exponent - kept[0]
            if moved == 0:
                first += kept[1]
                second += kept[2]
                third += kept[3]
            elif moved == {WIDTH}:
                second += kept[1]
                third += kept[2]
            elif moved == {2 * WIDTH}:
                third += kept[1]
    value = significand_of(first, second, third)
    return root_of(value, exponent) if is_root else product_float64(value, power_of_two(exponent - 31))


def largest_of_all(works, count, base):
    """Return the largest of what kernels have left; NaN if there is one."""
    largest = float64_minus_inf
    is_nan = 0
    for k in range(count):
        work = pointer_to_int64(works + {8 * _FOUND_WORDS} * k)
        above = work[0]
        for part in range(work[3]):
            ordered = pointer_to_int64(base + work[1] + work[2] * part)[0]
            bits = ordered if ordered >= 0 else ordered ^ above
            value = float64_of_bits(uint64(bits))
            if above == {ABOVE["float32"]}:
                value = float32_to_float64(float32_of_bits(uint32(bits)))
            if ordered == above:
                is_nan = 1
            elif largest < value + 0.0:
                largest = value + 0.0
    return float64_nan if is_nan else largest


def total_of_parts(kind, works, count, base):
    """Return a total, given what kernels have left."""
    if kind == {_LARGEST}:
        return largest_of_all(works, count, base)
    return total_of_sums(kind == {_ROOT}, works, count, base)


def put(value, inputs, places, count):
    """Write a total to where kernels read it."""
    numbers = pointer_to_float64(inputs)
    at = pointer_to_int64(places)
    for k in range(count):
        numbers[at[k]] = value


def put_total(given, unused, table, inputs, step):
    """Compute a total in this thread."""
    total = pointer_to_int64(given)
    memory = inputs + total[5]
    if total[0] == {_NORM}:
        put(norm_of_all(total[1], total[2], total[3], table, memory), inputs, total[6], total[7])
        return
    gathered(total[3], total[4], table, memory)
    for k in range(total[2]):
        work = pointer_to_int64(total[1] + {8 * _WORK_WORDS} * k)
        kept = pointer_to_int64(memory + work[7])
        kept[0] = work[8]
        for i in range(1, work[9]):
            kept[i] = 0
        call_stages(
            work[0], unused, unused, memory + work[1], work[2], work[3], 0, work[4], inputs + work[5], step, inputs + work[6],
            -1, memory + work[7], 0, 1
        )
    put(total_of_parts(total[0], total[8], total[2], memory), inputs, total[6], total[7])
'''
"""Source of the functions of totals."""

_JOINING_SOURCE = f'''"""What kernels have left of a total, joined."""


{TOTALS}

def kernel():
    """Write a total, given its kind and what kernels have left, and where it goes."""
    words = pointer_to_int64(first_argument())
    result = pointer_to_float64(second_argument())
    result[0] = total_of_parts(words[0], first_argument() + 8, 1, 0)
'''

_RECORD_WORDS = threads.HEAD + 10
"""Words of a record of a pass: first and last element; the pass; of the norm address and number of groups, memory, number of the
part and of all parts; of others kind, where parts are and their number, or address and number of moves, offset of the rows from
the inputs, address and number of what says how parts begin. At the end, the same for both: address and number of the places of
the result. A call is given the table and the inputs."""
_GUESS, _ADD, _AGAIN, _ROOT_OF_PARTS, _GATHER, _COMBINE = range(6)
_BEGIN_WORDS = 5
"""Words that say how parts begin: where the first is, how far apart they are, how many; the first word, and how many words."""

_PART_SOURCE = f'''"""One thread's part of a pass for a total over all arrays."""


{TOTALS}

def begin(works, count):
    """Write what kernels add to."""
    for k in range(count):
        work = pointer_to_int64(works + {8 * _BEGIN_WORDS} * k)
        for part in range(work[2]):
            kept = pointer_to_int64(work[0] + work[1] * part)
            kept[0] = work[3]
            for i in range(1, work[4]):
                kept[i] = 0


def kernel():
    """Guess the norm's exponent, add up, add up again if the guess was wrong, find the norm; copy addresses; or find a total."""
    address = first_argument()
    record = pointer_to_int64(address)
    given = pointer_to_int64(second_argument())
    table = given[0]
    inputs = given[1]
    if record[2] == {_GATHER}:
        gathered(record[3], record[4], table, inputs + record[5])
        begin(record[6], record[7])
        return
    if record[2] == {_COMBINE}:
        put(total_of_parts(record[3], record[4], record[5], 0), inputs, record[10], record[11])
        return
    memory = record[5]
    head = pointer_to_int64(memory)
    found = memory + {8 * HEAD_WORDS}
    own = found + {8 * PART_WORDS} * record[6]
    again = {8 * PART_WORDS} * record[7]
    if record[2] == {_GUESS}:
        head[0] = guessed(record[3], record[4], table, memory)
    elif record[2] == {_ADD}:
        add_part(record[3], record[4], table, record[0], record[1], head[0], own)
    elif record[2] == {_AGAIN}:
        wanted, special = needed(found, record[7])
        if special == 0 and wanted > head[0]:
            add_part(record[3], record[4], table, record[0], record[1], wanted, own + again)
    else:
        norm = norm_of_parts(found, found + again, record[7], head[0])
        put(norm, inputs, record[10], record[11])
'''


@functools.cache
def _part() -> int:
    return threads.address_of(compile_function(_PART_SOURCE, "part"))


@functools.cache
def joining() -> int:
    """Return the address of the function that joins what one kernel has left of a total, for those who call no Python.

    It is given the address of words, the kind of the total, what NaN is in the order of numbers, where the first part is, how far
    apart parts are and how many there are, and the address of the result.
    """
    return threads.address_of(compile_function(_JOINING_SOURCE, "part"))


def kind_and_order(name: str, real: str) -> tuple[int, int]:
    """Return the first two of those words, for a reduction of arrays of a compute dtype."""
    return _KINDS[name], ABOVE[real]


class PlannedNorm:
    """The norm of arrays whose addresses are in a table.

    Args:
        tables: the arrays; `address` is the offset in the table of all, in bytes.

    Attributes:
        memory: what a step needs to itself, at first.
    """

    def __init__(self, tables: Sequence[GradientTable]) -> None:
        self.memory = array("q", bytes(8 * SMALL_WORDS))
        self._groups = array("q")
        self._total = 0
        for table in tables:
            kernel, total = norm_kernel(table.dtype, default_flush()), int(table.sizes.sum())
            self._total += total
            self._groups.extend((
                threads.address_of(kernel), table.address, table.columns, table.column,
                table.sizes.ctypes.data, len(table.sizes), total, stride_of_guess(total),
                infinity_of(table.dtype),
            ))  # fmt: skip
        self._keep_alive = tables

    def _of_groups(self) -> tuple[int, int]:
        return self._groups.buffer_info()[0], len(self._groups) // GROUP_WORDS

    def words(self, memory: int, places: array[int]) -> tuple[int, ...]:
        """Return what tells of the total, given where its memory is in that of the step, and the places of the result."""
        return _NORM, *self._of_groups(), self._total, 0, memory, places.buffer_info()[0], len(places), 0

    def passes(self, memory: int, places: array[int]) -> list[threads.Pass]:
        """Return the passes that find the norm, given where its memory is in that of the step, and the places of the result."""
        parts = threads.parts(self._total)
        own = array("q", bytes(8 * (HEAD_WORDS + 2 * PART_WORDS * len(parts))))
        given = *self._of_groups(), own.buffer_info()[0]
        results = 0, 0, places.buffer_info()[0], len(places)
        found = []
        for number, ranges in ((_GUESS, [(0, 0)]), (_ADD, parts), (_AGAIN, parts), (_ROOT_OF_PARTS, [(0, 0)])):
            records = array("q")
            for k, part in enumerate(ranges):
                records.extend((*part, number, *given, k, len(parts), *results))
            found.append(threads.Pass(_part(), records, _RECORD_WORDS, (own, places, self)))
        return found


class PlannedTotal:
    """A total that kernels of programs leave, as `reducing` returns them.

    Args:
        name: of the reduction.
        works: the kernels and parameters; the addresses in their tables are of no account.
        cells: where in the step's table the address of an array is, by number of the parameter and name.
        inputs: where the kernels' inputs are.
        in_passes: whether threads share the step.

    Attributes:
        memory: what a step needs to itself, at first: the tables, and in one thread workspaces.
    """

    def __init__(
        self, name: str, works: Sequence[Work], cells: Mapping[tuple[int, str], int], inputs: Inputs, *, in_passes: bool
    ) -> None:
        self.memory = array("q")
        self._kind, self._works = _KINDS[name], works
        self._moves, self._words, self._found = array("q"), array("q"), array("q")
        self._first = [first_words(name, work.kernel.key.compute_dtype) for work in works]
        starts = []
        for work in works:
            start, kernel = len(self.memory), work.kernel
            starts.append(8 * start)
            for row, i in enumerate(work.members):
                for column, of in enumerate(kernel.columns):
                    self._moves.extend((start + row * kernel.width + column, cells[i, of]))
            self.memory.frombytes(work.table.tobytes())
        self._groups = group_words(works, starts, inputs)
        if in_passes:
            at = self._groups.buffer_info()[0]
            self._passes = [Passes([work], at + 8 * CALL_WORDS * k) for k, work in enumerate(works)]
            return
        for work, start, first in zip(works, starts, self._first, strict=True):
            kernel, own, workspace = work.kernel, inputs.places[work.program], 8 * len(self.memory)
            self.memory.frombytes(bytes(8 * work.memory.words(1)))
            sizes = work.sizes.ctypes.data, len(work.sizes), work.total
            self._words.extend((kernel.address, start, *sizes, *own, workspace, first[0], len(first)))
            self._found.extend((ABOVE[kernel.key.compute_dtype], workspace, 0, 1))

    def words(self, memory: int, places: array[int]) -> tuple[int, ...]:
        """Return what tells of the total, given where its memory is in that of the step, and the places of the result."""
        moves = self._moves.buffer_info()[0], len(self._moves) // 2
        results = places.buffer_info()[0], len(places), self._found.buffer_info()[0]
        return self._kind, self._words.buffer_info()[0], len(self._works), *moves, memory, *results

    def passes(self, memory: int, places: array[int]) -> list[threads.Pass]:
        """Return the passes that find the total, given where its memory is in that of the step, and the places of the result."""
        passes, begin, found, keep_alive = list[threads.Pass](), array("q"), array("q"), list[Any]()
        for work, first, own in zip(self._works, self._first, self._passes, strict=True):
            workspaces = np.empty(own.memory_words(), np.int64)
            made = own.passes(memory, workspaces.ctypes.data)
            parts = max(one.parts for one in made)
            stride = work.memory.part if work.is_shared else work.memory.words(1)
            at = workspaces.ctypes.data, 8 * stride, parts
            begin.extend((*at, first[0], len(first)))
            found.extend((ABOVE[work.kernel.key.compute_dtype], *at))
            passes += made
            keep_alive.append(workspaces)
        count = len(self._works)
        moves = self._moves.buffer_info()[0], len(self._moves) // 2
        gather = 0, 0, _GATHER, *moves, memory, begin.buffer_info()[0], count, 0, 0, 0, 0
        results = places.buffer_info()[0], len(places)
        combine = 0, 0, _COMBINE, self._kind, found.buffer_info()[0], count, 0, 0, 0, 0, *results
        return [self._pass(gather), *passes, self._pass(combine, (self, places, begin, found, keep_alive))]

    @staticmethod
    def _pass(record: Sequence[int], keep_alive: Any = None) -> threads.Pass:
        return threads.Pass(_part(), array("q", record), _RECORD_WORDS, keep_alive)
