"""Steps on arrays that lie on several played devices: the bits, and where everything is queued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary
from support.recording_driver import Recording, device_of
from support.torch_on_host import HostTorch, host_torch, to_numpy, to_torch

import portopt
from portopt.kernels import launch
from portopt.kernels.device_plan import DevicePlan

SHAPES: tuple[tuple[int, ...], ...] = ((5,), (12, 7), (4100,), (2, 3, 4), ())
DEVICES = (0, 1, 1, 0, 2)


@pytest.fixture
def played(kernel_directory: Path) -> Iterator[tuple[HostTorch, Recording]]:
    with host_torch(kernel_directory) as found:
        yield found


class Run:
    """Steps in place on tensors of several devices, and the interpreter's on NumPy arrays beside them."""

    def __init__(self, optimizer: portopt.Optimizer, library: HostTorch, dtype: str = "float32") -> None:
        self.optimizer, self.dtype, self.library = optimizer, dtype, library
        self.expected = [ordinary(shape, dtype, i) for i, shape in enumerate(SHAPES)]
        self.expected_state = optimizer.init(self.expected)
        self.params = self.placed(self.expected)
        self.state = optimizer.init(self.params)
        for slots in self.state.slots.values():
            if isinstance(slots, list):
                for slot, device in zip(slots, DEVICES, strict=True):
                    if slot is not None and slot.numel():
                        library.put(slot, device)
        self.grads = self.placed(self.expected)
        self.steps = 0

    def placed(self, arrays: list[Array]) -> list[Any]:
        return [self.library.put(to_torch(x), device) for x, device in zip(arrays, DEVICES, strict=True)]

    def step(self, *, moved: bool = False, compared: bool = True, **overrides: Any) -> None:
        self.steps += 1
        new = [ordinary(shape, self.dtype, 100 * self.steps + i) for i, shape in enumerate(SHAPES)]
        if moved:
            self.grads = self.placed(new)
        else:
            for g, x in zip(self.grads, new, strict=True):
                g.copy_(to_torch(x))
        self.state = self.optimizer.apply_(self.params, self.grads, self.state, **overrides)
        with portopt.interpreted(), np.errstate(all="ignore"):
            self.expected, self.expected_state = self.optimizer.apply(
                self.expected, new, self.expected_state, **overrides
            )
        if compared:
            self.compare()

    def compare(self) -> None:
        for actual, wanted in zip(self.params, self.expected, strict=True):
            assert_same_bits(to_numpy(actual), wanted)
        for name, slots in self.expected_state.slots.items():
            if isinstance(slots, list):
                for actual, wanted in zip(self.state.slots[name], slots, strict=True):
                    if wanted is not None:
                        assert_same_bits(to_numpy(actual), wanted)
            else:
                assert float(self.state.slots[name]).hex() == float(slots).hex()

    @property
    def is_planned(self) -> bool:
        plans = self.optimizer._cache.plans
        return bool(plans) and isinstance(plans[0], DevicePlan) and plans[0].was_used


def test_planned_steps_over_several_devices_have_the_bits_of_the_interpreter(
    played: tuple[HostTorch, Recording],
) -> None:
    library, recording = played
    run = Run(portopt.Adam(), library)
    for moved in (False, False, False, True, False):
        recording.clear()
        run.step(moved=moved)
    assert run.is_planned
    assert [device_of(entry.stream) for entry in recording.entries()] == [0, 1, 2]
    assert recording.kernels() == ["update"] * 3


@pytest.mark.parametrize(
    "optimizer",
    [
        portopt.Adam(portopt.schedules.CosineDecay(0.1, 10), clipnorm=0.5, clipvalue=0.1),
        portopt.LAMB(clipnorm=0.5),
        portopt.NoisySGD(),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipped_and_reducing_steps(
    optimizer: portopt.Optimizer, dtype: str, played: tuple[HostTorch, Recording]
) -> None:
    run = Run(optimizer, played[0], dtype)
    for moved in (False, False, False, True, False):
        run.step(moved=moved)
    assert run.is_planned


def test_parts_of_the_norm_are_fetched_behind_what_finds_them(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    run = Run(portopt.Adam(clipnorm=0.5), library)
    for _ in range(3):
        run.step()
    for delayed in (False, True):
        recording.clear()
        recording.play(delayed=delayed)
        for _ in range(3):
            run.step(moved=True, compared=False)
        recording.run_queued()
        run.compare()
        recording.play()
    of_step = recording.entries()[: len(recording.entries()) // 3]
    found = [(device_of(entry.stream), entry.kernel or entry.kind) for entry in of_step]
    assert found == [
        *((k, what) for k in range(3) for what in ("upload", "sum_squares")),
        *((k, what) for k in range(3) for what in ("fetch", "fetch", "scalars_of_norm", "update")),
    ]


def test_totals_for_which_the_host_waits(played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    library, recording = played
    library.may_wait = True
    monkeypatch.setattr(launch, "JOINED", 4)
    run = Run(portopt.Prodigy(d0=0.01, clipnorm=0.5), library)
    for moved in (False, False, False, True, False):
        recording.clear()
        run.step(moved=moved)
    assert run.is_planned
    assert recording.kernels().count("update") == 3
