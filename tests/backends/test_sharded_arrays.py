"""Arrays on a mesh of eight devices: the bits of one device, and a state where its parameters are."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from support.elsewhere import Elsewhere
from support.turns import in_turns

pytestmark = pytest.mark.needs("jax", "optax")


@pytest.fixture
def on_eight_devices(elsewhere: Elsewhere) -> Callable[..., None]:
    """Call a case where JAX has eight devices."""
    flags = "--xla_force_host_platform_device_count=8"
    return functools.partial(elsewhere.call, "sharded_steps", XLA_FLAGS=flags)


@pytest.mark.parametrize(
    ("way", "kind"), in_turns(["norm", "apply", "jitted apply", "optax", "step"], ["Auto", "Explicit"])
)
def test_eight_devices_give_the_bits_of_one(on_eight_devices: Callable[..., None], kind: str, way: str) -> None:
    if way == "norm":
        on_eight_devices("case_norm", kind)
    else:
        on_eight_devices("case_steps", kind, way, "placed")


@pytest.mark.parametrize("way", ["apply", "jitted apply"])
def test_parameters_stay_where_they_are_if_gradients_are_elsewhere(
    on_eight_devices: Callable[..., None], way: str
) -> None:
    on_eight_devices("case_steps", "Auto", way, "everywhere")


@pytest.mark.parametrize("rule", ["Adam", "Nadam"])
def test_devices_may_step_on_parts_of_their_own_inside_shard_map(
    on_eight_devices: Callable[..., None], rule: str
) -> None:
    on_eight_devices("case_parts", rule)


def test_rules_that_reduce_and_multiply_have_the_bits_of_one_device(on_eight_devices: Callable[..., None]) -> None:
    on_eight_devices("case_kinds")


def test_devices_may_keep_narrow_slots_of_parts_of_their_own(on_eight_devices: Callable[..., None]) -> None:
    on_eight_devices("case_narrow_parts")


def test_further_inputs_may_be_spread_as_their_parameters_or_otherwise(on_eight_devices: Callable[..., None]) -> None:
    on_eight_devices("case_inputs")
