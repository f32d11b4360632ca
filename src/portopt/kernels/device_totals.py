"""Totals over all parameters of a planned step on a device, for which the host waits: its scalars, or the state's, need them.

Kernels leave the parts of all parameters in one row of memory, where one block combines them, or some before it if there are
many, as `launch.total` has it; but tables and memory stay on the device between steps. Where there are several devices, one
fetches the parts of the others. Totals that do not need each other are queued together, before the host waits for all of them.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.backend import Leaf
from portopt.kernels import launch
from portopt.kernels.cuda import driver, kernels
from portopt.kernels.cuda.library import CudaLibrary, Fetch
from portopt.kernels.device_queue import FINDING, JOINING, Column, Launch, OnDevice, Queue, ScalarKernel
from portopt.kernels.groups import grouped, positions
from portopt.kernels.host.kernel import Inputs
from portopt.kernels.host_scalars import HostScalars
from portopt.kernels.names import LARGEST_JOINED, SUMS_JOINED
from portopt.kernels.norm_dependence import with_given_totals
from portopt.kernels.passes import number_of_parts, passes_of, words_of
from portopt.kernels.totals import can_total, reducing
from portopt.program import Op, Program
from portopt.program.reductions import of_numbers


def reduced(program: Program, total: Op) -> Program:
    """Return the program that reduces what a total of a program is of, all other totals given."""
    return reducing(with_given_totals(program.part(total.args[0])), reduction_of(total))


def reduction_of(total: Op) -> str:
    """Return the name of a total's reduction."""
    return total.name.removeprefix("total_")


def can_be_found(programs: Sequence[Program]) -> bool:
    """Tell whether kernels find all totals of a step's programs."""
    return all(can_total(reduced(program, op)) for program in programs for op in program.totals.values())


class Rows(NamedTuple):
    """The parameters of a kind in the step's table of addresses.

    Attributes:
        offset: where they begin, in bytes.
        columns: names of the arrays of each.
        changing: names of those that may be others in each step.
        leaves: the parameters.
    """

    offset: int
    columns: Sequence[str]
    changing: Sequence[str]
    leaves: Sequence[Leaf]

    def of(self, table: Any) -> Any:
        """Return the addresses, one row a parameter, given the words of the table."""
        first = self.offset // 8
        return table[first : first + len(self.leaves) * len(self.columns)].reshape(len(self.leaves), -1)


class TotalOfKind:
    """What kernels do for a total to the parameters of a kind.

    Args:
        library: of the arrays.
        number: of the program among all whose scalars are computed.
        program: reduces their arrays.
        rows: the parameters.
        device: theirs.
    """

    def __init__(self, library: CudaLibrary, number: int, program: Program, rows: Rows, device: int) -> None:
        self.device = device
        ((key, _, _),) = grouped(program, [leaf.dtypes for leaf in rows.leaves], in_place=True, flush="where")
        self.number, self.rows, self.real = number, rows, key.compute_dtype
        self.scalars = HostScalars(program, self.real)
        self.columns = key.columns(program)
        self.passes = passes_of(program)
        module = library.module(program, key)
        self.first, self.last = (kernels.function(module, step.name, device) for step in self.passes.passes)
        self.lengths = [self.passes.stages.lengths(tuple(leaf["p"].shape)) for leaf in rows.leaves]
        self.chunks = [number_of_parts(math.prod(lengths), library.reduced_chunk) for lengths in self.lengths]

    @property
    def width(self) -> int:
        """How many words a part has."""
        (partial,) = self.passes.partial
        return words_of(self.passes.stages.program.ops[partial].name)


class _Queued:
    """What is queued on a device for some totals, in order."""

    def __init__(self) -> None:
        self.columns = list[Column]()
        self.launches = list[Launch]()
        self.fetches = list[Fetch]()


class _Found(NamedTuple):
    """Where a total is found: memory of the device that begins with it, or with what several results combine to."""

    name: str
    reduction: str
    memory: list[Any]


class PlacedTotals(NamedTuple):
    """Totals that do not need each other, on a stream of each device.

    Attributes:
        queue: queues what finds them.
        found: where each is found.
        owners: what keeps their memory alive.
    """

    queue: Queue
    found: Sequence[_Found]
    owners: Any

    @property
    def names(self) -> list[str]:
        """Of the totals."""
        return [of.name for of in self.found]

    def values(self, library: CudaLibrary) -> dict[str, float]:
        """Wait for the device, and return the totals by name."""
        numbers = {
            name: (reduction, [_number(*library.words(one, 1)) for one in memory])
            for name, reduction, memory in self.found
        }
        return {name: parts[0] if len(parts) == 1 else of_numbers(of, parts) for name, (of, parts) in numbers.items()}


