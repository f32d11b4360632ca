"""Threads for large steps.

Kernels run without the GIL on threads of the operating system rather than of an OpenMP runtime of portopt's own: two runtimes
in one process (torch brings its own) can deadlock or oversubscribe, and GNU's does not survive `fork`. A call is one compiled
function, which returns when no thread does anything for it any more, so nothing can be raised while they write, and no thread
writes later. A step of several passes is one call: between them threads wait awake, since to wake one takes as long as to
update many elements. How the elements are split never changes a bit: each is computed alone.

Threads that have done their part wait a moment for the next call, asleep (`reserve.py`).

A library whose own threads wait awake on every processor lends them (`Team`). There are more parts of the work than threads, so
that nobody waits long for one that comes late or is slow.

`import portopt` imports this module, so it imports what it needs when it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from portopt.kernels.host.reserve import (
    BEGUN,
    CALLED_OFF,
    CLAIM,
    CLAIMED,
    CREATE,
    GET_PROCESS,
    IS_DONE,
    IS_THERE,
    LIVE,
    MOST,
    NAME,
    PLACE_WORDS,
    PROCESS,
    RESERVE_WORDS,
    have_leave,
    reserve_of,
    system_functions,
)
from portopt.kernels.host.reserve import address_of as address_of

ELEMENTS_PER_THREAD = 1 << 18
"""A thread gets at least so many elements: starting one costs about 50 µs, in which Adam updates this many."""

LEAST_PARTS, MOST_PARTS = 4, 16
"""Parts for each thread: so many of the elements that a thread gets at least, and of any number. With 128 of 10 million elements
for each of two threads, steps took up to 13% longer than with 8: what a processor fetches ahead begins anew with each."""
_ALIGNMENT = 64
"""Of the first element of a part."""

HEAD = 2
"""Words with which a record begins: first and last element (exclusive)."""

_APART = 16
"""Words from one counter to the next: a processor hands over two lines of its cache together."""
_JOB_WORDS, _GIVEN = 2 * _APART, 10
"""Words of a job, as `Job` writes them, and where among them is what a call is given."""
_DONE, _TAKEN = 8 * _APART, 8 * 2 * _APART
"""Where a pass has the number of parts that are done and, for each thread, of parts taken of those that are its own, in bytes."""
_THREAD_WORDS, _ANY = 4, -1
"""Words of a thread: its place, one that the end of its part clears, the job, and the thread's number or that it is any of a
team."""
_SPINS = 1 << 11
"""How often a thread looks whether others are done before it lets the system run something else: some 50 µs."""

SHARE = f'''{CLAIM}

def share(job):
    """Do all passes of a job, in as many threads as it wants and as there can be; return when all is done."""
    words = pointer_to_int64(job)
    behind = job + 8 * ({_JOB_WORDS} + words[9] * words[1])
    for k in range(words[1]):
        counters = pointer_to_int64(job + 8 * ({_JOB_WORDS} + words[9] * k))
        for counter in range(1, words[2] + 2):
            counters[{_APART} * counter] = 0
    if words[6] != 0:
        call_4(words[6], words[3], behind + {8 * _THREAD_WORDS} * words[2] + 8, words[7], 0)
        return
    started = 1
    if words[2] > 1 and words[5] != 0:
        reserve = pointer_to_int64(words[5])
        # Those of a process that was forked are not in the new one.
        there = min(reserve[{MOST}], 2 * words[2]) if call_0(reserve[{GET_PROCESS}]) == reserve[{PROCESS}] else 0
        number = 0
        while started < words[2] and number < there:
            place = words[5] + {8 * RESERVE_WORDS} + {8 * PLACE_WORDS} * number
            number += 1
            if has_claimed(place):
                own = pointer_to_int64(place)
                wake(reserve, place, behind + {8 * _THREAD_WORDS} * started + 8)
                if own[{IS_THERE}] == 0:
                    own[{IS_THERE}] = 1
                    if call_4(reserve[{CREATE}], place + {8 * NAME}, 0, reserve[{LIVE}], place) != 0:
                        own[{IS_THERE}] = 0
                        add_for_all(place + {8 * CLAIMED}, -1)
                        break
                pointer_to_int64(behind)[{_THREAD_WORDS} * started] = place
                started += 1
    call_2(words[3], behind + 8, behind + 8)
    for k in range(1, started):
        place = pointer_to_int64(behind)[{_THREAD_WORDS} * k]
        # One that has not come by now is called off, and not waited for.
        if add_for_all(place + {8 * BEGUN}, {CALLED_OFF}) != 0:
            looked = 0
            while read_of_all(place + {8 * IS_DONE}) == 0:
                looked += 1
                if looked < {_SPINS} or words[4] == 0:
                    pause()
                else:
                    call_0(words[4])
            add_for_all(place + {8 * CLAIMED}, -1)
'''
"""Source of the function that does a job."""

_SHARE_SOURCE = f'''"""Work shared among threads."""


{SHARE}

def kernel(job):
    """See `share`."""
    share(job)
'''

_WORK_SOURCE = f'''"""What each thread does of a job."""


def kernel():
    """Do parts of each pass as long as there are any, first those that are its own, and wait for those of other threads."""
    thread = pointer_to_int64(first_argument())
    address = thread[1]
    own = thread[2]
    job = pointer_to_int64(address)
    threads = job[2]
    if own == {_ANY}:
        own = numpy_int64(call_0(job[8]))
    if own >= threads:
        return
    for k in range(job[1]):
        at = address + 8 * ({_JOB_WORDS} + job[9] * k)
        given = pointer_to_int64(at)
        part = given[3]
        count = given[2]
        for turn in range(threads):
            whose = (own + turn) % threads
            first = count * whose // threads
            last = count * (whose + 1) // threads
            taken = at + {_TAKEN} + {8 * _APART} * whose
            number = first + add_for_all(taken, 1)
            while number < last:
                record = given[0] + 8 * given[1] * number
                # Its end clears the first word.
                begin = pointer_to_int64(record)[0]
                call_2(part, record, address + {8 * _GIVEN})
                pointer_to_int64(record)[0] = begin
                add_for_all(at + {_DONE}, 1)
                number = first + add_for_all(taken, 1)
        looked = 0
        while read_of_all(at + {_DONE}) < count:
            looked += 1
            if looked < {_SPINS} or job[4] == 0:
                pause()
            else:
                call_0(job[4])
'''

_chosen: int | None = None
changes = 0
"""How often `set_num_threads` was called: who has found how many threads there are need not ask the system again before."""


def get_num_threads() -> int:
    """Return how many threads large steps use: what `set_num_threads` set, else `PORTOPT_NUM_THREADS`, else the CPUs allowed.

    Allowed are the CPUs that the process may run on, and no more than a container's control group gives it the time of.
    A loop of steps that has begun keeps its number, and threads the CPUs that they may run on, until `set_num_threads` is called.

    Example:
        >>> import portopt
        >>> portopt.get_num_threads() >= 1
        True
    """
    if _chosen is not None:
        return _chosen
    from_environment = os.environ.get("PORTOPT_NUM_THREADS", "")
    if from_environment.isdecimal() and int(from_environment) > 0:
        return int(from_environment)
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


@functools.cache
def _quota() -> float | None:
    from portopt.kernels.host.cgroups import cpu_quota

    return cpu_quota()


def set_num_threads(count: int | None) -> None:
    """Set how many threads large steps use; the results do not depend on it.

    Args:
        count: an integer of at least 1, or None for the default.

    Raises:
        ValueError: `count` is not an integer of at least 1.

    Example:
        >>> import portopt
        >>> portopt.set_num_threads(2)
        >>> portopt.get_num_threads()
        2
        >>> portopt.set_num_threads(None)
    """
    global _chosen, changes
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"the number of threads must be an integer of at least 1 or None, but {count!r} was given")
    _chosen, changes = count, changes + 1
    have_leave()


def is_small(total: int) -> bool:
    """Tell whether so many elements are never shared among threads."""
    return total < 2 * ELEMENTS_PER_THREAD


def worth(total: int) -> int:
    """Return how many threads are worth their while for so many elements."""
    return 1 if is_small(total) else min(_lent().most, total // ELEMENTS_PER_THREAD)


def ranges(total: int) -> list[tuple[int, int]]:
    """Return the ranges that make up `range(total)`, one for each thread that is worth its while; at least one."""
    return _ranges(total, worth(total))


def parts(total: int) -> list[tuple[int, int]]:
    """Return ranges that make up `range(total)`, more than one for each thread that is worth its while if there are several."""
    count = worth(total)
    return _ranges(total, count if count == 1 else min(MOST_PARTS * count, LEAST_PARTS * total // ELEMENTS_PER_THREAD))


def _ranges(total: int, count: int) -> list[tuple[int, int]]:
    size = max(-(-total // count // _ALIGNMENT) * _ALIGNMENT, 1)
    return [(start, min(start + size, total)) for start in range(0, total, size)] or [(0, 0)]


def make_records(total: int, values: Sequence[int]) -> array[int]:
    """Return a record for each thread: `HEAD` words, then `values`."""
    return array("q", [word for part in ranges(total) for word in (*part, *values)])


class Team(NamedTuple):
    """Threads of a library's OpenMP runtime, for work between calls of that library: they are awake, and on every processor.

    Attributes:
        parallel: address of `GOMP_parallel`, which LLVM's and Intel's runtimes have, too; 0 for threads of portopt's own.
        number: address of `omp_get_thread_num`.
        size: how many threads the library uses, and so no more of portopt's own either.
    """

    parallel: int
    number: int
    size: int


class _Lent:
    """The threads of a context, once they were asked for."""

    def __init__(self, find: Callable[[], Team | None]) -> None:
        self._find = find

    # Looked up once: between products, which leave little of Python in the caches, each call takes several times as long.
    @functools.cached_property
    def team(self) -> Team | None:
        """The team, None for as many threads of portopt's own as there may be."""
        return self._find()

    @functools.cached_property
    def most(self) -> int:
        """How many threads take part at most."""
        team, most = self.team, get_num_threads()
        return most if team is None else min(team.size, most)


