"""What a plan knows of trees and arrays, and the compiled look that tells whether they still are what they were."""

from __future__ import annotations

import ctypes
import itertools
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.backend import Leaf
from portopt.kernels.host import threads
from portopt.kernels.host.kernel import Before, Inputs, Passes, StepJob, Work, group_words
from portopt.kernels.host.look import (
    ABSENT,
    ASIDE,
    ENTRY_WORDS,
    KNOWN,
    MADE,
    MISFIT,
    READ,
    ROW_WORDS,
    WORDS_AT_ONCE,
    WRITTEN,
    compiled_look,
    python_functions,
)
from portopt.kernels.host.readers import MOST_AXES, OWN_GRADIENTS, ArrayReader, FieldLayout, GradientFields, Layout
from portopt.kernels.host.script import DEEPEST, Script, numbered, with_numbers
from portopt.kernels.key import NEW


class Call:
    """What one step needs to itself: references to all arrays, and a table of addresses.

    Attributes:
        written: parameters, then slots, once the call has been used to look.
        gradients: the gradients.
        table: the addresses, all groups' tables one after the other.
        job: of threads, if they do the work.
    """

    __slots__ = ("_fields", "address", "gradients", "job", "table", "written")

    def __init__(self, written: int, gradients: int, table: array[int]) -> None:
        self.written: list[Any] = [None] * written
        self.gradients: list[Any] = [None] * gradients
        self.table = table
        self.job: StepJob | None = None
        # Both lists, the table, the job of threads, and whether the lists are filled.
        self._fields = array("q", (id(self.written), id(self.gradients), table.buffer_info()[0], 0, 0))
        self.address = self._fields.buffer_info()[0]

    def share(self, job: StepJob) -> None:
        """Let threads do the work."""
        self.job = job
        self._fields[3] = job.address

    @property
    def is_filled(self) -> bool:
        """Whether it has the arrays."""
        return self._fields[4] != 0


class Still(NamedTuple):
    """An array that a step looks at and leaves as it is: of a parameter without a gradient.

    Attributes:
        name: `"p"`, or that of a slot.
        number: of the parameter in its tree.
        array: the array; None if there is none.
    """

    name: str
    number: int
    array: Any


