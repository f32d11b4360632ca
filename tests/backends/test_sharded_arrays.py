"""Arrays on a mesh of eight devices: the bits of one device, and a state where its parameters are."""

from __future__ import annotations

import pytest
from support.processes import run_script

pytestmark = pytest.mark.needs("jax", "optax")


@pytest.fixture(scope="module")
def passed() -> list[str]:
    return run_script("sharded_steps").splitlines()


@pytest.mark.parametrize("way", ["norm", "apply", "jitted apply", "optax", "step"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_eight_devices_give_the_bits_of_one(passed: list[str], kind: str, way: str) -> None:
    assert f"{kind}: {way}" in passed


@pytest.mark.parametrize("way", ["apply", "jitted apply"])
def test_parameters_stay_where_they_are_if_gradients_are_elsewhere(passed: list[str], way: str) -> None:
    assert f"Auto: {way} with gradients on all devices" in passed


@pytest.mark.parametrize("rule", ["Adam", "Nadam"])
def test_devices_may_step_on_parts_of_their_own_inside_shard_map(passed: list[str], rule: str) -> None:
    assert f"shard_map: {rule}" in passed
