"""Segments that scale products back and slice their results: the bits of the operations one by one, whatever shares the work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary, random_words
from support.libraries import PLANNED, Library

import portopt
from portopt.kernels.host import joined
from portopt.kernels.host import products as passes
from portopt.program import Kind, Op, Program, products
from portopt.program.products import Sliced, Slices, Unscaled
from portopt.program.segments import Segment, fused_schedule


class Chain(portopt.Optimizer):
    """Products of results of segments, of products, of transposes, and of one array twice."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        x = 0.5 * g
        for _ in range(2):
            gram = x @ x.mT
            x = 1.5 * x - (gram + 0.5 * (gram @ gram)) @ x
        y = xp.reshape(x, p.shape).mT @ x
        z = x @ (y @ y)
        return p - c.lr * (z + x * z), {}


SHAPES = ((1, 1), (5, 3), (16, 40), (33, 18))


def values(shape: tuple[int, ...], seed: int) -> list[Array]:
    """Return ordinary numbers, raw words, and some that are not finite in a few rows and columns."""
    few = ordinary(shape, "float32", seed)
    few[..., 0, -1], few[..., -1, 0] = np.inf, np.nan
    return [ordinary(shape, "float32", seed), random_words(shape, "float32", seed), few]


def stepped(library: Library, shape: tuple[int, ...]) -> list[Array]:
    found = []
    for g in values(shape, 1):
        p = library.arrays(ordinary(shape, "float32", 0))
        found.append(library.numpy(Chain(0.5).apply(p, library.arrays(g), Chain(0.5).init(p))[0]))
    return found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what has been computed row by row so far."""
    found: list[Any] = []
    run = joined.run

    def counted(segment: Segment, arrays: Sequence[Any], scalars: Sequence[float]) -> Any:
        result = run(segment, arrays, scalars)
        found.append(result)
        return result

    monkeypatch.setattr(joined, "run", counted)
    return found


@pytest.mark.parametrize("library", PLANNED, ids=str)
@pytest.mark.parametrize("flush", ["register", "where"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_joined_segments_have_the_bits_of_single_operations(
    library: Library, flush: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if flush == "where":
        monkeypatch.setattr(joined, "default_flush", lambda: flush)
    for shape in SHAPES:
        found = stepped(library, shape)
        assert len(runs) >= 15
        assert None not in runs
        assert any(isinstance(array, Sliced) for results in runs for array, _ in results)
        with portopt.interpreted():
            for one, other in zip(found, stepped(library, shape), strict=True):
                assert_same_bits(one, other, f"{shape}")
        runs.clear()


@pytest.mark.parametrize("library", PLANNED, ids=str)
def test_what_cannot_be_joined_is_computed_step_by_step(library: Library, runs: list[Any]) -> None:
    shape = (2, 5, 3)
    found = stepped(library, shape)
    assert runs
    assert not any(runs)
    with portopt.interpreted():
        for one, other in zip(found, stepped(library, shape), strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("library", PLANNED, ids=str)
def test_threads_do_not_matter_to_joined_segments(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "ELEMENTS_PER_THREAD", 50)
    monkeypatch.setattr(passes, "ELEMENTS_PER_READY_THREAD", 50)
    with portopt.interpreted():
        expected = stepped(library, (33, 18))
    try:
        for count in (1, 2, 7):
            portopt.set_num_threads(count)
            for one, other in zip(stepped(library, (33, 18)), expected, strict=True):
                assert_same_bits(one, other, f"{count} threads")
    finally:
        portopt.set_num_threads(None)


SCALING = Segment(
    Program("Segment", (Op("load", Kind.ARRAY, label="x0"),), {"y0": 0}), (0,), (), (0,), ((-2, -1),), (True,)
)


@pytest.mark.parametrize("flush", ["register", "where"])
@pytest.mark.parametrize(("threads", "is_nan"), [(1, False), (3, False), (3, True)])
@pytest.mark.filterwarnings("ignore:overflow")
def test_products_are_scaled_back_and_sliced(
    flush: str, threads: int, is_nan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined, "default_flush", lambda: flush)
    monkeypatch.setattr(passes, "ELEMENTS_PER_THREAD", 50)
    rng = np.random.default_rng(0)
    # Zeros of both signs, results from below the smallest normal number to above the largest one, the largest ones last.
    integers = rng.integers(-(2**40), 2**40, (70, 37)) * rng.integers(0, 2, (70, 37)) * -1.0
    factors = [np.exp2(np.sort(rng.integers(-100, last, n).astype(float))) for n, last in ((70, 10), (37, 90))]
    if is_nan:
        factors[0][3] = factors[1][30] = np.nan
    left = Slices((), factors[0][:, None], -1, 20)
    right = Slices((), factors[1][None], -2, 20)
    primitives, wide = (portopt.get_backend("numpy").primitives(name) for name in ("float32", "float64"))  # type: ignore[attr-defined]  # NumPy's
    portopt.set_num_threads(threads)
    try:
        found = joined.run(SCALING, [Unscaled(primitives, wide, [integers], left, right)], [])
        assert found is not None
        [(array, slices)] = found
        columns, rows = slices[-2](), slices[-1]()
    finally:
        portopt.set_num_threads(None)
    assert np.signbit(integers[integers == 0]).any()
    assert np.float32(1e-39) * np.float32(1) > 0, "the processor still flushes"
    with np.errstate(all="ignore"):
        expected = products.rescaled(primitives, wide, [integers], left, right)
    assert_same_bits(array, expected)
    assert is_nan or all(0 < np.isnan(one.factor).sum() < one.factor.size for one in (rows, columns))
    for one, axis in ((rows, -1), (columns, -2)):
        whole = passes.slices(expected, axis)
        assert_same_bits(one.integers[0], whole.integers[0])
        assert_same_bits(one.factor, whole.factor)
        assert (one.axis, one.bits) == (axis, whole.bits)


def counting(function: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counted(*arguments: Any) -> Any:
        counts.append(1)
        return function(*arguments)

    return counted


def test_nothing_of_muon_is_sliced_or_scaled_back_by_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    for name in ("slices", "rescaled"):
        monkeypatch.setattr(passes, name, counting(getattr(passes, name), counts))
    p = ordinary((8, 6), "float32", 0)
    portopt.Muon().apply(p, p, portopt.Muon().init(p))
    assert counts == []


def test_the_schedule_says_what_products_need_of_a_segment() -> None:
    class Twice(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
            square = g @ g
            return p - c.lr * (square @ (2 * square)) * square.mT, {}

    program = Twice().program(shape=(3, 3))
    schedule = fused_schedule(program)
    segments = [step for step in schedule.steps if isinstance(step, Segment)]
    first, last = (i for i, op in enumerate(program.ops) if op.name == "matmul")
    scaling, doubled = segments[:2]
    assert (scaling.only_scales, scaling.outputs, scaling.sliced, scaling.is_read) == (
        True,
        (first,),
        ((-1,),),
        (True,),
    )
    assert (doubled.only_scales, doubled.sliced, doubled.is_read) == (False, ((-2,),), (False,))
    assert not any(axes for segment in segments[2:] for axes in segment.sliced)
    assert schedule.unscaled == {first, last}


def test_a_product_is_scaled_back_where_segments_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(joined, "run", lambda *_: None)
    monkeypatch.setattr(Unscaled, "scaled", counting(Unscaled.scaled, counts))
    library = PLANNED[0]
    found = stepped(library, (5, 3))
    assert counts
    with portopt.interpreted():
        for one, other in zip(found, stepped(library, (5, 3)), strict=True):
            assert_same_bits(one, other)
