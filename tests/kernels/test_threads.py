"""The threads of large steps: how many there are changes no bit, and they outlive a fork and torch's own threads."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bits import assert_same_bits
from support.elsewhere import Elsewhere

import portopt
from portopt.kernels.host import reserve, threads
from portopt.kernels.host.cgroups import cpu_quota
from portopt.kernels.host.reserve import have_leave, system_functions

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
    for nonsense in ("0", "-1", "many", "", "²"):
        monkeypatch.setenv("PORTOPT_NUM_THREADS", nonsense)
        assert portopt.get_num_threads() >= 1


V1 = "30 1 0:1 {root} {point} rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "31 1 0:2 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cgroup": "0::/\n", "mountinfo": V2.format(root="/", point="/sys/fs/cgroup")}, None),
        (
            {
                "cgroup": "0::/\n",
                "mountinfo": V2.format(root="/", point="/sys/fs/cgroup"),
                "/sys/fs/cgroup/cpu.max": "150000 100000",
            },
            1.5,
        ),
        (
            {
                "cgroup": "0::/\n",
                "mountinfo": V2.format(root="/", point="/sys/fs/cgroup"),
                "/sys/fs/cgroup/cpu.max": "max 100000",
            },
            None,
        ),
        (  # the group around it has less
            {
                "cgroup": "0::/outer/inner\n",
                "mountinfo": V2.format(root="/", point="/cg\\0402"),
                "/cg 2/outer/inner/cpu.max": "400000 100000",
                "/cg 2/outer/cpu.max": "200000 100000",
                "/cg 2/cpu.max": "max 100000",
            },
            2.0,
        ),
        (  # version 1, in a container that sees its own group as the root of the mount
            {
                "cgroup": "12:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/docker/1\n",
                "mountinfo": V1.format(root="/docker/1", point="/sys/fs/cgroup/cpu"),
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (  # a group that the mount does not show
            {
                "cgroup": "4:cpu:/elsewhere\n0::/../../x\n",
                "mountinfo": V1.format(root="/docker/1", point="/one") + V2.format(root="/", point="/two"),
                "/one/cpu.cfs_quota_us": "300000",
                "/one/cpu.cfs_period_us": "100000",
                "/two/cpu.max": "700000 100000",
            },
            3.0,
        ),
        (
            {
                "cgroup": "4:cpu:/\n",
                "mountinfo": V1.format(root="/", point="/one"),
                "/one/cpu.cfs_quota_us": "-1",
                "/one/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
    ids=["no files", "no limit file", "1.5", "max", "nested", "version 1", "hidden groups", "version 1 without limit"],
)
def test_quota_of_the_control_group(files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    for name, content in files.items():
        path = tmp_path / (name[1:] if name.startswith("/") else f"proc/self/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(
    "nonsense", ["", "\n", "\0\xff", "0::", "a b c", "1 2", "0 100000", "100000 0", "-5 -5", "9" * 5000 + " 1"]
)
def test_nonsense_in_the_files_of_a_control_group_limits_nothing(nonsense: str, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "cg").mkdir()
    for cgroup in (nonsense, "0::/"):
        for mountinfo in (nonsense, f"{nonsense} - cgroup2\n" + V2.format(root="/", point="/cg")):
            (tmp_path / "proc/self/cgroup").write_text(cgroup, encoding="latin-1")
            (tmp_path / "proc/self/mountinfo").write_text(mountinfo, encoding="latin-1")
            (tmp_path / "cg/cpu.max").write_text(nonsense if nonsense != "1 2" else "1 b", encoding="latin-1")
            assert cpu_quota(tmp_path) is None
    (tmp_path / "cg/cpu.max").unlink()
    (tmp_path / "cg/cpu.max").mkdir()
    assert cpu_quota(tmp_path) is None


def test_threads_are_no_more_than_the_control_group_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOPT_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for quota, expected in ((None, 64), (0.25, 1), (1.0, 1), (2.5, 3), (100.0, 64)):
        monkeypatch.setattr(threads, "_quota", lambda quota=quota: quota)
        assert portopt.get_num_threads() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("total", [0, 1, SIZE - 1, SIZE, 10 * SIZE + 7])
def test_each_element_is_in_one_range(total: int, count: int) -> None:
    portopt.set_num_threads(count)
    ranges, parts = threads.ranges(total), threads.parts(total)
    assert 1 <= len(ranges) <= count
    for some in ranges, parts:
        assert [start for start, _ in some] == [0, *(stop for _, stop in some[:-1])]
        assert some[-1][1] == total
    assert len(parts) >= 2 * len(ranges) or len(ranges) == len(parts) == 1
    assert len(parts) == 1 or parts[0][1] >= threads.ELEMENTS_PER_THREAD // threads.LEAST_PARTS


def split(work: Callable[[int, int], object]) -> None:
    """Call `work` with the range of each thread's record."""
    part = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(
        lambda record, _: int(work(record[0], record[1]) is None)
    )
    threads.split(threads.address_of(part), threads.make_records(SIZE, (0,)), threads.HEAD + 1)


