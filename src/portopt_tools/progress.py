"""How far a command is, on the standard error: a live bar on a terminal, else plain lines, so that a log shows it too."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from portopt_tools import stopping

SECONDS_BETWEEN_LINES = 10.0
"""How often a part that is not finished has a line, where there is no terminal."""


class Advance(Protocol):
    """Called after each piece of a part."""

    def __call__(self, now: str = "") -> None:
        """Say what was done, if that has a name."""


class Progress(Protocol):
    """Shows how far a command is, part by part."""

    def part(self, name: str, pieces: int) -> Advance:
        """Begin a part, and return what is called after each of its pieces."""

    def say(self, line: str) -> None:
        """Show a line that stays."""


Watch = Callable[[str, int], Callable[[], None]]
"""`Progress.part` as it is seen by what is watched."""


def unwatched(name: str, pieces: int) -> Callable[[], None]:
    """Watch nothing."""
    return lambda: None


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Give what shows the progress of a command; with `quiet`, nothing is shown.

    After each piece a signal that a library has swallowed stops the command, see `stopping.check`.
    """
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        with _live() as bars:
            yield bars
    else:
        yield Lines(time.monotonic)


class _Silent:
    def part(self, name: str, pieces: int) -> Advance:
        return lambda now="": stopping.check()

    def say(self, line: str) -> None:
        pass


class Lines:
    """A line when a part begins, one from time to time, and one when it is finished.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def part(self, name: str, pieces: int) -> Advance:
        begin = latest = self._clock()
        finished = 0
        self.say(f"{name}: 0/{pieces}")

        def advance(now: str = "") -> None:
            nonlocal finished, latest
            finished += 1
            moment = self._clock()
            if finished == pieces or moment - latest >= SECONDS_BETWEEN_LINES:
                latest = moment
                self.say(f"{name}: {finished}/{pieces}, {moment - begin:.0f} s" + (f", {now}" if now else ""))
            stopping.check()

        return advance

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _live() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Bars(*columns, console=Console(stderr=True, highlight=False))

    class Live:
        def part(self, name: str, pieces: int) -> Advance:
            # Only now: what is wrong with the arguments is said before the first run, and not below an empty display.
            bars.start()
            task = bars.add_task(name, total=pieces)

            def advance(now: str = "") -> None:
                bars.update(task, advance=1, description=f"{name} {now}".rstrip())
                stopping.check()

            return advance

        def say(self, line: str) -> None:
            bars.console.print(line, markup=False, soft_wrap=True)

    try:
        yield Live()
    finally:
        if bars.live.is_started:
            bars.stop()
