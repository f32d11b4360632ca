"""`TorchOptimizer` with rules of each kind: slots of other shapes and absent ones, totals, programs per shape."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rules_of_each_kind import RULES, Factored, Totalling
from support.torch_parameters import assert_same, copies, give_gradients, parameters

import portopt
from portopt_torch import TorchOptimizer

SHAPES = ((3, 4), (5,), (), (4, 2))


def assert_same_state(optimizer: TorchOptimizer, params: list[Any], state: portopt.OptimizerState) -> None:
    for i, p in enumerate(params):
        held = dict(optimizer.state[p])
        assert held.pop("step") == state.step
        for name, tree in state.slots.items():
            if name in optimizer.rule.scalar_slots:
                assert held.pop(name) == tree
            elif tree[i] is not None:
                assert_same([held.pop(name)], [tree[i]])
        assert not held


@pytest.mark.parametrize("kind", RULES)
def test_steps_on_several_groups_have_the_bits_of_apply_(kind: type[portopt.Optimizer]) -> None:
    params = parameters(SHAPES, "float32")
    rule, expected = kind(learning_rate=0.1, clipnorm=2.0), copies(params)
    state = rule.init(expected)
    optimizer = TorchOptimizer([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}], rule)
    for step in range(3):
        gradients = give_gradients(params, step)
        optimizer.step()
        state = rule.apply_(expected, gradients, state)
        assert_same(params, expected)
        assert_same_state(optimizer, params, state)


@pytest.mark.parametrize("kind", RULES)
def test_batches_of_several_dtypes_share_their_totals(kind: type[portopt.Optimizer]) -> None:
    params = [*parameters(SHAPES, "float64"), *parameters(SHAPES[:2], "float16")]
    rule, expected = kind(learning_rate=0.1, clipnorm=2.0), copies(params)
    state = rule.init(expected)
    optimizer = TorchOptimizer(params, rule)
    for step in range(3):
        gradients = give_gradients(params, step)
        optimizer.step()
        state = rule.apply_(expected, gradients, state)
    assert_same(params, expected)
    assert_same_state(optimizer, params, state)


@pytest.mark.parametrize("kind", RULES)
def test_a_saved_state_goes_on_with_the_same_bits(kind: type[portopt.Optimizer], tmp_path: Path) -> None:
    params = parameters(SHAPES, "float32")
    optimizer = TorchOptimizer(params, kind(learning_rate=0.1))
    for step in range(2):
        give_gradients(params, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state")
    others = [torch.nn.Parameter(p) for p in copies(params)]
    resumed = TorchOptimizer(others, kind(learning_rate=0.1))
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    copied, of_copy = copy.deepcopy((params, optimizer))
    for step in range(2, 4):
        for each, of in ((params, optimizer), (others, resumed), (copied, of_copy)):
            give_gradients(each, step)
            of.step()
    assert_same(others, params)
    assert_same(copied, params)


def test_a_saved_slot_of_a_wrong_shape_is_refused() -> None:
    [p] = params = parameters(((3, 4),), "float32")
    optimizer = TorchOptimizer(params, Factored())
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["row"] = torch.zeros(4)
    with pytest.raises(
        ValueError, match=r"'row' has shape \(4,\), but its parameter has \(3, 4\), whose slot .* \(3,\)"
    ):
        optimizer.load_state_dict(saved)
    del saved["state"][0]["row"]
    with pytest.raises(ValueError, match="has column, step, but Factored with these options has column, row, step"):
        optimizer.load_state_dict(saved)
    assert optimizer.state[p]["row"].shape == (3,)


def test_an_interrupted_step_moves_the_scalars_by_the_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [*parameters(SHAPES, "float64"), *parameters(SHAPES[:2], "float32")]
    rule, expected = Totalling(0.1), copies(params)
    state = rule.init(expected)
    optimizer = TorchOptimizer(params, rule)
    for step in range(3):
        gradients = give_gradients(params, step)
        state = rule.apply_(expected, gradients, state)
        apply_ = portopt.Optimizer.apply_

        def interrupted(*args: Any, apply_: Any = apply_, **kwargs: Any) -> Any:
            apply_(*args, **kwargs)
            monkeypatch.setattr(portopt.Optimizer, "apply_", apply_)
            raise KeyboardInterrupt

        monkeypatch.setattr(portopt.Optimizer, "apply_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert_same(params, expected)
    assert_same_state(optimizer, params, state)