class DeviceTotals:
    """The totals of a plan.

    Args:
        library: of the arrays.
        totals: by name, the reduction and what is done to each kind of parameters; each after those that it needs.
    """

    def __init__(self, library: CudaLibrary, totals: Mapping[str, tuple[str, Sequence[TotalOfKind]]]) -> None:
        self._library = library
        self._totals = totals
        self._waves: list[list[str]] = []
        for name, (_, kinds) in totals.items():
            needed = {given for kind in kinds for given in kind.scalars.kernel.inputs}
            if self._waves and needed.isdisjoint(self._waves[-1]):
                self._waves[-1].append(name)
            else:
                self._waves.append([name])

    def placed(self, streams: Mapping[int, int], table: Any, inputs: Inputs) -> list[PlacedTotals]:
        """Put tables into the devices' memory, for steps on streams.

        Args:
            streams: of each device.
            table: the words of the step's table of addresses.
            inputs: where the inputs and outputs are of what computes scalars.
        """
        found = []
        for wave in self._waves:
            queued, where, owners = {number: _Queued() for number in streams}, list[_Found](), list[Any]()
            programs = dict[int, ScalarKernel]()
            for name in wave:
                reduction, kinds = self._totals[name]
                programs |= {
                    kind.number: ScalarKernel(kind.scalars.address, *inputs.places[kind.number]) for kind in kinds
                }
                # Of sums, parts in all dtypes are alike.
                alike = positions(kind.real if reduction == "max" else None for kind in kinds).values()
                memory = [self._place([kinds[i] for i in of], table, inputs, queued, owners) for of in alike]
                where.append(_Found(name, reduction, memory))
            devices = [
                OnDevice(driver.device(number), stream, of.columns, of.launches, of.fetches)
                for (number, stream), of in zip(streams.items(), queued.values(), strict=True)
            ]
            found.append(PlacedTotals(Queue(list(programs.values()), devices, writes=False), where, owners))
        return found

    def _place(
        self,
        kinds: Sequence[TotalOfKind],
        table: Any,
        inputs: Inputs,
        queued: Mapping[int, _Queued],
        owners: list[Any],
    ) -> Any:
        """Place what finds a total over kinds whose parts are alike; return the memory that begins with it.

        That is on the device of the first of them, which fetches what the others find.
        """
        library, root = self._library, kinds[0]
        width, count = root.width, sum(sum(kind.chunks) for kind in kinds)
        on_root = queued[root.device]
        phase = FINDING if all(kind.device == root.device for kind in kinds) else JOINING
        # The result comes first, then the parts of all parameters as if they were those of one.
        with library.on(root.device):
            memory, at = library.workspace(1 + width * count, root.device)
        end = at
        for kind in kinds:
            size = 8 * width * sum(kind.chunks)
            with library.on(kind.device):
                start = end
                if kind.device != root.device:
                    elsewhere, start = library.workspace(1 + width * sum(kind.chunks), kind.device)
                    owners.append(elsewhere)
                    if size:
                        on_root.fetches.append(Fetch(root.device, end + 8, kind.device, start + 8, size))
                self._place_kind(kind, start, table, inputs, queued[kind.device], owners)
            end += size
        with library.on(root.device):
            while count > launch.JOINED:
                parts, of_parts, before = memory, at, count
                count = -(-count // launch.JOINED)
                memory, at = library.workspace(1 + width * count, root.device)
                name = SUMS_JOINED if width > 1 else LARGEST_JOINED
                function = kernels.function(library.totals_module(), name, root.device)
                owners.append(parts)
                on_root.launches.append(
                    Launch(function, count, [of_parts, at, before, launch.JOINED], (), (), 0, phase=phase)
                )
            all_of = (count * library.reduced_chunk, *[1] * (len(root.passes.stages.space) - 1))
            row = [*[0] * len(root.columns), *all_of, at, 0]
            placed = library.tables([row], launch.cuts(root.passes, [all_of])[1:], root.device)[0]
        owners.append(placed.owner)
        on_root.launches.append(self._launch(root, root.last, placed, inputs, phase))
        return memory

    def _place_kind(
        self, kind: TotalOfKind, start: int, table: Any, inputs: Inputs, queued: _Queued, owners: list[Any]
    ) -> None:
        """Place what finds the parts of parameters of a kind, which are left from an address on, on the current device."""
        library, given, rows = self._library, kind.rows.of(table), []
        places = [kind.rows.columns.index(name) for name in kind.columns]
        for leaf, own, lengths, chunks in zip(kind.rows.leaves, given, kind.lengths, kind.chunks, strict=True):
            rows.append([*own[places].tolist(), *lengths, start, leaf.place.number])
            start += 8 * kind.width * chunks
        placed = library.tables(rows, launch.cuts(kind.passes, kind.lengths)[:1], kind.device)[0]
        owners.append(placed.owner)
        for column, name in enumerate(kind.columns):
            if name in kind.rows.changing:
                where = kind.rows.offset + 8 * places[column], 8 * len(kind.rows.columns)
                known, on_device = _words(given[:, places[column]]), placed.argument[3] + 8 * len(rows) * column
                queued.columns.append(Column(*where, known, on_device, 1))
        if placed.chunks:
            queued.launches.append(self._launch(kind, kind.first, placed, inputs, FINDING))

    @staticmethod
    def _launch(kind: TotalOfKind, function: int, placed: Any, inputs: Inputs, phase: int) -> Launch:
        outputs = inputs.places[kind.number][1]
        return Launch(function, placed.chunks, placed.argument, kind.scalars.arguments, (), outputs, phase=phase)


def _words(values: Any) -> array[int]:
    return array("q", np.ascontiguousarray(values).tobytes())


def _number(word: int) -> float:
    return float(struct.unpack("d", struct.pack("q", word))[0])
