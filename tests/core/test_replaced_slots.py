"""Slots whose new values do not depend on the old ones: their shapes are known all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits, ordinary
from support.replacing_rule import Numbering, Replacing

import portopt


@pytest.mark.parametrize("rule", [Replacing, Numbering])
@pytest.mark.parametrize("in_place", [False, True], ids=["apply", "apply_"])
def test_slots_that_are_replaced_without_being_read_keep_their_shapes(rule: Any, in_place: bool) -> None:
    opt, shape = rule(0.5), (4, 3)
    w: Any = ordinary(shape, "float32", 0)
    expected, state = w.copy(), opt.init(w)
    expected_state = opt.init(expected)
    for step in (1, 2):
        g = ordinary(shape, "float32", step)
        with portopt.interpreted():
            expected, expected_state = opt.apply(expected, g, expected_state)
        if in_place:
            state = opt.apply_(w, g, state)
        else:
            w, state = opt.apply(w, g, state)
    assert_same_bits(w, expected)
    for name, value in expected_state.slots.items():
        assert_same_bits(np.asarray(state.slots[name]), value, name)
    assert state.slots["row"].shape == (4,)


def test_a_square_matrix_that_is_replaced_has_the_axes_of_the_slot_and_none_of_the_parameter() -> None:
    program = Replacing().program(shape=(4, 3))
    assert program.ops[program.array_outputs["squares"]].dims == ("4", "4")
    assert program.ops[program.array_outputs["gradient"]].dims == ("4", "3")
    assert program.ops[program.array_outputs["column"]].dims == (-1, 1)
