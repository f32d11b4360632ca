"""A pool of threads for large steps.

Kernels run without the GIL on plain Python threads rather than OpenMP: two OpenMP runtimes in one process (torch brings its
own) can deadlock or oversubscribe, and GNU's does not survive `fork`. These threads are made on first use, again in a forked
child, and end with the process. How the elements are split never changes a bit, because each element is computed alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

ELEMENTS_PER_THREAD = 1 << 18
"""A thread gets at least so many elements: waking one costs about 50 µs, in which Adam updates this many."""

_chosen: int | None = None
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_process = 0


def get_num_threads() -> int:
    """Return how many threads large steps use: what `set_num_threads` set, else `PORTOPT_NUM_THREADS`, else the CPUs allowed.

    Example:
        >>> import portopt
        >>> portopt.get_num_threads() >= 1
        True
    """
    if _chosen is not None:
        return _chosen
    from_environment = os.environ.get("PORTOPT_NUM_THREADS", "")
    if from_environment.isdigit() and int(from_environment) > 0:
        return int(from_environment)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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


def run_split(work: Callable[[int, int], object], total: int, alignment: int = 64) -> None:
    """Call `work(start, stop)` for ranges that make up `range(total)`, at once where there is enough to do."""
    parts = 1 if is_small(total) else min(get_num_threads(), total // ELEMENTS_PER_THREAD)
    if parts == 1:
        work(0, total)
        return
    size = -(-total // parts // alignment) * alignment
    ranges = [(start, min(start + size, total)) for start in range(0, total, size)]
    futures = [_executor(len(ranges) - 1).submit(work, *part) for part in ranges[1:]]
    work(*ranges[0])
    for future in futures:
        future.result()


def _executor(size: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    global _pool, _pool_size, _pool_process
    if _pool is None or _pool_size < size or _pool_process != os.getpid():
        if _pool is not None and _pool_process == os.getpid():
            _pool.shutdown(wait=False)
        _pool = ThreadPoolExecutor(size, thread_name_prefix="portopt")
        _pool_size, _pool_process = size, os.getpid()
    return _pool
