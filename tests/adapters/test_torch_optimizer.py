"""`TorchOptimizer`: the bits of `apply_`, under everything that torch does with an optimizer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import torch_parameters
from support.processes import run_python
from support.torch_parameters import TORCH, assert_same, copies, give_gradients
from support.turns import in_turn, in_turns
from torch import nn
from torch.optim import lr_scheduler

import portopt
from portopt import schedules
from portopt_torch import TorchOptimizer

SHAPES = ((3, 4), (5,), (), (2, 1, 3))


class Lion(portopt.Optimizer):
    """A user's rule."""

    slots = ("momentum_of_g",)

    learning_rate: Any = portopt.hyperparameter(default=0.01, at_least=0, kw_only=False)
    beta_1: float = portopt.hyperparameter(default=0.9, at_least=0, below=1)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        mean = self.beta_1 * slots.momentum_of_g + (1 - self.beta_1) * g
        return p - c.lr * xp.sign(mean), {"momentum_of_g": mean}


def parameters(dtype: str = "float32", seed: int = 0, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Any]:
    return torch_parameters.parameters(shapes, dtype, seed)


def assert_same_state(optimizer: TorchOptimizer, params: list[Any], state: portopt.OptimizerState) -> None:
    for i, p in enumerate(params):
        held = optimizer.state[p]
        assert held["step"] == state.step
        for name, tree in state.slots.items():
            if isinstance(tree, float):
                assert held[name] == tree
            elif tree[i] is None:
                assert name not in held
            else:
                assert_same([held[name]], [tree[i]])


def run(optimizer: torch.optim.Optimizer, params: list[Any], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


# The same bits as apply_

RULES: Mapping[str, Callable[[], portopt.Optimizer]] = {
    **{rule.__name__: rule for rule in portopt.RULES},
    "amsgrad, clipped": lambda: portopt.Adam(0.1, amsgrad=True, decay=0.1, clipnorm=0.5),
    "nesterov, clipped": lambda: portopt.SGD(0.1, momentum=0.9, nesterov=True, clipvalue=0.5),
    "scheduled": lambda: portopt.RMSprop(schedules.ExponentialDecay(0.1, 2, 0.5)),
    "a user's": lambda: Lion(0.1, clipnorm=1.0),
}
DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize(("name", "dtype"), in_turns(in_turn(list(RULES), 0, 2), DTYPES, in_all=("Adam", "LAMB")))
def test_steps_have_the_bits_of_apply_(name: str, dtype: str) -> None:
    params, make = parameters(dtype), RULES[name]
    expected, rule = copies(params), make()
    state = rule.init(expected)
    optimizer = TorchOptimizer(params, make())
    for step in range(4):
        gradients = give_gradients(params, step)
        optimizer.step()
        state = rule.apply_(expected, gradients, state)
    assert_same(params, expected)
    assert_same_state(optimizer, params, state)


def test_parameters_of_several_dtypes_are_clipped_together() -> None:
    params = [*parameters("float32"), *parameters("bfloat16", 10), *parameters("float64", 20)]
    expected, rule = copies(params), portopt.Nadam(0.1, clipnorm=0.5)
    state = rule.init(expected)
    optimizer = TorchOptimizer(params, rule)
    for step in range(4):
        state = rule.apply_(expected, give_gradients(params, step), state)
        optimizer.step()
    assert_same(params, expected)


def test_slots_may_be_narrow() -> None:
    params = parameters()
    rule = portopt.Adam(0.1)
    expected = copies(params)
    state = rule.init(expected, slot_dtype="bfloat16")
    optimizer = TorchOptimizer(params, rule, slot_dtype="bfloat16")
    for step in range(3):
        state = rule.apply_(expected, give_gradients(params, step), state)
        optimizer.step()
    assert_same_state(optimizer, params, state)
    assert_same(params, expected)


def test_only_portopt_optimizers_are_taken() -> None:
    with pytest.raises(
        TypeError, match=r"takes a portopt optimizer, such as portopt.Adam\(\) or .* but 'adam' of type str"
    ):
        TorchOptimizer(parameters(), "adam")  # type: ignore[arg-type]  # what is tested


def test_importing_portopt_torch_does_not_import_torch() -> None:
    code = "import portopt_torch, sys; assert 'torch' not in sys.modules; portopt_torch.TorchOptimizer; sys.modules['torch']"
    run_python(code)


# Parameter groups


def test_groups_have_their_own_hyperparameters_and_are_clipped_together() -> None:
    first, second, third = (parameters(seed=seed) for seed in (0, 10, 20))
    rule = portopt.Adam(0.1, clipnorm=0.5)
    optimizer = TorchOptimizer(
        [
            {"params": first, "lr": 0.2, "betas": (0.8, 0.99)},
            {"params": second, "learning_rate": 0.3, "beta_2": 0.5, "epsilon": 1e-3, "decay": 0.1},
            {"params": third, "clipnorm": None, "clipvalue": 0.01, "name": "a label"},
        ],
        rule,
    )
    changes: list[dict[str, Any]] = [
        {"learning_rate": 0.2, "beta_1": 0.8, "beta_2": 0.99},
        {"learning_rate": 0.3, "beta_2": 0.5, "epsilon": 1e-3, "decay": 0.1},
        {"clipnorm": None, "clipvalue": 0.01},
    ]
    groups = [first, second, third]
    expected = [copies(group) for group in groups]
    states = [rule.init(group) for group in expected]
    for step in range(3):
        gradients = [give_gradients(group, 10 * step + i) for i, group in enumerate(groups)]
        norm = TORCH.backend.gradient_norm([g for group in gradients for g in group])
        for i, group in enumerate(expected):
            alone = rule.replace(**changes[i])
            states[i] = alone.apply_(group, gradients[i], states[i], gradient_norm=norm)
        optimizer.step()
    for i, group in enumerate(groups):
        assert_same(group, expected[i])
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.5)
    assert set(optimizer.param_groups[0]) == {"params", "lr", "betas", "epsilon", "decay", "clipnorm", "clipvalue"}


