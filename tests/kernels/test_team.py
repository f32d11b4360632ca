"""torch's own threads as a team: they do what is split, each part once, and only where they can."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bits import assert_same_bits, ordinary
from support.processes import run_python

import portopt
from portopt.kernels.host import products, threads
from portopt_torch import _team

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP runtime is found on Linux only")


def some_team(size: int) -> threads.Team:
    one = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = _team.team()
    finally:
        torch.set_num_threads(one)
    assert found is not None
    assert found.size == 2
    return found._replace(size=size)


@pytest.mark.parametrize(("size", "parts"), [(2, 2), (4, 3), (3, 3)])
def test_a_team_does_each_part_once(size: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = ordinary((90, 70), "float32", 0)
    expected = products.slices(x, -1)
    monkeypatch.setattr(products, "ELEMENTS_PER_READY_THREAD", 2000)
    monkeypatch.setattr(threads, "system_functions", lambda: (0,))
    portopt.set_num_threads(parts)
    try:
        team = some_team(size)
        with threads.by(lambda: team):
            assert threads.is_ready()
            assert threads.most() == parts
            assert products.rows_at_once(90, x.size) == -(-90 // parts)
            found = products.slices(x, -1)
    finally:
        portopt.set_num_threads(None)
    assert not threads.is_ready()
    assert_same_bits(found.integers[0], expected.integers[0])
    assert_same_bits(found.factor, expected.factor)


@pytest.mark.parametrize(("size", "most"), [(2, 1), (2, 2), (2, 7), (4, 2)])
def test_no_more_threads_of_a_team_take_part_than_it_has_or_may(size: int, most: int) -> None:
    done: list[tuple[int, int]] = []

    def note(record: Any, _: Any) -> int:
        done.append((record[0], threading.get_native_id()))
        time.sleep(0.002)
        return 0

    part = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(note)
    portopt.set_num_threads(most)
    try:
        team = some_team(size)
        with threads.by(lambda: team):
            threads.split(threads.address_of(part), array("q", range(9)), 1)
    finally:
        portopt.set_num_threads(None)
    assert sorted(number for number, _ in done) == list(range(9))
    assert len({thread for _, thread in done}) <= min(most, size)


def test_a_job_is_done_again_by_threads_of_a_team_that_begin_with_the_same_parts() -> None:
    both = threading.Barrier(2, timeout=600)
    done: list[tuple[int, int]] = []

    def note(record: Any, _: Any) -> int:
        both.wait()
        done.append((record[0], threading.get_native_id()))
        return 0

    part = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(note)
    portopt.set_num_threads(2)
    try:
        team = some_team(2)
        with threads.by(lambda: team):
            job = threads.Job([threads.Pass(threads.address_of(part), array("q", range(4)), 1)])
        for _ in range(5):
            job.call()()
    finally:
        portopt.set_num_threads(None)
    assert sorted(done)[:10] == [(0, threading.get_native_id())] * 5 + [(1, threading.get_native_id())] * 5
    assert [number for number, _ in sorted(done)[10:]] == [2] * 5 + [3] * 5


@pytest.mark.parametrize("find", [_team.team, _team.working_team])
def test_where_torch_has_one_thread_nobody_else_takes_part(find: Callable[[], threads.Team | None]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threads.by(find):
            assert threads.most() == 1
            assert not threads.is_ready()
            assert threads.worth(1 << 24) == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(_team, "_known", None)


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


@pytest.mark.usefixtures("_two_threads")
def test_one_thread_has_the_team_and_threads_of_no_other_are_started() -> None:
    own = _team.team()
    assert own is not None
    before = set(Path("/proc/self/task").iterdir())

    def look() -> tuple[Any, Any, set[Path]]:
        found = _team.team(), _team.working_team()
        more = set(Path("/proc/self/task").iterdir()) - before
        return *found, more - {Path(f"/proc/self/task/{threading.get_native_id()}")}

    assert in_another_thread(look) == (None, None, set())
    assert _team.team() is own


@pytest.mark.usefixtures("_two_threads")
def test_a_team_is_found_anew_when_its_thread_has_ended_or_torch_has_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = in_another_thread(_team.team)
    assert gone is not None
    assert _team._known is not None
    while _team._known.has_its_thread():  # the system takes a moment
        time.sleep(0.001)
    own = _team.team()
    assert own is not None
    assert own is not gone
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    more = _team.team()
    assert more is not None
    assert (own.size, more.size) == (2, 3)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("is_same", [True, False])
def test_a_team_works_when_it_is_awake_and_is_woken_where_that_pays(
    is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event is the time since the last step, whether the team's threads are awake, and whether they are to do the step."""
    events = [
        (1.0, False, False),
        (1.0, True, True),
        (1.0, False, False),
        # One step follows the other, and then they are awake.
        (0.001, False, True),
        (0.001, True, True),
        (1.0, False, False),
        # They are not, which is tried less and less often.
        (0.001, False, True),
        (0.001, False, False),
        (0.001, False, True),
        *[(0.001, False, False)] * 3,
        (0.001, False, True),
        (0.001, False, False),
        (0.001, True, True),
    ]
    now, awake = 100.0, False
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(_team._Known, "look", lambda _: (is_same, awake))
    found = []
    for passed, seen, _ in events:
        now, awake = now + passed, seen
        found.append(_team.working_team() is not None)
    assert found == [does for *_, does in events]


