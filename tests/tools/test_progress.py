"""Progress where there is no terminal: plain lines, at sensible intervals."""

from __future__ import annotations

import io
import sys

import pytest

from portopt_tools.progress import SECONDS_BETWEEN_LINES, Lines, progress

OUTPUT = pytest.CaptureFixture[str]


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_short_part_has_a_line_when_it_begins_and_one_when_it_ends(capsys: OUTPUT) -> None:
    advance = Lines(Clock()).part("numpy apply", 3)
    for _ in range(3):
        advance()
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["numpy apply: 0/3", "numpy apply: 3/3, 0 s"]
    assert printed.out == ""


def test_a_long_part_has_a_line_from_time_to_time_with_what_was_done(capsys: OUTPUT) -> None:
    clock = Clock()
    advance = Lines(clock).part("torch", 1000)
    for i in range(1, 31):
        clock.now += SECONDS_BETWEEN_LINES / 10
        advance(f"case {i}")
    assert capsys.readouterr().err.splitlines() == [
        "torch: 0/1000",
        "torch: 10/1000, 10 s, case 10",
        "torch: 20/1000, 20 s, case 20",
        "torch: 30/1000, 30 s, case 30",
    ]


def test_each_line_can_be_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    pipe = Pipe()
    monkeypatch.setattr(sys, "stderr", pipe)
    with progress() as shown:
        shown.part("numpy apply", 3)
        assert pipe.flushed == "numpy apply: 0/3\n"
        shown.say("FAILED")
        assert pipe.flushed == "numpy apply: 0/3\nFAILED\n"


def test_quiet_shows_nothing(capsys: OUTPUT) -> None:
    with progress(quiet=True) as shown:
        shown.part("numpy apply", 1)()
        shown.say("FAILED")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_and_keeps_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress() as shown:
        advance = shown.part("numpy apply", 2)
        advance("2/Adam/[raw]")
        shown.say("FAILED 2/Adam/[raw]")
        advance()
    assert "FAILED 2/Adam/[raw]" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
