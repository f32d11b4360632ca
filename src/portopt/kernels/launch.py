"""What launches share: parameters of a kind together, tables of their addresses, gradients that would be overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.kernels.key import NEW
from portopt.program import Program

Arrays = Mapping[str, Any]


class Launch(NamedTuple):
    """The arguments of one launch.

    Attributes:
        table: the struct `Table` of `table.cuh`, as int64 words.
        chunks: number of chunks of all its parameters together.
    """

    table: Any
    chunks: int


def rows_of(
    columns: Sequence[str], parameters: Sequence[Arrays], outputs: Sequence[Arrays], address: Callable[[Any], int]
) -> list[list[int]]:
    """Return the addresses of each parameter's arrays in the order of the kernel's columns."""
    return [
        [address(new[c.removeprefix(NEW)] if c.startswith(NEW) else old[c]) for c in columns]
        for old, new in zip(parameters, outputs, strict=True)
    ]


def chunk_starts(sizes: Sequence[int], chunk: int) -> Any:
    """Return the number of the first chunk of each parameter, and at the end the number of all chunks."""
    chunks = -(-np.asarray(sizes, np.int64) // chunk)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(chunks)])


def launches(addresses: Sequence[Sequence[int]], sizes: Sequence[int], rows: int, chunk: int) -> Iterator[Launch]:
    """Yield launches of at most `rows` parameters each. Parameters without elements are left out.

    Args:
        addresses: of the arrays of each parameter.
        sizes: number of elements of each parameter.
        rows: the kernel's `ROWS`.
        chunk: the kernel's `CHUNK`.
    """
    filled = [i for i, size in enumerate(sizes) if size]
    for first in range(0, len(filled), rows):
        members = filled[first : first + rows]
        count, columns = len(members), len(addresses[0])
        table = np.zeros(1 + rows * (2 + columns), np.int64)
        starts = chunk_starts([sizes[i] for i in members], chunk)
        table[: rows + 1] = starts[-1]
        table[: count + 1] = starts
        table[1 + rows : 1 + rows + count] = [sizes[i] for i in members]
        address_words = np.asarray([addresses[i] for i in members], np.uint64).view(np.int64)
        table[1 + 2 * rows : 1 + 2 * rows + count * columns] = address_words.reshape(-1)
        yield Launch(table, int(starts[-1]))


def overwritten(
    parameters: Sequence[Arrays], program: Program, memory: Callable[[Any], tuple[str, int, int]]
) -> set[int]:
    """Return the parameters whose gradient shares memory with what a step in place writes: it must be copied first.

    Args:
        parameters: the arrays of each parameter.
        program: what the step runs.
        memory: returns device, first and one-past-last byte of an array's memory.
    """
    written: dict[str, list[tuple[int, int]]] = {}
    for arrays in parameters:
        for name in program.array_outputs:
            device, start, end = memory(arrays[name])
            if start < end:
                written.setdefault(device, []).append((start, end))
    sorted_ranges = {}
    for device, ranges in written.items():
        starts, ends = np.asarray(sorted(ranges)).T
        sorted_ranges[device] = starts, np.maximum.accumulate(ends)
    found = set()
    for i, arrays in enumerate(parameters):
        device, start, end = memory(arrays["g"])
        if start == end or device not in sorted_ranges:
            continue
        starts, furthest = sorted_ranges[device]
        below = int(np.searchsorted(starts, end))
        if below and furthest[below - 1] > start:
            found.add(i)
    return found
