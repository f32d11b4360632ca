"""Rules of matrices on parameters with axes of length one, in which shapes of several things are the same, and of none."""

from __future__ import annotations

import numpy as np
import pytest
from support.bits import assert_same_bits

import portopt


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (portopt.NorMuon(), (5, 1)),
        (portopt.NorMuon(), (1, 1)),
        (portopt.NorMuon(matrices="HWIO"), (3, 1, 1, 1)),
        (portopt.Muon(), (5, 1)),
        (portopt.Muon(), (0, 1)),
        (portopt.Shampoo(), (1, 5)),
        (portopt.Shampoo(), (1, 0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, portopt.Optimizer) else str(value),
)
def test_slots_keep_their_shapes_and_steps_their_bits(rule: portopt.Optimizer, shape: tuple[int, ...]) -> None:
    p, *grads = (np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in range(3))
    found = expected = p
    state = begun = expected_state = rule.init(p)
    for g in grads:
        found, state = rule.apply(found, g, state)
        with portopt.interpreted():
            expected, expected_state = rule.apply(expected, g, expected_state)
    assert_same_bits(found, expected, "parameter")
    for name, first in begun.slots.items():
        if first is None:
            continue
        assert state.slots[name].shape == first.shape
        assert_same_bits(state.slots[name], expected_state.slots[name], name)
