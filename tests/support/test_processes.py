"""The helper that runs processes side by side: nothing of them is left, whatever happens."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from support.processes import side_by_side


def test_each_process_has_its_own_output_environment_and_status() -> None:
    code = "import os, sys; print(os.environ['WHICH']); print('error', file=sys.stderr); sys.exit(int(os.environ['WHICH']))"
    done = side_by_side([[sys.executable, "-c", code]] * 2, [{"WHICH": "0"}, {"WHICH": "3"}])
    assert [(p.stdout, p.stderr, p.returncode) for p in done] == [("0\n", "error\n", 0), ("3\n", "error\n", 3)]


def test_a_process_that_waits_for_one_that_prints_much_gets_it(tmp_path: Path) -> None:
    path = str(tmp_path / "done")
    waits = f"import os, time\nwhile not os.path.exists({path!r}): time.sleep(0.01)"
    prints = f"print('x' * 1_000_000); open({path!r}, 'w').close()"
    done = side_by_side([[sys.executable, "-c", code] for code in (waits, prints)])
    assert [len(process.stdout) for process in done] == [0, 1_000_001]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there are no alarms here")
def test_an_interrupt_leaves_no_process_and_no_open_file(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        f"path = os.path.join({str(tmp_path)!r}, str(os.getpid()))\n"
        "open(path, 'w').close()\n"
        "time.sleep(10_000)"
    )

    def interrupt(signal_number: int, frame: object) -> None:
        if len(list(tmp_path.iterdir())) < 2:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        else:
            raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(InterruptedError):
            side_by_side([[sys.executable, "-c", code]] * 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
    # What is open would be reported here, and not in a later test.
    gc.collect()