def test_a_changed_group_changes_the_next_step() -> None:
    params = parameters()
    rule, expected = portopt.SGD(0.1, momentum=0.9), copies(params)
    state = rule.init(expected)
    optimizer = TorchOptimizer(params, rule)
    group = optimizer.param_groups[0]
    rate = torch.tensor(0.25)
    values: list[tuple[Any, float]] = [(0.1, 0.9), (0.2, 0.9), (rate, 0.5), (rate, 0.0)]
    for step, (lr, momentum) in enumerate(values):
        group["lr"], group["momentum"] = lr, momentum
        state = rule.apply_(expected, give_gradients(params, step), state, learning_rate=float(lr), momentum=momentum)
        optimizer.step()
    # Schedulers fill a tensor in place.
    rate.fill_(0.5)
    state = rule.apply_(expected, give_gradients(params, 9), state, learning_rate=0.5, momentum=0.0)
    optimizer.step()
    assert_same(params, expected)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"SGD learning_rate must be in \[0, inf\), but -1.0 was given"),
        ({"momentum": 2}, ValueError, r"SGD momentum must be in \[0, 1\], but 2 was given"),
        ({"lr": 0.1, "learning_rate": 0.1}, TypeError, "given lr and learning_rate at once.* give only one"),
        ({"weight_decay": 0.1}, TypeError, "'weight_decay', which is no hyperparameter of SGD; allowed are lr, "),
        ({"lr_decay": 0.1}, TypeError, "'lr_decay', which is no hyperparameter of SGD; its name here is 'decay'"),
        (
            {"dialect": "torch"},
            TypeError,
            "dialect='torch', but 'dialect' is fixed when SGD is constructed, here as 'keras2'",
        ),
        ({"lr": schedules.Constant(0.1)}, TypeError, "schedule Constant.* as lr: give the schedule to the optimizer"),
    ],
)
def test_a_group_that_cannot_be_honoured_is_refused(
    entries: dict[str, Any], error: type[Exception], message: str
) -> None:
    optimizer = TorchOptimizer(parameters(), portopt.SGD())
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": parameters(seed=10), **entries})
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.state) == len(SHAPES)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"lr": float("nan")}, ValueError, r"Adam learning_rate must be in \[0, inf\), but nan was given"),
        (
            {"betas": (0.9,)},
            ValueError,
            r"betas of a parameter group must be 2 numbers, \(beta_1, beta_2\), but \(0.9,\)",
        ),
        ({"betas": 0.9}, ValueError, r"must be 2 numbers, \(beta_1, beta_2\), but 0.9 was given"),
        ({"betas": (0.9, 1.0)}, ValueError, r"Adam beta_2 must be in \[0, 1\), but 1.0 was given"),
        ({"beta_1": 0.5}, TypeError, r"holds 'beta_1' as 'betas': set group\['betas'\] instead"),
        ({"learning_rate": 0.5}, TypeError, r"holds 'learning_rate' as 'lr': set group\['lr'\] instead"),
        ({"eps": 1e-3}, TypeError, "'eps', which is no hyperparameter of Adam; its name here is 'epsilon'"),
    ],
)
def test_a_wrong_value_in_a_later_group_changes_nothing(
    entries: dict[str, Any], error: type[Exception], message: str
) -> None:
    first, second = parameters(), parameters(seed=10)
    optimizer = TorchOptimizer([{"params": first}, {"params": second}], portopt.Adam())
    run(optimizer, first + second, range(2))
    before = copies(first + second)
    optimizer.param_groups[1].update(entries)
    give_gradients(first + second, 3)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_same(first + second, before)
    assert {state["step"] for state in optimizer.state.values()} == {2}


