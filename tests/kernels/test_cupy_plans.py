"""Planned steps on CuPy's own array objects, which say that they are on devices and lie in the host's memory."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary
from support.recording_driver import Recording, device_of, recording_driver, stream_of

import portopt
from portopt.kernels.device_plan import DevicePlan
from portopt.state import OptimizerState
from portopt_cupy import _kernel, _layout
from portopt_cupy._backend import CupyBackend

pytestmark = pytest.mark.needs("cupy")
SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (0, 3), (12, 7), (4100,), (2, 3, 4))


class PlayedCupy(_kernel.CupyLibrary):
    """CuPy, with the memory of the host."""

    may_wait = False

    def __init__(self, recording: Recording) -> None:
        self._recording, self._kept = recording, list[Any]()

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        # As in CuPy's pool of a device, memory is not taken away from what is queued.
        self._kept.append(_layout.played(shape, device, dtype))
        self._recording.say_memory(self._kept[-1].data.ptr, max(self._kept[-1].nbytes, 1), device)
        return self._kept[-1]

    def empty_like(self, array: Any, dtype: str | None = None) -> Any:
        return self.empty(array.shape, dtype or array.dtype.name, self.device(array))

    def on(self, device: int) -> Any:
        return contextlib.nullcontext()

    def stream(self, device: int) -> int:
        return stream_of(device)

    def words(self, memory: Any, count: int) -> list[int]:
        assert self.may_wait, "the host waited for the device"
        return list(map(int, content(memory)[:count]))


class PlayedDevice:
    """Makes a device CuPy's current one."""

    numbers: ClassVar[list[int]] = [0]

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        self.numbers.append(self._number)

    def __exit__(self, *exception: object) -> None:
        self.numbers.pop()


