"""Pairs of which one half meets the other in turns: all of both are tried, but not each with each.

A rule decides which operations a step has, a library, a dtype or a mode how each is done: a fault lies in one of the two. The
conformance suite has all pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

First = TypeVar("First")
Second = TypeVar("Second")


def in_turns(
    firsts: Sequence[First], seconds: Sequence[Second], *, in_all: Collection[First] = (), start: int = 0
) -> list[tuple[First, Second]]:
    """Return each of the firsts with one of the seconds, those that follow each other with different ones.

    Args:
        firsts, seconds: what is paired.
        in_all: those of the firsts that meet all of the seconds.
        start: the place of the second that the first of all meets.
    """
    return [
        (first, second)
        for i, first in enumerate(firsts)
        for k, second in enumerate(seconds)
        if first in in_all or k == (i + start) % len(seconds)
    ]
