"""What a planned step queues on streams of devices: one compiled function does it all, which the look calls.

It computes the scalars, lays out the kernels' arguments, uploads the addresses that are not what the device has, and launches,
through the addresses of the driver's functions, each in the context of its device. What it needs stands in memory of 64-bit
words, the record; nothing there is Python's. One step at a time uses a record.

Where devices need what others have found, such as the parts of a norm, each fetches it on its own stream, behind an event of the
other one's; and the other one goes on only behind an event after that, so that its memory may then be used for something else.
The host waits for none of it.
"""

from __future__ import annotations

import functools
import weakref
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from portopt.kernels.cuda import driver
from portopt.kernels.cuda.library import Fetch
from portopt.kernels.cuda.source import THREADS
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function
from portopt.kernels.host.look import DONE, OUTCOME
from portopt.program import Kind

IS_CAPTURING, NEEDS_BLOCK = -2, -3
"""Outcomes, beside those of the look and the errors of the driver: the stream is recorded for a graph, and nothing was done; a
column has no pinned memory that the device does not read any more, and nothing was queued yet."""
ROUNDED, FLOAT, INTEGER, TRUTH, WORD = range(5)
"""How a number becomes an argument: rounded to float32, or in a type of its own; a word of the record is taken as it is."""
OF_KIND = {Kind.FLOAT: FLOAT, Kind.INTEGER: INTEGER, Kind.TRUTH: TRUTH}
_BYTES = {ROUNDED: 4, FLOAT: 8, INTEGER: 8, TRUTH: 1, WORD: 8}

NORM, COUNT_OF_NORM = 2, 3
"""The words of what is done on a device with the address of the parts of the norm and with their number."""
_CONTEXT, _STREAM, _COLUMNS, _LAUNCHES, _FETCHES, _HAS_FOUND, _HAS_FETCHED, _FETCHED = 0, 1, 4, 6, 8, 10, 11, 12
_DEVICE_WORDS = 14
_OWN_NORM, _ASKED, _ASKED_COLUMN, _PROGRAMS, _DEVICES, _PHASES = 2, 3, 4, 5, 9, 11
_FUNCTIONS = 12
_FUNCTIONS_USED = (
    "cuStreamIsCapturing",
    "cuCtxGetCurrent",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuEventQuery",
    "cuMemcpyHtoDAsync_v2",
    "cuEventRecord",
    "cuLaunchKernel",
    "cuStreamWaitEvent",
    "cuMemcpyPeerAsync",
)
_WORDS = _FUNCTIONS + len(_FUNCTIONS_USED)
_CAPTURING, _CURRENT, _PUSH, _POP, _QUERY, _COPY, _RECORD, _LAUNCH, _WAIT, _FETCH = range(_FUNCTIONS, _WORDS)
_PROGRAM_WORDS, _COLUMN_WORDS, _LAUNCH_WORDS, _FETCH_WORDS = 3, 9, 9, 5
_IS_KNOWN, _IS_MOVED, _BLOCKS = 4, 6, 7
_IS_OF_NORM, _PHASE = 7, 8

_LOOKING, FINDING, JOINING, _LETTING_GO = range(4)
"""What is done on all devices one after the other: it is seen whether all can be queued; then comes what needs no other device;
then what does, once it has been fetched; then each device waits until others have fetched what it has found."""

