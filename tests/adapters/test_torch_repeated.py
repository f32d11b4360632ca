"""Steps like the last one, which find nothing out again: whatever changes between two steps is noticed."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import torch_parameters
from support.torch_on_host import host_torch
from support.torch_parameters import give_gradients
from torch import nn
from torch.optim import optimizer as torchs
from torch.profiler import ProfilerActivity, profile

import portopt
import portopt_torch._optimizer
import portopt_torch._repeated
from portopt_torch import TorchOptimizer
from portopt_torch._layout import find_gradient, leave_in_memory
from portopt_torch._repeated import RepeatedStep, is_possible

SHAPES = ((3, 4), (5,), (), (2, 2), (7,))
Change = Callable[[TorchOptimizer, list[Any]], object]


def parameters(seed: int = 0) -> list[Any]:
    return torch_parameters.parameters(SHAPES, "float32", seed)


def optimizer_of(params: list[Any]) -> TorchOptimizer:
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1, "lr": 0.5}]
    return TorchOptimizer(groups, portopt.Nadam(0.25, dialect="torch"))


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that gets, for each step that may be a repeated one, whether it was."""
    assert is_possible()  # which tries the class itself
    seen: list[bool] = []
    gradients, note = RepeatedStep.gradients, RepeatedStep.note

    def noted(self: RepeatedStep, *given: Any) -> Any:
        found = gradients(self, *given)
        seen.append(found is not None)
        return found

    def without_objects(self: RepeatedStep, done: bool) -> None:
        note(self, done)
        if done:
            seen.append(True)

    monkeypatch.setattr(RepeatedStep, "gradients", noted)
    monkeypatch.setattr(RepeatedStep, "note", without_objects)
    return seen


def set_gradient(k: int, make: Callable[[Any], Any]) -> Change:
    def change(_: TorchOptimizer, params: list[Any]) -> None:
        params[k].grad = make(params[k])

    return change


def replace_slot(optimizer: TorchOptimizer, params: list[Any]) -> None:
    optimizer.state[params[0]]["m"] = torch.full_like(params[0], 0.5)


def replace_state(optimizer: TorchOptimizer, params: list[Any]) -> None:
    optimizer.state[params[0]] = {name: copy.deepcopy(x) for name, x in optimizer.state[params[1]].items()}
    for name in ("m", "v"):
        optimizer.state[params[0]][name] = torch.full_like(params[0], 0.5)


def load(optimizer: TorchOptimizer, params: list[Any]) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.param_groups[0]["lr"] = 0.75


def append_group(optimizer: TorchOptimizer, params: list[Any]) -> None:
    params.append(nn.Parameter(torch.ones(3)))
    optimizer.add_param_group({"params": params[-1:]})
    params[-1].grad = torch.ones(3)


CHANGES: dict[str, Change] = {
    "data": lambda o, params: setattr(params[0], "data", torch.full((3, 4), 2.0)),
    "slot": replace_slot,
    "state": replace_state,
    "state removed": lambda o, params: o.state.pop(params[3]),
    "step": lambda o, params: o.state[params[3]].update(step=1),
    "equal step": lambda o, params: o.state[params[3]].update(step=torch.tensor(4.0)),
    "scalar of the state": lambda o, params: o.state[params[3]].update(m_schedule=0.5),
    "further entry": lambda o, params: o.state[params[3]].update(note="of the user's"),
    "loaded": load,
    "lr": lambda o, params: o.param_groups[1].update(lr=0.125),
    "lr as a tensor": lambda o, params: o.param_groups[1].update(lr=torch.tensor(0.125)),
    "betas": lambda o, params: o.param_groups[1].update(betas=(0.5, 0.75)),
    "feature off": lambda o, params: o.param_groups[1].update(weight_decay=0.0),
    "feature on": lambda o, params: o.param_groups[0].update(weight_decay=0.5),
    "clipnorm": lambda o, params: o.param_groups[0].update(clipnorm=0.5),
    "group appended": append_group,
    "group removed": lambda o, params: o.param_groups.pop(),
    "groups exchanged": lambda o, params: o.param_groups.reverse(),
    "parameter removed": lambda o, params: o.param_groups[1]["params"].pop(),
    "list of parameters": lambda o, params: o.param_groups[1].update(params=params[3:]),
    "no gradient": set_gradient(3, lambda p: None),
    "gradient where there was none": set_gradient(4, torch.ones_like),
    "gradient that is not contiguous": set_gradient(0, lambda p: torch.ones(4, 3).T),
    "frozen": lambda o, params: params[3].requires_grad_(False),
}


