"""What holds for two processes that train together: each calls the same case at the same time."""

from __future__ import annotations

import copy
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import rules_of_each_kind
from support.bits import assert_same_bits
from support.replacing_rule import Replacing
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import portopt
from portopt_torch import TorchOptimizer, backend
from portopt_torch._sharded import gradient_norm, local_part, total


class NarrowTotal(portopt.Optimizer):
    """Divides by what is added up over the rows of all parameters, of which processes may hold the same ones or others."""

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> dict[str, Any]:
        return {
            "rows": xp.sum(xp.max(abs(g), axis=-1, keepdims=True)),
            "columns": xp.linalg.vector_norm(xp.sum(g, axis=0, keepdims=True)),
        }

    def coefficients(self, t: Any, rows: Any, columns: Any) -> dict[str, Any]:
        return {"lr": self.learning_rate_at(t) / (rows + columns)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - c.lr * g, {}


class Curved(portopt.Optimizer):
    """A further input where processes add up, where they multiply, and in a total over all parameters."""

    slots = ("h",)
    inputs = ("hessian",)

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, *, hessian: Any) -> dict[str, Any]:
        return {"size": xp.linalg.vector_norm(g if hessian is None else hessian)}

    def coefficients(self, t: Any, size: Any) -> dict[str, Any]:
        return {"lr": self.learning_rate_at(t) / (1 + size)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, *, hessian: Any) -> Any:
        h = slots.h if hessian is None else hessian + xp.max(hessian)
        step = g / (h + 1.0)
        return p - c.lr * ((h @ step.mT) @ step if p.ndim == 2 else step), {"h": h}


RULES: dict[str, Callable[[], portopt.Optimizer]] = {
    "adam_clipped": lambda: portopt.Adam(learning_rate=0.05, clipnorm=0.05),
    "nadam": lambda: portopt.Nadam(learning_rate=0.05),
    "inner_noisy_sgd": lambda: portopt.Lookahead(portopt.NoisySGD(learning_rate=0.05, seed=4), sync_period=2),
    "narrow_total": lambda: NarrowTotal(learning_rate=0.05),
    "shampoo": lambda: portopt.Shampoo(learning_rate=0.05, root_iterations=2),
    "dadapt_adam": lambda: portopt.DAdaptAdam(),
    "dog": lambda: portopt.DoG(),
    "prodigy": lambda: portopt.Prodigy(),
    "replacing": lambda: Replacing(learning_rate=0.05),
    "sgd_clipped": lambda: portopt.SGD(learning_rate=0.05, momentum=0.9, nesterov=True, clipnorm=0.01, clipvalue=0.002),
}


KINDS = [kind(0.05, clipnorm=0.5) for kind in rules_of_each_kind.RULES]


def full(tensor: Any) -> torch.Tensor:
    """Return all parts of a tensor."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return torch.as_tensor(whole.detach())


def assert_same(actual: Any, expected: Any, what: str) -> None:
    assert_same_bits(full(actual).numpy(), full(expected).numpy(), what)


def assert_equal(actual: object, expected: object, what: str) -> None:
    assert actual == expected, f"{what}: {actual}, expected {expected}"


def network() -> nn.Sequential:
    """Return a network with dimensions that two processes cannot share equally; of a bias, the second gets nothing."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


def shard(model: nn.Sequential) -> nn.Sequential:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def groups(model: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 7, generator=generator), torch.randn(8, 1, generator=generator)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def assert_same_training(model: nn.Module, optimizer: Any, expected_model: nn.Module, expected: Any) -> None:
    pairs = zip(model.named_parameters(), expected_model.parameters(), strict=True)
    for (name, p), q in pairs:
        assert_same(p, q, name)
        state, other = optimizer.state[p], expected.state[q]
        assert set(state) == set(other)
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                assert_same(value, other[key], f"{key} of {name}")
            else:
                assert_equal(value, other[key], f"{key} of {name}")


def alone(rule: portopt.Optimizer, steps: int) -> tuple[nn.Sequential, TorchOptimizer]:
    """Train in this process alone."""
    model = network()
    optimizer = TorchOptimizer(groups(model), rule)
    train(model, optimizer, range(steps))
    return model, optimizer