_SOURCE = f'''"""A planned step on a device."""


def lay_out(script, count, arguments, numbers, words):
    """Put numbers into the arguments of a kernel."""
    for k in range(count):
        how = script[3 * k]
        which = script[3 * k + 1]
        place = arguments + script[3 * k + 2]
        if how == {ROUNDED}:
            pointer_to_float32(place)[0] = float64_to_float32(numbers[which])
        elif how == {FLOAT}:
            pointer_to_float64(place)[0] = numbers[which]
        elif how == {INTEGER}:
            pointer_to_int64(place)[0] = numpy_int64(numbers[which])
        elif how == {TRUTH}:
            pointer_to_uint8(place)[0] = 1 if numbers[which] != 0.0 else 0
        else:
            pointer_to_int64(place)[0] = words[which]


def is_moved(column, table):
    """Tell whether the addresses of a column are not what the device has."""
    if column[{_IS_KNOWN}] == 0:
        return True
    rows = column[2]
    difference = 0
    for beside in range(column[8]):
        known = pointer_to_int64(column[3] + 8 * rows * beside)
        first = table + column[0] + 8 * beside
        for row in range(rows):
            difference |= pointer_to_int64(first + column[1] * row)[0] ^ known[row]
    return difference != 0


def upload(column, table, device, words):
    """Queue the upload of a column; it is known what the device has once that is done."""
    ring = pointer_to_int64(column[{_BLOCKS}])
    block = pointer_to_int64(ring[2] + 16 * ring[1])
    rows = column[2]
    column[{_IS_KNOWN}] = 0
    for beside in range(column[8]):
        known = pointer_to_int64(column[3] + 8 * rows * beside)
        pinned = pointer_to_int64(block[0] + 8 * rows * beside)
        first = table + column[0] + 8 * beside
        for row in range(rows):
            word = pointer_to_int64(first + column[1] * row)[0]
            known[row] = word
            pinned[row] = word
    status = call_4(words[{_COPY}], column[5], block[0], 8 * rows * column[8], device[{_STREAM}])
    if status != 0:
        return numpy_int64(status)
    ring[1] = (ring[1] + 1) % ring[0]
    status = call_2(words[{_RECORD}], block[1], device[{_STREAM}])
    if status == 0:
        column[{_IS_KNOWN}] = 1
    return numpy_int64(status)


def can_queue(number, device, words, place, table):
    """See whether a step can be queued on a device; return the outcome."""
    found = pointer_to_int64(place)
    if device[{_STREAM}] > {driver.LARGEST_DEFAULT_STREAM}:
        found[0] = 0
        status = call_2(words[{_CAPTURING}], device[{_STREAM}], place)
        if status != 0:
            return numpy_int64(status)
        if found[0] & 0xFFFFFFFF:
            return {IS_CAPTURING}
    for k in range(device[{_COLUMNS + 1}]):
        column = pointer_to_int64(device[{_COLUMNS}] + {8 * _COLUMN_WORDS} * k)
        column[{_IS_MOVED}] = 0
        if is_moved(column, table):
            ring = pointer_to_int64(column[{_BLOCKS}])
            if ring[0] == 0:
                status = {driver.NOT_READY}
            else:
                status = call_1(words[{_QUERY}], pointer_to_int64(ring[2] + 16 * ring[1])[1])
            if status == {driver.NOT_READY}:
                words[{_ASKED}] = number
                words[{_ASKED_COLUMN}] = k
                return {NEEDS_BLOCK}
            if status != 0:
                return numpy_int64(status)
            column[{_IS_MOVED}] = 1
    return {DONE}


def fetch(device, words):
    """Let a device fetch what others have found."""
    for k in range(device[{_FETCHES + 1}]):
        of = pointer_to_int64(device[{_FETCHES}] + {8 * _FETCH_WORDS} * k)
        status = call_3(words[{_WAIT}], device[{_STREAM}], of[0], 0)
        if status == 0:
            status = call_6(words[{_FETCH}], of[1], device[{_CONTEXT}], of[2], of[3], of[4], device[{_STREAM}])
        if status != 0:
            return numpy_int64(status)
    if device[{_FETCHES + 1}]:
        return numpy_int64(call_2(words[{_RECORD}], device[{_HAS_FETCHED}], device[{_STREAM}]))
    return {DONE}


def queue(phase, device, words, table, inputs):
    """Queue a phase of a step on a device, whose context is that of this thread; return the outcome."""
    if phase == {FINDING}:
        for k in range(device[{_COLUMNS + 1}]):
            column = pointer_to_int64(device[{_COLUMNS}] + {8 * _COLUMN_WORDS} * k)
            if column[{_IS_MOVED}]:
                status = upload(column, table, device, words)
                if status != 0:
                    return status
    if phase == {JOINING} and words[{_OWN_NORM}]:
        status = fetch(device, words)
        if status != 0:
            return status
    for k in range(device[{_LAUNCHES + 1}]):
        launch = pointer_to_int64(device[{_LAUNCHES}] + {8 * _LAUNCH_WORDS} * k)
        if launch[{_PHASE}] == phase and (launch[{_IS_OF_NORM}] == 0 or words[{_OWN_NORM}]):
            lay_out(pointer_to_int64(launch[3]), launch[4], launch[5], pointer_to_float64(inputs + launch[6]), device)
            status = call_11(
                words[{_LAUNCH}], launch[0], launch[1], 1, 1, {THREADS}, 1, 1, 0, device[{_STREAM}], 0, launch[2]
            )
            if status != 0:
                return numpy_int64(status)
    if phase == {FINDING} and device[{_HAS_FOUND}] and words[{_OWN_NORM}]:
        return numpy_int64(call_2(words[{_RECORD}], device[{_HAS_FOUND}], device[{_STREAM}]))
    if phase == {_LETTING_GO} and words[{_OWN_NORM}]:
        for k in range(device[{_FETCHED + 1}]):
            event = pointer_to_int64(device[{_FETCHED}] + 8 * k)[0]
            status = call_3(words[{_WAIT}], device[{_STREAM}], event, 0)
            if status != 0:
                return numpy_int64(status)
    return {DONE}


def within(phase, number, words, place, table, inputs):
    """Do a phase on a device in its context; return the outcome."""
    device = pointer_to_int64(words[{_DEVICES}] + {8 * _DEVICE_WORDS} * number)
    entered = False
    status = numpy_int64(call_1(words[{_CURRENT}], place))
    if status == 0 and pointer_to_int64(place)[0] != device[{_CONTEXT}]:
        status = numpy_int64(call_1(words[{_PUSH}], device[{_CONTEXT}]))
        entered = status == 0
    if status == 0:
        if phase == {_LOOKING}:
            status = can_queue(number, device, words, place, table)
        else:
            status = queue(phase, device, words, table, inputs)
    if entered:
        popped = numpy_int64(call_1(words[{_POP}], place))
        if status == 0:
            status = popped
    return status


def kernel(record, table, inputs, step):
    """Queue a step, and say how it went."""
    words = pointer_to_int64(record)
    place = record + {8 * _WORDS}
    status = numpy_int64(0)
    phase = 0
    while status == 0 and phase < words[{_PHASES}]:
        if phase == {FINDING}:
            for k in range(words[{_PROGRAMS + 1}]):
                program = pointer_to_int64(words[{_PROGRAMS}] + {8 * _PROGRAM_WORDS} * k)
                call_kernel(
                    program[0], place, place, place, place, 0, 0, 0, inputs + program[1], step, inputs + program[2]
                )
        number = 0
        while status == 0 and number < words[{_DEVICES + 1}]:
            status = within(phase, number, words, place, table, inputs)
            number += 1
        phase += 1
    words[{OUTCOME}] = status
'''


