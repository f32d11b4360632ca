"""Which parameters share a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import portopt
from portopt.kernels.groups import array_order, grouped
from portopt.kernels.host import kernel


class LastLetterFirst(portopt.Optimizer):
    """A rule whose slots are in no alphabetical order."""

    slots = ("z", "a")

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - c.lr * g, {"z": slots.z + g, "a": slots.a - g}


def test_kernels_get_arrays_in_the_order_of_the_rule() -> None:
    assert array_order(LastLetterFirst().program()) == ("p", "g", "z", "a")


def test_arrays_are_of_a_kind_whatever_the_order_in_which_they_are_named() -> None:
    program = LastLetterFirst().program()
    one = {"p": "float16", "g": "float32", "z": "float32", "a": "bfloat16"}
    other = {**one, "a": "float32"}
    dtypes = [one, other, dict(sorted(one.items())), dict(reversed(other.items())), one]
    found = grouped(program, dtypes, in_place=True, flush="where")
    assert [(group.members, group.device) for group in found] == [([0, 2, 4], None), ([1, 3], None)]
    assert found[0].key.dtypes == tuple(one.items())
    on_devices = grouped(program, dtypes, in_place=True, flush="where", devices="aabba")
    assert [(group.device, group.members) for group in on_devices] == [
        ("a", [0, 4]),
        ("a", [1]),
        ("b", [2]),
        ("b", [3]),
    ]


@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=pytest.mark.needs("torch"))])
def test_a_rule_compiles_one_kernel_for_all_steps_in_place(library: str) -> None:
    backend = portopt.get_backend(library)
    optimizer = LastLetterFirst(0.5)
    params = [backend.from_numpy(np.ones(3, np.float32), "cpu")]
    state = optimizer.init(params)
    # A checkpoint may name the slots in another order.
    state = state._replace(slots=dict(reversed(state.slots.items())))
    kernel.host_kernel.cache_clear()
    # The first step makes all checks, later ones have a plan.
    for _ in range(4):
        state = optimizer.apply_(params, [backend.from_numpy(np.ones(3, np.float32), "cpu")], state)
    assert kernel.host_kernel.cache_info().misses == 1
