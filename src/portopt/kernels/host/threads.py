"""Threads for large steps.

Kernels run without the GIL on threads of the operating system rather than OpenMP's: two OpenMP runtimes in one process (torch
brings its own) can deadlock or oversubscribe, and GNU's does not survive `fork`. The threads are made for one call and end
before it returns, in one compiled function. So nothing can be raised while they write, no thread writes later, and there is
nothing that a fork could break. A step of several passes is one call: between them threads wait awake, since to start one
takes as long as to update many elements. How the elements are split never changes a bit, because each element is computed alone.

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

ELEMENTS_PER_THREAD = 1 << 18
"""A thread gets at least so many elements: starting one costs about 50 µs, in which Adam updates this many."""

HEAD = 2
"""Words with which a record begins: first and last element (exclusive)."""

_JOB_WORDS, _PASS_WORDS = 8, 48
"""Words of a job and of each of its passes, as `Job` writes them; no two counters are in one line of a processor's cache."""
_NEXT, _DONE = 8 * 16, 8 * 32
"""Where a pass has the number of the next part, and that of the parts that are done, in bytes."""
_SPINS = 1 << 11
"""How often a thread looks whether others are done before it lets the system run something else: some 50 µs."""

SHARE = f'''def share(job):
    """Do all passes of a job, in as many threads as it wants and as there can be; return when all is done."""
    words = pointer_to_int64(job)
    if words[7] != 0:
        call_4(words[7], words[3], job, words[2], 0)
        return
    threads = pointer_to_int64(job + 8 * ({_JOB_WORDS} + {_PASS_WORDS} * words[1]))
    started = 0
    while started < words[2] - 1 and words[5] != 0:
        if call_4(words[5], job + 8 * ({_JOB_WORDS} + {_PASS_WORDS} * words[1] + started), 0, words[3], job) != 0:
            break
        started += 1
    call_2(words[3], job, job)
    for k in range(started):
        call_2(words[6], threads[k], 0)
'''
"""Source of the function that does a job."""

_SHARE_SOURCE = f'''"""Work shared among threads that end with it."""


{SHARE}

def kernel(job):
    """See `share`."""
    share(job)
'''

_WORK_SOURCE = f'''"""What each thread does of a job."""


def kernel():
    """Do parts of each pass as long as there are any, and wait for those of other threads."""
    address = first_argument()
    job = pointer_to_int64(address)
    for k in range(job[1]):
        at = address + 8 * ({_JOB_WORDS} + {_PASS_WORDS} * k)
        given = pointer_to_int64(at)
        part = given[3]
        count = given[2]
        number = add_for_all(at + {_NEXT}, 1)
        while number < count:
            record = given[0] + 8 * given[1] * number
            call_2(part, record, record)
            add_for_all(at + {_DONE}, 1)
            number = add_for_all(at + {_NEXT}, 1)
        looked = 0
        while read_of_all(at + {_DONE}) < count:
            looked += 1
            if looked < {_SPINS} or job[4] == 0:
                pause()
            else:
                call_0(job[4])
'''

_chosen: int | None = None