@functools.cache
def _compiled() -> int:
    return threads.address_of(compile_function(_SOURCE, "queue"))


class ScalarKernel(NamedTuple):
    """What computes the scalars of a program.

    Attributes:
        address: of the compiled function.
        inputs: where its inputs are among those of a step, in bytes.
        outputs: where its outputs are.
    """

    address: int
    inputs: int
    outputs: int


class Column(NamedTuple):
    """Addresses that may be others in each step, of one column of a table or of some beside each other.

    Attributes:
        first: where the first is in the table of addresses, in bytes.
        stride: bytes from one to the next.
        known: those that the device has, one column after the other.
        at: where it has them.
        width: the number of columns.
    """

    first: int
    stride: int
    known: array[int]
    at: int
    width: int


class Launch(NamedTuple):
    """A kernel that is launched.

    Attributes:
        function: as the driver knows it.
        blocks: how many.
        table: the words with which its arguments begin.
        arguments: of each of the others how it is made, and of which output of the program or word of the record.
        constants: addresses with which the arguments end.
        outputs: where the outputs of the program are among the inputs of a step, in bytes.
        is_of_norm: whether it finds a part of the norm of the gradients, which is not done if that is given.
        size: of all arguments in bytes, where the table has them all and is padded; None elsewhere.
        phase: `FINDING`, or `JOINING` if it needs what other devices have found.
    """

    function: int
    blocks: int
    table: Sequence[int]
    arguments: Sequence[tuple[int, int]]
    constants: Sequence[int]
    outputs: int
    is_of_norm: bool = False
    size: int | None = None
    phase: int = FINDING


class OnDevice(NamedTuple):
    """What a step queues on one device.

    Attributes:
        device: the device.
        stream: its stream.
        columns: the addresses that may change.
        launches: the kernels in order.
        fetches: what it needs of other devices.
        norm: address of the parts of the norm that the steps find, and their number.
    """

    device: driver.Device
    stream: int
    columns: Sequence[Column]
    launches: Sequence[Launch]
    fetches: Sequence[Fetch] = ()
    norm: tuple[int, int] = (0, 0)


