"""A step of `TorchOptimizer` that is refused has written nothing, in whichever batch the fault lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import portopt
from portopt_torch import TorchOptimizer


class Falling:
    """A schedule that leaves the allowed range, or fails, at a step."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __call__(self, step: Any) -> Any:
        finished = int(getattr(step, "value", step))
        if finished >= 5 and self.fails:
            raise ArithmeticError("the schedule failed")
        return -1.0 if finished >= 5 else 0.1


def snapshot(optimizer: TorchOptimizer) -> list[Any]:
    """Return all that a step writes."""
    held: list[Any] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            entry = optimizer.state[p]
            held += [p.detach().clone(), *(v.clone() if isinstance(v, torch.Tensor) else v for v in entry.values())]
    return held


def assert_untouched(optimizer: TorchOptimizer, before: list[Any]) -> None:
    for now, then in zip(snapshot(optimizer), before, strict=True):
        assert torch.equal(now, then) if isinstance(then, torch.Tensor) else repr(now) == repr(then)


def give_gradients(params: list[Any]) -> None:
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, i + 1.0)


def _state(params: list[Any], optimizer: TorchOptimizer, **changes: Any) -> None:
    optimizer.state[params[-1]].update(changes)


DAMAGES: dict[str, tuple[Callable[[list[Any], TorchOptimizer], object], type[Exception], str]] = {
    "slot replaced by one of another shape": (
        lambda params, o: _state(params, o, m=torch.zeros(7)),
        ValueError,
        r"state.slots\['m'\]\[0\] has shape \(7,\), but params\[0\] has shape \(3,\)",
    ),
    "slot with other data": (
        lambda params, o: setattr(o.state[params[-1]]["m"], "data", torch.zeros(7)),
        ValueError,
        r"state.slots\['m'\]\[0\] has shape \(7,\)",
    ),
    "slot of another dtype": (
        lambda params, o: _state(params, o, v=torch.zeros(3, dtype=torch.float64)),
        TypeError,
        r"state.slots\['v'\]\[0\] has dtype float64",
    ),
    "slot that is no tensor": (
        lambda params, o: _state(params, o, m=[0.0, 0.0, 0.0]),
        TypeError,
        "the state: 'm' must be a tensor, but ",
    ),
    "slot of several parameters": (
        lambda params, o: _state(params, o, m=o.state[params[0]]["m"]),
        ValueError,
        "share memory",
    ),
    "slot that cannot be written": (
        lambda params, o: _state(params, o, m=torch.zeros(1).expand(3)),
        TypeError,
        "is an expanded tensor whose elements share memory",
    ),
    "negative step": (lambda params, o: _state(params, o, step=-3), ValueError, "0 or more, but -3 was given"),
    "half a step": (lambda params, o: _state(params, o, step=1.5), ValueError, "0 or more, but 1.5 was given"),
    "no number of steps": (
        lambda params, o: _state(params, o, step=float("nan")),
        ValueError,
        "0 or more, but nan was given",
    ),
    "no step": (lambda params, o: o.state[params[-1]].pop("step"), ValueError, "has no 'step'"),
    "parameter of another shape": (
        lambda params, o: setattr(params[-1], "data", torch.ones(5)),
        ValueError,
        r"has shape \(3,\), but params\[0\] has shape \(5,\)",
    ),
    "gradient resized where it is": (
        lambda params, o: params[-1].grad.resize_(5),
        ValueError,
        r"grads\[0\] has shape \(5,\), but params\[0\] has shape \(3,\)",
    ),
    "sparse gradient": (
        lambda params, o: setattr(params[-1], "grad", torch.ones(3).to_sparse()),
        TypeError,
        r"the gradient of param_groups\[1\]\['params'\]\[0\] is sparse",
    ),
    "value of the group": (
        lambda params, o: o.param_groups[1].update(lr=float("inf")),
        ValueError,
        r"learning_rate must be in \[0, inf\), but inf",
    ),
}


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_refused_step_has_written_nothing(name: str, steps: int, interpreted: bool) -> None:
    damage, error, message = DAMAGES[name]
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = TorchOptimizer([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], portopt.Adam(0.1))
    for _ in range(steps):
        give_gradients(params)
        optimizer.step()
    give_gradients(params)
    if not steps:
        # A state that has not begun is begun anew where it does not fit.
        for state in optimizer.state.values():
            state["step"] = 2
    damage(params, optimizer)
    before = snapshot(optimizer)

    def attempt() -> None:
        with pytest.raises(error, match=message):
            optimizer.step()

    for _ in range(2):
        if interpreted:
            with portopt.interpreted():
                attempt()
        else:
            attempt()
        assert_untouched(optimizer, before)