class Watch:
    """Trees and arrays as they were in one step, so that a look can tell whether those of another step are like them.

    Arrays are not kept alive: whoever calls makes sure that the trees exist. Any number of threads may look at once.

    Args:
        reader: how arrays are read.
        trees: parameters, gradients and slots (a dict by name) as trees.
        scalar_slots: the names of slots that are not looked at.
        arrays: of each parameter that has a gradient, gradient and slots included.
        still: all others.
        work: all parameters, by kernel; those that threads share last.
        inputs: where the kernels' inputs and outputs are.
        same_arrays: whether parameters and slots are the same arrays in each step.
        new: for steps that make new arrays, the number of each among them by slot, or `"p"`, and parameter; else None.
        note_written: a function written in C that notes that all arrays of a list were written. None if nobody needs to know. It
            is called after each step unless the library's own count can be raised (`calls_back`); then each step has a `Call`.
        further: names of further inputs. The gradients are then a tuple of them and of the trees of these.

    Attributes:
        is_possible: whether the compiled function knows all containers.
        calls_back: whether a function is told of what is written.
        offsets: of the table of each work, in bytes, in the table of all.
        late: arrays that wait for their end.
    """

    def __init__(
        self,
        reader: ArrayReader,
        trees: tuple[Any, Any, Mapping[str, Any]],
        scalar_slots: Sequence[str],
        arrays: Sequence[Leaf],
        still: Sequence[Still],
        work: Sequence[Work],
        inputs: Inputs,
        *,
        same_arrays: bool,
        new: Mapping[tuple[str, int], int] | None = None,
        note_written: Callable[[list[Any]], object] | None = None,
        further: Sequence[str] = (),
    ) -> None:
        params, grads, slots = trees
        moving = [a.number for a in arrays]
        count = len(moving) + sum(a.name == "p" for a in still)
        only_read = {name: count * k for k, name in enumerate(("g", *further))}
        watched = [name for name in slots if name not in scalar_slots]
        places: dict[tuple[str, int], int] = {}
        objects = []
        # A call keeps the first of them: what a step writes, or would.
        for name in ("p", *watched):
            for a in arrays:
                if name in a:
                    places[name, a.number] = len(places)
                    objects.append(a[name])
        held = len(places)
        known_still = {(a.name, a.number): a.array for a in still}
        for place in [(name, n) for name in ("p", *watched) for n in range(count)]:
            if place not in places:
                places[place] = len(places)
                objects.append(known_still.get(place))
        numbers = {name: [places[name, n] for n in range(count)] for name in ("p", *watched)}
        slot_numbers = {n: with_numbers(tree, numbers[n]) if n in numbers else -1 for n, tree in slots.items()}
        scripts = [Script(params, with_numbers(params, numbers["p"])), Script(grads, numbered(grads))]
        scripts.append(Script(dict(slots), slot_numbers))
        self.is_possible = type(slots) is dict and all(script.known for script in scripts)
        # What is found: all parameters and slots, and behind them the gradients.
        found = array("q", bytes(8 * (len(places) + count * len(only_read))))
        known = array("q", map(id, objects) if same_arrays else ())
        gathers = not same_arrays and new is None
        if gathers:
            starts, ends = array("q", bytes(8 * held)), array("q", bytes(8 * held))
        else:
            starts, ends = _merged_ranges(
                [
                    (reader.address(a[n]), size_of(a[n]) * _itemsize(a[n]))
                    for a in arrays if new is None for n in a if n not in only_read
                ]
            )  # fmt: skip
        shapes: dict[tuple[int, ...], array[int]] = {}
        where: dict[tuple[int, int], array[int]] = {}
        templates = _Templates(reader)
        versions = reader.versions if note_written is not None and _are_counted(reader, objects[:held]) else (0, 0)
        self.calls_back = note_written is not None and versions == (0, 0)
        table, offsets = array("q"), []

        def entry(a: Any, place: int, offset: int, kind: int, of: int) -> tuple[int, ...]:
            shape = tuple(a.shape)
            if shape not in shapes:
                shapes[shape] = array("q", shape or (0,))
            at_shape, seen, expected = shapes[shape].buffer_info()[0], templates.of(a), reader.place(a)
            at_place = where.setdefault(expected, array("q", expected)).buffer_info()[0]
            return place, offset, kind, of, reader.dtype(a), len(shape), at_shape, _itemsize(a), *seen, at_place

        entries, rows = list[tuple[int, ...]](), _Rows(reader, templates)
        for kernel, members, addresses, *_ in work:
            offsets.append(8 * len(table))
            for row, i in enumerate(members):
                a, n = arrays[i], arrays[i].number
                for column, name in enumerate(kernel.columns):
                    offset, replaced = 8 * len(table), name.removeprefix(NEW)
                    if new is not None and replaced != name:
                        entries.append(entry(a[replaced], new[replaced, n], offset, MADE, 2))
                    elif name in only_read:
                        entries.append(entry(a[name], len(places) + only_read[name] + n, offset, READ, 1))
                    else:
                        kind = KNOWN if same_arrays else READ if new is not None else WRITTEN
                        entries.append(entry(a[name], places[name, n], offset, kind, 0))
                    if same_arrays:
                        rows.add(a[name], entries[-1])
                    # Whether what is read lies apart from what is written is not known yet.
                    table.append(0 if name in only_read else int(addresses[row, column]))
                table.extend(map(int, addresses[row, len(kernel.columns) :]))
        # One cell for the addresses of arrays that no kernel gets.
        aside, spare = list[tuple[int, ...]](), 8 * len(table)
        table.append(0)
        for place, k in places.items():
            if k >= held:
                kept = known_still.get(place)
                aside.append(
                    (k, spare, ABSENT, *[0] * (ENTRY_WORDS - 3)) if kept is None else entry(kept, k, spare, ASIDE, 0)
                )
        without = set(range(count)).difference(moving)
        aside += [
            (len(places) + count * k + n, spare, ABSENT, 1, *[0] * (ENTRY_WORDS - 4))
            for k in range(len(only_read))
            for n in without
        ]
        if gathers:
            entries.sort(key=lambda entry: entry[2] != WRITTEN)
        words = array("q", itertools.chain(*aside, *entries))
        kept = array("q", [-1 if entry[2] == MADE else 8 * entry[0] for entry in entries])
        gaps = array("q", bytes(8 * count * len(only_read)))
        # Until the look has found what counts the writes of an array, it is none's.
        uncounted = array("q", bytes(8 * (1 + versions[1])))
        counters = array("q", [uncounted.buffer_info()[0]] * held)
        parts = group_words(work, offsets, inputs)
        memory = np.empty(max((item.memory.words(1) for item in work), default=0), np.int64)
        scratch = array("q", bytes(8 * 16))
        stack = array("q", bytes(8 * 4 * (DEEPEST + 2)))
        api = python_functions()
        # Where the library's gradients are, and what stands for them.
        own_gradients = _own_gradients(reader, moving, count) if same_arrays and not further else (0, 0, 0)
        standing = array("q")
        if own_gradients != (0, 0, 0):
            standing.extend(_standing(reader, len(moving)))

        def at(buffer: array[int]) -> int:
            return buffer.buffer_info()[0]

        self.late = list[Any]()
        self._context = array("q", [
            0,
            at(scripts[0].nodes), len(scripts[0]), at(found),
            at(scripts[1].nodes), len(scripts[1]), at(found) + 8 * len(places),
            at(scripts[2].nodes), len(scripts[2]), id(None),
            at(words), at(starts), at(ends), 0 if gathers else len(starts),
            reader.function, api.dict_next, api.compare, api.clear_error,
            id(str), at(scratch), at(stack), len(words) // ENTRY_WORDS, at(known) if same_arrays else 0,
            len(work), at(parts), at(table), memory.ctypes.data,
            tuple.__basicsize__ // 8, api.set_item, api.hold, api.call, api.release,
            id(note_written) if self.calls_back else 0, api.save_thread, api.restore_thread,
            held, count * len(only_read), *(reader.layout or [0] * len(Layout._fields)),
            len(aside), int(gathers), len(aside) + sum(entry[2] == WRITTEN for entry in entries),
            id(reader.kinds[0]), id(reader.kinds[-1]), at(templates.bits), reader.alike.first, len(reader.alike.bits), id(int),
            api.compare_objects,
            *versions, id(self.late), api.append,
            id(OWN_GRADIENTS), *own_gradients, at(standing) if standing else 0, 0,
            rows.address(len(aside)), at(kept), at(gaps), len(places), at(counters),
        ])  # fmt: skip
        self.offsets, self.parts = offsets, parts
        self._table, self._lengths = table, (held, count * len(only_read))
        self._passes = Passes(work, at(parts))
        self._reader, self._scratch = reader, scratch
        self._read = [entry[0] - len(places) for entry in entries if entry[3] == 1]
        dtypes = [a[n].dtype for a in arrays for n in a]
        self._keep_alive = (
            scripts, found, known, templates, rows, kept, gaps, uncounted, counters,
            starts, ends, shapes, where, words, stack, work, dtypes, note_written, memory, inputs, standing,
        )  # fmt: skip
        self._look = compiled_look()(at(self._context))

    def begin(self) -> Call:
        """Return what a call needs that lets go of the global interpreter lock, or is followed by another one."""
        return Call(*self._lengths, self._table[:])

    def share(
        self,
        call: Call,
        inputs: int,
        step: int,
        find: Callable[[], threads.Team | None],
        before: Before,
    ) -> None:
        """Let the threads that a function finds do the step of a call, after some other passes."""
        call.share(self._passes.job_by(find, call.table.buffer_info()[0], inputs, step, inputs, before))

    def end(self, call: Call) -> None:
        """Keep what the next call can use of one that is done."""
        if call.job is not None:
            self._passes.rest(call.job)

    def look(
        self,
        params: Any,
        grads: Any,
        slots: Any,
        inputs: int = 0,
        step: int = 0,
        call: Call | None = None,
        new: list[Any] | None = None,
        queue: int = 0,
    ) -> bool:
        """Tell whether all is as it was and the gradients fit, so that no gradient lies in memory that the step writes.

        Args:
            params: parameters, as a tree.
            grads: gradients; or `OWN_GRADIENTS`, of which no references can be had, so that there must be no call.
            slots: the slots of the state.
            inputs: address of the kernels' inputs, as `StepInputs` has them, to do the step at once; 0 not to do it.
            step: number of the step, from 1.
            call: gets references to the arrays and their addresses. If it already has, the trees are not looked at any more.
            new: the arrays that the step fills, where it makes new ones.
            queue: address of what does the step in place of the kernels, without the global interpreter lock; nobody else may
                look meanwhile. Arrays of which only the step had a reference in the end are then in `late`.
        """
        own = 0 if call is None else call.address
        made = 0 if new is None else id(new)
        return self._look(params, grads, slots, inputs, step, own, made, queue)

    def mend(self, call: Call | None, params: Any, grads: Any, slots: Any) -> Call | None:
        """Return a call with copies of gradients that did not fit because of how they lie in memory; None if that was not it."""
        if self._scratch[MISFIT // 8] < 0:
            return None
        call = call or self.begin()
        if not call.is_filled:
            self.look(params, grads, slots, call=call)
        dense, found = self._reader.dense, call.gradients
        mended = False
        for k in self._read if call.is_filled else ():
            old = found[k]
            found[k] = dense(old)
            mended = mended or found[k] is not old
        return call if mended else None


class _Rows:
    """What the look reads first of each array that is the same in each step, or a gradient of one, in few lines of the cache."""

    def __init__(self, reader: ArrayReader, templates: _Templates) -> None:
        self._reader, self._templates = reader, templates
        self._words = array("q")

    def add(self, a: Any, entry: tuple[int, ...]) -> None:
        """Add an array, given its entry."""
        place, cell, _, _, dtype, *_ = entry
        layout, size = self._reader.layout, size_of(a) * _itemsize(a)
        expected = 0, 0, 0
        if isinstance(layout, FieldLayout):
            device, _ = self._reader.place(a)
            known = self._templates.known((dtype, device, size, len(a.shape), *a.shape))
            expected = known, _word_at(id(a), layout.data), _word_at(id(a), layout.shape)
        elif layout is not None:
            inner = _word_at(id(a), layout.inner)
            known, start, _ = self._templates.of(a)
            expected = known if start >= 0 else 0, inner, _word_at(inner, layout.storage)
        self._words.extend((8 * place | cell << 32, *expected))

    def address(self, aside: int) -> int:
        """Return where the first is, or would be if so many arrays before these had rows; 0 if there are none."""
        return self._words.buffer_info()[0] - 8 * ROW_WORDS * aside if self._words else 0


class _Templates:
    """What the library's own objects say of arrays, for the look to compare; those that say the same share it."""

    def __init__(self, reader: ArrayReader) -> None:
        self._reader = reader
        self._known: dict[bytes, array[int]] = {}
        self.bits = array("q", reader.alike.bits)

    def of(self, a: Any) -> tuple[int, int, int]:
        """Return the words of an entry before the last; zeros if nothing can be compared."""
        layout, (first, bits) = self._reader.layout, self._reader.alike
        count = len(bits)
        if count < WORDS_AT_ONCE or not isinstance(layout, Layout) or len(a.shape) > MOST_AXES:
            return 0, 0, 0
        inner = _word_at(id(a), layout.inner)
        words = [_word_at(inner, first + k) & of for k, of in enumerate(bits)]
        start, size = self._reader.address(a) - _word_at(_word_at(inner, layout.storage), layout.memory), size_of(a)
        return self.known((*words, start, start + size * _itemsize(a) if size else 0)), start, size

    def known(self, words: Iterable[int]) -> int:
        """Return where words stand."""
        said = array("q", words)
        return self._known.setdefault(said.tobytes(), said).buffer_info()[0]


def _are_counted(reader: ArrayReader, arrays: Sequence[Any]) -> bool:
    """Tell whether the library is known to count the writes of all of these arrays."""
    layout, (word, _) = reader.layout, reader.versions
    return (
        word != 0 and isinstance(layout, Layout) and all(_word_at(_word_at(id(a), layout.inner), word) for a in arrays)
    )


def _own_gradients(reader: ArrayReader, moving: Sequence[int], count: int) -> GradientFields | tuple[int, int, int]:
    """Return where the gradients are that the library keeps, if all parameters have some and they are told by their objects."""
    found, layout = reader.gradients, reader.layout
    is_known = isinstance(layout, Layout) and layout.inner > 1 and len(reader.alike.bits) >= WORDS_AT_ONCE
    return found if found is not None and is_known and list(moving) == list(range(count)) else (0, 0, 0)


def _standing(reader: ArrayReader, count: int) -> list[int]:
    """Return the words of so many objects of an array's type whose own objects are to be filled in."""
    assert isinstance(reader.layout, Layout)
    return [1, id(reader.kinds[0]), *[0] * (reader.layout.inner - 1)] * count


def _word_at(address: int, word: int) -> int:
    return ctypes.c_int64.from_address(address + 8 * word).value


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