class Queue:
    """The record of the steps on streams of devices, one of each.

    Args:
        programs: what computes the scalars.
        devices: what is queued on each.
        writes: whether kernels write parameters and slots.

    Attributes:
        address: of the record.
    """

    def __init__(self, programs: Sequence[ScalarKernel], devices: Sequence[OnDevice], *, writes: bool = True) -> None:
        self._norms = [of.norm for of in devices]
        self._rings = [[_Ring(of.device, 8 * len(column.known)) for column in of.columns] for of in devices]
        self._keep_alive: list[array[int]] = []
        exchanges = any(of.fetches for of in devices)
        self._of_devices = array("q")
        places = {of.device.number: k for k, of in enumerate(devices)}
        fetching, sources = (
            {k for k, of in enumerate(devices) if of.fetches},
            {places[f.source] for of in devices for f in of.fetches},
        )
        has_found = {k: self._event(devices[k].device) for k in sorted(sources)}
        has_fetched = {k: self._event(devices[k].device) for k in sorted(fetching)}
        for number, (of, rings) in enumerate(zip(devices, self._rings, strict=True)):
            columns = array("q")
            for (first, stride, known, at, width), ring in zip(of.columns, rings, strict=True):
                columns.extend((first, stride, len(known) // width, _at(known), 1, at, 0, ring.address, width))
            fetches = array("q", [
                word for f in of.fetches
                for word in (has_found[places[f.source]], f.at, f.of, devices[places[f.source]].device.context, f.size)
            ])  # fmt: skip
            fetched = array("q", [
                has_fetched[k] for k in sorted(fetching) if any(f.source == of.device.number for f in devices[k].fetches)
            ])  # fmt: skip
            launches = array("q", [word for launch in of.launches for word in self._laid_out(launch)])
            self._keep_alive += [*(column.known for column in of.columns), columns, fetches, fetched, launches]
            self._of_devices.extend((
                of.device.context, of.stream, *of.norm, _at(columns), len(of.columns), _at(launches), len(of.launches),
                _at(fetches), len(of.fetches), has_found.get(number, 0), has_fetched.get(number, 0), _at(fetched), len(fetched),
            ))  # fmt: skip
        of_programs = array("q", [word for program in programs for word in program])
        self._keep_alive.append(of_programs)
        addresses = [devices[0].device.driver.addresses[name] for name in _FUNCTIONS_USED]
        # The last word is for what the driver's functions return.
        self._words = array(
            "q",
            [
                _compiled(), DONE, 1, 0, 0, _at(of_programs), len(programs), 0, int(writes), _at(self._of_devices), len(devices),
                JOINING if not exchanges else _LETTING_GO + 1, *addresses, 0,
            ],
        )  # fmt: skip
        self.address = _at(self._words)

    @property
    def outcome(self) -> int:
        """How the last step went."""
        return self._words[OUTCOME]

    def set_norm(self, norms: Sequence[tuple[int, int]] | None) -> None:
        """Say where each device has the parts of the norm, and how many; None for the norm that the steps find."""
        self._words[_OWN_NORM] = norms is None
        for k, norm in enumerate(self._norms if norms is None else norms):
            at = _DEVICE_WORDS * k + NORM
            self._of_devices[at : at + 2] = array("q", norm)

    def add_block(self) -> None:
        """Give the column that needs it another block of pinned memory."""
        self._rings[self._words[_ASKED]][self._words[_ASKED_COLUMN]].add()

    def _event(self, device: driver.Device) -> int:
        with device.within():
            event = device.event()
        weakref.finalize(self, device.take_back_events, [event]).atexit = False
        return event

    def _laid_out(self, launch: Launch) -> tuple[int, ...]:
        at, script = 8 * len(launch.table), array("q")
        for how, which in launch.arguments:
            at += -at % _BYTES[how]
            script.extend((how, which, at))
            at += _BYTES[how]
        at += -at % 8 if launch.constants else 0
        arguments = array("q", [*launch.table, *[0] * (at // 8 + 1)])
        arguments = arguments[: -(-at // 8)]
        arguments.extend(launch.constants)
        size = array("q", [at + 8 * len(launch.constants) if launch.size is None else launch.size])
        # The marks of a buffer, of its size, and of the end.
        extra = array("q", (1, _at(arguments), 2, _at(size), 0))
        self._keep_alive += [script, arguments, size, extra]
        return (
            launch.function, launch.blocks, _at(extra), _at(script), len(launch.arguments), _at(arguments),
            launch.outputs, int(launch.is_of_norm), launch.phase,
        )  # fmt: skip


class _Ring:
    """Blocks of pinned memory from which a column is uploaded, the one used first next.

    Attributes:
        address: of three words: the number of blocks, which is next, and where addresses of their memory and events are.
    """

    def __init__(self, device: driver.Device, size: int) -> None:
        self._device, self._size = device, size
        self._blocks: list[driver.Block] = []
        self._words = array("q", bytes(24))
        self._places = array("q")
        self.address = _at(self._words)
        weakref.finalize(self, device.take_back, self._blocks).atexit = False

    def add(self) -> None:
        """Have another block, which is next."""
        after = self._words[1]
        with self._device.within():
            self._blocks.insert(after, self._device.block(self._size))
        self._places = array("q", [word for block in self._blocks for word in (block.address, block.event)])
        self._words[:] = array("q", (len(self._blocks), after, _at(self._places)))


def _at(words: array[int]) -> int:
    return words.buffer_info()[0]
