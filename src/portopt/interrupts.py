"""Interrupts that wait, so that a step that has begun to write is finished."""

from __future__ import annotations

import collections
import operator
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any


def finish(calls: Sequence[Callable[[], object]]) -> None:
    """Make all calls, one after the other, with nothing in between.

    Python runs signal handlers, and raises what was raised in a thread from outside, between two of its own instructions. This
    is one of them, as long as the calls are of functions written in C: `functools.partial` of such a one, not a lambda.
    """
    collections.deque(map(operator.call, calls), maxlen=0)


# The C function below: `signal` looks each number and handler up among enumerations, which takes longer than a small step.
_set_handler: Callable[[int, Any], Any] = getattr(signal.signal, "__wrapped__", signal.signal)
_SIGINT = int(signal.SIGINT)


class deferred:  # reads as a statement
    """Let Ctrl-C wait for the end of a block of Python code; what its handler raises is raised there.

    Only the main thread is interrupted by signals; in another one there is nothing to do.
    """

    __slots__ = ("_arrived", "_handler")

    def __enter__(self) -> None:
        self._arrived: list[Any] = []
        self._handler: Any = None
        if threading.get_ident() == threading.main_thread().ident:
            self._handler = _set_handler(_SIGINT, self._arrive)

    def _arrive(self, number: int, frame: Any) -> None:
        self._arrived.append((number, frame))

    def __exit__(self, *_: object) -> None:
        if self._handler is None:
            return
        _set_handler(_SIGINT, self._handler)
        if self._arrived and callable(self._handler):
            self._handler(*self._arrived[0])
