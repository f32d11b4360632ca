"""Threads for large steps.

Kernels run without the GIL on threads of the operating system rather than OpenMP's: two OpenMP runtimes in one process (torch
brings its own) can deadlock or oversubscribe, and GNU's does not survive `fork`. The threads are made for one call and end
before it returns, in one compiled function. So nothing can be raised while they write, no thread writes later, and there is
nothing that a fork could break. How the elements are split never changes a bit, because each element is computed alone.

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

HEAD = 5
"""Words with which a record begins: an unused one, whether a thread has it, that thread, first and last element (exclusive)."""

SPLIT = '''def split(part, records, words, count, create, join):
    """Call `part` with each record, all but the first one in threads, as far as there are any; return when all are done."""
    for k in range(1, count):
        record = records + 8 * words * k
        if create != 0 and call_4(create, record + 16, 0, part, record) == 0:
            pointer_to_int64(record)[1] = 1
    call_2(part, records, records)
    for k in range(1, count):
        record = records + 8 * words * k
        if pointer_to_int64(record)[1] != 0:
            call_2(join, pointer_to_int64(record)[2], 0)
        else:
            call_2(part, record, record)
'''
"""Source of the function that does split work."""

_SOURCE = f'''"""Work shared among threads that end with it."""


{SPLIT}

def kernel(part, records, words, count, create, join):
    """See `split`."""
    split(part, records, words, count, create, join)
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
    return array("q", [word for part in ranges(total) for word in (0, 0, 0, *part, *values)])


class Team(NamedTuple):
    """Threads of a library's OpenMP runtime, for work between calls of that library: they are awake, and on every processor.

    Attributes:
        parallel: address of `GOMP_parallel`, which LLVM's and Intel's runtimes have, too.
        number: address of `omp_get_thread_num`.
        members: address of `omp_get_num_threads`.
        size: how many threads the library uses.
    """

    parallel: int
    number: int
    members: int
    size: int


_MEMBER_SOURCE = '''"""What a thread of a team does of split work."""


def kernel():
    """Call `part` with every so manieth record, as many as there are threads."""
    address = first_argument()
    work = pointer_to_int64(address)
    for k in range(call_0(work[5]), work[4], call_0(work[6])):
        record = work[2] + 8 * work[3] * k
        call_2(work[1], record, record)
'''

_team: ContextVar[Team | None] = ContextVar("portopt_team", default=None)


@contextlib.contextmanager
def by(team: Team | None) -> Iterator[None]:
    """Within this context, a team does what is split; None for threads of portopt's own."""
    before = _team.set(team)
    try:
        yield
    finally:
        _team.reset(before)


def team_size() -> int:
    """Return how many threads stand ready, 0 if they must be started."""
    team = _team.get()
    return 0 if team is None else min(team.size, get_num_threads())


def split(part: int, records: array[int], words: int) -> None:
    """Call a part of the work with the address of each record, in a thread each.

    Args:
        part: address of a compiled function of the prototype `"part"`.
        records: as `make_records` returns them.
        words: how many words each has.
    """
    split_call(part, records, words)()


def split_call(part: int, records: array[int], words: int) -> Callable[[], object]:
    """Return what does the same as `split`, a partial of a function in C."""
    address, count = records.buffer_info()[0], len(records) // words
    team = _team.get()
    if team is None or count > team.size:
        return functools.partial(compiled_split(), address, address, part, address, words, count, *thread_functions())
    work = array("q", (0, part, address, words, count, team.number, team.members))
    call = functools.partial(_parallel(team.parallel), address_of(_member()), work.buffer_info()[0], team.size, 0)
    call.__dict__["work"] = work  # it must live until the call
    return call


@functools.cache
def _parallel(address: int) -> Any:
    import ctypes

    kinds = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    return ctypes.CFUNCTYPE(None, *kinds)(address)


@functools.cache
def _member() -> Any:
    from portopt.kernels.host.compiler import compile_function

    return compile_function(_MEMBER_SOURCE, "part")


@functools.cache
def compiled_split() -> Any:
    """Return the compiled function, with arguments as `split` has them in `SPLIT` after two unused addresses."""
    from portopt.kernels.host.compiler import compile_function

    return compile_function(_SOURCE, "split")


@functools.cache
def thread_functions() -> tuple[int, int]:
    """Return the addresses of what starts a thread and what waits for its end; zeros where there are no POSIX threads."""
    import ctypes

    try:
        library = ctypes.CDLL(None)
        return address_of(library.pthread_create), address_of(library.pthread_join)
    except (AttributeError, OSError, TypeError):
        return 0, 0


def address_of(function: Any) -> int:
    """Return the address of a function as ctypes has it."""
    import ctypes

    return ctypes.cast(function, ctypes.c_void_p).value or 0
