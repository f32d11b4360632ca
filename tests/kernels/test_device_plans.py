"""Planned steps on a played device: the bits, and what is queued: launches, uploads, nothing else."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bits import assert_same_bits, ordinary
from support.elementwise import ELEMENTWISE, STAGED
from support.gpu_cases import EveryDraw, optimizer_of
from support.recording_driver import Recording
from support.steps_of_torch import SHAPES, Run, values
from support.torch_on_host import HostTorch, host_torch, to_numpy, to_torch
from support.turns import in_turn

import portopt
from portopt.kernels import launch
from portopt.kernels.cuda import driver
from portopt.kernels.host import threads
from portopt_torch import TorchOptimizer
from portopt_torch import _backend as torch_backend


@pytest.fixture
def played(kernel_directory: Path) -> Iterator[tuple[HostTorch, Recording]]:
    with host_torch(kernel_directory) as found:
        yield found


@pytest.mark.parametrize(
    "optimizer",
    [
        *(optimizer_of(rule, False) for rule in in_turn(ELEMENTWISE, 0, 2)),
        *(rule() for rule in in_turn(STAGED, 0, 2)),
        EveryDraw(),
        portopt.Adam(portopt.schedules.CosineDecay(0.1, 10), clipnorm=0.5, clipvalue=0.1),
        portopt.LAMB(clipnorm=0.5),
    ],
    ids=lambda x: type(x).__name__,
)
def test_planned_steps_have_the_bits_of_the_interpreter(
    optimizer: portopt.Optimizer, played: tuple[HostTorch, Recording]
) -> None:
    library, _ = played
    library.may_wait = bool(optimizer.replace(clipnorm=None).program(shape=(3, 4)).totals)
    run = Run(optimizer)
    for moved in (False, False, False, True, False):
        run.step(moved=moved)
    assert run.is_planned


# Totals for which the host waits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_totals_that_host_scalars_need(
    in_place: bool, played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, recording = played
    library.may_wait = True
    # There are more parts than one block combines, and kinds.
    monkeypatch.setattr(launch, "JOINED", 4)
    run = Run(portopt.Prodigy(d0=0.01, clipnorm=0.5))
    run.grads[1] = run.grads[1].double()
    allocated = 0
    for moved in (False, False, False, True, False):
        allocated = library.allocated
        recording.clear()
        run.grads = [g.clone() for g in run.grads] if moved else run.grads
        run.step(in_place=in_place)
    assert run.is_planned
    assert library.allocated == allocated or not in_place
    kernels = recording.kernels()
    assert kernels.count("update") == 2
    assert kernels.count("sums_joined") == 3
    found = portopt.explain(run.optimizer, run.params, run.grads, run.state, in_place=in_place)
    assert str(found) == "planned: an earlier step was like it; the host waits for totals over all parameters"


def test_given_totals_take_the_place_of_computed_ones(played: tuple[HostTorch, Recording]) -> None:
    played[0].may_wait = True
    run = Run(portopt.DoG(clipnorm=0.5))
    for norm in (None, None, None, 4.0, None, 4.0, 8.0, None):
        run.step(gradient_norm=norm)
    assert run.is_planned


# Steps that make new arrays, and steps on ever other arrays ------------------------------------------------------------


PURE = [portopt.SGD(0.1, momentum=0.9), portopt.LAMB(clipnorm=0.5), portopt.Nadam(clipnorm=0.5)]


@pytest.mark.parametrize("optimizer", PURE, ids=lambda x: type(x).__name__)
def test_planned_steps_that_make_new_arrays_have_the_bits_of_the_interpreter(
    optimizer: portopt.Optimizer, played: tuple[HostTorch, Recording]
) -> None:
    _, recording = played
    run = Run(optimizer)
    before = []
    for moved in (False, False, True, False):
        before.append((run.params, [to_numpy(p).copy() for p in run.params]))
        recording.clear()
        run.step(moved=moved, in_place=False)
    assert run.is_planned
    # Of each parameter, it and slots before and after the step, and the gradient.
    columns = 3 + 2 * len([of for of in run.state.slots.values() if isinstance(of, list)])
    assert recording.uploaded() == 8 * columns * len(SHAPES)
    assert [entry.kind for entry in recording.entries()].count("upload") == 1
    for params, values_before in before:
        for p, value in zip(params, values_before, strict=True):
            assert_same_bits(to_numpy(p), value)


def test_steps_that_make_large_new_arrays_look_one_at_a_time(
    played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(portopt.SGD(0.1, momentum=0.9))
    monkeypatch.setattr(threads, "is_small", lambda elements: False)
    for _ in range(3):
        run.step(in_place=False)
    plan: Any
    (plan,) = run.optimizer._cache.pure_plans
    look, held = plan.watch.look, list[bool]()

    def looking(*given: Any, **named: Any) -> Any:
        held.append(plan.lock._is_owned())
        return look(*given, **named)

    monkeypatch.setattr(plan.watch, "look", looking)
    run.step(in_place=False)
    assert held == [True, True]


def test_models_share_a_plan_of_steps_that_make_new_arrays(played: tuple[HostTorch, Recording]) -> None:
    runs = [Run(portopt.SGD(0.1, momentum=0.9))]
    runs += [Run(runs[0].optimizer) for _ in range(3)]
    allocated = []
    for _ in range(3):
        for run in runs:
            run.step(in_place=False)
            allocated.append(played[0].allocated)
    assert len(runs[0].optimizer._cache.pure_plans) == 1
    # Tables for the first step, and for the plan in the second.
    assert allocated[0] < allocated[1] == allocated[-1]


def test_steps_in_place_on_ever_other_arrays_are_planned(played: tuple[HostTorch, Recording]) -> None:
    optimizer = portopt.SGD(0.1, momentum=0.9, clipnorm=0.5)
    for k in range(22):
        run = Run(optimizer)
        run.grads = list(map(to_torch, values("float32", k, SHAPES)))
        before = [p._version for p in run.params]
        played[1].clear()
        run.step()
        assert [p._version for p in run.params] == [version + 1 for version in before]
    assert run.is_planned
    assert played[1].kernels() == ["sum_squares", "scalars_of_norm", "update"]
    assert played[1].uploaded() == 8 * 3 * len(SHAPES)


def test_what_shares_memory_with_others_is_refused_though_its_like_was_stepped(
    played: tuple[HostTorch, Recording],
) -> None:
    optimizer = portopt.SGD(0.1, momentum=0.9)
    for _ in range(22):
        run = Run(optimizer)
        run.step(compared=False)
    assert run.is_planned
    run = Run(optimizer)
    run.params[3] = run.params[4].flatten()[:84].reshape(12, 7)
    with pytest.raises(ValueError, match="share memory"):
        optimizer.apply_(run.params, run.grads, run.state)


# What is queued -----------------------------------------------------------------------------------------------------


def warmed_up(run: Run) -> None:
    for _ in range(3):
        run.step()


@pytest.mark.parametrize(
    ("clipnorm", "kernels"),
    [(None, ["update"]), (0.5, ["sum_squares", "scalars_of_norm", "update"])],
)
def test_a_step_queues_its_kernels_and_8_bytes_for_each_gradient_that_moved(
    clipnorm: float | None, kernels: list[str], played: tuple[HostTorch, Recording]
) -> None:
    library, recording = played
    run = Run(portopt.Adam(clipnorm=clipnorm))
    warmed_up(run)
    allocated = library.allocated
    for moved in (False, True, False):
        recording.clear()
        run.step(moved=moved)
        assert recording.kernels() == kernels
        assert recording.uploaded() == (8 * len(SHAPES) if moved else 0)
    assert run.is_planned
    assert library.allocated == allocated


def test_each_kind_of_dtypes_takes_a_launch(played: tuple[HostTorch, Recording]) -> None:
    params = [to_torch(ordinary((7,), dtype, i)) for i, dtype in enumerate(("float32", "bfloat16", "float32"))]
    grads = [p.clone() for p in params]
    optimizer = portopt.Adam()
    state = optimizer.init(params)
    for _ in range(4):
        played[1].clear()
        state = optimizer.apply_(params, grads, state)
    assert played[1].kernels() == ["update", "update"]
    assert played[1].uploaded() == 0


def test_streams_have_tables_of_their_own(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    run = Run(portopt.LAMB(clipnorm=0.5))
    warmed_up(run)
    for stream, uploads in ((11, 1), (11, 0), (7, 0), (12, 1), (11, 0), (13, 1), (14, 1), (7, 1)):
        library.current_stream = stream
        recording.clear()
        run.step()
        assert {entry.stream for entry in recording.entries()} == {stream}
        assert sum(entry.kind == "upload" for entry in recording.entries()) == uploads
    assert run.is_planned


def test_gradients_that_move_while_the_device_is_behind(played: tuple[HostTorch, Recording]) -> None:
    recording = played[1]
    run = Run(portopt.SGD(0.5, momentum=0.9), shapes=((5,), (3,)))
    warmed_up(run)
    recording.play(delayed=True)
    kept = []
    for _ in range(4):
        run.step(moved=True, compared=False)
        kept.append(run.grads)
    recording.run_queued()
    recording.play()
    run.compare()


def test_a_planned_step_is_not_captured(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    run = Run(portopt.Adam())
    warmed_up(run)
    recording.clear()
    with recording.capture(library.current_stream), pytest.raises(RuntimeError, match="state is on the host"):
        run.optimizer.apply_(run.params, run.grads, run.state)
    assert not recording.entries()
    run.compare()
    run.step()


def test_what_does_not_fit_is_left_to_the_full_check(played: tuple[HostTorch, Recording]) -> None:
    run = Run(portopt.Adam())
    warmed_up(run)
    run.step(learning_rate=0.25)
    run.step(learning_rate=0.5, moved=True)
    assert run.is_planned
    wrong = [g.clone() for g in run.grads[:-1]]
    with pytest.raises(ValueError, match="grads"):
        run.optimizer.apply_(run.params, wrong, run.state)
    with pytest.raises(ValueError, match="learning_rate"):
        run.optimizer.apply_(run.params, run.grads, run.state, learning_rate=-1.0)
    run.compare()
    # Gradients in the memory of parameters are read before that is written.
    before = [p.clone() for p in run.params]
    run.state = run.optimizer.apply_(run.params, [p.detach() for p in run.params], run.state)
    with portopt.interpreted():
        run.expected, run.expected_state = run.optimizer.apply(
            run.expected, [to_numpy(p) for p in before], run.expected_state
        )
    run.compare()


def test_the_norm_of_several_groups_stays_on_the_device(played: tuple[HostTorch, Recording]) -> None:
    run, rule = Run(portopt.Adam(0.1, clipnorm=0.5)), portopt.Adam(0.1, clipnorm=0.5)
    parameters = [torch.nn.Parameter(p.clone()) for p in run.params]
    optimizer = TorchOptimizer([{"params": parameters[:3]}, {"params": parameters[3:]}], rule)
    for k in range(5):
        for p, g in zip(parameters, values("float32", k + 1), strict=True):
            p.grad = to_torch(g)
        optimizer.step()
        run.step()
    for p, wanted in zip(parameters, run.expected, strict=True):
        assert_same_bits(to_numpy(p), wanted)


def test_gradients_that_lie_otherwise_than_those_of_the_plan_are_told_apart(
    played: tuple[HostTorch, Recording],
) -> None:
    run = Run(portopt.SGD(0.5), shapes=((3, 4),))
    warmed_up(run)
    (plan,) = run.optimizer._cache.plans
    whole, (p,) = torch.zeros(60), run.params
    gradient: Any
    fitting = [whole[:12].view(3, 4), whole[7:19].view(3, 4), torch.zeros(3, 4).requires_grad_(), torch.zeros(4, 3).T]
    for gradient in fitting:
        assert plan.fits(run.optimizer, run.params, [gradient], run.state, {})
    for gradient in (whole[7:19].view(3, 4), whole[:12].view(3, 4), torch.zeros(4, 3).T):
        run.grads = [gradient]
        run.step()
    assert run.optimizer._cache.plans == (plan,)
    (last,) = run.grads = [torch.zeros(3, 4)]
    run.step()
    assert plan.fits(run.optimizer, run.params, run.grads, run.state, {})
    assert plan.fits(run.optimizer, run.params, [last.as_strided((3, 4), (1, 3))], run.state, {})
    for gradient in (
        # Those that begin where the last gradient did.
        last.view(4, 3),
        last.view(12),
        last.view(torch.int32),
        last[:, :3],
        torch.zeros(4, 3),
        torch.zeros(12),
        torch.zeros(3, 4, dtype=torch.int32),
        torch.zeros(3, 4, dtype=torch.float64),
        torch.zeros(3, 4, device="meta"),
        p.detach(),
        None,
    ):
        assert not plan.fits(run.optimizer, run.params, [gradient], run.state, {})
    # The same objects, with other memory.
    gradient = torch.zeros(3, 4)
    assert plan.fits(run.optimizer, run.params, [gradient], run.state, {})
    gradient.resize_(4, 3)
    assert not plan.fits(run.optimizer, run.params, [gradient], run.state, {})
    before = p.data
    p.data = torch.zeros(3, 4)
    assert not plan.fits(run.optimizer, run.params, run.grads, run.state, {})
    p.data = before
    assert plan.fits(run.optimizer, run.params, run.grads, run.state, {})
    p.untyped_storage().resize_(0)
    assert not plan.fits(run.optimizer, run.params, run.grads, run.state, {})


def test_arrays_that_a_schedule_moves_are_looked_at_after_it(played: tuple[HostTorch, Recording]) -> None:
    params, grads = [to_torch(np.ones(5, np.float32))], [to_torch(np.ones(5, np.float32))]
    elsewhere = torch.full((5,), 3.0)

    def rate(step: Any) -> float:
        if step == 3:
            params[0].set_(elsewhere)
        return 0.25

    optimizer = portopt.SGD(rate)
    state = optimizer.init(params)
    for _ in range(4):
        before = params[0].clone()
        state = optimizer.apply_(params, grads, state)
    assert before.tolist() == [0.25] * 5
    assert params[0].tolist() == elsewhere.tolist() == [2.75] * 5


def test_what_the_driver_refuses_is_an_error_and_done_in_the_next_step(played: tuple[HostTorch, Recording]) -> None:
    recording = played[1]
    run = Run(portopt.SGD(0.5), shapes=((5,), (3,)))
    warmed_up(run)
    versions = [p._version for p in run.params]
    run.grads = list(map(to_torch, values("float32", 9, run.shapes)))
    for kind in ("upload", "launch"):
        recording.fail_once(kind)
        with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
            run.optimizer.apply_(run.params, run.grads, run.state)
    assert [p._version for p in run.params] == versions
    run.compare()
    recording.clear()
    # Once launches failed, the gradients had been uploaded.
    run.step()
    assert recording.uploaded() == 0
    run.step(moved=True)


@pytest.mark.parametrize("is_found", [True, False])
def test_autograd_sees_a_step_on_a_device(
    is_found: bool, played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = torch_backend.reader_on("cpu")
    assert reader is not None
    if not is_found:
        monkeypatch.setattr(torch_backend, "reader_on", lambda device: reader._replace(versions=(0, 0)))
    run = Run(portopt.SGD(0.5, momentum=0.9))
    warmed_up(run)
    written = [*run.params, *run.state.slots["moment"]]
    before, of_gradients = [t._version for t in written], [g._version for g in run.grads]
    run.state = run.optimizer.apply_(run.params, run.grads, run.state)
    assert [t._version for t in written] == [version + 1 for version in before]
    assert [g._version for g in run.grads] == of_gradients
    assert run.is_planned


@pytest.mark.usefixtures("played")
def test_pinned_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, pinned = [], driver.Driver.pinned

    def counted(self: driver.Driver, size: int) -> int:
        asked.append(size)
        return pinned(self, size)

    monkeypatch.setattr(driver.Driver, "pinned", counted)
    for _ in range(3):
        run = Run(portopt.SGD(0.5))
        for _ in range(6):
            run.step(moved=True)
        assert run.is_planned
        del run
        gc.collect()
    assert len(asked) <= 2


def test_gradients_that_nobody_else_keeps_live_until_the_step_ends(played: tuple[HostTorch, Recording]) -> None:
    run = Run(portopt.SGD(0.5), shapes=((5,), (3,)))
    warmed_up(run)
    counts = [sys.getrefcount(tensor) for tensor in (*run.grads, *run.params)]
    run.step()
    assert [sys.getrefcount(tensor) for tensor in (*run.grads, *run.params)] == counts
    with pytest.raises(ValueError, match="shape"):
        run.optimizer.apply_(run.params, [run.grads[0], run.grads[0]], run.state)
    assert [sys.getrefcount(tensor) for tensor in (*run.grads, *run.params)] == counts
    gradients, alive = [weakref.ref(g) for g in run.grads], list[bool]()

    def let_go() -> None:
        run.grads.clear()
        alive.extend(g() is not None for g in gradients)

    with played[1].calling(let_go):
        run.state = run.optimizer.apply_(run.params, run.grads, run.state)
    assert alive == [True, True]
    assert [g() for g in gradients] == [None, None]
    assert run.state.step == run.steps + 1
