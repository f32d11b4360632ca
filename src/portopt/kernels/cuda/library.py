"""Launches of CUDA C, the same for all libraries of arrays: what differs between these are few methods."""

from __future__ import annotations

import contextlib
import functools
import itertools
import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from portopt.kernels.cuda import driver, kernels
from portopt.kernels.cuda.graphs import WORDS, graphs_source
from portopt.kernels.cuda.norm import norm_source
from portopt.kernels.cuda.products import products_source
from portopt.kernels.cuda.source import BLOCKS_PER_MULTIPROCESSOR, ONLY_CHUNK, REDUCED_CHUNK, THREADS
from portopt.kernels.cuda.tables import Chunks, Cut, columns_of
from portopt.kernels.cuda.totals import totals_source
from portopt.kernels.key import KernelKey
from portopt.kernels.names import PUT_ROWS, PUT_WORDS, SCALARS_OF_NORM
from portopt.kernels.norm_dependence import WORDS_OF_PART, GradientNorm
from portopt.program import Program

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
    """A table in the device's memory.

    Attributes:
        chunks: how many chunks there are.
        argument: the struct that tells kernels where it is, as words.
        owner: what keeps the memory alive.
    """

    chunks: int
    argument: Sequence[int]
    owner: Any


class Fetch(NamedTuple):
    """What a device gets of what another one has found.

    Attributes:
        device: the one that gets it.
        at: where it goes.
        source: the other one.
        of: where that has it.
        size: in bytes.
    """

    device: int
    at: int
    source: int
    of: int
    size: int


def packed(arguments: Sequence[Argument], table: Sequence[int] = ()) -> bytes:
    """Return the arguments of a kernel as they lie in memory, the struct `Table` before them if one is given."""
    kinds = "".join([argument.kind for argument in arguments])
    return struct.pack(f"@{len(table)}q{kinds}", *table, *[argument.value for argument in arguments])


def typed(value: Any) -> Argument:
    """Return a scalar in the type that a kernel declares for it."""
    return Argument("?" if isinstance(value, bool) else "q" if isinstance(value, int) else "d", value)


def real_numbers(values: Sequence[float], dtype: str) -> list[Argument]:
    """Return numbers of a dtype as arguments of a kernel."""
    return [Argument(_REAL[dtype], value) for value in values]


