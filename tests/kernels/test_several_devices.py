"""Steps on arrays that lie on several played devices: the bits, and where everything is queued."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bits import Array, assert_same_bits, ordinary
from support.recording_driver import Recording, device_of, stream_of
from support.steps_of_torch import Run
from support.torch_on_host import HostTorch, host_torch, to_numpy, to_torch

import portopt
from portopt.kernels import launch
from portopt.kernels.cuda import driver
from portopt.kernels.cuda.library import Fetch
from portopt.state import OptimizerState
from portopt_torch import TorchOptimizer
from portopt_torch._backend import TorchBackend

SHAPES: tuple[tuple[int, ...], ...] = ((5,), (12, 7), (4100,), (2, 3, 4), ())
DEVICES = (0, 1, 1, 0, 2)


@pytest.fixture
def played(kernel_directory: Path) -> Iterator[tuple[HostTorch, Recording]]:
    with host_torch(kernel_directory) as found:
        yield found


def run_on(library: HostTorch, optimizer: portopt.Optimizer, dtype: str = "float32") -> Run:
    return Run(optimizer, dtype, SHAPES, lambda tensor, which: library.put(tensor, DEVICES[which]))


def test_planned_steps_over_several_devices_have_the_bits_of_the_interpreter(
    played: tuple[HostTorch, Recording],
) -> None:
    library, recording = played
    run = run_on(library, portopt.Adam())
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
    run = run_on(played[0], optimizer, dtype)
    for moved in (False, False, False, True, False):
        run.step(moved=moved)
    assert run.is_planned


def test_parts_of_the_norm_are_fetched_behind_what_finds_them(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    run = run_on(library, portopt.Adam(clipnorm=0.5))
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


def test_what_was_fetched_may_be_overwritten_where_it_was_found(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    (found, of), (target, at) = library.workspace(1, 0), library.workspace(1, 1)
    recording.play(delayed=True)
    with driver.device(0).within():
        driver.device(0).upload(of, array("q", [1]), library.stream(0))
        library.fetch([Fetch(1, at, 0, of, 8)])
        driver.device(0).upload(of, array("q", [2]), library.stream(0))
    recording.run_queued()
    recording.play()
    assert (target.tolist(), found.tolist()) == ([1], [2])


def test_totals_for_which_the_host_waits(played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    library, recording = played
    library.may_wait = True
    monkeypatch.setattr(launch, "JOINED", 4)
    run = run_on(library, portopt.Prodigy(d0=0.01, clipnorm=0.5))
    for moved in (False, False, False, True, False):
        recording.clear()
        run.step(moved=moved)
    assert run.is_planned
    assert recording.kernels().count("update") == 3


def test_the_played_driver_tells_contexts_apart(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    run = run_on(library, portopt.SGD(0.5))
    first, second = driver.device(0), driver.device(1)
    table = array("q", [run.params[0].data_ptr()])
    memory = library.empty((4,), "int64", 1)
    wrong: list[tuple[driver.Device, Callable[[], object], str]] = [
        (first, lambda: first.upload(memory.data_ptr(), array("q", [0]), stream_of(0)), "ILLEGAL_ADDRESS"),
        (second, lambda: second.upload(memory.data_ptr(), table, stream_of(1)), "ILLEGAL_ADDRESS"),
        (second, lambda: second.upload(memory.data_ptr(), array("q", [0]), stream_of(0)), "INVALID_HANDLE"),
        (
            first,
            lambda: recording.driver.check(recording.driver.record(second.event(), stream_of(0))),
            "INVALID_HANDLE",
        ),
    ]
    with second.within():
        event = second.event()
    second.take_back_events([event])
    for device, misuse, error in wrong:
        with device.within(), pytest.raises(RuntimeError, match=error):
            misuse()
    with pytest.raises(RuntimeError, match="INVALID_CONTEXT"):
        first.upload(memory.data_ptr(), array("q", [0]), stream_of(0))


def test_a_capture_on_one_of_several_devices_is_refused(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    run = run_on(library, portopt.Adam(clipnorm=0.5))
    for _ in range(3):
        run.step()
    recording.clear()
    with recording.capture(stream_of(1)), pytest.raises(RuntimeError, match="cannot be captured"):
        run.optimizer.apply_(run.params, run.grads, run.state)
    assert not recording.entries()
    run.compare()
    run.step()


def test_groups_share_a_norm_over_several_devices(played: tuple[HostTorch, Recording]) -> None:
    run = run_on(played[0], portopt.Adam(0.1, clipnorm=0.5))
    parameters = [torch.nn.Parameter(p.clone()) for p in run.params]
    for p, device in zip(parameters, DEVICES, strict=True):
        played[0].put(p.data, device)
    optimizer = TorchOptimizer([{"params": parameters[:2]}, {"params": parameters[2:]}], run.optimizer.replace())
    for _ in range(4):
        run.step(moved=True)
        for p, g, device in zip(parameters, run.grads, DEVICES, strict=True):
            p.grad = played[0].put(g.clone(), device)
        optimizer.step()
        if run.steps == 1:
            for p, device in zip(parameters, DEVICES, strict=True):
                for slot in optimizer.state[p].values():
                    if isinstance(slot, torch.Tensor):
                        played[0].put(slot, device)
    for p, wanted in zip(parameters, run.expected, strict=True):
        assert_same_bits(to_numpy(p), wanted)


@pytest.mark.parametrize("in_place", [True, False])
def test_some_tensors_on_the_host_and_some_on_devices(
    in_place: bool, played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, recording = played
    library.may_wait = True
    monkeypatch.setattr(TorchBackend, "_runs_kernels", lambda self, tensor: library.device(tensor) >= 0)
    optimizer = portopt.Adam(clipnorm=0.5)
    places = [-1 if device == 0 else device for device in DEVICES]

    def put(arrays: list[Array]) -> list[Any]:
        return [library.put(to_torch(x), place) for x, place in zip(arrays, places, strict=True)]

    expected = [ordinary(shape, "float32", i) for i, shape in enumerate(SHAPES)]
    expected_state = optimizer.init(expected)
    params, state = put(expected), OptimizerState(0, {n: put(of) for n, of in expected_state.slots.items()})
    for k in range(3):
        new = [ordinary(shape, "float32", 100 * k + i) for i, shape in enumerate(SHAPES)]
        recording.clear()
        if in_place:
            state = optimizer.apply_(params, put(new), state)
        else:
            params, state = optimizer.apply(params, put(new), state)
            # New memory is not known to be a device's.
            for arrays in (params, *state.slots.values()):
                for tensor, place in zip(arrays, places, strict=True):
                    library.put(tensor, place)
        with portopt.interpreted():
            expected, expected_state = optimizer.apply(expected, new, expected_state)
        for actual, wanted in zip(params, expected, strict=True):
            assert_same_bits(to_numpy(actual), wanted)
    assert recording.kernels().count("update") == 2
    found = portopt.explain(optimizer, params, put(new), state, in_place=in_place)
    assert (
        str(found) == "checked: only steps on tensors that are all in host memory, or all on CUDA devices, are planned"
    )
