"""Checkpoints of rules of each kind: slots of other shapes and absent ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.bits import assert_same_bits, ordinary
from support.libraries import BY_NAME
from support.rules_of_each_kind import RULES, Factored

import portopt

SHAPES = ((3, 4), (5,), ())


@pytest.mark.needs("torch")
@pytest.mark.parametrize("kind", RULES)
def test_training_goes_on_under_another_library_with_the_same_bits(
    kind: type[portopt.Optimizer], tmp_path: Path
) -> None:
    rule, torch = kind(0.1), BY_NAME["torch"]
    params = [np.asarray(ordinary(shape, "float32", i)) for i, shape in enumerate(SHAPES)]
    gradients = [np.asarray(ordinary(shape, "float32", 10 + i)) for i, shape in enumerate(SHAPES)]
    params, state = rule.apply(params, gradients, rule.init(params))
    portopt.save(tmp_path / "run", rule, params, state)
    loaded, tensors, resumed = portopt.load(tmp_path / "run", "torch", custom_objects={kind.__name__: kind})
    assert [*resumed.slots] == [*state.slots]
    tensors, resumed = loaded.apply(tensors, [torch.arrays(g) for g in gradients], resumed)
    params, state = rule.apply(params, gradients, state)
    for p, q in zip(tensors, params, strict=True):
        assert_same_bits(torch.numpy(p), q)
    for name, slot in state.slots.items():
        if name in rule.scalar_slots:
            assert resumed.slots[name] == slot
            continue
        for a, b in zip(resumed.slots[name], slot, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                assert_same_bits(torch.numpy(a), b)


def test_a_slot_of_another_shape_than_the_rule_has_is_refused(tmp_path: Path) -> None:
    class Other(Factored):
        slots = (portopt.slot("row", drop=-2), portopt.slot("column", drop=-1), "v")

    params = [np.ones((3, 4))]
    portopt.save(tmp_path / "run", Factored(), params, Factored().init(params))
    with pytest.raises(portopt.CheckpointError, match=r"'slots/row/0' has shape \(3,\) .* of shape \(4,\)"):
        portopt.load(tmp_path / "run", custom_objects={"Factored": Other})


def test_slots_that_no_parameter_has_are_not_saved(tmp_path: Path) -> None:
    params = [np.ones(3)]
    portopt.save(tmp_path / "run", Factored(), params, Factored().init(params))
    _, _, state = portopt.load(tmp_path / "run", custom_objects={"Factored": Factored})
    assert [*state.slots] == ["v"]