@pytest.mark.parametrize(("factor", "of_later"), [(1.0, 0.75), (0.5, 0.75), (0.5, 1.0)])
@pytest.mark.parametrize(("fails", "error"), [(False, ValueError), (True, ArithmeticError)])
@pytest.mark.parametrize("clipnorm", [None, 1.0])
def test_a_schedule_that_fails_for_a_later_batch_stops_all(
    fails: bool, error: type[Exception], clipnorm: float | None, factor: float, of_later: float
) -> None:
    rule = portopt.Adam(Falling(fails), clipnorm=clipnorm)
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = TorchOptimizer([{"params": params[:2], "lr": factor}, {"params": params[2:], "lr": of_later}], rule)
    optimizer.state[params[2]]["step"] = 2
    for _ in range(3):
        give_gradients(params)
        optimizer.step()
    give_gradients(params)
    before = snapshot(optimizer)
    with pytest.raises(error):
        optimizer.step()
    assert_untouched(optimizer, before)


def test_a_refused_step_under_a_grad_scaler_has_written_nothing() -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    give_gradients(params)
    scaler.scale(torch.zeros(()))
    optimizer.state[params[1]]["step"] = -1
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="but -1 was given"):
        scaler.step(optimizer)
    assert_untouched(optimizer, before)


@pytest.mark.parametrize("writes_first", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("make", [lambda: portopt.Nadam(0.1, clipnorm=1.0), lambda: portopt.Adam(Falling(False))])
def test_a_step_that_has_begun_to_write_is_finished_for_all_batches(
    make: Callable[[], portopt.Optimizer], batch: int, writes_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for interrupts in (False, True):
        params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
        groups = [{"params": [p], "lr": 0.5 + i / 4} for i, p in enumerate(params)]
        optimizer = TorchOptimizer(groups, make())
        for _ in range(3):
            give_gradients(params)
            optimizer.step()
        give_gradients(params)
        before = snapshot(optimizer)
        calls: list[int] = []
        apply_ = portopt.Optimizer.apply_

        def interrupted(*args: Any, calls: list[int] = calls, apply_: Any = apply_, **kwargs: Any) -> Any:
            calls.append(len(calls))
            if calls[-1] != batch:
                return apply_(*args, **kwargs)
            if writes_first:
                apply_(*args, **kwargs)
            raise KeyboardInterrupt

        if interrupts:
            with monkeypatch.context() as patch:
                patch.setattr(portopt.Optimizer, "apply_", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    optimizer.step()
            if batch == 0 and not writes_first:
                # Nothing had been written.
                assert_untouched(optimizer, before)
                optimizer.step()
        else:
            optimizer.step()
        give_gradients(params)
        optimizer.step()
        runs.append(optimizer)
    assert_untouched(runs[1], snapshot(runs[0]))


def test_check_step_tells_without_doing() -> None:
    rule, w = portopt.Adam(0.1), torch.ones(3)
    state = rule.init(w)
    for _ in range(4):
        rule.check_step(w, torch.ones(3), state)
        assert torch.equal(w, torch.ones(3))
    with pytest.raises(ValueError, match=r"Adam.apply beta_1 must be in \[0, 1\), but 2.0 was given"):
        rule.check_step(w, torch.ones(3), state, beta_1=2.0)
    with pytest.raises(
        ValueError, match=r"state\.step must be at most 2147483646 before a step, but 2147483647 was given"
    ):
        rule.check_step(w, torch.ones(3), state._replace(step=2**31 - 1))
