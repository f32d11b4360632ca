"""The norm of all gradients within the call that does a planned step: by one thread, or in passes of the job that updates."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence

from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.host.norm import GradientTable, infinity_of, norm_kernel, stride_of_guess
from portopt.kernels.host.norm_stages import GROUP_WORDS, HEAD_WORDS, NORM, PART_WORDS, SMALL_WORDS

_RECORD_WORDS = threads.HEAD + 8
"""Words of a record: first and last element; the pass; address and number of groups, table, memory, number of the part and of all
parts; the address of the places of the norm."""

_PART_SOURCE = f'''"""One thread's part of a pass for the norm of all gradients."""


{NORM}

def kernel():
    """Guess the exponent; add up; add up again if the guess was wrong; or find the norm."""
    address = first_argument()
    record = pointer_to_int64(address)
    memory = record[6]
    head = pointer_to_int64(memory)
    found = memory + {8 * HEAD_WORDS}
    own = found + {8 * PART_WORDS} * record[7]
    again = {8 * PART_WORDS} * record[8]
    if record[2] == 0:
        head[0] = guessed(record[3], record[4], record[5], memory)
    elif record[2] == 1:
        add_part(record[3], record[4], record[5], record[0], record[1], head[0], own)
    elif record[2] == 2:
        wanted, special = needed(found, record[8])
        if special == 0 and wanted > head[0]:
            add_part(record[3], record[4], record[5], record[0], record[1], wanted, own + again)
    else:
        norm = norm_of_parts(found, found + again, record[8], head[0])
        places = pointer_to_int64(record[9])
        for k in range(places[0]):
            pointer_to_float64(places[k + 1])[0] = norm
'''


@functools.cache
def _part() -> int:
    return threads.address_of(compile_function(_PART_SOURCE, "part"))


class PlannedNorm:
    """The norm of all gradients whose addresses are in a table.

    Args:
        tables: the gradients; `address` is the offset in the table of all, in bytes.

    Attributes:
        groups: the words of all tables.
        total: number of elements.
    """

    memory_words = SMALL_WORDS

    def __init__(self, tables: Sequence[GradientTable]) -> None:
        self.groups = array("q")
        self.total = 0
        for table in tables:
            kernel, total = norm_kernel(table.dtype, default_flush()), int(table.sizes.sum())
            self.total += total
            self.groups.extend((
                threads.address_of(kernel), table.address, table.columns, table.column,
                table.sizes.ctypes.data, len(table.sizes), total, stride_of_guess(total),
                infinity_of(table.dtype),
            ))  # fmt: skip
        self._keep_alive = tables

    def __len__(self) -> int:
        return len(self.groups) // GROUP_WORDS

    @property
    def address(self) -> int:
        """Of the groups."""
        return self.groups.buffer_info()[0]

    def passes(self, table: int, places: Sequence[int]) -> list[threads.Pass]:
        """Return the passes that find the norm.

        Args:
            table: address of the table of addresses.
            places: addresses of where the norm goes.
        """
        parts = threads.parts(self.total)
        memory = array("q", bytes(8 * (HEAD_WORDS + 2 * PART_WORDS * len(parts))))
        where = array("q", (len(places), *places))
        given = self.address, len(self), table, memory.buffer_info()[0]
        found = []
        for number, ranges in enumerate(([(0, 0)], parts, parts, [(0, 0)])):
            records = array("q")
            for k, part in enumerate(ranges):
                records.extend((*part, number, *given, k, len(parts), where.buffer_info()[0]))
            found.append(threads.Pass(_part(), records, _RECORD_WORDS, (memory, where, self)))
        return found
