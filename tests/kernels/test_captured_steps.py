"""Steps that a CUDA graph repeats, on a played device: the bits of each repetition, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bits import Array, assert_same_bits, ordinary
from support.gpu_cases import EveryDraw
from support.recording_driver import Recording
from support.torch_on_host import HostTorch, host_torch, to_numpy, to_torch

import portopt
from portopt import schedules

SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (0, 3), (12, 7), (4100,), (2, 3, 4))


@pytest.fixture
def played(kernel_directory: Path) -> Iterator[tuple[HostTorch, Recording]]:
    with host_torch(kernel_directory) as found:
        yield found


def values(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: str = "float32") -> list[Array]:
    return [ordinary(shape, dtype, 100 * seed + i) for i, shape in enumerate(shapes)]


class Run:
    """Steps on tensors, eager or repeated by graphs, and the interpreter's on NumPy arrays beside them."""

    def __init__(
        self, optimizer: portopt.Optimizer, played: tuple[HostTorch, Recording], shapes: Any = SHAPES
    ) -> None:
        self.library, self.recording = played
        self.optimizer, self.shapes = optimizer, shapes
        self.expected = values(0, shapes)
        self.expected_state = optimizer.init(self.expected)
        self.params = list(map(to_torch, self.expected))
        self.state = optimizer.init(self.params, capturable=True)
        self.grads = list(map(to_torch, values(1, shapes)))
        self.steps = 0

    def new_gradients(self, grads: Sequence[Any] | None = None) -> None:
        self.steps += 1
        for g, x in zip(self.grads if grads is None else grads, values(self.steps, self.shapes), strict=True):
            g.copy_(to_torch(x))

    def expect(self, **overrides: Any) -> None:
        """Let NumPy do the step, and compare."""
        with portopt.interpreted(), np.errstate(all="ignore"):
            self.expected, self.expected_state = self.optimizer.apply(
                self.expected, values(self.steps, self.shapes), self.expected_state, **overrides
            )
        for actual, wanted in zip(self.params, self.expected, strict=True):
            assert_same_bits(to_numpy(actual), wanted)
        state = self.optimizer.from_capturable(self.state)
        assert state.step == self.expected_state.step
        for name, wanted in self.expected_state.slots.items():
            if isinstance(wanted, list):
                for a, w in zip(state.slots[name], wanted, strict=True):
                    assert (a is None) == (w is None)
                    if w is not None:
                        assert_same_bits(to_numpy(a), w)
            else:
                assert state.slots[name].hex() == float(wanted).hex()

    def eager(self, **overrides: Any) -> None:
        self.new_gradients()
        self.state = self.optimizer.apply_(self.params, self.grads, self.state, **overrides)

    def capture(self, **overrides: Any) -> Callable[[], None]:
        with self.recording.capture() as replay:
            state = self.optimizer.apply_(self.params, self.grads, self.state, **overrides)
        assert state.step is self.state.step
        return replay

    def repeat(self, replay: Callable[[], None]) -> None:
        self.new_gradients()
        replay()


COSINE = schedules.CosineDecay(0.1, 10)


@pytest.mark.parametrize(
    "optimizer",
    [
        portopt.SGD(0.1, momentum=0.9),
        portopt.Adam(COSINE),
        portopt.Nadam(),
        portopt.Adam(COSINE, clipnorm=0.5, clipvalue=0.1),
        portopt.ScheduleFree(learning_rate=0.1),
        portopt.Adafactor(),
        portopt.LAMB(clipnorm=0.5),
        EveryDraw(),
        portopt.Prodigy(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_each_repetition_is_a_step(optimizer: portopt.Optimizer, played: tuple[HostTorch, Recording]) -> None:
    run = Run(optimizer, played)
    run.eager()
    run.expect()
    replay = run.capture()
    for _ in range(3):
        run.library.spoil()
        run.repeat(replay)
        run.expect()
    run.eager()
    run.expect()
    run.repeat(replay)
    run.expect()
