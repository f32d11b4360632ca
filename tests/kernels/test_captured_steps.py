"""Steps that a CUDA graph repeats, on a played device: the bits of each repetition, and what is refused."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.bits import Array, assert_same_bits, ordinary
from support.cuda_on_host import HostArray, HostPool, HostStream, host_cupy, on_device
from support.gpu_cases import EveryDraw
from support.recording_driver import STREAM, Recording
from support.torch_on_host import HostTorch, host_torch, to_numpy, to_torch
from torch.utils._python_dispatch import TorchDispatchMode

import portopt
from portopt import schedules
from portopt.kernels.recorded_plan import RecordedPlan
from portopt_torch import TorchOptimizer

SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (0, 3), (12, 7), (4100,), (2, 3, 4))


@pytest.fixture
def played(kernel_directory: Path) -> Iterator[tuple[HostTorch, Recording]]:
    with host_torch(kernel_directory) as found:
        yield found


def values(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: str = "float32") -> list[Array]:
    return [ordinary(shape, dtype, 100 * seed + i) for i, shape in enumerate(shapes)]


class EveryPower(portopt.Optimizer):
    """Has a product, a scalar of its own, and powers of what a device only knows."""

    slots = ()
    scalar_slots: ClassVar[dict[str, float]] = {"decayed": 1.0}

    def coefficients(self, t: Any, decayed: Any) -> Any:
        from portopt.scalars import exp, where

        return {
            "lr": self.learning_rate_at(t),
            "rate": 0.5**t + exp(-t) * decayed,
            "decayed": where(t < 2, decayed * 0.9, 2.0),
        }

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        if p.ndim == 2:
            g = (g @ xp.matrix_transpose(g)) @ g
        return p - c.lr * c.rate * g, {}


class Run:
    """Steps on tensors, eager or repeated by graphs, and the interpreter's on NumPy arrays beside them."""

    def __init__(self, optimizer: portopt.Optimizer, played: tuple[HostTorch, Recording], shapes: Any = SHAPES) -> None:
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


