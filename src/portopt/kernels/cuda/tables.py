"""What tells a launch where its parameters are: the struct `Table` of `table.cuh`, and the memory that it points to.

That of few parameters lies in the launch's arguments as a whole: `table_in_arguments.cuh`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

Cut = tuple[Sequence[int], int | Sequence[int]]
"""The number of elements of each parameter, and how many of them are a chunk, of all or of each."""


class Chunks:
    """How the elements of parameters are cut into chunks.

    Args:
        sizes: number of elements of each parameter.
        chunk: the elements of a chunk, of all parameters or of each.

    Attributes:
        words: what kernels have of it in the device's memory, int64 words.
        rows: number of parameters.
        number: of all chunks.
        place_of_rows: where among the words the parameter of each chunk stands.
    """

    def __init__(self, sizes: Sequence[int], chunk: int | Sequence[int]) -> None:
        own = np.asarray(sizes, np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-own // np.asarray(chunk, np.int64)))])
        self.rows, self.number = len(own), int(starts[-1])
        self.place_of_rows = 2 * self.rows + 1
        of_chunks = np.zeros(self.number + self.number % 2, np.int32)
        of_chunks[: self.number] = np.repeat(np.arange(self.rows, dtype=np.int32), np.diff(starts))
        self.words = array("q", np.concatenate([starts, own, of_chunks.view(np.int64)]).tobytes())

    def argument(self, at: int, addresses: int) -> tuple[int, ...]:
        """Return the struct as words, given where the memory begins and where that of the addresses does."""
        return at, at + 8 * (self.rows + 1), at + 8 * self.place_of_rows, addresses, self.rows, self.number

    def few(self) -> tuple[int, ...]:
        """Return what comes before the addresses of few parameters in the struct that is among a launch's arguments, as words."""
        return self.rows, self.number, *self.words[: self.place_of_rows]


def words_of_few(rows: int, columns: int) -> int:
    """Return how many words that struct needs for so many parameters and addresses of each, its two numbers apart."""
    return 1 + (2 + columns) * rows


def columns_of(rows: Sequence[Sequence[int]]) -> array[int]:
    """Return what kernels have of the addresses of parameters, given those of each, as int64 words."""
    return array("q", np.ascontiguousarray(np.asarray(rows, np.uint64).T).tobytes())
