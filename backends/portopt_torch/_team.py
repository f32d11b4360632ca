"""torch's own threads: its OpenMP runtime leaves them awake for some milliseconds after each parallel operation of torch's.

While they are, threads of portopt's own would wait for their processors, so steps are done by them. Asleep, they are left alone
unless one step follows the other: a virtual machine may wake a thread on the very processor on which another waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from array import array
from pathlib import Path

import torch

from portopt.kernels.host.compiler import compile_function
from portopt.kernels.host.threads import Team, address_of

_SOON = 0.005
"""Seconds from one step to the next within which threads that were woken for the one are awake at the other."""
_MOST_SKIPPED = 1 << 10
_CLOCK_OF_THREAD = 6
"""What Linux has in the lowest three bits of the number of a clock of the time that a thread has run for."""
_FORKED = 0x40
"""Linux's flag of a process that was forked and runs the same program."""

_COME_SOURCE = '''"""What each thread of a team does to be known."""


def kernel():
    """Write the number that the system has for the thread."""
    address = first_argument()
    words = pointer_to_int64(address)
    words[3 + add_for_all(address + 16, 1)] = object_of_call_0(words[1]) & 0xFFFFFFFF
'''


_LOOK_SOURCE = '''"""Whether a team can work, in one call: after products Python has little in the caches, and takes 60 µs."""


def kernel():
    """Write whether process, thread and number of threads are as they were, and whether another thread runs; -1 if it ended."""
    address = first_argument()
    words = pointer_to_int64(address)
    words[8] = 0
    if call_0(words[1]) == words[2] and call_0(words[3]) == words[4] and call_0(words[5]) == words[6]:
        words[8] = 1
    words[9] = 0
    for look in range(32):
        if call_2(words[7], words[10], address + 88) != 0:
            words[9] = -1
            return
        # Of a thread that runs, the time that it has run for has grown.
        if look > 0 and (words[11] != words[13] or words[12] != words[14]):
            words[9] = 1
            return
        words[13] = words[11]
        words[14] = words[12]
        for _ in range(16):
            pause()
'''


class _Known:
    """The team that a runtime keeps for the thread that calls it.

    Each thread that calls gets one of its own, so one thread of the process uses its team, as long as it lives, and all others
    have threads of portopt's own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.process, self.thread = os.getpid(), threading.get_native_id()
        self.team: Team | None = None
        if worker := _worker(size):
            system = ctypes.CDLL(None)
            # Functions and what they return; what is found; the clock of the thread's time, and room for it.
            words = address_of(system.getpid), self.process, address_of(system.gettid), self.thread
            more = _functions()[2], size, address_of(system.clock_gettime), 0, 0, _clock_of(worker)
            self._words = array("q", (0, *words, *more, 0, 0, 0, 0))
            self._at = self._words.buffer_info()[0]
            self._look = compile_function(_LOOK_SOURCE, "part")
            with contextlib.suppress(OSError):
                self.look()
                self.team = Team(*_functions()[:2], size)
        self._last, self._last_was_by_team = 0.0, False
        self._skip, self._skipped = 0, 0

    def has_its_thread(self) -> bool:
        """Tell whether the thread that has the team is still there."""
        return Path(f"/proc/self/task/{self.thread}").exists()

    def look(self) -> tuple[bool, bool]:
        """Return whether this is its process and its thread, with the same number of threads, and whether they are awake.

        Raises:
            OSError: they have ended.
        """
        self._look(self._at, self._at)
        is_same, runs = self._words[8:10]
        if runs < 0:
            raise ProcessLookupError
        return bool(is_same), bool(runs)

    def should_work(self, *, awake: bool) -> bool:
        """Tell whether the next step should be done by the team, given whether its threads are awake."""
        now, works = time.perf_counter(), awake
        follows, self._last = now - self._last < _SOON, now
        if not works and follows:
            if self._last_was_by_team:
                # They did not stay awake, as it is with OMP_WAIT_POLICY=PASSIVE.
                self._skip = self._skipped = min(2 * self._skipped + 1, _MOST_SKIPPED)
            works = self._skip == 0
            self._skip -= not works
        self._last_was_by_team = works
        return works


_known: _Known | None = None


def team() -> Team | None:
    """Return the threads that torch multiplies with, for work right after it; where torch has one only, one of portopt's own.

    None for threads of portopt's own: with an OpenMP runtime that is not known, after a fork, where another thread has the team.
    """
    size = torch.get_num_threads()
    return Team(0, 0, 1) if size == 1 else _team(size)


def working_team() -> Team | None:
    """Return the same if the threads are awake, or should be woken."""
    known = _known
    try:
        if known is not None and known.team is not None:
            is_same, awake = known.look()
            if is_same:
                return known.team if known.should_work(awake=awake) else None
        size = torch.get_num_threads()
        if size == 1:
            return Team(0, 0, 1)
        found = _team(size)
        if found is None or _known is None:
            return None
        return found if _known.should_work(awake=_known.look()[1]) else None
    except OSError:
        _forget()
        return None


def _team(size: int) -> Team | None:
    global _known
    if os.getpid() != _process or not _functions()[0]:
        return None
    known, is_own = _known, _known is not None and _known.thread == threading.get_native_id()
    if known is not None and not is_own and known.has_its_thread():
        return None
    if known is None or not is_own or known.size != size:
        known = _known = _Known(size)
    return known.team


def _forget() -> None:
    global _known
    _known = None


def _worker(size: int) -> int:
    """Try the runtime, and return the number that the system has for one of the threads that come; 0 if none does."""
    try:
        get_number = address_of(ctypes.CDLL(None).gettid)
    except AttributeError:
        return 0
    # The first word is for what the function returns.
    words = array("q", (0, get_number, 0, *[0] * size))
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(_functions()[0])
    function(address_of(_come()), words.buffer_info()[0], size, 0)
    workers = set(words[3:]) - {threading.get_native_id()}
    return max(workers) if words[2] == size == len(workers) + 1 else 0


def _clock_of(thread: int) -> int:
    return (~thread << 3) | _CLOCK_OF_THREAD


@functools.cache
def _come() -> object:
    return compile_function(_COME_SOURCE, "part")


def _was_forked() -> bool:
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return bool(int(fields[6]) & _FORKED)
    except (OSError, ValueError, IndexError):
        return True


# The threads of a runtime do not survive a fork, and GNU's does not notice. Whether torch had any before one, nobody can tell.
_process = -1 if _was_forked() else os.getpid()


@functools.cache
def _functions() -> tuple[int, int, int]:
    """Return the addresses of the functions of `Team`, and of what returns how many threads there are; zeros without them."""
    try:
        # What the library of torch's operations is linked with, whichever other runtimes there are in the process.
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_max_threads
        return address_of(functions[0]), address_of(functions[1]), address_of(functions[2])
    except (AttributeError, OSError):
        return 0, 0, 0
