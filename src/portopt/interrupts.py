"""Making several calls as one, so that a step that has begun to write is finished."""

from __future__ import annotations

import collections
import operator
from collections.abc import Callable, Sequence


def finish(calls: Sequence[Callable[[], object]]) -> None:
    """Make all calls, one after the other, with nothing in between.

    Python runs signal handlers, and raises what was raised in a thread from outside, between two of its own instructions. This
    is one of them, as long as the calls are of functions written in C: `functools.partial` of such a one, not a lambda.
    """
    collections.deque(map(operator.call, calls), maxlen=0)