class HeavyBall(portopt.Optimizer):
    """A rule that has a slot only if it is constructed with momentum."""

    momentum: float = portopt.hyperparameter(default=0.0, at_least=0, below=1, off=0.0)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on a hyperparameter
        return ("velocity",) if self.momentum else ()

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        if not self.momentum:
            return p - c.lr * g, {}
        velocity = self.momentum * slots.velocity + g
        return p - c.lr * velocity, {"velocity": velocity}


def test_a_feature_whose_slot_is_lacking_is_refused_before_anything_is_changed() -> None:
    params = parameters()
    optimizer = TorchOptimizer([{"params": params[:2]}, {"params": params[2:]}], HeavyBall())
    run(optimizer, params, range(2))
    before = copies(params)
    optimizer.param_groups[1]["momentum"] = 0.5
    with pytest.raises(
        ValueError, match=r"momentum=0.5, for which HeavyBall needs the slot velocity, .* cycle_momentum=False"
    ):
        optimizer.step()
    assert_same(params, before)


def test_the_torch_dialect_has_torchs_formula_and_its_weight_decay_in_groups() -> None:
    params, others = parameters("float64"), parameters("float64")
    rule = portopt.Adam(0.1, dialect="torch", weight_decay=0.1)

    def groups(tensors: list[Any]) -> list[dict[str, Any]]:
        return [{"params": tensors[:2]}, {"params": tensors[2:], "weight_decay": 0.0}]

    optimizer = TorchOptimizer(groups(params), rule)
    native = torch.optim.Adam(groups(others), 0.1, weight_decay=0.1)
    for step in range(5):
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        native.step()
    for p, q in zip(params, others, strict=True):
        # torch's root on the CPU is not correctly rounded, and it rounds in another order.
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_options_of_the_rule_may_stand_in_a_group() -> None:
    TorchOptimizer([{"params": parameters(), "nesterov": True}], portopt.SGD(nesterov=True))


def test_a_group_added_later_begins_at_step_one() -> None:
    first, second = parameters(), parameters(seed=10)
    rule = portopt.Nadam(0.1)
    optimizer = TorchOptimizer(first, rule)
    run(optimizer, first, range(2))
    optimizer.add_param_group({"params": second, "lr": 0.2})
    expected, other = copies(first), copies(second)
    state = portopt.OptimizerState(
        2, {"m_schedule": optimizer.state[first[0]]["m_schedule"], **_slots(optimizer, first)}
    )
    fresh = rule.init(other)
    for step in range(2, 5):
        gradients = give_gradients(first, step), give_gradients(second, step + 50)
        optimizer.step()
        state = rule.apply_(expected, gradients[0], state)
        fresh = rule.apply_(other, gradients[1], fresh, learning_rate=0.2)
    assert_same(first + second, expected + other)
    assert {optimizer.state[p]["step"] for p in second} == {3}


def _slots(optimizer: TorchOptimizer, params: list[Any]) -> dict[str, Any]:
    return {n: [optimizer.state[p][n].clone() for p in params] for n in optimizer.rule.slots}


def test_a_group_of_an_unsupported_dtype_is_refused_and_forgotten() -> None:
    optimizer = TorchOptimizer(parameters(), portopt.Adam())
    with pytest.raises(TypeError, match="has dtype complex64; parameters must be of dtype"):
        optimizer.add_param_group({"params": nn.Parameter(torch.ones(2, dtype=torch.complex64))})
    assert len(optimizer.param_groups) == 1


# Gradients


