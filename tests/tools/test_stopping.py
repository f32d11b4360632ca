"""Commands that are stopped keep what they have finished, say that it is partial, and end with the signal's status."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from portopt_tools import stopping
from portopt_tools.command_line import main
from portopt_tools.compare.bits import Trajectory

# A rule that says so and then waits for ever, where the command that measures it has finished something else.
MODULE = """\
import sys
import time

import portopt


def wait():
    print("WAITS", file=sys.stderr, flush=True)
    time.sleep(3600)


class Waits(portopt.Optimizer):
    def init(self, params, **options):
        wait()

    def update(self, xp, p, g, slots, c):
        return p - c.lr * g, {}


class WaitsInItsSecondRun(portopt.Optimizer):
    runs = 0

    def init(self, params, **options):
        type(self).runs += 1
        if self.runs == 2:
            wait()
        return super().init(params, **options)

    def update(self, xp, p, g, slots, c):
        return p - c.lr * g, {}
"""
# Where the tests themselves run in the background SIGINT may be ignored, and what is ignored is inherited.
PROGRAM = """\
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)
from portopt_tools.command_line import main

sys.exit(main())
"""

every_signal = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)


def stopped(folder: Path, arguments: Sequence[str], number: int) -> tuple[int, str, str]:
    """Run a command until the rule waits, send a signal, and return exit status, output and error output."""
    (folder / "waiting.py").write_text(MODULE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            before = []
            for line in process.stderr:
                before.append(line)
                if line == "WAITS\n":
                    break
            else:
                pytest.fail(f"it ended before it was stopped: {''.join(before)}")
            process.send_signal(number)
            out, err = process.communicate()
        finally:
            process.kill()
    return process.returncode, out, "".join(before) + err


# What a signal does to any command is tested below with both.
@pytest.mark.needs("sklearn", "matplotlib")
def test_compare_keeps_the_runs_that_were_finished(tmp_path: Path) -> None:
    number, status = signal.SIGINT, 130
    command = [
        "compare",
        "--optimizer",
        "waiting:WaitsInItsSecondRun",
        "--epochs",
        "1",
        "--backend",
        "numpy",
        "--out",
        "o",
    ]
    code, out, err = stopped(tmp_path, command, number)
    name = signal.Signals(number).name
    assert (code, "Traceback" in err) == (status, False), err
    assert "numpy apply: 44/44" in err
    assert f"Partial, stopped by {name} after 1 run." in out
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert (report["partial"], report["identical"]) == (True, False)
    assert [run["name"] for run in report["runs"]] == ["numpy apply"]
    assert report["runs"][0]["verdict"] == "reference"
    assert {"backend": "numpy apply_", "reason": f"stopped by {name}"} in report["not_run"]
    page = (tmp_path / "o" / "report.html").read_text()
    assert 'class="conclusion partial"' in page
    assert "numpy apply (reference)" in page


@pytest.mark.needs("matplotlib", "torch")
def test_bench_keeps_the_rules_that_were_finished(tmp_path: Path) -> None:
    number, status = signal.SIGTERM, 143
    rules = ["--rule", "sgd", "--rule", "waiting:Waits"]
    command = ["bench", "--quick", *rules, "--backend", "numpy", "--against", "torch", "--out", "o"]
    code, out, err = stopped(tmp_path, command, number)
    assert (code, "Traceback" in err) == (status, False), err
    assert "These results are partial: the measurement was stopped." in out
    report = json.loads((tmp_path / "o" / "bench.json").read_text())
    assert report["partial"] is True
    assert [group["rule"] for group in report["groups"]] == ["SGD"]
    reasons = {entry["name"]: entry["reason"] for entry in report["not_run"]}
    assert reasons["Waits, mlp-digits"] == f"stopped by {signal.Signals(number).name}"
    assert "partial: the measurement was stopped" in (tmp_path / "o" / "bench.svg").read_text()


@every_signal
def test_conform_keeps_the_cases_that_were_run(number: int, status: int, tmp_path: Path) -> None:
    command = ["conform", "--quick", "--layer", "2", "--rule", "sgd", "--rule", "waiting:Waits", "--json", "o.json"]
    code, out, err = stopped(tmp_path, command, number)
    assert (code, "Traceback" in err) == (status, False), err
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["partial"] is True
    assert report["passed"] == len(report["cases"]) > 0
    assert {case["id"].split("/")[1] for case in report["cases"]} == {"SGD"}
    [error] = report["errors"]
    assert error.startswith(f"stopped by {signal.Signals(number).name} after {report['passed']} of ")
    assert f"FAILED {error}" in " ".join(out.split())


def test_a_whole_run_is_not_partial(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    assert main(["conform", "--quick", "--layer", "4", "--rule", "sgd", "--json", str(path), "--quiet"]) == 0
    assert json.loads(path.read_text())["partial"] is False


@pytest.mark.needs("sklearn")
@every_signal
def test_a_signal_of_which_a_library_makes_another_error_stops_all_the_same(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    def swallow(trajectory: Any, parameters: Any) -> Any:
        begun.append(number)
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise RuntimeError("a callback failed") from error

    monkeypatch.setattr(Trajectory, "append", swallow)
    with not_ignored(number):
        code = main(["compare", "--backend", "numpy", "--epochs", "1"])
    assert code == status
    assert begun == [number]
    assert "Partial, stopped by" in capsys.readouterr().out


@contextlib.contextmanager
def not_ignored(number: int) -> Iterator[None]:
    """Handle a signal as a terminal's programs do: a run of the tests in the background may ignore SIGINT."""
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping.stoppable():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopping.stoppable():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_earlier_signal_does_not_stop_a_later_command() -> None:
    with pytest.raises(stopping.Stopped, match="stopped by SIGTERM"), stopping.stoppable():
        signal.raise_signal(signal.SIGTERM)
    with stopping.stoppable():
        stopping.check()
