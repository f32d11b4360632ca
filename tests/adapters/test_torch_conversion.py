"""Runs of `torch.optim` go on in `TorchOptimizer` and back: groups, options, labels, state, schedulers, state_dicts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import torch_parameters
from support.torch_parameters import give_gradients
from torch import nn
from torch.optim import lr_scheduler

import portopt
import portopt_torch
from portopt.interchange.matching import translations
from portopt_torch import TorchOptimizer
from portopt_torch._translation import VOCABULARY

SHAPES = ((3, 4), (5,), (), (2, 3))


def parameters(dtype: str = "float64") -> list[Any]:
    return torch_parameters.parameters(SHAPES, dtype)


def run(optimizer: Any, params: list[Any], steps: range, schedulers: Any = ()) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def assert_close(name: str, actual: Any, expected: Any) -> None:
    # torch keeps NAdam's product of momenta in float32.
    tolerance = 1e-6 if name == "NAdam" else 1e-12
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


NAMES = [name for name, of in translations(VOCABULARY).items() if of.counterpart.compared]
"""All but Muon, which takes matrices only, and computes in bfloat16: test_translated_shapes has it."""
RUNS: list[Any] = [
    *(pytest.param(name, {}, id=name) for name in NAMES),
    *(pytest.param(name, {"maximize": True}, id=f"{name}, maximize") for name in NAMES),
    *(pytest.param(name, {"weight_decay": 0.1}, id=f"{name}, weight decay") for name in NAMES),
    *(
        pytest.param(name, {"lr": torch.tensor(0.01, dtype=torch.float64)}, id=f"{name}, a tensor as rate")
        for name in NAMES
    ),
    *(pytest.param(name, {"foreach": True}, id=f"{name}, foreach") for name in NAMES),
    pytest.param("SGD", {"momentum": 0.9}, id="momentum"),
    pytest.param("SGD", {"momentum": 0.9, "nesterov": True}, id="nesterov"),
    pytest.param("SGD", {"momentum": 0.9, "dampening": 0.5}, id="dampening"),
    pytest.param("RMSprop", {"centered": True, "momentum": 0.5, "alpha": 0.9}, id="centered"),
    pytest.param("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}, id="lr_decay"),
    pytest.param("Adam", {"amsgrad": True, "betas": (0.8, 0.9), "eps": 1e-3}, id="amsgrad"),
    pytest.param("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1}, id="decoupled"),
    pytest.param("AdamW", {"amsgrad": True, "fused": True}, id="AdamW, amsgrad, fused"),
    pytest.param("NAdam", {"momentum_decay": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1}, id="NAdam"),
]


def groups_of(params: list[Any]) -> list[dict[str, Any]]:
    return [{"params": params[:2], "name": "first"}, {"params": params[2:], "lr": 0.05, "weight_decay": 0.02}]


@pytest.mark.parametrize(("name", "arguments"), RUNS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_run_goes_on_in_portopt_and_back(name: str, arguments: dict[str, Any], before: int) -> None:
    params, others = parameters(), parameters()
    cls = getattr(torch.optim, name)
    native = cls(groups_of(params), **copy.deepcopy(arguments))
    reference = cls(groups_of(others), **copy.deepcopy(arguments))
    with portopt.interpreted():
        run(native, params, range(before))
        optimizer = portopt_torch.from_torch(native)
        run(optimizer, params, range(before, 6))
        again = optimizer.to_torch()
    assert type(again) is cls or (name, type(again)) == ("Adam", torch.optim.AdamW)
    assert [g.get("name") for g in again.param_groups] == ["first", None]
    run(again, params, range(6, 9))
    run(reference, others, range(9))
    assert_close(name, params, others)
    assert {int(s["step"]) for s in optimizer.state.values()} == {
        6 if name != "SGD" or not before else 6 - before + (1 if "momentum" in arguments else 0)
    }
    for group, expected in zip(again.param_groups, reference.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k not in ("params", "foreach", "fused")} == {
            k: v for k, v in expected.items() if k not in ("params", "foreach", "fused")
        }


@pytest.mark.parametrize(("name", "arguments"), RUNS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_state_dict_of_torch_is_loaded(name: str, arguments: dict[str, Any], before: int, tmp_path: Path) -> None:
    params = parameters()
    native = getattr(torch.optim, name)(groups_of(params), **copy.deepcopy(arguments))
    run(native, params, range(before))
    torch.save(native.state_dict(), tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    rule = translations(VOCABULARY)[name].rule
    loaded = TorchOptimizer(groups_of(others), rule(dialect="torch"))
    kept = copy.deepcopy(saved)
    loaded.load_state_dict(saved)
    assert str(saved) == str(kept)
    run(native, params, range(before, 6))
    with portopt.interpreted():
        run(loaded, others, range(before, 6))
    assert_close(name, others, params)


def test_adamw_with_and_without_decay_goes_on_with_its_scheduler() -> None:
    def make() -> tuple[list[Any], Any, Any]:
        params = parameters()
        decay = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
        native = torch.optim.AdamW(decay, lr=0.01)
        return params, native, lr_scheduler.OneCycleLR(native, max_lr=0.1, total_steps=10)

    params, native, scheduler = make()
    others, reference, expected = make()
    run(native, params, range(4), [scheduler])
    with pytest.raises(
        ValueError, match=r"differ in weight_decay, .* portopt_torch.from_torch\(optimizer\) keeps groups"
    ):
        portopt.from_native(native)
    optimizer = portopt_torch.from_torch(native, schedulers=[scheduler])
    run(optimizer, params, range(4, 7), [scheduler])
    again = optimizer.to_torch(schedulers=[scheduler])
    run(again, params, range(7, 9), [scheduler])
    run(reference, others, range(9), [expected])
    assert_close("AdamW", params, others)
    assert again.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, 0.5)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, anneal_epochs=6),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_schedulers_go_on_where_they_are(name: str, before: int) -> None:
    params, others = parameters(), parameters()
    native, reference = (torch.optim.Adam(groups_of(tensors), lr=0.1) for tensors in (params, others))
    scheduler, expected = SCHEDULERS[name](native), SCHEDULERS[name](reference)

    def go(optimizer: Any, tensors: list[Any], steps: range, which: Any) -> None:
        for step in steps:
            run(optimizer, tensors, range(step, step + 1))
            which.step(*[1.0] if name == "ReduceLROnPlateau" else [])

    go(native, params, range(before), scheduler)
    optimizer = portopt_torch.from_torch(native, schedulers=iter([scheduler]))
    left = [group["lr"] for group in native.param_groups]
    with portopt.interpreted():
        go(optimizer, params, range(before, 7), scheduler)
    go(reference, others, range(7), expected)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in reference.param_groups]
    assert [g["lr"] for g in native.param_groups] == left
    assert_close("Adam", params, others)


def test_a_scheduler_that_is_left_behind_is_told() -> None:
    params = parameters()
    native = torch.optim.Adam(params, lr=0.1)
    scheduler = lr_scheduler.StepLR(native, 1)
    run(native, params, range(1), [scheduler])
    with pytest.warns(UserWarning, match=r"a scheduler has set the learning rate of this Adam, .* schedulers=\[...\]"):
        portopt_torch.from_torch(native)
    portopt_torch.from_torch(native, schedulers=())
    with pytest.raises(ValueError, match="schedulers must be schedulers of the SGD that is converted"):
        portopt_torch.from_torch(torch.optim.SGD(params), schedulers=[scheduler])
    assert scheduler.optimizer is native


def test_from_native_says_that_a_scheduled_rate_becomes_constant() -> None:
    params = parameters()
    native = torch.optim.Adam(params, lr=0.1)
    scheduler = lr_scheduler.StepLR(native, 1, 0.5)
    run(native, params, range(1), [scheduler])
    with pytest.warns(
        UserWarning, match=r"a scheduler sets the learning rate of this Adam .*from_torch.* give learning_rate"
    ):
        opt, _ = portopt.from_native(native)
    assert opt.learning_rate == 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert portopt.from_native(native, learning_rate=0.05)[0].learning_rate == 0.05
        assert portopt.from_native(native, lr=0.05)[0].learning_rate == 0.05
        schedule = portopt.schedules.ExponentialDecay(0.1, 1, 0.5)
        assert portopt.from_native(native, learning_rate=schedule)[0].learning_rate == schedule


def test_narrow_slots_of_torch_are_widened() -> None:
    params = parameters("bfloat16")
    native = torch.optim.Adam(params, lr=0.1)
    run(native, params, range(2))
    optimizer = portopt_torch.from_torch(native)
    assert {optimizer.state[p]["m"].dtype for p in params} == {torch.float32}
    narrow = portopt_torch.from_torch(native, slot_dtype="bfloat16")
    assert {narrow.state[p]["m"].dtype for p in params} == {torch.bfloat16}
    again: Any = optimizer.to_torch()
    assert {again.state[p]["exp_avg"].dtype for p in params} == {torch.bfloat16}
    run(again, params, range(2, 3))


def test_the_given_optimizer_stays_as_it_is() -> None:
    params = parameters()
    native = torch.optim.Adam(params, lr=torch.tensor(0.1))
    run(native, params, range(2))
    before = copy.deepcopy(native.state_dict())
    optimizer = portopt_torch.from_torch(native)
    run(optimizer, params, range(2, 4))
    optimizer.param_groups[0]["lr"].fill_(0.5)
    torch.testing.assert_close(native.state_dict(), before, rtol=0, atol=0)


def test_parameters_that_have_made_no_step_begin_anew() -> None:
    params, others = parameters(), parameters()
    native, reference = (torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5) for p in (params, others))
    run(native, params[:2], range(2))
    run(reference, others[:2], range(2))
    optimizer = portopt_torch.from_torch(native)
    run(optimizer, params, range(2, 4))
    run(reference, others, range(2, 4))
    assert_close("SGD", params, others)


def _scheduled() -> TorchOptimizer:
    schedule = portopt.schedules.Constant(0.1)
    return TorchOptimizer(parameters(), portopt.Adam(schedule, dialect="torch"))


def wrong(value: Any) -> Any:
    """Return a value that the type checker does not look at."""
    return value


class OwnAdam(torch.optim.Adam):
    """A class of a user's, which may compute anything."""