def test_a_parameter_without_gradient_stands_still_and_counts_no_step() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))
    rules = [portopt.Adam(0.1) for _ in params]
    expected = copies(params)
    states = [rule.init([p]) for rule, p in zip(rules, expected, strict=True)]
    for step in range(6):
        gradients = give_gradients(params, step)
        for i, p in enumerate(params):
            if (step + i) % 3 == 0:
                p.grad = None
            else:
                states[i] = rules[i].apply_([expected[i]], [gradients[i]], states[i])
        optimizer.step()
    assert_same(params, expected)
    assert [optimizer.state[p]["step"] for p in params] == [4, 4, 4, 4]
    optimizer.zero_grad()
    optimizer.step()
    assert_same(params, expected)


def test_a_parameter_that_was_frozen_joins_when_it_has_a_gradient() -> None:
    params = parameters()
    params[1].requires_grad_(False)
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))
    assert params[1] not in optimizer.state
    params[1].requires_grad_(True)
    run(optimizer, params, range(2))
    assert optimizer.state[params[1]]["step"] == 2


def test_sparse_gradients_are_refused() -> None:
    embedding, layer = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)
    named = [*layer.named_parameters(), *embedding.named_parameters(prefix="embedding")]
    optimizer = TorchOptimizer(named, portopt.Adam())
    layer(embedding(torch.tensor([1, 2]))).sum().backward()
    before = copies([p for _, p in named])
    with pytest.raises(
        TypeError,
        match=r"the gradient of param_groups\[0\]\['params'\]\[2\] \(embedding.weight\) is sparse, .* but Adam updates every "
        r"element: make the layer with sparse=False, or set p.grad = p.grad.to_dense\(\)",
    ):
        optimizer.step()
    assert_same([p for _, p in named], before)
    gradient = embedding.weight.grad
    assert gradient is not None
    embedding.weight.grad = gradient.to_dense()
    optimizer.step()


def test_gradients_that_are_no_floats_are_refused() -> None:
    params = parameters("bfloat16")
    optimizer = TorchOptimizer(params, portopt.Adam())
    give_gradients(params, 0)
    params[2].grad = None
    params[2].grad_dtype = torch.complex64
    params[2].grad = torch.ones((), dtype=torch.complex64)
    with pytest.raises(
        TypeError, match=r"\[2\] has dtype torch.complex64; allowed are float16, bfloat16, float32, float64"
    ):
        optimizer.step()


# Schedulers

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (k + 1)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_tried() -> None:
    known = {
        name
        for module in (lr_scheduler, torch.optim.swa_utils)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert set(SCHEDULERS) == known - {"LRScheduler"}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    ("make", "make_native", "overrides"),
    [
        pytest.param(
            lambda: portopt.Adam(0.05),
            lambda params: torch.optim.Adam(params, 0.05),
            lambda group: {"beta_1": group["betas"][0], "beta_2": group["betas"][1]},
            id="betas",
        ),
        pytest.param(
            lambda: portopt.SGD(0.05, momentum=0.9),
            lambda params: torch.optim.SGD(params, 0.05, momentum=0.9),
            lambda group: {"momentum": group["momentum"]},
            id="momentum",
        ),
    ],
)
def test_schedulers_set_what_they_set_in_torchs_own_optimizers(
    name: str, make: Callable[[], portopt.Optimizer], make_native: Any, overrides: Any
) -> None:
    params, others = parameters(), parameters()
    optimizer, native, rule = TorchOptimizer(params, make()), make_native(others), make()
    expected = copies(params)
    state = rule.init(expected)
    scheduler, native_scheduler = SCHEDULERS[name](optimizer), SCHEDULERS[name](native)
    rates = set()
    for step in range(6):
        gradients = give_gradients(params, step)
        give_gradients(others, step)
        group = native.param_groups[0]
        assert optimizer.param_groups[0]["lr"] == group["lr"]
        rates.add(group["lr"])
        state = rule.apply_(expected, gradients, state, learning_rate=group["lr"], **overrides(group))
        for o, s in ((optimizer, scheduler), (native, native_scheduler)):
            o.step()
            s.step(*[1.0] if name == "ReduceLROnPlateau" else [])
    assert len(rates) > 1
    assert_same(params, expected)


