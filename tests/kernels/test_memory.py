"""Memory of intermediate results: one array takes the place of another that is no more, and never of one that is."""

from __future__ import annotations

import gc
import mmap
from typing import Any

import numpy as np
import pytest
from support.bits import ordinary
from support.libraries import PLANNED, Library

import portopt
from portopt.kernels.host import memory

SHAPE = (700, 800)


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture(autouse=True)
def nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resting", [])


def test_memory_is_used_again_when_an_array_and_its_views_are_no_more() -> None:
    with memory.reused():
        first = memory.empty(SHAPE, np.float64)
        at, view = address(first), first.T[3:]
        assert first.shape == SHAPE
        assert first.dtype == np.float64
        assert first.flags.c_contiguous
        assert first.flags.writeable
        del first
        second = memory.empty(SHAPE, np.float64)
        second[...] = 1.0
        view[...] = 2.0
        assert np.all(second == 1.0)
        del view
        gc.collect()
        assert address(memory.empty(SHAPE, np.float64)) == at


def test_memory_is_not_much_more_than_an_array_needs() -> None:
    with memory.reused():
        large = memory.empty((3, *SHAPE), np.float64)
        at = address(large)
        del large
        assert address(memory.empty(SHAPE, np.float64)) != at
        assert address(memory.empty((2, *SHAPE), np.float64)) == at


def test_an_array_may_outlive_the_step() -> None:
    with memory.reused():
        kept = memory.empty(SHAPE, np.float32)
        kept[...] = 3.0
    other = memory.empty(SHAPE, np.float32)
    other[...] = 4.0
    assert np.all(kept == 3.0)


needs_lazy_freeing = pytest.mark.skipif(
    not hasattr(mmap, "MADV_FREE"), reason="the system has no MADV_FREE: nothing is kept"
)


@needs_lazy_freeing
def test_memory_serves_the_next_step_until_one_does_without_it() -> None:
    with memory.reused():
        first = memory.empty(SHAPE, np.float64)
        at = address(first)
        del first
    with memory.reused():
        second = memory.empty(SHAPE, np.float64)
        assert address(second) == at
        second[...] = 1.0
        assert np.all(second == 1.0)
        del second
    with memory.reused():
        pass
    assert [blocks.free for blocks in memory.resting] == [[]]


@needs_lazy_freeing
def test_steps_at_one_time_have_memory_of_their_own() -> None:
    for _ in range(2):
        with memory.reused():
            first = memory.empty(SHAPE, np.float64)
            with memory.reused():
                assert address(memory.empty(SHAPE, np.float64)) != address(first)
            del first
    assert len(memory.resting) == 2


@pytest.mark.parametrize("library", PLANNED, ids=str)
def test_what_a_step_returns_is_its_own(library: Library) -> None:
    optimizer = portopt.Muon(ns_steps=1)
    p, g = (library.arrays(ordinary((600, 700), "float32", seed)) for seed in (0, 1))
    state = optimizer.init(p)
    first, _ = optimizer.apply(p, g, state)
    before = library.numpy(first).tobytes()
    second, _ = optimizer.apply(first, g, state)
    assert library.numpy(first).tobytes() == before
    assert library.numpy(second).tobytes() != before
