"""Steps of one optimizer by many threads, and what other threads, schedules, signals and forks do to steps meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits
from support.elsewhere import Elsewhere
from support.libraries import Library, each_planned
from support.threads_at_once import at_once
from support.turns import in_turn

import portopt
from portopt.kernels.host import threads

each_name = pytest.mark.parametrize("library", ["numpy", "torch"])
LARGE = 2 * threads.ELEMENTS_PER_THREAD + 1


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    portopt.set_num_threads(None)


def test_first_steps_of_one_optimizer_at_once() -> None:
    for _ in range(100):
        optimizer = portopt.Adagrad(decay=0.5)

        def work(number: int, optimizer: portopt.Optimizer = optimizer) -> None:
            w = np.ones(3, np.float32)
            with portopt.interpreted():
                state = optimizer.init(w)
                for _ in range(3):
                    state = optimizer.apply_(w, w, state)

        at_once(work, 6)


@each_planned
def test_steps_leave_the_attributes_of_an_optimizer_alone(library: Library) -> None:
    # Another thread may be copying it, attribute by attribute.
    optimizer = portopt.Adam(clipnorm=1.0)
    before = dict(vars(optimizer))
    params = library.arrays({"w": np.ones(3, np.float32)})
    state = optimizer.init(params)
    for _ in range(4):
        state = optimizer.apply_(params, params, state, learning_rate=0.5)
        optimizer.apply(params, params, state)
    assert list(vars(optimizer)) == list(before)
    assert all(vars(optimizer)[name] is value for name, value in before.items())


@each_planned
@pytest.mark.parametrize("size", [1, 3, LARGE], ids=["one element", "small", "large"])
def test_one_optimizer_steps_in_many_threads(size: int, library: Library) -> None:
    portopt.set_num_threads(2)
    optimizer = portopt.SGD(1.0)
    steps = 10 if size == LARGE else 1500
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        params = library.arrays({"w": np.zeros(size, np.float32)})
        # Each thread has a gradient of its own, so that a gradient of another thread shows.
        grads = library.arrays({"w": np.full(size, 1 + number, np.float32)})
        state = optimizer.init(params)
        for _ in range(steps):
            state = optimizer.apply_(params, grads, state)
        results[number] = library.numpy(params)["w"], state.step

    at_once(work, 8 if size < LARGE else 4)
    for number, (w, step) in results.items():
        assert step == steps
        assert_same_bits(w, np.full(size, -steps * (1.0 + number), np.float32), str(number))


@each_planned
@pytest.mark.parametrize(
    "optimizer",
    [portopt.Nadam(0.1), portopt.Adam(lambda step: 0.5 / (1 + step)), portopt.Adam(clipnorm=0.5), portopt.Adam()],
    ids=["scalars of the state", "schedule", "clipped", "given rate"],
)
def test_what_a_step_computes_belongs_to_it(optimizer: portopt.Optimizer, library: Library) -> None:
    given = type(optimizer) is portopt.Adam and optimizer == portopt.Adam()

    def run(stepping: portopt.Optimizer, number: int) -> tuple[Any, portopt.OptimizerState]:
        params = library.arrays({"w": np.ones(3, np.float32), "v": np.ones(2, np.float64)})
        grads = library.arrays({"w": np.full(3, 1 + number, np.float32), "v": np.full(2, 2.0 + number)})
        state = stepping.init(params)
        for step in range(100):
            overrides = {"learning_rate": (1 + number + step % 2) / 16} if given else {}
            state = stepping.apply_(params, grads, state, **overrides)
        return library.numpy(params), library.numpy_state(state, tuple(stepping.scalar_slots))

    expected = [run(optimizer.replace(), number) for number in range(6)]
    results: dict[int, Any] = {}
    at_once(lambda number: results.__setitem__(number, run(optimizer, number)), 6)
    for number, (params, state) in enumerate(expected):
        for name in params:
            assert_same_bits(results[number][0][name], params[name])
        assert results[number][1].step == state.step
        assert all(results[number][1].slots[name] == state.slots[name] for name in optimizer.scalar_slots)


@each_planned
@pytest.mark.parametrize("size", [3, LARGE], ids=["small", "large"])
def test_threads_that_share_arrays_write_nothing_else(size: int, library: Library) -> None:
    """Stepping the same arrays at once is a race of the user's; what must not happen is a step with gradients of another call."""
    portopt.set_num_threads(2)
    optimizer = portopt.SGD(1.0)
    params = library.arrays({"w": np.zeros(size, np.float32)})
    state = optimizer.init(params)
    steps = 10 if size == LARGE else 500

    def work(number: int) -> None:
        own = state
        for _ in range(steps):
            grads = library.arrays({"w": np.ones(size, np.float32)})
            own = optimizer.apply_(params, grads, own)

    at_once(work, 4)
    w = library.numpy(params)["w"]
    assert ((-4 * steps <= w) & (w <= -1) & (w == np.round(w))).all()


def test_large_steps_at_once_with_more_and_more_threads() -> None:
    size = 6 * threads.ELEMENTS_PER_THREAD
    optimizer = portopt.SGD(1.0)

    def work(number: int) -> None:
        w = np.zeros(size, np.float32)
        state = optimizer.init(w)
        for count in (2, 3, 4, 5, 6):
            portopt.set_num_threads(count)
            state = optimizer.apply_(w, np.ones(size, np.float32), state)
        assert (w == -5).all()

    at_once(work, 6)


@each_name
@pytest.mark.parametrize("what", ["small", "large", "schedule"])
def test_gradients_may_be_replaced_while_a_step_runs(what: str, library: str, elsewhere: Elsewhere) -> None:
    assert elsewhere.call_alone("replaced_leaves", "run", library, what) == "right"


INTERRUPTED = [
    ("numpy", "planned", "signal"),
    ("numpy", "unplanned", "thread"),
    ("numpy", "mixed", "signal"),
    ("numpy", "strided", "thread"),
    ("numpy", "interpreted", "signal"),
    ("torch", "planned", "thread"),
    ("torch", "mixed", "signal"),
    ("torch", "strided", "signal"),
    ("torch", "interpreted", "thread"),
]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no setitimer here")
@pytest.mark.parametrize(("library", "kind", "how"), in_turn(INTERRUPTED, 0, 2))
def test_interrupted_step_is_finished(library: str, kind: str, how: str, elsewhere: Elsewhere) -> None:
    assert elsewhere.call_alone("interrupted_steps", "run", library, kind, how) == "whole"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("what", ["compiling", "stepping"])
def test_child_forked_while_another_thread_is_busy_works(what: str, elsewhere: Elsewhere) -> None:
    elsewhere.call_alone("forked_while_busy", "run", what, PORTOPT_CACHE_DIR="")
