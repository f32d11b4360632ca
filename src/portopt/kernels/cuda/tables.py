"""The argument that tells a launch where its parameters are: the struct `Table` of `table.cuh`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.kernels.launch import chunk_starts


class Launch(NamedTuple):
    """The arguments of one launch.

    Attributes:
        table: the struct `Table`, as int64 words.
        chunks: number of chunks of all its parameters together.
    """

    table: Any
    chunks: int


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