Part = Callable[[int, int, int], object]


def do_job(passes: list[int], work: Part) -> None:
    """Call `work` with the number of the pass and of the part, and the thread, given how many parts each pass has.

    Each pass has a function of its own, and records of its own length.
    """
    parts = [
        ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(
            lambda record, _, k=k: int(work(k, record[k], threading.get_ident()) is None)
        )
        for k in range(len(passes))
    ]
    threads.Job(
        [
            threads.Pass(
                threads.address_of(parts[k]), array("q", [word for i in range(count) for word in (*[-1] * k, i)]), k + 1
            )
            for k, count in enumerate(passes)
        ]
    ).call()()


@pytest.mark.parametrize("passes", [[1], [3], [2, 1, 2], [1, 4, 1, 7, 2], [0, 2, 0, 1]] * 5)
def test_each_part_of_a_job_is_done_once_and_after_all_of_the_pass_before(passes: list[int]) -> None:
    begun: list[tuple[int, int]] = []
    done: list[tuple[int, int]] = []
    portopt.set_num_threads(4)

    def work(k: int, i: int, thread: int) -> None:
        assert all((before, other) in done for before in range(k) for other in range(passes[before]))
        begun.append((k, i))
        time.sleep(0.002 * ((k + i) % 3))
        done.append((k, i))

    do_job(passes, work)
    assert sorted(begun) == sorted(done) == [(k, i) for k, count in enumerate(passes) for i in range(count)]


def test_threads_take_parts_as_they_come_for_them() -> None:
    """While one thread is held up in its first part, the others do all other parts of the pass."""
    others = threading.Semaphore(0)
    done: list[tuple[int, int]] = []
    portopt.set_num_threads(3)

    def work(k: int, i: int, thread: int) -> None:
        if i == 0:
            for _ in range(5):
                assert others.acquire(timeout=600)
        done.append((i, thread))
        others.release()

    do_job([6], work)
    assert sorted(i for i, _ in done) == list(range(6))
    assert done[-1][0] == 0


def test_a_job_is_done_again_by_threads_that_begin_with_the_same_parts() -> None:
    """Each finds in its processor's caches what it has left there."""
    portopt.set_num_threads(2)
    both = threading.Barrier(2, timeout=600)
    done: list[tuple[int, bool]] = []

    def note(record: Any, _: Any) -> int:
        # None takes a part of the other's.
        both.wait()
        done.append((record[0], threading.get_ident() == threading.main_thread().ident))
        record[0] = 0  # as the end of a compiled function does
        return 0

    part = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(note)
    job = threads.Job([threads.Pass(threads.address_of(part), array("q", range(4)), 1)])
    for _ in range(5):
        job.call()()
    assert sorted(done) == [(0, True)] * 5 + [(1, True)] * 5 + [(2, False)] * 5 + [(3, False)] * 5


called_by_threads: list[Any] = []
"""Functions of this module that threads may yet call."""


def helpers_of_jobs(count: int) -> list[int]:
    """Return the other thread of each of some jobs."""
    both, found = threading.Barrier(2, timeout=600), list[int]()

    def note(record: Any, _: Any) -> int:
        both.wait()
        if threading.get_ident() != threading.main_thread().ident:
            found.append(threading.get_native_id())
        return 0

    part = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(note)
    for _ in range(count):
        threads.split(threads.address_of(part), array("q", [0, 0]), 1)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not show its threads")