def get_num_threads() -> int:
    """Return how many threads large steps use: what `set_num_threads` set, else `PORTOPT_NUM_THREADS`, else the CPUs allowed.

    Allowed are the CPUs that the process may run on, and no more than a container's control group gives it the time of.

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
    global _chosen
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"the number of threads must be an integer of at least 1 or None, but {count!r} was given")
    _chosen = count


def is_small(total: int) -> bool:
    """Tell whether so many elements are never shared among threads."""
    return total < 2 * ELEMENTS_PER_THREAD


def ranges(total: int, alignment: int = 64) -> list[tuple[int, int]]:
    """Return the ranges that make up `range(total)`, one for each thread that is worth its while; at least one."""
    parts = 1 if is_small(total) else min(get_num_threads(), total // ELEMENTS_PER_THREAD)
    size = max(-(-total // parts // alignment) * alignment, 1)
    return [(start, min(start + size, total)) for start in range(0, total, size)] or [(0, 0)]


def make_records(total: int, values: Sequence[int]) -> array[int]:
    """Return a record for each thread: `HEAD` words, then `values`."""
    return array("q", [word for part in ranges(total) for word in (*part, *values)])


class Team:
    """Threads of a library's OpenMP runtime, for work between calls of that library: they are awake, and on every processor.

    Args:
        parallel: address of `GOMP_parallel`, which LLVM's and Intel's runtimes have, too.
        size: how many threads the library uses.
    """

    __slots__ = ("parallel", "size")

    def __init__(self, parallel: int, size: int) -> None:
        self.parallel = parallel
        self.size = size


_team: ContextVar[tuple[Team, int] | None] = ContextVar("portopt_team", default=None)
"""A team, and how many of it take part."""


@contextlib.contextmanager
def by(team: Team | None) -> Iterator[None]:
    """Within this context, a team does what is shared; None for threads of portopt's own."""
    # Looked up once: between products, which leave little of Python in the caches, each call takes several times as long.
    before = _team.set(None if team is None else (team, min(team.size, get_num_threads())))
    try:
        yield
    finally:
        _team.reset(before)


def team_size() -> int:
    """Return how many threads stand ready, 0 if they must be started."""
    found = _team.get()
    return 0 if found is None else found[1]


class Pass(NamedTuple):
    """What threads do before they wait for each other.

    Attributes:
        part: address of a compiled function of the prototype `"part"`, which is called with the address of a record.
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

    A thread that is late, or slow, does fewer of them; all wait for the end of a pass before they begin the next.

    Args:
        passes: what is done.
        memory: what else must live as long as the job.

    Attributes:
        address: of the job, for `share`.
        memory: as given.
        parts: how many the pass of most has.
    """

    __slots__ = ("_passes", "_words", "address", "memory", "parts")

    def __init__(self, passes: Sequence[Pass], memory: Any = None) -> None:
        found = _team.get()
        self.parts = max(given.parts for given in passes)
        # Asked for more threads than it has, a library's runtime would start some, and change its own team.
        threads = self.parts if found is None else min(self.parts, found[1])
        # A word that the end of a thread clears; how many there are, and functions; then of each pass the records, their length,
        # number and function, and two counters; then the threads.
        job = array("q", bytes(8 * (_JOB_WORDS + _PASS_WORDS * len(passes) + threads)))
        parallel = 0 if found is None else found[0].parallel
        job[:_JOB_WORDS] = array(
            "q", (0, len(passes), threads, address_of(_work()), *system_functions(), parallel if threads > 1 else 0)
        )
        for k, given in enumerate(passes):
            at = _JOB_WORDS + _PASS_WORDS * k
            job[at : at + 4] = array("q", (given.records.buffer_info()[0], given.words, given.parts, given.part))
        self._words, self._passes, self.memory = job, passes, memory
        self.address = job.buffer_info()[0]

    def call(self) -> Callable[[], object]:
        """Return what does it, once: a partial of a function in C."""
        found = functools.partial(compiled_share(), self.address, self.address, self.address)
        found.__dict__["job"] = self  # it must live until the call
        return found


def split(part: int, records: array[int], words: int) -> None:
    """Call a part of the work with the address of each record, in as many threads as there are records.

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


@functools.cache
def system_functions() -> tuple[int, int, int]:
    """Return the addresses of what lets other threads run, starts one and waits for its end; zeros without POSIX threads."""
    import ctypes

    try:
        library = ctypes.CDLL(None)
        functions = library.sched_yield, library.pthread_create, library.pthread_join
        return address_of(functions[0]), address_of(functions[1]), address_of(functions[2])
    except (AttributeError, OSError, TypeError):
        return 0, 0, 0


def address_of(function: Any) -> int:
    """Return the address of a function as ctypes has it."""
    import ctypes

    return ctypes.cast(function, ctypes.c_void_p).value or 0