@pytest.mark.usefixtures("_two_threads")
def test_a_look_tells_a_thread_that_runs_from_one_that_waits_and_one_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the team's threads are awake is asked of the system, by the time that one of them has run for."""
    before, end, run = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        before.wait()
        run.set()
        while not end.is_set():
            pass

    thread = threading.Thread(target=other)
    thread.start()
    assert thread.native_id is not None
    monkeypatch.setattr(_team, "_worker", lambda size: thread.native_id)
    known = _team._Known(torch.get_num_threads())
    assert known.team is not None
    found = {known.look()[1] for _ in range(5)}
    before.set()
    run.wait()
    # Another one may have the processor at times.
    while not known.look()[1]:
        time.sleep(0.001)
    end.set()
    thread.join()
    # Python is done with a thread a moment before the system is.
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        time.sleep(0.001)
    assert found == {False}
    with pytest.raises(ProcessLookupError):
        known.look()


def test_a_look_tells_whether_process_thread_and_number_of_threads_are_the_same() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        known = _team._Known(2)
        assert known.look()[0]
        assert not in_another_thread(known.look)[0]
        torch.set_num_threads(3)
        assert not known.look()[0]
        torch.set_num_threads(2)
        assert known.look()[0]
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_a_team_whose_threads_have_ended_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: Any) -> tuple[bool, bool]:
        raise ProcessLookupError

    assert _team.team() is not None
    with monkeypatch.context() as context:
        context.setattr(_team._Known, "look", ended)
        assert _team.working_team() is None
    assert _team._known is None


@pytest.mark.usefixtures("_two_threads")
def test_a_team_whose_threads_end_at_once_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_team, "_worker", lambda size: 2**25)
    assert _team.team() is None
    assert _team.working_team() is None


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("come", [0, 1, 3])
def test_a_runtime_that_does_not_what_it_is_asked_for_has_no_team(come: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def parallel(function: int, data: int, size: int, flags: int) -> None:
        for _ in range(come):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)

    runtime = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(parallel)
    others = _team._functions()[1:]
    monkeypatch.setattr(_team, "_functions", lambda: (threads.address_of(runtime), *others))
    assert _team.team() is None
    assert _team.working_team() is None


def test_a_fork_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    some_team(2)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert _team.team() is None


def test_steps_of_a_fork_in_which_torch_had_threads_before_are_done() -> None:
    """The child is the first to do a step; torch's own large operations would hang in it."""
    run_python(
        """
        import os, signal, warnings
        import numpy as np
        import portopt
        import torch
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.set_num_threads(2)
        assert torch.ones(1_000_000).sum() == 1_000_000
        portopt.set_num_threads(2)
        optimizer, w, g = portopt.SGD(1.0), *map(torch.from_numpy, np.array([[0], [1]], "f4").repeat(1 << 20, 1))
        state = optimizer.init(w)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            for _ in range(3):
                state = optimizer.apply_(w, g, state)
            os._exit(0 if (w.numpy() == -3).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
        """,
        OMP_NUM_THREADS="2",
    )