def fully_sharded(make: Callable[[], portopt.Optimizer]) -> None:
    model = shard(network())
    optimizer = TorchOptimizer(groups(model), make())
    train(model, optimizer, range(5))
    assert any(local_part(p).numel() == 0 for p in model.parameters()) == (torch.distributed.get_rank() == 1)
    slots = [v for p in model.parameters() for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
    assert bool(slots) == bool(optimizer.rule.slots)
    assert all(isinstance(slot, DTensor) for slot in slots)
    assert_same_training(model, optimizer, *alone(make(), 5))


def further_inputs() -> None:
    """Every second step is given the curvature of all parameters but one, placed as its parameter or otherwise."""
    for rule in (portopt.SophiaG(learning_rate=0.05), Curved(learning_rate=0.05, clipnorm=0.5)):
        runs = []
        for model in (shard(network()), network()):
            optimizer = TorchOptimizer(groups(model), rule)
            for step in range(4):
                generator = torch.Generator().manual_seed(step)
                optimizer.zero_grad()
                (model(torch.randn(8, 7, generator=generator)) - 1).square().mean().backward()
                curvature = {p: curvature_of(p, step) for p in model.parameters() if p is not model[0].bias}
                optimizer.step(hessian=None if step % 2 else curvature)
            runs.append((model, optimizer))
        assert_same_training(*runs[0], *runs[1])


def curvature_of(parameter: Any, step: int) -> Any:
    whole = torch.rand(tuple(parameter.shape), generator=torch.Generator().manual_seed(step + parameter.ndim))
    if not isinstance(parameter, DTensor):
        return whole
    placed = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    return placed if step == 0 else placed.redistribute(placements=[Replicate()])


def refused_input() -> None:
    model = shard(network())
    optimizer = TorchOptimizer(model.parameters(), portopt.SophiaG(learning_rate=0.05))
    model(torch.ones(8, 7)).sum().backward()
    before = [full(p).clone() for p in model.parameters()]
    owned: list[Any] = list(model.parameters())
    wide = {p: distribute_tensor(torch.ones(2, *p.shape), p.device_mesh, p.placements) for p in owned}
    for given, error, wanted in (
        (
            {p: torch.ones(tuple(p.shape)) for p in model.parameters()},
            TypeError,
            "(5, 7) that several processes hold is a te",
        ),
        (wide, ValueError, "hessian has shape (2, 5, 7), but its parameter has (5, 7)"),
    ):
        message = ""
        try:
            optimizer.step(hessian=given)
        except error as found:
            message = str(found)
        assert wanted in message, message
    for p, q in zip(model.parameters(), before, strict=True):
        assert_same(p, q, "parameter")


def placements(rule: portopt.Optimizer) -> None:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    line = init_device_mesh("cpu", (2,))
    torch.manual_seed(5)
    values = [torch.randn(6, 3) for _ in range(4)]
    gradients = [torch.randn(6, 3) for _ in range(4)]
    where: list[Any] = [(line, [Shard(1)]), (line, [Replicate()]), (mesh, [Replicate(), Shard(0)]), None]

    def place(tensor: torch.Tensor, at: Any) -> torch.Tensor:
        return tensor.clone() if at is None else distribute_tensor(tensor.clone(), *at)

    parameters = [nn.Parameter(place(v, at)) for v, at in zip(values, where, strict=True)]
    optimizer = TorchOptimizer(parameters, rule)
    expected = [v.clone() for v in values]
    state = rule.init(expected)
    for _ in range(3):
        for p, g, at in zip(parameters, gradients, where, strict=True):
            p.grad = place(g, at)
        # Two halves in two processes: a sum that is still to be taken.
        parameters[0].grad = DTensor.from_local(gradients[0] / 2, line, [Partial()], run_check=False)
        optimizer.step()
        state = rule.apply_(expected, gradients, state)
    for p, q in zip(parameters, expected, strict=True):
        assert_same(p, q, "parameter")


def totals() -> None:
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(1)
    wild = torch.randn(1001, generator=generator) * 10.0 ** (torch.rand(1001, generator=generator) * 16 - 8)
    small = torch.randn(3, 4, generator=generator).to(torch.bfloat16)
    nan, infinite = wild.clone(), wild.clone()
    nan[[1, 1000]] = torch.tensor([float("nan"), float("inf")])
    infinite[700] = -float("inf")
    for gradient in (wild, nan, infinite, torch.zeros(5), torch.full((3,), 1e-40)):
        expected = backend.gradient_norm([gradient, small, small])
        placed = [distribute_tensor(gradient, mesh, [Shard(0)]), distribute_tensor(small, mesh, [Replicate()]), small]
        actual = gradient_norm(placed)
        assert actual.hex() == expected.hex(), f"{actual!r}, expected {expected!r}"
        reductions = backend.reductions("float32")
        for name in ("sum", "norm", "max", "min"):
            expected = reductions.total(name, *map(backend.primitives("float32").load, (gradient, small, small)))
            actual = total(name, placed)
            assert actual.hex() == expected.hex(), f"{name}: {actual!r}, expected {expected!r}"


def gathered_state() -> None:
    rule = RULES["nadam"]()
    model = shard(network())
    optimizer = TorchOptimizer(groups(model), rule)
    train(model, optimizer, range(3))
    whole: Any = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    expected_model, expected = alone(rule, 3)
    for name, p in expected_model.named_parameters():
        for key, value in expected.state[p].items():
            saved = whole["state"].get(name, {}).get(key)
            if torch.distributed.get_rank() == 0:
                assert_same(saved, value, key) if isinstance(value, torch.Tensor) else assert_equal(saved, value, key)

    other = shard(network())
    other.load_state_dict(model.state_dict())
    loaded = TorchOptimizer(groups(other), rule)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(other, loaded, whole if torch.distributed.get_rank() == 0 else {}, options=options)
    train(other, loaded, range(3, 5))
    assert_same_training(other, loaded, *alone(rule, 5))


def sharded_state(rule: portopt.Optimizer, *, flatten: bool = False) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = shard(network())
    optimizer = TorchOptimizer(groups(model), rule)
    train(model, optimizer, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other = shard(network())
    other.load_state_dict(model.state_dict())
    loaded = TorchOptimizer(groups(other), rule)
    set_optimizer_state_dict(other, loaded, saved, options=options)
    train(other, loaded, range(3, 5))
    assert_same_training(other, loaded, *alone(rule, 5))


def saved_to_files(folder: Path) -> None:
    rule = RULES["nadam"]()
    model = shard(network())
    optimizer = TorchOptimizer(groups(model), rule)
    train(model, optimizer, range(3))
    content = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    save(content, checkpoint_id=folder)
    other = shard(network())
    loaded = TorchOptimizer(groups(other), rule)
    content = {"model": other.state_dict(), "optimizer": get_optimizer_state_dict(other, loaded)}
    load(content, checkpoint_id=folder)
    other.load_state_dict(content["model"])
    set_optimizer_state_dict(other, loaded, content["optimizer"])
    train(other, loaded, range(3, 5))
    assert_same_training(other, loaded, *alone(rule, 5))


def plain_state_dict() -> None:
    rule = RULES["nadam"]()
    model = shard(network())
    optimizer = TorchOptimizer(groups(model), rule)
    train(model, optimizer, range(3))
    other = shard(network())
    other.load_state_dict(model.state_dict())
    loaded = TorchOptimizer(groups(other), rule)
    loaded.load_state_dict(optimizer.state_dict())
    train(other, loaded, range(3, 5))
    assert_same_training(other, loaded, *alone(rule, 5))
    message = ""
    try:
        loaded.load_state_dict(alone(rule, 1)[1].state_dict())
    except ValueError as error:
        message = str(error)
    assert "load it with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict" in message


def torch_clipping() -> None:
    model, expected_model = shard(network()), network()
    pair = [(m, TorchOptimizer(m.parameters(), portopt.SGD(learning_rate=0.1))) for m in (model, expected_model)]
    for m, optimizer in pair:
        (m(torch.ones(4, 7)) * 100).square().mean().backward()
        nn.utils.clip_grad_norm_(m.parameters(), 0.5)
        optimizer.step()
    for p, q in zip(model.parameters(), expected_model.parameters(), strict=True):
        # torch's own norm depends on the order of summation.
        torch.testing.assert_close(full(p), full(q), rtol=1e-6, atol=1e-7)


def fully_sharded_kinds() -> None:
    for rule in KINDS:
        fully_sharded(lambda rule=rule: rule)  # type: ignore[misc]  # binds rule


def placed_kinds() -> None:
    for rule in KINDS:
        placements(rule)


def sharded_state_of_kinds() -> None:
    for rule in KINDS:
        sharded_state(rule)


def cases(folder: Path) -> dict[str, Callable[[], None]]:
    return {
        **{f"fully_shard-{name}": lambda rule=rule: fully_sharded(rule) for name, rule in RULES.items()},  # type: ignore[misc]  # binds rule
        "fully_shard-kinds": fully_sharded_kinds,
        "further_inputs": further_inputs,
        "refused_input": refused_input,
        "placements": lambda: placements(portopt.Adam(learning_rate=0.1, clipnorm=0.5)),
        "placements-kinds": placed_kinds,
        "state-kinds": sharded_state_of_kinds,
        "totals": totals,
        "gathered_state": gathered_state,
        "sharded_state": lambda: sharded_state(RULES["adam_clipped"]()),
        "flattened_state": lambda: sharded_state(RULES["adam_clipped"](), flatten=True),
        "saved_to_files": lambda: saved_to_files(folder / "checkpoint"),
        "plain_state_dict": plain_state_dict,
        "torch_clipping": torch_clipping,
    }


def run(case: str, folder: Path) -> None:
    """Run a case together with the other process; RANK says which of the two this one is."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        # If one process fails, the other waits for it no longer than this; a busy machine needs some of it to start both.
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=int(os.environ["RANK"]),
        world_size=2,
        timeout=datetime.timedelta(minutes=10),
    )
    cases(folder)[case]()
    torch.distributed.destroy_process_group()
