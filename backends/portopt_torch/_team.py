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
_FORKED = 0x40
"""Linux's flag of a process that was forked and runs the same program."""

_COME_SOURCE = '''"""What each thread of a team does to be known."""


def kernel():
    """Write the number that the system has for the thread."""
    address = first_argument()
    words = pointer_to_int64(address)
    words[3 + add_for_all(address + 16, 1)] = object_of_call_0(words[1]) & 0xFFFFFFFF
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
        self._state: int | None = None
        if worker := _worker(size):
            with contextlib.suppress(OSError):
                self._state = os.open(f"/proc/self/task/{worker}/stat", os.O_RDONLY | os.O_CLOEXEC)
                self.team = Team(_parallel(), size)
        self._last, self._last_was_by_team = 0.0, False
        self._skip, self._skipped = 0, 0

    def __del__(self) -> None:
        if self._state is not None:
            os.close(self._state)

    def has_its_thread(self) -> bool:
        """Tell whether the thread that has the team is still there."""
        return Path(f"/proc/self/task/{self.thread}").exists()

    def should_work(self) -> bool:
        """Tell whether the next step should be done by the team.

        Raises:
            OSError: its threads have ended.
        """
        if self._state is None:
            return False
        now = time.perf_counter()
        follows, self._last = now - self._last < _SOON, now
        # The state stands behind the name, which is in parentheses.
        works = os.pread(self._state, 64, 0).rpartition(b")")[2][1:2] == b"R"
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
    return Team(0, 1) if size == 1 else _team(size)


def working_team() -> Team | None:
    """Return the same if the threads are awake, or should be woken."""
    size = torch.get_num_threads()
    if size == 1:
        return Team(0, 1)
    found = _team(size)
    try:
        return found if found is not None and _known is not None and _known.should_work() else None
    except OSError:
        _forget()
        return None


def _team(size: int) -> Team | None:
    global _known
    if os.getpid() != _process or not _parallel():
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
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(_parallel())
    function(address_of(_come()), words.buffer_info()[0], size, 0)
    workers = set(words[3:]) - {threading.get_native_id()}
    return max(workers) if words[2] == size == len(workers) + 1 else 0


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
def _parallel() -> int:
    try:
        # What the library of torch's operations is linked with, whichever other runtimes there are in the process.
        return address_of(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel)
    except (AttributeError, OSError):
        return 0