class CudaLibrary(ABC):
    """A library of arrays on CUDA devices, each of which is known by its number.

    Attributes:
        chunk: how many elements a chunk of an elementwise step is.
        reduced_chunk: how many it is at least where it is reduced to one part.
    """

    chunk = ONLY_CHUNK
    reduced_chunk = REDUCED_CHUNK

    # What libraries of arrays do ------------------------------------------------------------------------------------

    @abstractmethod
    def device(self, array: Any) -> int:
        """Return the number of an array's device."""

    @abstractmethod
    def dtype(self, array: Any) -> str:
        """Return the name of an array's dtype."""

    @abstractmethod
    def size(self, array: Any) -> int:
        """Return the number of an array's elements."""

    @abstractmethod
    def address(self, array: Any) -> int:
        """Return where the memory of a C-contiguous array begins."""

    @abstractmethod
    def memory(self, array: Any) -> tuple[str, int, int]:
        """Return device, first and one-past-last byte of a C-contiguous array."""

    @abstractmethod
    def dense(self, array: Any) -> Any:
        """Return an array itself if it is C-contiguous, else a copy that is."""

    @abstractmethod
    def is_dense(self, array: Any) -> bool:
        """Tell whether an array is C-contiguous."""

    @abstractmethod
    def copied(self, array: Any) -> Any:
        """Return a copy of a C-contiguous array."""

    @abstractmethod
    def empty_like(self, array: Any, dtype: str | None = None) -> Any:
        """Return a new C-contiguous array of the same shape, on the same device, and of the same dtype if none is named."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """Return a new C-contiguous array on the current device."""

    @abstractmethod
    def assign(self, target: Any, value: Any) -> None:
        """Write the elements of an array into another one."""

    @abstractmethod
    def on(self, device: int) -> AbstractContextManager[Any]:
        """Make a device the current one."""

    @abstractmethod
    def words(self, memory: Any, count: int) -> list[int]:
        """Wait for the device, and return the first words of an array of int64."""

    @abstractmethod
    def stream(self, device: int) -> int:
        """Return the stream on which the library would queue work for a device now, as the driver knows it."""

    # What CUDA C does -----------------------------------------------------------------------------------------------

    def module(self, program: Program, key: KernelKey, on_device: frozenset[str] = frozenset()) -> str:
        """Return the kernels that run a program, given the names of the scalar inputs that lie on the device."""
        return kernels.update_source(program, key, on_device)

    def norm_module(self, dtype: str) -> str:
        """Return the kernels that reduce gradients of a dtype to what their norm is computed from."""
        return _norm_source(dtype)

    def products_module(self, compute_dtype: str) -> str:
        """Return the kernels that slice operands of products of matrices and scale integer products back."""
        return products_source(compute_dtype)

    def totals_module(self) -> str:
        """Return the kernels that join parts of totals over all parameters."""
        return totals_source()

    def workspace(self, words: int, device: int) -> tuple[Any, int]:
        """Return memory of the current device for that many words of 64 bits, and its address."""
        memory = self.empty((words,), "int64", device)
        return memory, self.address(memory)

    def tables(self, rows: Sequence[Sequence[int]], cut: Sequence[Cut], device: int) -> list[Placed]:
        """Return what tells launches where parameters are, one for each way in which their elements are cut into chunks.

        Args:
            rows: the words of each parameter, in the order of the kernels' columns.
            cut: how elements are cut, once for each way.
            device: the current device.
        """
        words, chunks = columns_of(rows), [Chunks(sizes, chunk) for sizes, chunk in cut]
        starts = [len(words)]
        for one in chunks:
            words += one.words
            starts.append(len(words))
        memory, at = self.workspace(len(words), device)
        if words:
            if self.is_capturing(device):
                self._put(at, words, list(zip(starts[:-1], chunks, strict=True)), device)
            else:
                with driver.device(device).within():
                    driver.device(device).upload(at, words, self.stream(device))
        return [
            Placed(one.number, one.argument(at + 8 * start, at), memory)
            for one, start in zip(chunks, starts[:-1], strict=True)
        ]

    def prepare_graphs(self, device: int) -> None:
        """Run the kernels once that put tables into the device's memory, so that nothing is loaded during a capture."""
        with self.on(device):
            _, at = self.workspace(2, device)
            self._launch(graphs_source(), PUT_WORDS, 1, packed([], [at, 2, *[0] * WORDS]), device)
            self._launch(graphs_source(), PUT_ROWS, 1, packed([Argument("Q", at)] * 2 + [typed(0)]), device)

    def _put(self, at: int, words: array[int], cut: Sequence[tuple[int, Chunks]], device: int) -> None:
        """Put words into the device's memory so that a graph can repeat it; the rows of many chunks a kernel finds.

        Args:
            at: where.
            words: what.
            cut: the ways in which elements are cut into chunks, each with the place of its words.
            device: the current device.
        """
        module, parts, start = graphs_source(), [], 0
        for begin, chunks in cut:
            if chunks.number > WORDS:
                parts.append((start, begin + chunks.place_of_rows))
                start = begin + len(chunks.words)
        for first, end in [*parts, (start, len(words))]:
            for k in range(first, end, WORDS):
                some = words[k : min(k + WORDS, end)]
                given = [at + 8 * k, len(some), *some, *[0] * (WORDS - len(some))]
                self._launch(module, PUT_WORDS, 1, packed([], given), device)
        for begin, chunks in cut:
            if chunks.number > WORDS:
                first_chunk, row = at + 8 * begin, at + 8 * (begin + chunks.place_of_rows)
                arguments = [Argument("Q", first_chunk), Argument("Q", row), typed(chunks.rows)]
                self._launch(module, PUT_ROWS, chunks.rows, packed(arguments), device)

    def launch(
        self,
        module: str,
        kernel: str,
        table: Placed,
        arguments: Sequence[Argument],
        device: int,
        blocks: int | None = None,
    ) -> None:
        """Run a kernel on all parameters of a table, in a block for each chunk if no number is given."""
        blocks = table.chunks if blocks is None else blocks
        if blocks:
            self._launch(module, kernel, blocks, packed(arguments, table.argument), device)

    def call(self, module: str, kernel: str, blocks: int, arguments: Sequence[Any], device: int) -> None:
        """Run a kernel that takes arrays and integers, in so many blocks."""
        given = [typed(a) if isinstance(a, int) else Argument("Q", self.address(a)) for a in arguments]
        self._launch(module, kernel, blocks, packed(given), device)

    def compute_scalars(self, module: str, arguments: Sequence[Argument], device: int) -> None:
        """Run the kernel that computes scalars of a step."""
        self._launch(module, SCALARS_OF_NORM, 1, packed(arguments), device)

    def room(self, count: int, dtype: str, device: int) -> Argument:
        """Return memory of the current device for numbers of a dtype, as an argument of a kernel."""
        memory = self.empty((count,), dtype, device)
        return Argument("Q", self.address(memory), memory)

    def is_capturing(self, device: int) -> bool:
        """Tell whether what the library queues on a device now is captured for a graph."""
        found = driver.device(device)
        with found.within():
            return found.driver.is_capturing(self.stream(device))

    def kept(self, device: int, owner: Any) -> AbstractContextManager[Any]:
        """Return a context in which the library allocates for a graph, whose memory lives as long as `owner`.

        As it is here, the library sees to it by itself that a graph has the memory that was allocated during its capture.
        """
        return contextlib.nullcontext()

    def blocks_of_norm(self, table: Placed, device: int) -> int:
        """Return in how many blocks the gradients of a table are reduced, each of which leaves a part."""
        return min(table.chunks, BLOCKS_PER_MULTIPROCESSOR * driver.device(device).multiprocessors)

    def new_norm(self, counts: Mapping[int, int]) -> GradientNorm:
        """Return a norm that is to be found in so many blocks of each device."""
        count = sum(counts.values())
        words = {}
        for device in counts:
            with self.on(device):
                words[device], _ = self.workspace(max(count, 1) * WORDS_OF_PART, device)
        first = next(iter(words.values()))
        return GradientNorm(words, count, functools.partial(self.words, first, count * WORDS_OF_PART))

    def parts_of(self, norm: GradientNorm, device: int, first: int, count: int) -> list[Argument]:
        """Return what some blocks find of a norm, as a device has it, as arguments of a kernel."""
        memory = norm.words[device]
        return [Argument("Q", self.address(memory) + 8 * WORDS_OF_PART * first, memory), typed(count)]

    def join_norm(self, norm: GradientNorm, counts: Mapping[int, int]) -> None:
        """Let each device have what the blocks of all others find, of which there are so many, in the order of the devices."""
        firsts = dict(zip(counts, itertools.accumulate(counts.values(), initial=0), strict=False))

        def at(device: int, of: int) -> int:
            return self.address(norm.words[device]) + 8 * WORDS_OF_PART * firsts[of]

        self.fetch(
            [
                Fetch(device, at(device, of), of, at(of, of), 8 * WORDS_OF_PART * counts[of])
                for device, of in itertools.permutations(counts, 2)
                if counts[of]
            ]
        )

    def fetch(self, fetches: Sequence[Fetch]) -> None:
        """Let devices have what others find by what is queued there; the host does not wait.

        The others go on once it has been fetched, so that their memory may then be used for something else.
        """
        targets, sources = (
            dict.fromkeys(places) for places in ([f.device for f in fetches], [f.source for f in fetches])
        )
        has_found = {number: self._recorded(number) for number in sources}
        for number in targets:
            with driver.device(number).within():
                for of in fetches:
                    if of.device == number:
                        self._wait(number, has_found[of.source])
                        contexts = driver.device(number).context, driver.device(of.source).context
                        own = driver.device(number).driver
                        own.check(own.fetch(of.at, contexts[0], of.of, contexts[1], of.size, self.stream(number)))
        has_fetched = {number: self._recorded(number) for number in targets}
        for of in fetches:
            with driver.device(of.source).within():
                self._wait(of.source, has_fetched[of.device])
        for events in (has_found, has_fetched):
            for number, event in events.items():
                driver.device(number).take_back_events([event])

    def _recorded(self, device: int) -> int:
        """Return an event after all that is queued on a device."""
        found = driver.device(device)
        with found.within():
            event = found.event()
            found.driver.check(found.driver.record(event, self.stream(device)))
        return event

    def _wait(self, device: int, event: int) -> None:
        """Let what is queued next on a device, that of this thread, wait for an event."""
        own = driver.device(device).driver
        own.check(own.wait(self.stream(device), event, 0))

    def _launch(self, module: str, kernel: str, blocks: int, arguments: bytes, device: int) -> None:
        function, found = kernels.function(module, kernel, device), driver.device(device)
        with found.within():
            found.launch(function, blocks, THREADS, arguments, self.stream(device))


_norm_source = functools.cache(norm_source)
