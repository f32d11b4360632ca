"""Commands that are stopped, by Ctrl-C or by SIGTERM, and keep what they have finished."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command. Like every `KeyboardInterrupt`, it is no `Exception`.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status of a process that the signal ends."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def as_stopped(interrupt: KeyboardInterrupt) -> Stopped:
    """Return an interrupt as the signal that it comes from: Ctrl-C's, where it is not told."""
    return interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` where the program is when SIGINT or SIGTERM arrives; a signal that is ignored stays ignored."""
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    # One that was not set from Python is None, and cannot be put back.
    before = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise Stopped(number)


def check() -> None:
    """Raise `Stopped` if a signal has arrived: a library may have made another error of it, or none."""
    if _received:
        raise Stopped(_received[0])
