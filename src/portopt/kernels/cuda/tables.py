"""What tells a launch where its parameters are: the struct `Table` of `table.cuh`, and the memory that it points to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Table:
    """What lies in the device's memory for a launch on some parameters; those without elements are left out.

    Args:
        addresses: the words of each parameter, in the order of the kernel's columns.
        sizes: number of elements of each parameter.
        chunk: the elements of a chunk.

    Attributes:
        words: the memory's content, int64 words.
        rows: number of parameters.
        chunks: number of chunks of all parameters together.
        members: the parameters that are not left out.
    """

    def __init__(self, addresses: Sequence[Sequence[int]], sizes: Sequence[int], chunk: int) -> None:
        self.members = [i for i, size in enumerate(sizes) if size]
        own = np.asarray([sizes[i] for i in self.members], np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-own // chunk))])
        self.rows, self.chunks = len(own), int(starts[-1])
        of_chunks = np.repeat(np.arange(self.rows, dtype=np.int32), np.diff(starts))
        if len(of_chunks) % 2:
            of_chunks = np.append(of_chunks, np.int32(0))
        columns = np.asarray([addresses[i] for i in self.members], np.uint64).view(np.int64).T
        self.words = np.concatenate([starts, own, of_chunks.view(np.int64), np.ravel(columns)])
        self._first_address = len(self.words) - columns.size

    def argument(self, at: int) -> Any:
        """Return the struct as int64 words, given the address of the memory."""
        size = at + 8 * (self.rows + 1)
        return np.asarray([at, size, size + 8 * self.rows, self.column(at, 0), self.rows, self.chunks], np.int64)

    def column(self, at: int, number: int) -> int:
        """Return where a column of addresses begins, given the address of the memory."""
        return at + 8 * (self._first_address + number * self.rows)