@pytest.mark.needs("numba")
@pytest.mark.parametrize("few", [0, 100])
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_two_steps_is_noticed(
    name: str, few: int, repeated: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many states Python counts, which then have no versions that are known.
    monkeypatch.setattr(portopt_torch._repeated, "_FEW", few)
    found = []
    for possible in (True, False):
        monkeypatch.setattr(portopt_torch._optimizer, "is_possible", lambda possible=possible: possible)
        params = parameters()
        optimizer = optimizer_of(params)
        for step in range(8):
            give_gradients(params, step)
            params[4].grad = None
            if step == 4:
                assert repeated == [True] * 2 * possible
                CHANGES[name](optimizer, params)
            optimizer.step()
        state = [{n: torch.as_tensor(x).tolist() for n, x in optimizer.state[p].items() if n != "note"} for p in params]
        found.append(([p.tolist() for p in params], state))
        assert repeated[-1:] == [True] * possible
        repeated.clear()
    assert repr(found[0]) == repr(found[1])


class _Holder:
    """An object with attributes."""

    m: Any


@pytest.mark.needs("numba")
def test_states_may_be_the_attributes_of_objects(repeated: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 changes these without a new version of their dict."""
    found = []
    for possible in (True, False):
        monkeypatch.setattr(portopt_torch._optimizer, "is_possible", lambda possible=possible: possible)
        params = parameters()
        optimizer = TorchOptimizer(params, portopt.Adam(0.25))
        holders = [_Holder() for _ in params]
        for p, holder in zip(params, holders, strict=True):
            for name, value in optimizer.state[p].items():
                setattr(holder, name, value)
            optimizer.state[p] = vars(holder)
        for step in range(6):
            give_gradients(params, step)
            if step == 4:
                assert repeated == [True] * 2 * possible
                holders[1].m = torch.full_like(params[1], 0.5)
            optimizer.step()
        found.append([p.tolist() for p in params])
        repeated.clear()
    assert repr(found[0]) == repr(found[1])


@pytest.mark.needs("numba")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("where", ["host", "device"])
def test_gradients_of_the_backward_pass_are_read_without_objects_of_them(
    where: str, groups: int, monkeypatch: pytest.MonkeyPatch, kernel_directory: Path
) -> None:
    # torch makes no Python object of them before somebody asks for it.
    params, others = parameters(), parameters()
    rule, asked = portopt.Adam(0.1), list[object]()
    optimizer = TorchOptimizer([{"params": params[k::groups]} for k in range(groups)], rule)
    state = rule.init(others)
    assert is_possible()
    monkeypatch.setattr(RepeatedStep, "gradients", lambda *given: asked.append(given))
    with host_torch(kernel_directory) if where == "device" else contextlib.nullcontext():
        for step in range(8):
            for of in (params, others):
                sum((p * p).sum() for p in of).backward()
            if step == 4:
                asked.clear()
            optimizer.step()
            assert (optimizer._repeated is not None) == (step > 0)
            state = rule.apply_(others, [p.grad for p in others], state)
            for p in (*params, *others):
                p.grad = None
    assert asked == []
    torch_parameters.assert_same(params, others)


@pytest.mark.needs("numba")
def test_gradients_that_no_plan_reads_are_soon_read_as_objects_at_once(repeated: list[bool]) -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam())
    for step in range(8):
        give_gradients(params, step)
        params[0].grad = torch.ones(4, 3).T
        optimizer.step()
    assert repeated == [True] * 6
    assert optimizer._repeated is not None
    assert optimizer._repeated.needs_gradients


@pytest.mark.needs("numba")
def test_bits_that_torch_does_not_set_say_nothing_of_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_possible()
    params, asked = parameters(), list[object]()
    optimizer = TorchOptimizer(params, portopt.Adam())
    for step in range(8):
        leave_in_memory(0xFF * (step % 2))
        give_gradients(params, step)
        if step == 5:
            monkeypatch.setattr(RepeatedStep, "gradients", lambda *given: asked.append(given))
        optimizer.step()
    assert asked == []


@pytest.mark.needs("numba")
def test_a_gradient_that_is_not_wanted_is_not_kept(repeated: list[bool]) -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.SGD(0.1))
    for step in range(4):
        give_gradients(params, step)
        params[1].grad = None
        optimizer.step()
    params[1].grad = torch.ones(5)
    optimizer.step()
    gone = [weakref.ref(p.grad) for p in params]
    for p in params:
        p.grad = None
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(params)
    assert repeated == [True, True, False]


def test_where_torch_keeps_gradients_is_found() -> None:
    assert find_gradient() is not None
    assert is_possible()


def test_a_step_is_a_range_of_the_profiler() -> None:
    optimizer = TorchOptimizer(parameters(), portopt.SGD(0.1))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        optimizer.step()
    events = [event for event in profiled.events() or () if event.name == "Optimizer.step#TorchOptimizer.step"]
    assert [event.is_user_annotation for event in events] == [True]


class _Own(TorchOptimizer):
    def step(self, closure: Any = None, **inputs: Any) -> Any:
        return super().step(closure, **inputs)


@pytest.mark.parametrize("kind", [TorchOptimizer, _Own])
def test_hooks_run_once(kind: Any) -> None:
    params, seen = parameters(), list[str]()
    optimizer = kind(params, portopt.SGD(0.1))
    handles = [
        torchs.register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append("all, before")),
        torchs.register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append("all, after")),
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("before")),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("after")),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["all, before", "before", "after", "all, after"]
    optimizer.step()
    assert len(seen) == 4