@pytest.mark.parametrize("why", ["nothing comes", "a fork", "their number is set"])
def test_a_thread_stays_for_further_jobs_until_nothing_comes_or_it_must_leave(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has it leave waits for its end: a process that then forks has one thread, or Python would warn."""
    left: list[tuple[str, int]] = []

    def counted(name: str, address: int, count: int) -> int:
        kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * count)
        function = kind(address)

        def call(*args: int) -> int:
            result = int(function(*args))
            left.append((name, result))
            return result

        called_by_threads.append(kind(call))
        return threads.address_of(called_by_threads[-1])

    functions = list(system_functions())
    functions[3:5] = counted("detach", functions[3], 1), counted("join", functions[4], 2)
    monkeypatch.setattr(threads, "system_functions", lambda: tuple(functions))
    portopt.set_num_threads(2)
    found = helpers_of_jobs(5)
    # One that is late in going to sleep may find another in its place.
    assert len(set(found)) < len(found) == 5
    if why == "a fork":
        have_leave()
    elif why == "their number is set":
        portopt.set_num_threads(2)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/self/task/{thread}").exists() for thread in found):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert left == [("detach" if why == "nothing comes" else "join", 0)] * len(set(found))
    assert len(helpers_of_jobs(2)) == 2


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no POSIX threads here")
def test_a_thread_gets_no_signals_but_those_for_what_it_does_itself() -> None:
    """The others are for threads that run Python; hidden, these would end the process without a word of `faulthandler`."""
    portopt.set_num_threads(2)
    both, found = threading.Barrier(2, timeout=600), dict[bool, set[int]]()

    def note(record: Any, _: Any) -> int:
        both.wait()
        is_main = threading.get_ident() == threading.main_thread().ident
        found[is_main] = set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        return 0

    part = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(note)
    threads.split(threads.address_of(part), array("q", [0, 0]), 1)
    open_signals = signal.valid_signals() - found[False]
    assert {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL} <= open_signals
    assert not open_signals & {signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGPROF, signal.SIGCHLD}
    assert not found[True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_forked_behind_pythons_back_does_not_wait_for_threads_that_it_has_not() -> None:
    portopt.set_num_threads(2)
    helpers_of_jobs(1)
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        signal.alarm(60)
        before = [list(each._words) for each in reserve._reserves]
        have_leave()
        os._exit(before != [list(each._words) for each in reserve._reserves])
    assert os.waitpid(child, 0)[1] == 0


def test_a_thread_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    create = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)(lambda *_: 0)
    functions = list(system_functions())
    functions[2] = threads.address_of(create)
    monkeypatch.setattr(threads, "system_functions", lambda: tuple(functions))
    monkeypatch.setattr(reserve, "_reserves", [])  # others need not wait for these
    portopt.set_num_threads(2)
    done: list[tuple[int, int]] = []
    for _ in range(9):
        split(lambda start, stop: done.append((start, stop)))
    assert done == 9 * threads.ranges(SIZE)
    before = time.monotonic()
    have_leave()
    assert time.monotonic() - before < 30


def test_a_thread_that_comes_late_has_left_before_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    functions, kind = list(system_functions()), ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)
    start = kind(functions[2])

    def create(*args: int) -> int:
        threading.Timer(0.01, start, args).start()
        return 0

    called_by_threads.append(kind(create))
    functions[2] = threads.address_of(called_by_threads[-1])
    monkeypatch.setattr(threads, "system_functions", lambda: tuple(functions))
    monkeypatch.setattr(reserve, "_COMES", 600)
    portopt.set_num_threads(2)
    before = set(reserve._reserves)
    split(lambda start, stop: None)
    have_leave()
    (own,) = set(reserve._reserves) - before
    places = [own._words[at : at + 3] for at in range(reserve.RESERVE_WORDS, len(own._words), reserve.PLACE_WORDS)]
    assert not any(any(place) for place in places)


def test_planned_steps_keep_their_job_until_the_number_of_threads_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    portopt.set_num_threads(2)
    made: list[int] = []
    new = threads.Job.__init__

    def count(job: threads.Job, passes: Any, at_most: int = 0) -> None:
        new(job, passes, at_most)
        made.append(job._words[2])

    monkeypatch.setattr(threads.Job, "__init__", count)
    optimizer, w = portopt.SGD(1.0), np.zeros(SIZE, np.float32)
    state = optimizer.init(w)
    for _ in range(8):
        state = optimizer.apply_(w, np.ones(SIZE, np.float32), state)
    planned = len(made)
    for _ in range(3):
        state = optimizer.apply_(w, np.ones(SIZE, np.float32), state)
    assert made == [2] * planned
    assert planned < 8
    portopt.set_num_threads(3)
    for _ in range(3):
        state = optimizer.apply_(w, np.ones(SIZE, np.float32), state)
    assert made == [*[2] * planned, 3]
    assert (w == -14).all()


def test_large_work_is_done_by_several_threads() -> None:
    portopt.set_num_threads(2)
    both = threading.Barrier(2, timeout=600)
    split(lambda start, stop: both.wait())


@pytest.mark.parametrize("are_here", [False, True], ids=["none here", "none left"])
def test_without_threads_the_caller_does_all(are_here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    create = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)(lambda *_: errno.EAGAIN)
    functions = list(system_functions())
    functions[2] = threads.address_of(create)
    monkeypatch.setattr(threads, "system_functions", lambda: tuple(functions) if are_here else (0,) * len(functions))
    portopt.set_num_threads(4)
    done: list[tuple[int, int, int]] = []
    split(lambda start, stop: done.append((start, stop, threading.get_ident())))
    assert [(start, stop) for start, stop, _ in done] == threads.ranges(SIZE)
    assert len(done) == 4
    assert {thread for *_, thread in done} == {threading.get_ident()}


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
def test_steps_go_on_in_a_forked_process(library: str, elsewhere: Elsewhere) -> None:
    found = elsewhere.call_alone("forked_steps", "digests", library)
    w, g = np.linspace(-1, 1, SIZE, dtype=np.float32), np.linspace(2, -3, SIZE, dtype=np.float32)
    optimizer = portopt.Adam(0.1)
    state = optimizer.init(w)
    portopt.set_num_threads(1)
    for _ in range(3):
        state = optimizer.apply_(w, g, state)
    assert found == [hashlib.sha256(w.tobytes()).hexdigest()] * 3