OwnAdam.__name__ = "Adam"


def _loaded(rule: portopt.Optimizer, native: Any, steps: int = 1) -> None:
    run(native, native.param_groups[0]["params"], range(steps))
    TorchOptimizer(parameters(), rule).load_state_dict(native.state_dict())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: portopt_torch.from_torch(wrong("adam")),
            TypeError,
            "takes an optimizer of torch.optim, but str was given",
        ),
        (
            lambda: portopt_torch.from_torch(torch.optim.RAdam(parameters())),
            ValueError,
            "no counterpart of torch.optim.*RAdam",
        ),
        (
            lambda: portopt_torch.from_torch(OwnAdam(parameters())),
            ValueError,
            "no counterpart of .*OwnAdam; translated are SGD,",
        ),
        (
            lambda: portopt.from_native(OwnAdam(parameters())),
            ValueError,
            "no counterpart of .*OwnAdam; translated are SGD,",
        ),
        (
            lambda: portopt_torch.from_torch(torch.optim.Adam(parameters(), capturable=True)),
            ValueError,
            "capturable=True is for arrays on a CUDA device",
        ),
        (
            lambda: portopt_torch.from_torch(torch.optim.Adam(parameters(), differentiable=True)),
            ValueError,
            "no counterpart of differentiable=True of Adam",
        ),
        (
            lambda: TorchOptimizer(parameters(), portopt.Adam()).to_torch(),
            ValueError,
            "no counterpart of Adam in the dialect 'keras2'.*; in the dialect 'torch' it has",
        ),
        (
            lambda: TorchOptimizer(parameters(), portopt.Adam(dialect="torch", clipnorm=1.0)).to_torch(),
            ValueError,
            r"no counterpart of clipnorm=1.0 in param_groups\[0\]: set it to None, and clip with .*clip_grad_norm_",
        ),
        (lambda: _scheduled().to_torch(), ValueError, "torch.optim.Adam has no counterpart of the schedule Constant"),
        (
            lambda: _loaded(portopt.Adam(), torch.optim.Adam(parameters())),
            ValueError,
            "is a state_dict of torch.optim, but .* dialect 'keras2'.* see also portopt_torch.from_torch",
        ),
        (
            lambda: _loaded(portopt.Adam(dialect="torch"), torch.optim.Adamax(parameters())),
            ValueError,
            r"param_groups\[0\] of the state_dict lacks amsgrad, which those of torch.optim.Adam have",
        ),
        (
            lambda: _loaded(portopt.Adamax(dialect="torch"), torch.optim.Adam(parameters())),
            ValueError,
            "has exp_avg_sq, which no state of torch.optim.Adamax has",
        ),
        (
            lambda: _loaded(portopt.Adam(dialect="torch"), torch.optim.NAdam(parameters())),
            ValueError,
            "lacks amsgrad",
        ),
        (
            lambda: _loaded(portopt.RMSprop(dialect="torch"), torch.optim.SGD(parameters(), momentum=0.9), 0),
            ValueError,
            "lacks alpha, centered, eps",
        ),
    ],
)
def test_what_cannot_be_converted_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
