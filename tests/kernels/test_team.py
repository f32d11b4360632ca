"""torch's own threads as a team: they do what is split, each part once, and only where they can."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from array import array
from typing import Any

import pytest
import torch
from support.bits import assert_same_bits, ordinary

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
    return threads.Team(found.parallel, size)


@pytest.mark.parametrize(("size", "parts"), [(2, 2), (4, 3), (3, 3)])
def test_a_team_does_each_part_once(size: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = ordinary((90, 70), "float32", 0)
    expected = products.slices(x, -1)
    monkeypatch.setattr(products, "ELEMENTS_PER_READY_THREAD", 2000)
    monkeypatch.setattr(threads, "system_functions", lambda: (0, 0, 0))
    portopt.set_num_threads(parts)
    try:
        with threads.by(some_team(size)):
            assert threads.team_size() == parts
            assert products.rows_at_once(90, x.size) == -(-90 // parts)
            found = products.slices(x, -1)
    finally:
        portopt.set_num_threads(None)
    assert threads.team_size() == 0
    assert_same_bits(found.integers[0], expected.integers[0])
    assert_same_bits(found.factor, expected.factor)


@pytest.mark.parametrize("most", [1, 2, 7])
def test_no_more_threads_of_a_team_take_part_than_it_has(most: int) -> None:
    done: list[tuple[int, int]] = []

    def note(record: Any, _: Any) -> int:
        done.append((record[0], threading.get_native_id()))
        time.sleep(0.002)
        return 0

    part = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)(note)
    portopt.set_num_threads(most)
    try:
        with threads.by(some_team(2)):
            threads.split(threads.address_of(part), array("q", range(9)), 1)
    finally:
        portopt.set_num_threads(None)
    assert sorted(number for number, _ in done) == list(range(9))
    assert len({thread for _, thread in done}) <= min(most, 2)


def test_torch_with_one_thread_has_no_team() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert _team.team() is None
    finally:
        torch.set_num_threads(before)


def test_a_fork_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    some_team(2)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert _team.team() is None
