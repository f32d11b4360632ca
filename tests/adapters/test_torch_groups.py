"""What a parameter group may set: every hyperparameter that the rule declares, under its own name or torch's."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support import torch_parameters
from support.processes import run_python
from support.torch_parameters import TORCH, assert_same, copies, give_gradients
from torch import nn
from torch.optim import lr_scheduler

import portopt
from portopt.interchange.matching import translations
from portopt_torch import TorchOptimizer
from portopt_torch._translation import VOCABULARY

SHAPES = ((3, 4), (5,), ())
OF_ANY_SHAPE = [c for c in translations(VOCABULARY).values() if c.counterpart.compared]
"""All but Muon, which takes matrices only; test_translated_shapes has it."""


def parameters(seed: int = 0, dtype: str = "float64") -> list[Any]:
    return torch_parameters.parameters(SHAPES, dtype, seed)


def others_of(rule: portopt.Optimizer) -> dict[str, Any]:
    """Return another value of every hyperparameter that a rule has in its dialect, as its constructor takes it."""
    values: dict[str, Any] = {}
    for name, default in rule.defaults(getattr(rule, "dialect", None)).items():
        if name == "dialect":
            continue
        field = rule.hyperparameters(getattr(rule, "dialect", None))[name]
        if isinstance(default, bool):
            values[name] = not default
        elif field.choices:
            values[name] = next(choice for choice in field.choices if choice != default)
        else:
            allowed = field.range or ()
            values[name] = next(x for x in (0.25, 0.5, 1.25, -0.25, 2.0) if x in allowed and x != default)
    return values


_EVERY = [
    (rule, dialect, name, value)
    for rule in portopt.RULES
    if not rule.inputs  # without its input, a rule may not show what a hyperparameter does
    for dialect in rule.dialects()
    for name, value in others_of(rule(dialect=dialect)).items()
    # Gradients that shrink make no step of Adafactor that is clipped.
    if (rule.__name__, name) != ("Adafactor", "clip_threshold")
    and rule.totals is None
    # How an array of more than two axes is a matrix: there is none among the parameters.
    and (rule.__name__, name) != ("Muon", "matrices")
]
_DIALECTS: dict[tuple[str, str], list[Any]] = {}
for case in _EVERY:
    _DIALECTS.setdefault((case[0].__name__, case[2]), []).append(case)
CASES = [
    pytest.param(*cases[i % len(cases)], id=f"{rule}-{cases[i % len(cases)][1]}-{name}")
    for i, ((rule, name), cases) in enumerate(_DIALECTS.items())
]
"""Every hyperparameter of every rule, in one of the dialects that have it, in turns."""
NEEDED: Mapping[tuple[str, ...], dict[str, Any]] = {
    # What a value needs beside it to be allowed, or to matter, in all dialects or in one.
    ("SGD", "nesterov"): {"momentum": 0.5},
    ("SGD", "dampening"): {"momentum": 0.5},
    ("RMSprop", "nesterov"): {"momentum": 0.5},
    ("Adam", "decoupled_weight_decay"): {"weight_decay": 0.1},
    ("Nadam", "decoupled_weight_decay"): {"weight_decay": 0.1},
    ("NovoGrad", "decoupled_weight_decay"): {"weight_decay": 0.1},
    ("Adafactor", "factored"): {"min_dim_size_to_factor": 2.0},
    ("LARS", "clipnorm"): {"epsilon": 0.5},
    ("LARS", "dampening"): {"momentum": 0.5},
    ("LARS", "torch", "nesterov"): {"momentum": 0.5},
    ("LARS", "torch", "trust_coefficient"): {"always_adapt": True},
    ("LARS", "torch", "epsilon"): {"always_adapt": True},
    ("LARS", "trust_clip"): {"always_adapt": True, "learning_rate": 0.5},
}


@pytest.mark.parametrize(("rule", "dialect", "name", "value"), CASES)
def test_every_hyperparameter_of_a_rule_is_honoured_in_a_group(rule: Any, dialect: str, name: str, value: Any) -> None:
    opt = rule(dialect=dialect)
    needed = NEEDED.get((rule.__name__, name)) or NEEDED.get((rule.__name__, dialect, name), {})
    params, others = parameters(), parameters(10)
    optimizer = TorchOptimizer([{"params": params, **needed, name: value}, {"params": others}], opt)
    rules = [opt.replace(**needed, **{name: value}), opt, opt.replace(**needed)]
    expected = [copies(params), copies(others), copies(params)]
    states = [r.init(tensors) for r, tensors in zip(rules, expected, strict=True)]
    with portopt.interpreted():
        for step in range(3):
            give_gradients(params + others, step)
            for p in params:
                # Smaller and smaller: amsgrad remembers the first.
                p.grad = p.grad * 0.1**step
            gradients = [[p.grad for p in tensors] for tensors in (params, others, params)]
            norm = TORCH.backend.gradient_norm(gradients[0] + gradients[1])
            for i, r in enumerate(rules):
                states[i] = r.apply_(expected[i], gradients[i], states[i], gradient_norm=norm)
            optimizer.step()
    assert_same(params + others, expected[0] + expected[1])
    assert any(not torch.equal(a, b) for a, b in zip(expected[0], expected[2], strict=True))


def test_decoupled_weight_decay_of_a_group_has_torchs_result() -> None:
    def result(make: Any) -> float:
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = make([{"params": [p], "decoupled_weight_decay": True, "weight_decay": 0.5}])
        p.grad = torch.full((1,), 0.01, dtype=torch.float64)
        optimizer.step()
        return float(p.detach())

    ours = result(lambda groups: TorchOptimizer(groups, portopt.Adam(0.05, dialect="torch")))
    theirs = result(lambda groups: torch.optim.Adam(groups, 0.05))
    assert ours == pytest.approx(theirs, rel=1e-14)


def test_an_option_may_be_changed_later() -> None:
    params, expected = parameters(), copies(parameters())
    rule = portopt.Adam(0.1, dialect="torch", weight_decay=0.1)
    optimizer = TorchOptimizer(params, rule)
    state = rule.init(expected)
    for step, decoupled in enumerate((False, True, True, False)):
        optimizer.param_groups[0]["decoupled_weight_decay"] = decoupled
        give_gradients(params, step)
        one = rule.replace(decoupled_weight_decay=decoupled)
        state = one.apply_(expected, [p.grad for p in params], state)
        optimizer.step()
    assert_same(params, expected)


def test_an_option_whose_slot_is_lacking_is_refused_before_anything_is_changed() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adam(0.1))
    give_gradients(params, 0)
    optimizer.step()
    before = copies(params)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match=r"param_groups\[0\] has amsgrad=True, for which Adam needs the slot vhat"):
        optimizer.step()
    assert_same(params, before)


def test_what_only_the_first_state_reads_cannot_be_changed_later() -> None:
    params = parameters()
    optimizer = TorchOptimizer(params, portopt.Adagrad(dialect="torch"))
    give_gradients(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["initial_accumulator_value"] = 0.5
    with pytest.raises(TypeError, match=r"initial_accumulator_value=0.5, but .* is read only when the state begins"):
        optimizer.step()


@pytest.mark.parametrize("name", ["foreach", "fused", "capturable", "differentiable", "maximize", "lambd", "eta_min"])
def test_hyperparameters_of_torch_that_the_rule_lacks_are_refused_unless_they_are_off(name: str) -> None:
    rule = portopt.Adam()
    TorchOptimizer([{"params": parameters(), name: False}], rule)
    TorchOptimizer([{"params": parameters(), name: None}], rule)
    if name == "eta_min":
        # No optimizer has it: a label.
        TorchOptimizer([{"params": parameters(), name: True}], rule)
        return
    with pytest.raises(TypeError, match=f"has '{name}', which is no hyperparameter of Adam; allowed are lr, betas, "):
        TorchOptimizer([{"params": parameters(), name: True}], rule)


def test_groups_with_options_survive_copies_and_state_dicts() -> None:
    def make(tensors: list[Any]) -> TorchOptimizer:
        groups: list[Any] = [{"params": tensors[:1], "amsgrad": True}, {"params": tensors[1:], "maximize": True}]
        return TorchOptimizer(groups, portopt.Adam(0.1, dialect="torch"))

    params = parameters()
    optimizer = make(params)
    for step in range(2):
        give_gradients(params, step)
        optimizer.step()
    others, other = copy.deepcopy((params, optimizer))
    third = [nn.Parameter(p.detach().clone()) for p in params]
    loaded = make(third)
    loaded.load_state_dict(optimizer.state_dict())
    for tensors, one in ((params, optimizer), (others, other), (third, loaded)):
        give_gradients(tensors, 2)
        one.step()
    assert_same(others, params)
    assert_same(third, params)


def test_a_feature_may_rest_and_return() -> None:
    params, native_params = parameters(), parameters()
    optimizer = TorchOptimizer([{"params": params, "momentum": 0.9}], portopt.SGD(0.1, dialect="torch"))
    native = torch.optim.SGD(native_params, 0.1, momentum=0.9)
    for step, momentum in enumerate((0.9, 0.0, 0.9, 0.5)):
        if step == 2:
            saved = optimizer.state_dict()
            optimizer = TorchOptimizer([{"params": params, "momentum": 0.9}], portopt.SGD(0.1, dialect="torch"))
            optimizer.load_state_dict(saved)
        for o, tensors in ((optimizer, params), (native, native_params)):
            o.param_groups[0]["momentum"] = momentum
            give_gradients(tensors, step)
            o.step()
    torch.testing.assert_close(params, native_params, rtol=1e-12, atol=1e-12)


# torch's names


@pytest.mark.parametrize("correspondence", OF_ANY_SHAPE, ids=lambda c: c.name)
def test_rules_and_groups_take_what_torchs_constructors_take(correspondence: Any) -> None:
    cls = getattr(torch.optim, correspondence.name)
    values = {
        n: p.default for n, p in inspect.signature(cls).parameters.items() if n not in {"params", *VOCABULARY.ignored}
    }
    values["lr"] = 0.125
    values.update({name: 0.0625 for name in ("eps", "alpha", "lr_decay", "momentum_decay") if name in values})
    if "betas" in values:
        values["betas"] = (0.75, 0.5)
    if correspondence.name == "Adafactor":
        values["eps"] = (0.0625, 0.25)
    rule = correspondence.rule(dialect="torch", **values)
    assert {name: getattr(rule, name) for name in values} == values
    optimizer = TorchOptimizer([{"params": parameters(), **values}], correspondence.rule(dialect="torch"))
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in values} == values
    native = cls([{"params": parameters(), **values}])
    assert {n for n in native.param_groups[0] if n not in VOCABULARY.ignored} - set(group) <= {"decoupled_weight_decay"}
    with pytest.raises(
        TypeError, match="was given 'eps', as 'epsilon' is called in the dialect 'torch': in the dialect 'keras2' give"
    ):
        portopt.Adam(eps=0.1)


def test_the_rules_own_names_are_taken_in_the_dialect_torch_too() -> None:
    rule = portopt.RMSprop(dialect="torch")
    optimizer = TorchOptimizer([{"params": parameters(), "rho": 0.5, "epsilon": 0.25}], rule)
    group = optimizer.param_groups[0]
    assert (group["alpha"], group["eps"]) == (0.5, 0.25)
    with pytest.raises(TypeError, match="given alpha and rho at once"):
        TorchOptimizer([{"params": parameters(), "rho": 0.5, "alpha": 0.25}], rule)
    group["rho"] = 0.75
    with pytest.raises(TypeError, match=r"holds 'rho' as 'alpha': set group\['alpha'\] instead"):
        optimizer.step()


def test_betas_may_be_given_for_one_step() -> None:
    rule, w = portopt.Adam(0.1, dialect="torch"), torch.ones(3)
    state = rule.init(w)
    one = rule.apply(w, w, state, betas=(0.5, 0.25), eps=0.125)[0]
    assert torch.equal(one, rule.apply(w, w, state, beta_1=0.5, beta_2=0.25, epsilon=0.125)[0])
    with pytest.raises(ValueError, match=r"Adam.apply betas must be 2 numbers, \(beta_1, beta_2\), but 0.5 was given"):
        rule.apply(w, w, state, betas=0.5)
    with pytest.raises(TypeError, match="Adam was given beta_1 and betas at once"):
        portopt.Adam(betas=(0.5, 0.5), beta_1=0.5, dialect="torch")


@pytest.mark.parametrize("make", [float, torch.tensor, lambda x: torch.tensor([x])], ids=["number", "()", "(1,)"])
def test_learning_rates_are_given_by_keyword_and_may_be_tensors(make: Any) -> None:
    rule = portopt.SGD(0.5, momentum=0.9)
    params, expected = parameters(), copies(parameters())
    state = rule.init(expected)
    optimizer = TorchOptimizer(params, rule, lr=make(0.25))
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    for step in range(3):
        give_gradients(params, step)
        state = rule.apply_(expected, [p.grad for p in params], state, learning_rate=0.25 * 0.5**step)
        optimizer.step()
        scheduler.step()
    assert_same(params, expected)
    assert optimizer.defaults["lr"] is optimizer.param_groups[0]["lr"] or make is float


def test_a_keyword_learning_rate_scales_a_schedule() -> None:
    rule = portopt.SGD(portopt.schedules.Constant(0.5))
    optimizer = TorchOptimizer([p := nn.Parameter(torch.ones(1))], rule, lr=0.5)
    p.grad = torch.ones(1)
    optimizer.step()
    assert float(p.detach()) == 0.75


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(1, 1)])
def test_learning_rates_of_other_shapes_are_refused(value: Any) -> None:
    shape = rf"lr of a parameter group must be a number or a tensor of one, .* of shape \({', '.join(map(str, value.shape))}"
    params = parameters()
    with pytest.raises(ValueError, match=shape):
        TorchOptimizer(params, portopt.SGD(), lr=value)
    with pytest.raises(ValueError, match=shape):
        TorchOptimizer([{"params": params, "lr": value}], portopt.SGD())
    optimizer = TorchOptimizer(params, portopt.SGD())
    before = copies(params)
    give_gradients(params, 0)
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(ValueError, match=shape):
        optimizer.step()
    assert_same(params, before)


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize("correspondence", OF_ANY_SHAPE, ids=lambda c: c.name)
def test_schedulers_cycle_momentum_as_in_torchs_own_optimizers(name: str, correspondence: Any) -> None:
    params, others = parameters(), parameters()
    # Classes and rules have different defaults of it.
    native: Any = getattr(torch.optim, correspondence.name)(others, lr=0.01, weight_decay=0.0)
    rule = correspondence.rule(0.01, dialect="torch", weight_decay=0.0, **correspondence.fixed)
    optimizer = TorchOptimizer(params, rule)

    def make(o: Any) -> Any:
        cycles = any(key in native.defaults for key in ("momentum", "betas"))
        if name == "OneCycleLR":
            return lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=cycles)
        return lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=cycles)

    pairs = [(optimizer, params, make(optimizer)), (native, others, make(native))]
    for step in range(5):
        for o, tensors, scheduler in pairs:
            give_gradients(tensors, step)
            o.step()
            scheduler.step()
    torch.testing.assert_close(params, others, rtol=1e-7 if correspondence.name == "NAdam" else 1e-12, atol=1e-12)


def test_it_works_under_zero_redundancy_optimizer() -> None:
    code = """
import torch, portopt
from portopt_torch import TorchOptimizer
from torch.distributed.optim import ZeroRedundancyOptimizer
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
try:
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    expected = [p.detach().clone() for p in params]
    rule = portopt.Adam(0.5)
    state = rule.init(expected)
    zero = ZeroRedundancyOptimizer(params, TorchOptimizer, optimizer=rule, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(zero, 1, 0.5)
    for step in range(3):
        for p in params:
            p.grad = torch.full_like(p, step + 1.0)
        state = rule.apply_(expected, [p.grad for p in params], state, learning_rate=0.1 * 0.5**step)
        zero.step()
        scheduler.step()
    zero.consolidate_state_dict()
    zero.load_state_dict(zero.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(params, expected)), (params, expected)
finally:
    torch.distributed.destroy_process_group()
"""
    run_python(code)