_context: ContextVar[_Lent | None] = ContextVar("portopt_team", default=None)


def _lent() -> _Lent:
    return _context.get() or _Lent(lambda: None)


@contextlib.contextmanager
def by(find: Callable[[], Team | None]) -> Iterator[None]:
    """Within this context, the team that a function finds does what is shared, or threads of portopt's own if it returns None.

    It is called when first there is something to share.
    """
    before = _context.set(_Lent(find))
    try:
        yield
    finally:
        _context.reset(before)


def most() -> int:
    """Return how many threads take part at most in what is shared."""
    return _lent().most


def is_ready() -> bool:
    """Tell whether threads stand ready, else they must be started."""
    team = _lent().team
    return team is not None and team.parallel != 0


class Pass(NamedTuple):
    """What threads do before they wait for each other.

    Attributes:
        part: address of a compiled function of the prototype `"part"`, which is called with the address of a record and that of
            what the call of the job is given.
        records: one after the other, for each part of the pass.
        words: how many words a record has.
        memory: what else must live as long as the pass.
    """

    part: int
    records: array[int]
    words: int
    memory: Any = None

    @property
    def parts(self) -> int:
        """How many there are."""
        return len(self.records) // self.words


class Job:
    """Passes of work, one after the other, the parts of each of which are shared among threads as they come for them.

    Each thread begins with parts of its own, the same in each call, so that it finds in its processor's caches what it left
    there. One that is late, or slow, does fewer of them; all wait for the end of a pass before they begin the next. A job can be
    done any number of times, one after the other.

    Args:
        passes: what is done.
        at_most: how many threads are worth their while; 0 for as many as there are parts.

    Attributes:
        address: of the job, for `share`.
        parts: how many the pass of most has.
        memory: of the call, as given.
    """

    __slots__ = ("_passes", "_words", "address", "memory", "parts")

    def __init__(self, passes: Sequence[Pass], at_most: int = 0) -> None:
        lent = _lent()
        team = lent.team
        self.parts = max(given.parts for given in passes)
        threads = min(self.parts, lent.most, at_most or self.parts)
        parallel, number, size = 0, 0, 0
        if threads > 1 and team is not None:
            # All of them come, and some leave again: asked for fewer, GNU's runtime ends the others, which torch starts anew.
            parallel, number, size = team
        pass_words = (2 + threads) * _APART
        behind = _JOB_WORDS + pass_words * len(passes)
        # A word that the end of a call clears; how many passes and threads there are, functions and sizes; what a call is given.
        # Then of each pass the records, their length, number and function, and the counters; then the threads.
        job = array("q", bytes(8 * (behind + _THREAD_WORDS * (threads + 1))))
        address = job.buffer_info()[0]
        functions, work = system_functions(), address_of(_work())
        reserve = reserve_of(functions, work) if threads > 1 and not parallel else 0
        words = 0, len(passes), threads, work, functions[0], reserve, parallel, size, number, pass_words
        job[: len(words)] = array("q", words)
        for k, given in enumerate(passes):
            at = _JOB_WORDS + pass_words * k
            records = given.records.buffer_info()[0]
            job[at : at + 4] = array("q", (records, given.words, given.parts, given.part))
        for k, own in enumerate((*range(threads), _ANY)):
            at = behind + _THREAD_WORDS * k
            job[at + 2 : at + 4] = array("q", (address, own))
        self._words, self._passes, self.address = job, passes, address
        self.memory: Any = None

    def give(self, values: Sequence[int], memory: Any = None) -> None:
        """Say what the next call is given.

        Args:
            values: integers that parts read; a dozen at most.
            memory: what else must live as long as the call.
        """
        self._words[_GIVEN : _GIVEN + len(values)] = array("q", values)
        self.memory = memory

    def call(self) -> Callable[[], object]:
        """Return what does it, once: a partial of a function in C."""
        found = functools.partial(compiled_share(), self.address, self.address, self.address)
        found.__dict__["job"] = self  # it must live until the call
        return found


def split(part: int, records: array[int], words: int) -> None:
    """Call a part of the work with the address of each record, in no more threads than there are records.

    Args:
        part: address of a compiled function of the prototype `"part"`.
        records: as `make_records` returns them.
        words: how many words each has.
    """
    Job([Pass(part, records, words)]).call()()


@functools.cache
def _work() -> Any:
    from portopt.kernels.host.compiler import compile_function

    return compile_function(_WORK_SOURCE, "part")


@functools.cache
def compiled_share() -> Any:
    """Return the compiled function, with arguments as `share` has them in `SHARE` after two unused addresses."""
    from portopt.kernels.host.compiler import compile_function

    return compile_function(_SHARE_SOURCE, "share")
