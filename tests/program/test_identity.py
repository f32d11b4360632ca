"""Identity matrices in programs: the same bits in every library and mode, and nothing that a compiler simplifies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits, ordinary
from support.libraries import RUNS, Run, steps

import portopt


class Shifting(portopt.Optimizer):
    """Adds identity matrices to the parameter, takes one away, and multiplies by one; its slot becomes one."""

    slots = (portopt.slot("identity", shape="of_columns"),)

    def of_columns(self, p: Any) -> tuple[int, int]:
        return (p.shape[1], p.shape[1])

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        one = xp.eye(p.shape[0])
        return ((p + one) - one) + ((0.5 * one) @ g) * one, {"identity": xp.eye(p.shape[1])}


# Eager JAX compiles each operation for each shape; the conformance suite has it there.
@pytest.mark.parametrize("run", [run for run in RUNS if run.mode_name != "interpreted"], ids=str)
def test_identity_matrices_mean_the_same_on_every_library(run: Run) -> None:
    params = {name: ordinary((n, n), "float32", n) * np.float32(1e-5) for name, n in (("one", 1), ("some", 5))}
    grads = {name: np.rint(8 * ordinary(p.shape, "float32", 2)) for name, p in params.items()}
    new, state = steps(run, Shifting(), params, [grads], "float32")
    for name, p in params.items():
        one = np.eye(len(p), dtype=np.float32)
        expected = ((p + one) - one) + (np.float32(0.5) * grads[name]) * one
        assert not np.array_equal((p + one) - one, p), "the sums are rounded"
        assert_same_bits(new[name], expected, name)
        assert_same_bits(state.slots["identity"][name], one, name)


def test_identity_is_one_operation_of_its_shape() -> None:
    lines = str(Shifting().program(shape=(3, 3))).splitlines()
    assert sum("eye(" in line for line in lines) == 1
    assert any(line.endswith("= eye(a0, shape=(3, 3))") for line in lines)
