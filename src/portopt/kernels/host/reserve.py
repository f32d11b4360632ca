"""Threads that have done a job and wait a moment for the next one, asleep.

To start a thread takes the caller 40 µs, to wake one 15; and a new one often begins on the processor on which its caller is at
work, some milliseconds late. Each thread has a place. Who needs one claims it, and whoever finds it claimed takes the next. The
job is begun, or called off by a caller that has done it alone, by who comes first: nobody waits for a thread that has not come.

A thread leaves if nothing comes. All that have no work leave, and are waited for, before a fork, so that a process that waits for
nothing else forks with one thread; and when the number of threads is set, since a new thread takes the processors that it may run
on, and its priority, from who starts it. A process that was forked begins without any.

`portopt.kernels.host.threads` imports this module, so it imports what it needs when it is needed.
"""

from __future__ import annotations

import functools
import os
from typing import Any

# Words of a reserve, after one that the end of a function clears: whose process it is, and how many places there are; functions,
# the system's, what a thread does, and what it does of a job; the signals that are hidden from it, and how;
# behind these signals, how many threads that were called off had not come when all were to leave.
PROCESS, MOST, GET_PROCESS, CREATE, _DETACH, _JOIN, _LOCK, _UNLOCK, _WAKE, _AWAIT, _CLOCK, _HIDE = range(1, 13)
LIVE, _WORK, _SIGNALS, _HOW = range(13, 17)
_LATE, RESERVE_WORDS = 40, 48
# Words of a place, after one that the end of its thread clears: how many want it, of whom the first has it; whether a thread is
# there; its job, whether that waits for it, was begun or called off, and is done; the system's name for the thread; a time of two
# words; the reserve; another place whose thread leaves; and what threads wait with.
CLAIMED, IS_THERE, _JOB, _WAITS, BEGUN, IS_DONE, NAME, _TIME, _, _RESERVE, _OTHER = range(1, 12)
_LOCKED, _WOKEN, PLACE_WORDS = 16, 32, 48
_PLACES = 256
"""Of threads that a reserve has at most.

A job looks at twice as many as it wants: who was called off keeps its place until it has come, and where many have not, every
processor is taken.
"""
_STAYS = 1
"""Seconds for which a thread without work stays."""
CALLED_OFF = 2
"""What a caller adds to the word that says whether its job was begun, a thread 1."""
_COMES = 0.02
"""Seconds for which a fork waits for threads that were called off and have not come."""

CLAIM = f'''def has_claimed(place):
    """Take a place if nobody has it; return whether that was so."""
    if add_for_all(place + {8 * CLAIMED}, 1) == 0:
        return True
    add_for_all(place + {8 * CLAIMED}, -1)
    return False


def wake(reserve, place, job):
    """Give the thread of a claimed place a job, or none for it to leave."""
    own = pointer_to_int64(place)
    own[{_JOB}] = job
    own[{BEGUN}] = 0
    own[{IS_DONE}] = 0
    call_1(reserve[{_LOCK}], place + {8 * _LOCKED})
    own[{_WAITS}] = 1
    call_1(reserve[{_UNLOCK}], place + {8 * _LOCKED})
    call_1(reserve[{_WAKE}], place + {8 * _WOKEN})
'''
"""Source of the functions that claim a place and wake its thread."""

_LIVE_SOURCE = f'''"""What a thread of a reserve does."""


{CLAIM}

def is_woken(reserve, place):
    """Wait for a job; return whether there is one."""
    own = pointer_to_int64(place)
    call_1(reserve[{_LOCK}], place + {8 * _LOCKED})
    if own[{_WAITS}] == 0:
        call_2(reserve[{_CLOCK}], 0, place + {8 * _TIME})
        own[{_TIME}] += {_STAYS}
        while own[{_WAITS}] == 0:
            if call_3(reserve[{_AWAIT}], place + {8 * _WOKEN}, place + {8 * _LOCKED}, place + {8 * _TIME}) != 0:
                break
    found = own[{_WAITS}] != 0
    own[{_WAITS}] = 0
    call_1(reserve[{_UNLOCK}], place + {8 * _LOCKED})
    return found


def kernel():
    """Do what there is to be done, and wait for more; leave if nothing comes, or if told so."""
    place = first_argument()
    own = pointer_to_int64(place)
    reserve = pointer_to_int64(own[{_RESERVE}])
    call_3(reserve[{_HIDE}], reserve[{_HOW}], reserve[{_SIGNALS}], 0)
    while True:
        if is_woken(reserve, place):
            if add_for_all(place + {8 * BEGUN}, 1) != 0:
                add_for_all(place + {8 * CLAIMED}, -1)
            elif own[{_JOB}] != 0:
                call_2(reserve[{_WORK}], own[{_JOB}], own[{_JOB}])
                add_for_all(place + {8 * IS_DONE}, 1)
            else:
                # Who said so waits for its end, and gives the place back.
                return
        elif has_claimed(place):
            break
    call_1(reserve[{_DETACH}], own[{NAME}])
    own[{IS_THERE}] = 0
    add_for_all(place + {8 * CLAIMED}, -1)
'''