@pytest.fixture
def recording(kernel_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    monkeypatch.setattr(CupyBackend, "_is_captured", lambda self, arrays: False)
    with recording_driver(kernel_directory) as found:
        library, cupy = PlayedCupy(found), importlib.import_module("cupy")
        monkeypatch.setattr(_kernel, "LIBRARY", library)
        monkeypatch.setattr(cupy.cuda, "Device", PlayedDevice)
        monkeypatch.setattr(
            cupy, "empty", lambda shape, dtype: library.empty(shape, dtype.name, PlayedDevice.numbers[-1])
        )
        yield found


def content(array: Any) -> Array:
    """Return the memory of an array as NumPy sees it."""
    return np.ndarray(array.shape, array.dtype, array.data.mem._owner, 0, None)


def to_cupy(values: Array, device: int = 1) -> Any:
    array = _kernel.LIBRARY.empty(values.shape, values.dtype.name, device)
    content(array)[...] = values
    return array


def test_planned_steps_have_the_bits_of_the_interpreter(recording: Recording) -> None:
    optimizer = portopt.Adam(0.1, clipnorm=0.5)
    expected = [ordinary(shape, "float32", i) for i, shape in enumerate(SHAPES)]
    expected_state = optimizer.init(expected)
    params = list(map(to_cupy, expected))
    state = OptimizerState(0, {name: list(map(to_cupy, of)) for name, of in expected_state.slots.items()})
    grads = list(map(to_cupy, expected))
    for step in range(6):
        values = [ordinary(shape, "float32", 100 * step + i) for i, shape in enumerate(SHAPES)]
        moved = step == 4
        if moved:
            grads = list(map(to_cupy, values))
        for g, x in zip(grads, values, strict=True):
            content(g)[...] = x
        recording.clear()
        state = optimizer.apply_(params, grads, state)
        with portopt.interpreted():
            expected, expected_state = optimizer.apply(expected, values, expected_state)
        for actual, wanted in zip(params, expected, strict=True):
            assert_same_bits(content(actual), wanted)
        if step > 2:
            assert recording.kernels() == ["sum_squares", "scalars_of_norm", "update"]
            assert recording.uploaded() == 8 * len(SHAPES) * moved
    assert isinstance(optimizer._cache.plans[0], DevicePlan)


@pytest.mark.parametrize("devices", [(1,), (1, 0, 2)])
def test_planned_steps_make_new_arrays(devices: tuple[int, ...], recording: Recording) -> None:
    optimizer = portopt.SGD(0.1, momentum=0.9, clipnorm=0.5)
    places = [devices[i % len(devices)] for i in range(len(SHAPES))]

    def put(arrays: list[Array]) -> list[Any]:
        return list(map(to_cupy, arrays, places))

    expected = [ordinary(shape, "float32", i) for i, shape in enumerate(SHAPES)]
    expected_state = optimizer.init(expected)
    params = put(expected)
    state = OptimizerState(0, {name: put(of) for name, of in expected_state.slots.items()})
    for step in range(3):
        values = [ordinary(shape, "float32", 100 * step + i) for i, shape in enumerate(SHAPES)]
        recording.clear()
        params, state = optimizer.apply(params, put(values), state)
        with portopt.interpreted():
            expected, expected_state = optimizer.apply(expected, values, expected_state)
        for actual, wanted in zip(params, expected, strict=True):
            assert_same_bits(content(actual), wanted)
        assert [p.device.id for p in params] == places
    assert isinstance(optimizer._cache.pure_plans[0], DevicePlan)
    assert optimizer._cache.pure_plans[0].was_used
    assert recording.kernels().count("update") == len(devices)
    assert recording.uploaded() == 8 * 5 * len(SHAPES)


def test_steps_in_place_over_several_devices(recording: Recording) -> None:
    optimizer = portopt.LAMB(clipnorm=0.5)
    places = [i % 2 for i in range(len(SHAPES))]
    expected = [ordinary(shape, "float32", i) for i, shape in enumerate(SHAPES)]
    expected_state = optimizer.init(expected)
    params = list(map(to_cupy, expected, places))
    state = OptimizerState(0, {name: list(map(to_cupy, of, places)) for name, of in expected_state.slots.items()})
    for step in range(5):
        values = [ordinary(shape, "float32", 100 * step + i) for i, shape in enumerate(SHAPES)]
        grads = list(map(to_cupy, values, places))
        recording.clear()
        state = optimizer.apply_(params, grads, state)
        with portopt.interpreted():
            expected, expected_state = optimizer.apply(expected, values, expected_state)
        for actual, wanted in zip(params, expected, strict=True):
            assert_same_bits(content(actual), wanted)
    (plan,) = optimizer._cache.plans
    assert isinstance(plan, DevicePlan)
    assert plan.was_used
    assert {device_of(entry.stream) for entry in recording.entries()} == {0, 1}
    # The same elements, on the other device.
    for wrong in (to_cupy(values[1], 0), to_cupy(values[1], 2)):
        assert not plan.fits(optimizer, params, [grads[0], wrong, *grads[2:]], state, {})


def test_arrays_that_are_not_as_they_were_are_told_apart(recording: Recording) -> None:
    optimizer, p = portopt.SGD(0.5), to_cupy(np.ones((3, 4), np.float32))
    g, state = (
        to_cupy(np.ones((3, 4), np.float32)),
        OptimizerState(0, {"moment": to_cupy(np.zeros((3, 4), np.float32))}),
    )
    for _ in range(5):
        state = optimizer.apply_(p, g, state)
    (plan,) = optimizer._cache.plans
    assert plan.fits(optimizer, p, g, state, {})
    offset = importlib.import_module("cupy").ndarray((3, 4), "float32", to_cupy(np.ones((7, 4), np.float32)).data + 16)
    assert plan.fits(optimizer, p, offset, state, {})
    new, memory = importlib.import_module("cupy").ndarray, g.data.mem
    elsewhere = importlib.import_module("cupy").cuda.UnownedMemory(memory.ptr, 48, memory._owner, 0)
    for wrong in (
        # Those that begin where the last gradient did.
        new((4, 3), "float32", g.data),
        new((12,), "float32", g.data),
        new((3, 4), "int32", g.data),
        new((3, 4), "float32", importlib.import_module("cupy").cuda.MemoryPointer(elsewhere, 0)),
        to_cupy(np.ones((4, 3), np.float32)),
        to_cupy(np.ones((3, 4), np.float64)),
        to_cupy(np.ones((3, 4), np.float32), device=0),
        p,
        None,
    ):
        assert not plan.fits(optimizer, p, wrong, state, {})
    assert not plan.fits(optimizer, to_cupy(np.ones((3, 4), np.float32)), g, state, {})
    # A step would copy it, which takes a device.
    assert isinstance(plan, DevicePlan)
    assert not plan.watch.look(p, new((3, 4), "float32", g.data, order="F"), state.slots)
