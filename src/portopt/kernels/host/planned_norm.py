"""The norm of all gradients within the call that does a planned step: by one thread, or in passes of the job that updates."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence

from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function, default_flush
from portopt.kernels.host.norm import GradientTable, infinity_of, norm_kernel, stride_of_guess
from portopt.kernels.host.norm_stages import GROUP_WORDS, HEAD_WORDS, NORM, PART_WORDS, SMALL_WORDS

_RECORD_WORDS = threads.HEAD + 7
"""Words of a record: first and last element; the pass; address and number of groups, memory, number of the part and of all parts;
the address of the places of the norm among the inputs. A call is given the table and the inputs."""

_PART_SOURCE = f'''"""One thread's part of a pass for the norm of all gradients."""


{NORM}

def kernel():
    """Guess the exponent; add up; add up again if the guess was wrong; or find the norm."""
    address = first_argument()
    record = pointer_to_int64(address)
    given = pointer_to_int64(second_argument())
    memory = record[5]
    head = pointer_to_int64(memory)
    found = memory + {8 * HEAD_WORDS}
    own = found + {8 * PART_WORDS} * record[6]
    again = {8 * PART_WORDS} * record[7]
    if record[2] == 0:
        head[0] = guessed(record[3], record[4], given[0], memory)
    elif record[2] == 1:
        add_part(record[3], record[4], given[0], record[0], record[1], head[0], own)
    elif record[2] == 2:
        wanted, special = needed(found, record[7])
        if special == 0 and wanted > head[0]:
            add_part(record[3], record[4], given[0], record[0], record[1], wanted, own + again)
    else:
        norm = norm_of_parts(found, found + again, record[7], head[0])
        places = pointer_to_int64(record[8])
        for k in range(places[0]):
            pointer_to_float64(given[1])[places[k + 1]] = norm
'''


@functools.cache
def _part() -> int:
    return threads.address_of(compile_function(_PART_SOURCE, "part"))


class PlannedNorm:
    """The norm of all gradients whose addresses are in a table.

    Args:
        tables: the gradients; `address` is the offset in the table of all, in bytes.
        places: where among the kernels' inputs the norm goes.

    Attributes:
        places: as given.
        groups: the words of all tables.
        total: number of elements.
    """

    memory_words = SMALL_WORDS

    def __init__(self, tables: Sequence[GradientTable], places: Sequence[int]) -> None:
        self.places = places
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

    def passes(self) -> list[threads.Pass]:
        """Return the passes that find the norm."""
        parts = threads.parts(self.total)
        memory = array("q", bytes(8 * (HEAD_WORDS + 2 * PART_WORDS * len(parts))))
        places = array("q", (len(self.places), *self.places))
        given = self.address, len(self), memory.buffer_info()[0]
        found = []
        for number, ranges in enumerate(([(0, 0)], parts, parts, [(0, 0)])):
            records = array("q")
            for k, part in enumerate(ranges):
                records.extend((*part, number, *given, k, len(parts), places.buffer_info()[0]))
            found.append(threads.Pass(_part(), records, _RECORD_WORDS, (memory, places, self)))
        return found
