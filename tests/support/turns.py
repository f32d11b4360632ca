"""Pairs of which one half meets the other in turns: all of both are tried, but not each with each.

A rule decides which operations a step has, a library, a dtype or a mode how each is done: a fault lies in one of the two. The
conformance suite has all pairs in full. Another number of the whole run, `PORTOPT_TESTS_TURN=5`, has others, and `all` has all;
the makefile takes it from the commit.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TypeVar

from portopt import Optimizer
from portopt_conformance.plan import apart, samples

First = TypeVar("First")
Second = TypeVar("Second")

ALL = "all"
TURN = os.environ.get("PORTOPT_TESTS_TURN", "0")
"""The number of the run, or `ALL`: nobody waits for a turn."""


def _start(by: int | None = None) -> int:
    """Return what a way to choose counts from: each has its own, so that what is chosen in two ways meets in all ways."""
    turn = 0 if TURN == ALL else int(TURN)
    return turn if by is None else apart(turn, by)


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
        if first in in_all or TURN == ALL or k == (i + start + _start(2**8)) % len(seconds)
    ]


def in_turn(items: Sequence[First], turn: int, of: int) -> Sequence[First]:
    """Return one of so many: each is among those of one turn of `of` that follow each other."""
    return items if TURN == ALL else items[(turn + _start(2**16)) % of :: of]


def rules_in_turn(
    rules: Sequence[type[Optimizer]], turn: int, *, always: Collection[type[Optimizer]] = ()
) -> list[type[Optimizer]]:
    """Return the rules whose turn it is, one of each kind, chosen as the conformance suite does for a mode that it samples.

    For tests of what is around a step, where each rule costs a compilation.

    Args:
        rules: to choose from.
        turn: a number of the test's own; tests whose numbers follow each other have different rules.
        always: those whose turn it always is.
    """
    chosen = zip(rules, samples(rules, turn + _start()), strict=True)
    return [rule for rule, sample in chosen if sample or rule in always or TURN == ALL]
