"""Programs with products run in fused segments: the bits of the operations one by one, in NumPy and torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits, ordinary, random_words
from support.libraries import PLANNED, Library

import portopt
from portopt.kernels.host import norm
from portopt.program import Program, bins
from portopt.program.segments import Segment, fused_schedule, plain_schedule


class Mixed(portopt.Optimizer):
    """Products among all that a program may hold: narrow arrays, masks, numbers for all elements, functions, reductions."""

    slots = ("m", portopt.slot("row", drop=-1), portopt.slot("size", shape=()))

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        m = 0.5 * slots.m + g
        gram = m @ m.mT
        row = slots.row + xp.mean(gram * gram, axis=-1, keepdims=True)
        size = xp.linalg.vector_norm(m) + slots.size
        x = xp.where(m > 0, m, -0.25 * m) / (size + 1)
        y = xp.exp(-xp.square(x)) * x + (gram @ x) / xp.sqrt(row + 1)
        step = xp.where(xp.any(y > 1) & (size > 2), y, 2 * y)
        return p - c.lr * step, {"m": m, "row": row, "size": size}


class Tall(portopt.Optimizer):
    """Transposes and reshapes, also of what is returned, and a slot that is a product."""

    slots = ("m",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        flat = xp.reshape(g + slots.m, (1, p.size))
        scaled = 0.5 * flat.mT
        outer = xp.reshape((scaled @ (flat @ scaled)) - scaled, p.shape)
        return p - c.lr * outer, {"m": xp.reshape(scaled, p.shape)}


def stepped(optimizer: portopt.Optimizer, library: Library, dtype: str, raw: bool) -> list[Any]:
    make = random_words if raw else ordinary
    p, state = library.arrays(ordinary((6, 4), dtype, 0)), None
    for seed in (1, 2):
        state = optimizer.init(p) if state is None else state
        p, state = optimizer.apply(p, library.arrays(make((6, 4), dtype, seed)), state)
    assert state is not None
    return [library.numpy(p), *(library.numpy(slot) for slot in state.slots.values())]


@pytest.mark.parametrize("library", PLANNED, ids=str)
@pytest.mark.parametrize("optimizer", [Mixed(0.5), Tall(0.5)], ids=["mixed", "tall"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_segments_have_the_bits_of_single_operations(
    optimizer: portopt.Optimizer, dtype: str, library: Library
) -> None:
    for raw in (False, True):
        found = stepped(optimizer, library, dtype, raw)
        with portopt.interpreted():
            expected = stepped(optimizer, library, dtype, raw)
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)


def segments(program: Program) -> list[Segment]:
    return [step for step in fused_schedule(program).steps if isinstance(step, Segment)]


def test_what_is_done_for_each_element_between_two_products_is_one_segment() -> None:
    class Two(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
            square = g @ g
            return p - c.lr * ((2 * square + 3 * g) @ g), {}

    program = Two().program(shape=(3, 3))
    first, second = segments(program)
    names = sorted(op.name for op in first.program.ops if op.name not in ("constant", "round"))
    assert names == ["add", "load", "load", "multiply", "multiply"]
    assert "p" in second.arrays
    assert "g" not in second.arrays


def test_elementary_functions_are_in_segments() -> None:
    class Functions(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
            size = xp.cbrt(xp.atan2(xp.tanh(g @ g), g)) * xp.exp(-g)
            return p - c.lr * xp.pow(xp.abs(size), 0.25) / xp.log(xp.abs(g) + 2), {}

    schedule = fused_schedule(Functions(0.5).program(shape=(3, 3)))
    names = [op.name for segment in schedule.steps if isinstance(segment, Segment) for op in segment.program.ops]
    assert {"cbrt", "atan2", "tanh", "exp", "power", "log"} <= set(names)
    assert sum(isinstance(step, Segment) for step in schedule.steps) == 1


def test_what_is_computed_once_is_in_one_segment_and_what_two_need_is_a_result() -> None:
    program = Mixed().program(shape=(6, 4))
    results = [i for segment in segments(program) for i in segment.outputs]
    assert len(set(results)) == len(results)
    assert {program.array_outputs["m"], program.array_outputs["p"]} <= set(results)
    steps = fused_schedule(program).steps
    assert len(steps) < len(plain_schedule(program).steps)
    done = [i for step in fused_schedule(program).done for i in step]
    assert len(set(done)) == len(done)
    assert not set(program.array_outputs.values()) & set(done)


def test_segments_that_do_the_same_are_one_program() -> None:
    few, more = ({s.program for s in segments(portopt.Muon(ns_steps=n).program(shape=(3, 4)))} for n in (2, 7))
    assert few == more


@pytest.mark.parametrize("library", PLANNED, ids=str)
def test_nothing_is_compiled_for_plans_of_programs_with_products(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = library.backend
    monkeypatch.setattr(inspect.getmodule(type(backend)), "make_plan", None)
    p = library.arrays(ordinary((3, 4), "float32", 0))
    optimizer = portopt.Muon()
    state = optimizer.init(p)
    for _ in range(3):
        state = optimizer.apply_(p, p, state)


def test_a_program_without_products_has_no_segments() -> None:
    assert segments(portopt.Adam().program()) == []


def test_segments_are_run_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong shows."""
    from portopt.kernels.host import segments as host

    p = np.ones((3, 3), np.float32)
    expected, _ = Tall().apply(p, p, Tall().init(p))
    right = host.run
    monkeypatch.setattr(host, "run", lambda *arguments: [2 * result for result in right(*arguments)])
    assert Tall().apply(p, p, Tall().init(p))[0].tobytes() != expected.tobytes()


@pytest.mark.parametrize("library", PLANNED, ids=str)
def test_norms_among_products_are_computed_by_the_kernel(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    p = ordinary((6, 4), "float32", 0)
    optimizer = portopt.Muon()

    def stepped() -> bytes:
        found, _ = optimizer.apply(library.arrays(p), library.arrays(p), optimizer.init(library.arrays(p)))
        return bytes(library.numpy(found).tobytes())

    expected = stepped()
    monkeypatch.setattr(norm, "squares_of_arrays", lambda *arguments: bins.NO_SQUARES)
    assert stepped() != expected