_LEAVE_SOURCE = f'''"""What has threads of a reserve leave that have nothing to do."""


{CLAIM}

def kernel():
    """Wake them without a job, and wait for their end."""
    address = first_argument()
    reserve = pointer_to_int64(address)
    # Those of a process that was forked are not in the new one.
    if call_0(reserve[{GET_PROCESS}]) != reserve[{PROCESS}]:
        return
    place = 0
    other = 0
    late = 0
    for number in range(reserve[{MOST}]):
        place = address + {8 * RESERVE_WORDS} + {8 * PLACE_WORDS} * number
        if has_claimed(place):
            own = pointer_to_int64(place)
            if own[{IS_THERE}] != 0:
                own[{_OTHER}] = other
                other = place
                wake(reserve, place, 0)
            else:
                add_for_all(place + {8 * CLAIMED}, -1)
        elif read_of_all(place + {8 * BEGUN}) == {CALLED_OFF}:
            late += 1
    reserve[{_LATE}] = late
    while other != 0:
        place = other
        own = pointer_to_int64(place)
        other = own[{_OTHER}]
        call_2(reserve[{_JOIN}], own[{NAME}], 0)
        own[{IS_THERE}] = 0
        add_for_all(place + {8 * CLAIMED}, -1)
'''

_NONE = (0,) * 13
_FAULTS = "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"
"""Signals that a thread gets for what it does itself: hidden, they would end the process and no handler would tell where."""


@functools.cache
def system_functions() -> tuple[int, ...]:
    """Return the addresses of the system's functions for threads, zeros without POSIX threads.

    They are what lets other threads run; what tells the process, starts a thread, lets it go and waits for its end, locks,
    unlocks, wakes, waits, tells the time and hides signals; and what makes a lock and what threads wait for.
    """
    import ctypes

    names = (
        *("sched_yield", "getpid", "pthread_create", "pthread_detach", "pthread_join"),
        *("pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_signal", "pthread_cond_timedwait"),
        *("clock_gettime", "pthread_sigmask", "pthread_mutex_init", "pthread_cond_init"),
    )
    try:
        library = ctypes.CDLL(None)
        return tuple(address_of(getattr(library, name)) for name in names)
    except (AttributeError, OSError, TypeError):
        return _NONE


_reserves: list[_Reserve] = []


@functools.cache
def reserve_of(functions: tuple[int, ...], work: int) -> int:
    """Return the address of the threads that are started with some functions of the system's; 0 if none can be.

    Args:
        functions: as `system_functions` returns them.
        work: address of what a thread does of a job.
    """
    if 0 in functions:
        return 0
    _reserves.append(_Reserve(functions, work))
    return _reserves[-1].address


class _Reserve:
    """Threads that wait, each in a place of its own.

    Its memory is never given back: threads may wait in it while the interpreter ends.

    Args:
        functions: of the system.
        work: address of what a thread does of a job.

    Attributes:
        address: of the memory.
    """

    def __init__(self, functions: tuple[int, ...], work: int) -> None:
        import ctypes
        import signal

        from portopt.kernels.host.compiler import compile_function

        self._live, self._leave = compile_function(_LIVE_SOURCE, "part"), compile_function(_LEAVE_SOURCE, "part")
        words = RESERVE_WORDS + _PLACES * PLACE_WORDS
        library = ctypes.CDLL(None)
        library.calloc.restype, library.calloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_size_t]
        self.address = int(library.calloc(words, 8))
        self._words = (ctypes.c_int64 * words).from_address(self.address)
        self._init = [ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(f) for f in functions[-2:]]
        signals = self.address + 8 * (_HOW + 1)
        library.sigfillset(ctypes.c_void_p(signals))
        for name in _FAULTS:
            library.sigdelset(ctypes.c_void_p(signals), getattr(signal, name))
        self._words[MOST : _HOW + 1] = [
            _PLACES, *functions[1:-2], address_of(self._live), work, signals, signal.SIG_BLOCK,
        ]  # fmt: skip
        self.begin()

    def begin(self) -> None:
        """Have no threads, as in a new process."""
        for k in range(_PLACES):
            at = RESERVE_WORDS + PLACE_WORDS * k
            self._words[at : at + PLACE_WORDS] = [0] * PLACE_WORDS
            self._words[at + _RESERVE] = self.address
            for init, place in zip(self._init, (_LOCKED, _WOKEN), strict=True):
                init(self.address + 8 * (at + place), None)
        self._words[PROCESS] = os.getpid()

    def leave(self) -> None:
        """Have threads end that have nothing to do, and wait for their end."""
        import time

        deadline = time.monotonic() + _COMES
        self._leave(self.address, self.address)
        while self._words[_LATE] and time.monotonic() < deadline:
            time.sleep(1e-4)
            self._leave(self.address, self.address)


def have_leave() -> None:
    """Have threads end that have nothing to do, and wait for their end."""
    for reserve in _reserves:
        reserve.leave()


def _after_fork_in_child() -> None:
    for reserve in _reserves:
        reserve.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=have_leave, after_in_child=_after_fork_in_child)


def address_of(function: Any) -> int:
    """Return the address of a function as ctypes has it."""
    import ctypes

    return ctypes.cast(function, ctypes.c_void_p).value or 0
