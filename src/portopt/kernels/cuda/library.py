"""Launches of CUDA C, the same for all libraries of arrays: what differs between these are few methods."""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from portopt.kernels.cuda import driver, kernels
from portopt.kernels.cuda.norm import norm_source
from portopt.kernels.cuda.products import products_source
from portopt.kernels.cuda.source import CHUNK, MOST_BLOCKS, THREADS
from portopt.kernels.cuda.staged_source import chunk_of
from portopt.kernels.cuda.tables import Table
from portopt.kernels.cuda.totals import totals_source
from portopt.kernels.key import KernelKey
from portopt.kernels.names import SCALARS_OF_NORM
from portopt.kernels.norm_dependence import GradientNorm
from portopt.program import Program

_NORM_WORDS = 4
_REAL = {"float32": "f", "float64": "d"}


class Argument(NamedTuple):
    """An argument of a kernel.

    Attributes:
        kind: its type, as `struct` calls it.
        value: its value; of memory, the address.
        owner: what keeps the memory alive.
    """

    kind: str
    value: Any
    owner: Any = None


class Placed(NamedTuple):
    """A table in the device's memory, which `owner` keeps alive."""

    table: Table
    argument: Sequence[int]
    owner: Any


def packed(arguments: Sequence[Argument], table: Sequence[int] = ()) -> bytes:
    """Return the arguments of a kernel as they lie in memory, the struct `Table` before them if one is given."""
    kinds = "".join([argument.kind for argument in arguments])
    return struct.pack(f"@{len(table)}q{kinds}", *table, *[argument.value for argument in arguments])


def typed(value: Any) -> Argument:
    """Return a scalar in the type that a kernel declares for it."""
    return Argument("?" if isinstance(value, bool) else "q" if isinstance(value, int) else "d", value)


class CudaLibrary:
    """A library of arrays on CUDA devices, each of which stands for itself by its number."""

    chunk = CHUNK
    chunk_of = staticmethod(chunk_of)

    # What libraries of arrays do ------------------------------------------------------------------------------------

    def device(self, array: Any) -> int:
        raise NotImplementedError

    def dtype(self, array: Any) -> str:
        raise NotImplementedError

    def size(self, array: Any) -> int:
        raise NotImplementedError

    def address(self, array: Any) -> int:
        raise NotImplementedError

    def memory(self, array: Any) -> tuple[str, int, int]:
        raise NotImplementedError

    def dense(self, array: Any) -> Any:
        raise NotImplementedError

    def is_dense(self, array: Any) -> bool:
        raise NotImplementedError

    def copied(self, array: Any) -> Any:
        raise NotImplementedError

    def empty_like(self, array: Any, dtype: str | None = None) -> Any:
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        raise NotImplementedError

    def assign(self, target: Any, value: Any) -> None:
        raise NotImplementedError

    def on(self, device: int) -> Any:
        raise NotImplementedError

    def words(self, memory: Any, count: int) -> list[int]:
        raise NotImplementedError

    def stream(self, device: int) -> int:
        """Return the stream on which the library would queue work for a device now, as the driver knows it."""
        raise NotImplementedError

    # What CUDA C does ---------------------------------------------------------------------------------------------------

    def module(self, program: Program, key: KernelKey) -> str:
        return kernels.update_source(program, key)

    def norm_module(self, dtype: str) -> str:
        return _norm_source(dtype)

    def products_module(self, compute_dtype: str) -> str:
        return products_source(compute_dtype)

    def totals_module(self) -> str:
        return totals_source()

    def arguments(self, values: Sequence[float], dtype: str, device: int) -> list[Argument]:
        return [Argument(_REAL[dtype], value) for value in values]

    def unrounded(self, values: Sequence[Any], device: int) -> list[Argument]:
        return list(map(typed, values))

    def workspace(self, words: int, device: int) -> tuple[Any, int]:
        memory = self.empty((words,), "int64", device)
        return memory, self.address(memory)

    def tables(
        self, module: str, addresses: Sequence[Sequence[int]], sizes: Sequence[int], chunk: int, device: int
    ) -> list[Placed]:
        table = Table(addresses, sizes, chunk)
        if not table.chunks:
            return []
        memory, at = self.workspace(len(table.words), device)
        with driver.device(device).within():
            driver.device(device).upload(at, array("q", table.words.tobytes()), self.stream(device))
        return [Placed(table, table.argument(at), memory)]

    def launch(self, module: str, kernel: str, table: Placed, arguments: Sequence[Argument], device: int) -> None:
        self._launch(module, kernel, table.table.chunks, packed(arguments, table.argument), device)

    def call(self, module: str, kernel: str, blocks: int, arguments: Sequence[Any], device: int) -> None:
        given = [typed(a) if isinstance(a, int) else Argument("Q", self.address(a)) for a in arguments]
        self._launch(module, kernel, blocks, packed(given), device)

    def scalars_of_norm(
        self, module: str, norm: GradientNorm, given: Sequence[Any], count: int, dtype: str, device: int
    ) -> Argument:
        results = self.empty((count,), dtype, device)
        found = Argument("Q", self.address(results), results)
        arguments = [Argument("Q", self.address(norm.words)), *map(typed, given), found]
        self._launch(module, SCALARS_OF_NORM, 1, packed(arguments), device, threads=1)
        return found

    def new_norm(self, device: int) -> GradientNorm:
        memory, at = self.workspace(_NORM_WORDS, device)
        with driver.device(device).within():
            driver.device(device).clear(at, _NORM_WORDS, self.stream(device))
        return GradientNorm(memory, functools.partial(self.words, memory, _NORM_WORDS))

    def largest(self, norm: GradientNorm) -> list[Argument]:
        return [Argument("Q", self.address(norm.words), norm.words)]

    def sums(self, norm: GradientNorm) -> list[Argument]:
        return self.largest(norm)

    def _launch(
        self, module: str, kernel: str, blocks: int, arguments: bytes, device: int, threads: int = THREADS
    ) -> None:
        function, found = kernels.function(module, kernel, device), driver.device(device)
        with found.within():
            found.launch(function, min(blocks, MOST_BLOCKS), threads, arguments, self.stream(device))


_norm_source = functools.cache(norm_source)
