"""What a plan knows of trees and arrays, and the compiled look that tells whether they still are what they were."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portopt.kernels.host import threads
from portopt.kernels.host.kernel import Inputs, Passes, Work, group_words
from portopt.kernels.host.look import compiled_look, python_functions
from portopt.kernels.host.readers import ArrayReader, Layout
from portopt.kernels.host.script import DEEPEST, Script, numbered, with_numbers


class Call:
    """What one step needs to itself: references to all arrays, and a table of addresses.

    Attributes:
        written: parameters, then slots, once the call has been used to look.
        gradients: the gradients.
        table: the addresses, all groups' tables one after the other.
    """

    __slots__ = ("_fields", "_keep_alive", "address", "gradients", "table", "written")

    def __init__(self, written: int, gradients: int, table: array[int]) -> None:
        self.written: list[Any] = [None] * written
        self.gradients: list[Any] = [None] * gradients
        self.table = table
        # Both lists, the table, the job of threads, and whether the lists are filled.
        self._fields = array("q", (id(self.written), id(self.gradients), table.buffer_info()[0], 0, 0))
        self.address = self._fields.buffer_info()[0]

    def share(self, passes: Passes, inputs: int, step: int, outputs: int, before: Sequence[threads.Pass] = ()) -> None:
        """Let threads do the work, after some other passes."""
        job = passes.job(self.table.buffer_info()[0], inputs, step, outputs, before)
        self._fields[3] = job.address
        self._keep_alive = job


class Watch:
    """Trees and arrays as they were in one step, so that a look can tell whether they still are.

    Arrays are not kept alive: whoever calls makes sure that the trees exist. Any number of threads may look at once.

    Args:
        reader: how arrays are read.
        trees: parameters, gradients and slots (a dict by name) as trees.
        scalar_slots: the names of slots that are not looked at.
        arrays: name to array, of each parameter, gradient and slots included.
        work: all parameters, by kernel; those that threads share last.
        inputs: where the kernels' inputs and outputs are.
        note_written: a function written in C that is called with the list of all written arrays after each step; then each step
            has a `Call`. None if nobody needs to know.
        further: names of further inputs. The gradients are then a tuple of them and of the trees of these.
    """

    def __init__(
        self,
        reader: ArrayReader,
        trees: tuple[Any, Any, Mapping[str, Any]],
        scalar_slots: Sequence[str],
        arrays: Sequence[Mapping[str, Any]],
        work: Sequence[Work],
        inputs: Inputs,
        note_written: Callable[[list[Any]], object] | None = None,
        further: Sequence[str] = (),
    ) -> None:
        params, grads, slots = trees
        count = len(arrays)
        only_read = {name: count * k for k, name in enumerate(("g", *further))}
        slot_numbers: dict[str, Any] = {}
        places: dict[tuple[str, int], int] = {}
        absent: list[tuple[str, int]] = []
        for name in slots:
            if name in scalar_slots:
                slot_numbers[name] = -1
                continue
            for i, a in enumerate(arrays):
                if name in a:
                    places[name, i] = len(places)
                else:
                    absent.append((name, i))
        held = len(places)
        places.update({place: held + k for k, place in enumerate(absent)})
        for name, tree in slots.items():
            if name not in scalar_slots:
                slot_numbers[name] = with_numbers(tree, [places[name, i] for i in range(count)])
        total = len(places)
        scripts = [Script(params, numbered(params)), Script(grads, numbered(grads))]
        scripts.append(Script(dict(slots), slot_numbers))
        self.is_possible = type(slots) is dict and all(script.known for script in scripts)
        written, gradients = array("q", bytes(8 * (count + total))), array("q", bytes(8 * count * len(only_read)))
        known = array("q", [id(a["p"]) for a in arrays] + [id(None)] * total)
        for (name, i), place in places.items():
            known[count + place] = id(arrays[i].get(name))
        starts, ends = _merged_ranges(
            [(reader.address(a[n]), size_of(a[n]) * _itemsize(a[n])) for a in arrays for n in a if n not in only_read]
        )
        shapes = [{n: array("q", a[n].shape or (0,)) for n in a} for a in arrays]
        entries, table, offsets = array("q"), array("q"), []
        for kernel, members, addresses, *_ in work:
            offsets.append(8 * len(table))
            for row, i in enumerate(members):
                for column, name in enumerate(kernel.columns):
                    a = arrays[i][name]
                    entries.extend(
                        (
                            only_read[name] + i if name in only_read else i if name == "p" else count + places[name, i],
                            8 * len(table),
                            int(name in only_read),
                            id(type(a)),
                            reader.dtype(a),
                            len(a.shape),
                            shapes[i][name].buffer_info()[0],
                            _itemsize(a),
                        )
                    )
                    table.append(int(addresses[row, column]))
                table.extend(map(int, addresses[row, len(kernel.columns) :]))
        parts = group_words(work, offsets, inputs)
        memory = np.empty(max((item.memory.words(1) for item in work), default=0), np.int64)
        scratch = array("q", bytes(8 * 16))
        stack = array("q", bytes(8 * 4 * (DEEPEST + 2)))
        api = python_functions()

        def at(buffer: array[int]) -> int:
            return buffer.buffer_info()[0]

        self._context = array("q", [
            0,
            at(scripts[0].nodes), len(scripts[0]), at(written),
            at(scripts[1].nodes), len(scripts[1]), at(gradients),
            at(scripts[2].nodes), len(scripts[2]), at(written) + 8 * count,
            at(entries), at(starts), at(ends), len(starts),
            reader.function, api.dict_next, api.compare, api.clear_error,
            id(str), at(scratch), at(stack), len(entries) // 8, at(known),
            len(work), at(parts), at(table), memory.ctypes.data,
            tuple.__basicsize__ // 8, api.set_item, api.hold, api.call, api.release,
            0 if note_written is None else id(note_written), api.save_thread, api.restore_thread,
            count + held, len(gradients), *(reader.layout or [0] * len(Layout._fields)),
            at(known) + 8 * count,
        ])  # fmt: skip
        self.offsets, self.parts = offsets, parts
        self._table, self._lengths = table, (count + held, len(gradients))
        self._passes = Passes(work, at(parts))
        kinds = {type(v) for a in arrays for v in a.values()}
        dtypes = [a[n].dtype for a in arrays for n in a]
        self._keep_alive = (
            scripts, written, gradients, known, starts, ends, shapes, entries, scratch, stack, work, kinds, dtypes, reader,
            note_written, memory, inputs,
        )  # fmt: skip
        self._look = compiled_look()
        self._address = at(self._context)

    def begin(self) -> Call:
        """Return what a call needs that lets go of the global interpreter lock, or is followed by another one."""
        return Call(*self._lengths, self._table[:])

    def share(self, call: Call, inputs: int, step: int, before: Sequence[threads.Pass] = ()) -> None:
        """Let threads do the step of a call, after some other passes."""
        call.share(self._passes, inputs, step, inputs, before)

    def look(
        self, params: Any, grads: Any, slots: Any, inputs: int = 0, step: int = 0, call: Call | None = None
    ) -> bool:
        """Tell whether all is as it was and the gradients fit, so that no gradient lies in memory that the step writes.

        Args:
            params: parameters, as a tree.
            grads: gradients.
            slots: the slots of the state.
            inputs: address of the kernels' inputs, as `StepInputs` has them, to do the step at once; 0 not to do it.
            step: number of the step, from 1.
            call: gets references to the arrays and their addresses. If it already has, the trees are not looked at any more.
        """
        at = self._address
        own = 0 if call is None else call.address
        return not self._look(at, at, at, id(params), id(grads), id(slots), inputs, step, own)


def size_of(a: Any) -> int:
    """Return the number of an array's elements."""
    size = 1
    for n in a.shape:
        size *= n
    return size


def _itemsize(a: Any) -> int:
    return int(a.dtype.itemsize)


def _merged_ranges(ranges: Sequence[tuple[int, int]]) -> tuple[array[int], array[int]]:
    """Return starts and ends, increasing, of the memory covered by ranges given as start and size in bytes."""
    starts, ends = array("q"), array("q")
    for start, size in sorted(r for r in ranges if r[1]):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], start + size)
        else:
            starts.append(start)
            ends.append(start + size)
    return starts, ends