@pytest.mark.parametrize(
    "optimizer",
    [
        portopt.SGD(0.1),
        portopt.Nadam(COSINE, clipnorm=0.5, clipvalue=0.1),
        portopt.LAMB(clipnorm=0.5),
        EveryDraw(),
        portopt.Prodigy(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_eager_steps_of_a_state_on_the_device_are_planned(
    optimizer: portopt.Optimizer, played: tuple[HostTorch, Recording]
) -> None:
    run, recording = Run(optimizer, played), played[1]
    for k in range(6):
        if k == 3:
            replay = run.capture()
            run.repeat(replay)
            run.expect()
        if k == 4:
            run.grads = list(map(to_torch, values(9)))
        # Before the third step it is not known that there is a loop.
        planned = run.optimizer._cache.plans
        assert all(plan.was_used for plan in planned) == (k != 2)
        recording.clear()
        versions = [p._version for p in run.params]
        run.eager()
        assert all(p._version > version for p, version in zip(run.params, versions, strict=True))
        assert recording.uploaded() in ((0,) if k in (3, 5) else range(1, 1 << 20))
        run.expect()
    (plan,) = optimizer._cache.plans
    assert type(plan) is RecordedPlan
    assert plan.was_used
    said = portopt.explain(optimizer, run.params, run.grads, run.state, in_place=True)
    assert "the device counts the steps" in str(said)
    # Another tensor for the count, another stream, or a number that was not given before: none of it is the plan's.
    assert plan.fits(optimizer, run.params, run.grads, run.state, {})
    assert not plan.fits(optimizer, run.params, run.grads, run.state._replace(step=run.state.step.clone()), {})
    assert not plan.fits(optimizer, run.params, run.grads, run.state, {"learning_rate": 0.5})
    run.library.current_stream = STREAM + 1
    assert not plan.fits(optimizer, run.params, run.grads, run.state, {})


def test_a_rate_on_the_device_is_read_by_planned_steps(played: tuple[HostTorch, Recording]) -> None:
    run, rate = Run(portopt.Adam(), played, ((7,), (3, 2))), torch.tensor(0.25)
    for value in (0.25, 0.5, 0.125, float(np.float32(0.3))):
        rate.fill_(value)
        run.eager(learning_rate=rate)
        run.expect(learning_rate=value)
    (plan,) = run.optimizer._cache.plans
    assert plan.was_used
    assert not plan.fits(run.optimizer, run.params, run.grads, run.state, {"learning_rate": rate.clone()})
    # The same tensors in other memory.
    for tensor, at_first in ((rate, rate.data), (run.state.step, run.state.step.data)):
        assert plan.fits(run.optimizer, run.params, run.grads, run.state, {"learning_rate": rate})
        tensor.data = at_first.clone()
        assert not plan.fits(run.optimizer, run.params, run.grads, run.state, {"learning_rate": rate})
        run.eager(learning_rate=rate)
        run.expect(learning_rate=value)
        tensor.data = at_first


def test_kinds_of_parameters_that_take_turns_are_planned_only_if_they_are_few(
    played: tuple[HostTorch, Recording],
) -> None:
    for count, is_planned in ((6, True), (140, False)):
        optimizer, dtypes = portopt.SGD(0.5, clipnorm=0.5), ("float32", "float64")
        params = [to_torch(ordinary((2,), dtypes[k % 2], k)) for k in range(count)]
        state, expected = optimizer.init(params, capturable=True), [p.clone() for p in params]
        wanted = optimizer.init(expected)
        for step in range(3):
            # Their norm reads them all in one table, in the order of the tree.
            grads = [to_torch(ordinary((2,), "float32", count * (step + 1) + k)) for k in range(count)]
            state = optimizer.apply_(params, grads, state)
            with portopt.interpreted():
                wanted = optimizer.apply_(expected, grads, wanted)
            for a, w in zip(params, expected, strict=True):
                assert_same_bits(to_numpy(a), to_numpy(w))
        assert [plan.was_used for plan in optimizer._cache.plans] == [True] * is_planned
        said = portopt.explain(optimizer, params, grads, state, in_place=True)
        assert ("take turns in their tree too often" in str(said)) != is_planned


def test_a_users_schedule_is_asked_in_each_step(played: tuple[HostTorch, Recording]) -> None:
    run = Run(portopt.SGD(lambda step: 0.5 / (step + 1)), played, ((7,),))
    for _ in range(3):
        run.eager()
        run.expect()
    assert run.optimizer._cache.plans == ()
    said = portopt.explain(run.optimizer, run.params, run.grads, run.state, in_place=True)
    assert "a function of its own" in str(said)


def test_a_rate_on_the_device_is_read_by_each_repetition(played: tuple[HostTorch, Recording]) -> None:
    run, rate = Run(portopt.Adam(), played, ((7,), (3, 2))), torch.tensor(0.25)
    replay = run.capture(learning_rate=rate)
    for value in (0.25, 0.125, float(np.float32(0.3))):
        rate.fill_(value)
        run.repeat(replay)
        run.expect(learning_rate=value)


def test_several_graphs_and_kinds_of_parameters_share_a_state(played: tuple[HostTorch, Recording]) -> None:
    optimizer, dtypes = portopt.Nadam(clipnorm=0.5), ("float32", "bfloat16", "float64")
    params = [to_torch(ordinary((7,), dtype, i)) for i, dtype in enumerate(dtypes)]
    expected = [p.clone() for p in params]
    state = optimizer.init(params, capturable=True)
    wanted = optimizer.init(expected)
    graphs = []
    for k in range(2):
        grads = [to_torch(ordinary((7,), dtype, 10 + i + 3 * k)) for i, dtype in enumerate(dtypes)]
        played[1].clear()
        with played[1].capture() as replay:
            optimizer.apply_(params, grads, state)
        assert played[1].kernels().count("scalars_of_norm") == len(dtypes)
        assert played[1].uploaded() == 0
        graphs.append((replay, grads))
    for k in (0, 1, 1, 0):
        replay, grads = graphs[k]
        played[0].spoil()
        replay()
        with portopt.interpreted():
            wanted = optimizer.apply_(expected, grads, wanted)
        for a, w in zip(params, expected, strict=True):
            assert_same_bits(to_numpy(a), to_numpy(w))
    assert optimizer.from_capturable(state).slots["m_schedule"] == wanted.slots["m_schedule"]
    assert "capturable" in str(portopt.explain(optimizer, params, graphs[0][1], state))
    back = optimizer.to_capturable(params, wanted)
    assert (int(back.step), float(back.slots["m_schedule"])) == (4, wanted.slots["m_schedule"])


def test_a_table_of_many_chunks_is_filled_on_the_device(played: tuple[HostTorch, Recording]) -> None:
    run = Run(portopt.SGD(0.5), played, ((5,), (2_000_000,), (3,)))
    played[1].clear()
    replay = run.capture()
    assert played[1].kernels() == ["scalars_of_norm", "put_words", "put_rows", "update"]
    run.library.spoil()
    run.repeat(replay)
    run.expect()


@pytest.mark.parametrize(
    "optimizer",
    [portopt.Muon(COSINE, clipnorm=0.5), portopt.Shampoo(), EveryPower(0.1)],
    ids=lambda rule: type(rule).__name__,
)
def test_a_step_with_products_asks_for_no_number(
    optimizer: portopt.Optimizer, played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The played device records no operations of torch's own, so this is what can be said of a capture."""
    run = Run(optimizer, played, ((5, 4), (7,)))

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the host waited for the device")

    for k in range(3):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "__array__"):
                patch.setattr(torch.Tensor, name, refuse)
            if k < 2:
                run.eager()
            else:
                run.new_gradients()
                run.params, run.state = optimizer.apply(run.params, run.grads, run.state)
        run.expect()
    # Between products it is kernels that compute elements and norms, and one the scalars.
    with _Operations() as seen:
        run.eager()
    run.expect()
    assert seen.counted["mm"] > 0
    assert seen.counted["mul"] + seen.counted["where"] < 40


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch says nothing of its subclasses
    """Counts torch's operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted[str(function.overloadpacket).rpartition(".")[2]] += 1
        return function(*args, **(kwargs or {}))


def test_apply_inside_a_graph_makes_a_new_state(played: tuple[HostTorch, Recording]) -> None:
    run = Run(portopt.Nadam(), played, ((5,),))
    with run.recording.capture() as replay:
        params, state = run.optimizer.apply(run.params, run.grads, run.state)
    replay()
    assert (int(run.state.step), int(state.step)) == (0, 1)
    run.params, run.state, run.steps = params, state, 1
    run.expect()


def test_what_needs_the_host_is_refused_in_a_capture_and_done_outside(played: tuple[HostTorch, Recording]) -> None:
    def reads_its_step(step: Any) -> float:
        return 0.5 if int(step) < 2 else 0.25

    for optimizer, reason in (
        (portopt.SGD(reads_its_step), "portopt.scalars on the step"),
        (portopt.SGD(lambda step: 0.5), "does not depend on the step"),
    ):
        run = Run(optimizer, played, ((5,),))
        run.eager()
        run.expect()
        with run.recording.capture(), pytest.raises(RuntimeError, match=reason):
            optimizer.apply_(run.params, run.grads, run.state)
        run.expected_state = run.expected_state._replace(step=0)
        run.eager()
        assert int(run.state.step) == 2
    run = Run(portopt.Nadam(), played, ((5,),))
    with portopt.interpreted():
        run.eager()
        run.expect()
        with run.recording.capture(), pytest.raises(RuntimeError, match="interpreted"):
            run.optimizer.apply_(run.params, run.grads, run.state)
    with run.recording.capture(), pytest.raises(RuntimeError, match="no parameter has a gradient"):
        run.optimizer.apply_(run.params, [None], run.state)
    run.eager()
    run.expect()
    rate = played[0].put(torch.tensor(0.25), 1)
    with run.recording.capture(), pytest.raises(RuntimeError, match="learning_rate is not on the device of the param"):
        run.optimizer.apply_(run.params, run.grads, run.state, learning_rate=rate)
    run.eager(learning_rate=rate)
    run.expect(learning_rate=0.25)
    host = run.optimizer.init(run.params)
    with run.recording.capture(), pytest.raises(RuntimeError, match="init\\(params, capturable=True\\)"):
        run.optimizer.apply_(run.params, run.grads, host)


def test_a_capturable_state_is_for_devices_with_graphs() -> None:
    with pytest.raises(ValueError, match="on a CUDA device"):
        portopt.SGD().init([np.zeros(2)], capturable=True)
    with pytest.raises(ValueError, match="on a CUDA device"):
        portopt.SGD().init([torch.zeros(2)], capturable=True)
    with pytest.raises(ValueError, match="on a CUDA device"):
        TorchOptimizer([torch.nn.Parameter(torch.zeros(2))], portopt.SGD(), capturable=True)


# CuPy ---------------------------------------------------------------------------------------------------------------


def test_cupy_keeps_the_memory_of_a_graph_as_long_as_the_state(
    kernel_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostArray, "may_wait", True)
    shapes, optimizer = ((5,), (12, 7)), portopt.Nadam(clipnorm=0.5)
    with host_cupy(kernel_directory) as backend:
        params, grads = (list(map(on_device, values(seed, shapes))) for seed in (0, 1))
        expected, wanted = values(0, shapes), optimizer.init(values(0, shapes))
        state = optimizer.init(params, capturable=True)
        monkeypatch.setattr(HostStream, "captured", True)
        with pytest.raises(RuntimeError, match="state is on the host"):
            optimizer.apply_(params, grads, optimizer.init(params))
        with backend.recording.capture() as replay:
            optimizer.apply_(params, grads, state)
        monkeypatch.setattr(HostStream, "captured", False)
        for seed in (1, 2, 3):
            for g, x in zip(grads, values(seed, shapes), strict=True):
                g[...] = x
            if seed < 3:
                replay()
            else:
                state = optimizer.apply_(params, grads, state)
            with portopt.interpreted():
                expected, wanted = optimizer.apply(expected, values(seed, shapes), wanted)
            for a, w in zip(params, expected, strict=True):
                assert_same_bits(np.asarray(a), w)
        found = optimizer.from_capturable(state)
    assert (found.step, found.slots["m_schedule"]) == (3, wanted.slots["m_schedule"])
    kept = [pool for pool in gc.get_objects() if type(pool) is HostPool]
    assert [bool(pool.memory) for pool in kept] == [True]
    del kept, state, replay
    gc.collect()
    assert not [pool for pool in gc.get_objects() if type(pool) is HostPool]


def test_cupy_multiplies_by_a_kernel_of_ours_in_a_capture(
    kernel_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostArray, "may_wait", True)
    shapes, optimizer = ((70, 17), (2, 5, 130), (7,)), portopt.Muon(clipnorm=0.5)
    with host_cupy(kernel_directory) as backend:
        params, grads = (list(map(on_device, values(seed, shapes))) for seed in (0, 1))
        state = optimizer.init(params, capturable=True)
        monkeypatch.setattr(HostStream, "captured", True)
        backend.recording.clear()
        # The played device records no operations of CuPy's own, so what is launched is done at once.
        optimizer.apply_(params, grads, state)
        assert backend.recording.kernels().count("multiplied") > 10
        monkeypatch.setattr(HostStream, "captured", False)
        with portopt.interpreted():
            expected, _ = optimizer.apply(values(0, shapes), values(1, shapes), optimizer.init(values(0, shapes)))
        for a, w in zip(params, expected, strict=True):
            assert_same_bits(np.asarray(a), w)


# TorchOptimizer -----------------------------------------------------------------------------------------------------


class Training:
    """An optimizer of torch's kind beside one that counts on the host."""

    def __init__(self, rule: portopt.Optimizer, *, capturable: bool, lr: Any = None) -> None:
        self.parameters = [torch.nn.Parameter(to_torch(x)) for x in values(0, SHAPES[:4])]
        groups = [{"params": self.parameters[:2]}, {"params": self.parameters[2:]}]
        self.optimizer = TorchOptimizer(groups, rule, lr=lr, capturable=capturable)
        self.is_capturable = capturable
        for p in self.parameters:
            p.grad = torch.zeros_like(p)

    def step(self) -> None:
        with contextlib.nullcontext() if self.is_capturable else portopt.interpreted():
            self.optimizer.step()

    def new_gradients(self, seed: int) -> None:
        for p, g in zip(self.parameters, values(seed, SHAPES[:4]), strict=True):
            assert p.grad is not None
            p.grad.copy_(to_torch(g))


@pytest.mark.parametrize(
    "rule",
    [portopt.Nadam(clipnorm=0.5), portopt.Adam(COSINE), portopt.Prodigy(), EveryDraw()],
    ids=lambda rule: type(rule).__name__,
)
def test_the_optimizer_of_torch_is_repeated(rule: portopt.Optimizer, played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    captured, beside = Training(rule, capturable=True), Training(rule, capturable=False)
    library.may_wait = True

    def compare() -> None:
        for a, w in zip(captured.parameters, beside.parameters, strict=True):
            assert_same_bits(to_numpy(a), to_numpy(w))
            ours, theirs = captured.optimizer.state[a], beside.optimizer.state[w]
            assert int(ours["step"]) == theirs["step"]

    for seed in (1, 2):
        for training in (captured, beside):
            training.new_gradients(seed)
            training.step()
    compare()
    library.may_wait = False
    with recording.capture() as replay:
        captured.optimizer.step()
    for seed in (3, 4):
        captured.new_gradients(seed)
        library.spoil()
        replay()
        library.may_wait = True
        beside.new_gradients(seed)
        beside.step()
        library.may_wait = False
    compare()
    library.may_wait = True
    # The step that a state_dict has is that of the device, for either kind of optimizer.
    saved = captured.optimizer.state_dict()
    again, host = Training(rule, capturable=True), Training(rule, capturable=False)
    for training in (again, host):
        training.optimizer.load_state_dict(saved)
        for p, q in zip(training.parameters, captured.parameters, strict=True):
            p.data.copy_(q.data)
    for training in (captured, beside, again, host):
        training.new_gradients(5)
        training.step()
    compare()
    for training in (again, host):
        for a, w in zip(training.parameters, beside.parameters, strict=True):
            assert_same_bits(to_numpy(a), to_numpy(w))


def repeat(
    captured: Training, beside: Training, recording: Recording, after: Callable[[], None] = lambda: None
) -> None:
    """Capture a step, replay it with three sets of gradients, and compare with steps that are not captured."""
    with recording.capture() as replay:
        captured.optimizer.step()
    for seed in (1, 2, 3):
        for training in (captured, beside):
            training.new_gradients(seed)
        replay()
        beside.step()
        after()
    for a, w in zip(captured.parameters, beside.parameters, strict=True):
        assert_same_bits(to_numpy(a), to_numpy(w))


def test_schedulers_fill_the_rate_that_a_graph_reads(played: tuple[HostTorch, Recording]) -> None:
    rule = portopt.SGD(0.5, momentum=0.9)
    captured = Training(rule, capturable=True, lr=torch.tensor(0.5))
    beside = Training(rule, capturable=False, lr=torch.tensor(0.5))
    kinds = [torch.optim.lr_scheduler.ExponentialLR(of.optimizer, 0.5) for of in (captured, beside)]

    def schedule() -> None:
        for scheduler in kinds:
            scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers warn before a first step
            scheduler.step()

    repeat(captured, beside, played[1], schedule)


def test_a_factor_on_a_schedule_is_computed_on_the_device(played: tuple[HostTorch, Recording]) -> None:
    captured, beside = (Training(portopt.SGD(COSINE), capturable=kind, lr=0.5) for kind in (True, False))
    repeat(captured, beside, played[1])


def test_parameters_that_stand_still_count_apart(played: tuple[HostTorch, Recording]) -> None:
    captured, beside = (Training(portopt.Adam(), capturable=kind) for kind in (True, False))
    for training in (captured, beside):
        training.new_gradients(1)
        training.parameters[1].grad = None
    with played[1].capture(), pytest.raises(RuntimeError, match="as a warm-up"):
        captured.optimizer.step()
    for training in (captured, beside):
        training.step()
    with played[1].capture() as replay:
        captured.optimizer.step()
    replay()
    beside.step()
    for a, w in zip(captured.parameters, beside.parameters, strict=True):
        assert_same_bits(to_numpy(a), to_numpy(w))
        assert int(captured.optimizer.state[a]["step"]) == beside.optimizer.state[w]["step"]
    assert [beside.optimizer.state[w]["step"] for w in beside.parameters] == [2, 0, 2, 2]