def test_a_scheduler_scales_a_schedule() -> None:
    schedule = schedules.InverseTimeDecay(0.1, 2, 0.5)
    params = parameters()
    rule, expected = portopt.RMSprop(schedule), copies(params)
    state = rule.init(expected)
    optimizer = TorchOptimizer(params, portopt.RMSprop(schedule))
    scheduler = lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for step in range(5):
        factor = optimizer.param_groups[0]["lr"]
        assert factor == 0.5 ** (step // 2)
        state = rule.apply_(expected, give_gradients(params, step), state, learning_rate=factor * schedule(step))
        optimizer.step()
        scheduler.step()
    assert_same(params, expected)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr, a factor on the schedule, must be in \[0, inf\), but -1.0 was given"):
        optimizer.step()


# state_dict


def test_state_dict_is_exact_for_narrow_parameters(tmp_path: Path) -> None:
    params = parameters("bfloat16")
    optimizer = TorchOptimizer([{"params": params[:2], "lr": 0.2}, {"params": params[2:]}], portopt.Nadam(0.1))
    run(optimizer, params, range(3))
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)

    others = saved["params"]
    loaded = TorchOptimizer([{"params": others[:2]}, {"params": others[2:]}], portopt.Nadam(0.5))
    loaded.load_state_dict(saved["optimizer"])
    assert loaded.state[others[0]]["m"].dtype is torch.float32
    assert loaded.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    run(optimizer, params, range(3, 6))
    run(loaded, others, range(3, 6))
    assert_same(others, params)
    for p, q in zip(params, others, strict=True):
        assert_same_state(
            loaded,
            [q],
            portopt.OptimizerState(
                6, {n: [v] if n != "m_schedule" else v for n, v in optimizer.state[p].items() if n != "step"}
            ),
        )


def test_a_loaded_state_dict_is_not_written_to() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))
    run(optimizer, params, range(2))
    saved, start = copy.deepcopy(optimizer.state_dict()), copies(params)
    ends = []
    for _ in range(2):
        optimizer.load_state_dict(saved)
        with torch.no_grad():
            for p, value in zip(params, start, strict=True):
                p.copy_(value)
        run(optimizer, params, range(2, 4))
        ends.append(copies(params))
    assert_same(*ends)
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, params, range(4, 6))


def test_hooks_run_and_see_plain_dicts() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))
    seen: list[str] = []

    def rename(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        seen.append("load, before")
        states = {k: {"step": v["count"], "m": v["m"], "v": v["v"]} for k, v in state_dict["state"].items()}
        return {**state_dict, "state": states}

    def count(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        seen.append("state_dict, after")
        states = {k: {"count": v["step"], "m": v["m"], "v": v["v"]} for k, v in state_dict["state"].items()}
        return {**state_dict, "state": states}

    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("step, before"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("step, after"))
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("state_dict, before"))
    optimizer.register_state_dict_post_hook(count)
    optimizer.register_load_state_dict_pre_hook(rename)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(f"load, after: {o.state[params[0]]['step']}"))
    run(optimizer, params, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [
        *("step, before", "step, after", "state_dict, before", "state_dict, after"),
        *("load, before", "load, after: 1"),
    ]


def _replaced(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["state"][1].update({key: value})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            _replaced("step", 1.5),
            ValueError,
            r"state\[1\] of the state_dict: 'step' must be a number of finished .* 1.5",
        ),
        (_replaced("step", -1), ValueError, "'step' must be a number of finished steps, 0 or more, but -1 was given"),
        (
            _replaced("exp_avg", 0),
            ValueError,
            "has exp_avg, m, step, v, but Adam with these options has m, step, v: load",
        ),
        (_replaced("m", 0), TypeError, "'m' must be a tensor, but 0 of type int was given"),
        (_replaced("m", torch.ones(4)), ValueError, r"'m' has shape \(4,\), but its parameter has \(5,\)"),
        (
            _replaced("m", torch.ones(5).double()),
            TypeError,
            "torch.float64, but slots of a torch.float32 parameter are float32",
        ),
        (
            lambda s: s["param_groups"][0].update(weight_decay=0.1),
            TypeError,
            "'weight_decay', which is no hyperparameter",
        ),
        (lambda s: s["param_groups"].pop(), ValueError, "different number of parameter groups"),
        (lambda s: s["param_groups"][0]["params"].pop(), ValueError, "doesn't match the size of optimizer's group"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(
    damage: Callable[[dict[str, Any]], object], error: type[Exception], message: str
) -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))
    run(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    damage(saved)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    for i, p in enumerate(params):
        assert optimizer.state[p]["step"] == 2
        assert_same([optimizer.state[p]["m"]], [before["state"][i]["m"]])


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_by_itself(how: Callable[[Any], Any]) -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Nadam(0.1, clipnorm=1.0))
    lr_scheduler.StepLR(optimizer, 5)
    run(optimizer, params, range(2))
    others, other = how((params, optimizer))
    assert other.rule == optimizer.rule
    run(other, others, range(2, 4))
    run(optimizer, params, range(2, 4))
    assert_same(others, params)
    other.add_param_group({"params": parameters(seed=10)})
    assert len(optimizer.param_groups) == 1


