"""The threads of large steps: how many there are changes no bit, and they outlive a fork and torch's own threads."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bits import assert_same_bits

import portopt
from portopt.host import threads

FORKED_STEPS = Path(__file__).with_name("forked_steps.py")
SIZE = 4 * threads.ELEMENTS_PER_THREAD + 1


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    yield
    portopt.set_num_threads(None)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "2"])
def test_the_number_of_threads_must_be_a_positive_integer(count: object) -> None:
    message = re.escape(f"the number of threads must be an integer of at least 1 or None, but {count!r} was given")
    with pytest.raises(ValueError, match=message):
        portopt.set_num_threads(count)  # type: ignore[arg-type]  # what is tested


def test_the_environment_sets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOPT_NUM_THREADS", "7")
    assert portopt.get_num_threads() == 7
    portopt.set_num_threads(2)
    assert portopt.get_num_threads() == 2
    portopt.set_num_threads(None)
    for nonsense in ("0", "-1", "many", ""):
        monkeypatch.setenv("PORTOPT_NUM_THREADS", nonsense)
        assert portopt.get_num_threads() >= 1


@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("total", [0, 1, SIZE - 1, SIZE, 10 * SIZE + 7])
def test_each_element_is_in_one_range(total: int, count: int) -> None:
    portopt.set_num_threads(count)
    ranges: list[tuple[int, int]] = []
    threads.run_split(lambda start, stop: ranges.append((start, stop)), total)
    ranges.sort()
    assert len(ranges) <= count
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == total


def test_large_work_is_done_by_several_threads() -> None:
    portopt.set_num_threads(2)
    both = threading.Barrier(2, timeout=600)
    threads.run_split(lambda start, stop: both.wait(), SIZE)


def test_an_error_in_a_thread_is_raised() -> None:
    def work(start: int, stop: int) -> None:
        if start:
            raise ArithmeticError("in a thread")

    portopt.set_num_threads(2)
    with pytest.raises(ArithmeticError, match="in a thread"):
        threads.run_split(work, SIZE)


def one_step(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    optimizer = portopt.Adam(0.1)
    return torch.as_tensor(optimizer.apply(w, g, optimizer.init(w))[0])


def test_steps_alternate_with_the_threads_of_torch() -> None:
    w, g = torch.linspace(-1, 1, SIZE), torch.linspace(2, -3, SIZE)
    portopt.set_num_threads(1)
    expected = one_step(w, g).numpy()
    portopt.set_num_threads(3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(5):
            assert_same_bits(one_step(w + 0, g * 1).numpy(), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_steps_go_on_in_a_forked_process(library: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry),
    }
    result = subprocess.run(
        [sys.executable, str(FORKED_STEPS), library],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    w, g = np.linspace(-1, 1, SIZE, dtype=np.float32), np.linspace(2, -3, SIZE, dtype=np.float32)
    optimizer = portopt.Adam(0.1)
    state = optimizer.init(w)
    portopt.set_num_threads(1)
    for _ in range(3):
        state = optimizer.apply_(w, g, state)
    assert result.stdout.split() == [hashlib.sha256(w.tobytes()).hexdigest()] * 3