def test_edits_of_the_state_are_seen() -> None:
    params = parameters()
    rule = portopt.SGD(0.1, momentum=0.9)
    optimizer = TorchOptimizer(params, rule)
    run(optimizer, params, range(3))
    expected = copies(params)

    def assert_next_step_uses_the_state(step: int) -> None:
        state = portopt.OptimizerState(3, _slots(optimizer, params))
        rule.apply_(expected, give_gradients(params, step), state)
        optimizer.step()
        assert_same(params, expected)

    optimizer.state[params[0]]["moment"].zero_()
    optimizer.state[params[1]]["moment"] = torch.ones(5)
    assert_next_step_uses_the_state(3)
    optimizer.state[params[2]] = {"step": 7, "moment": torch.tensor(2.0)}
    assert_next_step_uses_the_state(4)
    assert [optimizer.state[p]["step"] for p in params] == [5, 5, 8, 5]
    optimizer.state.clear()
    run(optimizer, params, range(5, 6))
    assert {optimizer.state[p]["step"] for p in params} == {1}


def test_a_model_may_be_converted_before_the_first_step() -> None:
    layer = nn.Linear(2, 2)
    optimizer = TorchOptimizer(layer.parameters(), portopt.Adam())
    layer.double()
    layer(torch.ones(2, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert optimizer.state[layer.weight]["m"].dtype is torch.float64


def test_a_distributed_checkpoint_does_not_count_a_step() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    layer = nn.Linear(2, 2)
    optimizer = TorchOptimizer(layer.parameters(), portopt.Adam())
    before = copies(list(layer.parameters()))
    saved: Any = get_optimizer_state_dict(layer, optimizer)
    assert saved["state"]["weight"]["step"] == 0
    assert_same(list(layer.parameters()), before)
    set_optimizer_state_dict(layer, optimizer, saved)
    assert {state["step"] for state in optimizer.state.values()} == {0}


# Training loops


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        assert first.requires_grad
        assert optimizer.step(closure) < first


def test_autograd_notices_the_change() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = TorchOptimizer([p], portopt.SGD(0.1))
    loss: Any = p.square().sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_scaler_skips_a_step_that_overflowed() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam(0.1, clipnorm=1.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    rule, expected = portopt.Adam(0.1, clipnorm=1.0), copies(params)
    state = rule.init(expected)
    for step in range(3):
        gradients = give_gradients(params, step)
        # Powers of two: exact.
        unscaled = [g.clone() for g in gradients]
        torch._foreach_mul_(gradients, scaler.get_scale())
        scaler.scale(torch.zeros(()))
        if step == 1:
            gradients[0][0, 0] = float("inf")
        else:
            state = rule.apply_(expected, unscaled, state)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0
    assert_same(params, expected)
    assert {state["step"] for state in optimizer.state.values()} == {2}


def test_torchs_clipping_comes_first() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.SGD(0.1))
    expected, gradients = copies(params), give_gradients(params, 0)
    nn.utils.clip_grad_norm_(params, 0.1)
    rule = portopt.SGD(0.1)
    rule.apply_(expected, gradients, rule.init(expected))
    optimizer.step()
    assert_same(params, expected)


def test_a_compiled_training_step_leaves_the_optimizer_as_it_is() -> None:
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [TorchOptimizer(layer.parameters(), portopt.Adam(0.1, clipnorm=0.1)) for layer in layers]

    def train(layer: nn.Module, optimizer: TorchOptimizer) -> None:
        optimizer.zero_grad()
        layer(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()

    # The eager backend of torch.compile traces, and computes as usual.
    compiled = torch.compile(train, backend="eager")
    for _ in range(3):
        train(layers[0], optimizers[0])
        compiled(layers[1], optimizers[1])
    assert_same(list(layers[1].parameters()), list(layers[0].parameters()))


def test_groups_that_share_memory_are_refused_before_anything_moves() -> None:
    memory = torch.arange(6.0)
    first, second = (torch.nn.Parameter(part) for part in (memory[:4], memory[2:]))
    optimizer = TorchOptimizer([{"params": [first]}, {"params": [second], "lr": 0.5}], portopt.Adam(0.1))
    first.grad, second.grad = torch.ones(4), torch.ones(4)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"params\[0\] and params\[1\] share memory"):
            optimizer.step()
    assert memory.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert optimizer.state[first]["step"] == 0
