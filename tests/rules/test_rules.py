"""Each rule against Keras 2.3.1's formula in plain NumPy (`keras_formulas.py`), with hyperparameters of all sorts."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bits import Array, assert_same_bits, ordinary
from support.direct_calls import by_full_name, by_rule, coefficients_of
from support.drawing import drawn_by
from support.keras_formulas import KerasRun, formula_of
from support.programs import operations, programs
from support.turns import in_turn

import portopt
from portopt.program.draws import KEY, Place
from portopt.program.facts import Facts
from portopt.program.interpreter import shape_of
from portopt.rules.settings import other_values
from portopt.rules.settings import settings as settings_of
from portopt.slot import slot_dims, slots_of_shape

SHAPES = ((3, 4), (5,), ())
STEPS = 12
TOLERANCE = 1e-11
"""Relative to the largest magnitude on the way. The formulas leave the last bits open: `beta**t`, order of factors."""

decays = st.floats(0, 0.999)
VALUES = {
    "learning_rate": st.floats(0, 2),
    "decay": st.sampled_from([0.0, 0.004, 0.5, 3.0]),
    "momentum": st.floats(0, 1),
    "rho": decays,
    "beta_1": decays,
    "beta_2": decays,
    "epsilon": st.floats(1e-8, 1),
    "schedule_decay": st.floats(0, 2),
    "clipnorm": st.none() | st.floats(0.01, 10),
    "clipvalue": st.none() | st.floats(0.01, 3),
    "nesterov": st.booleans(),
    "amsgrad": st.booleans(),
}


def hyperparameters(rule: type[portopt.Optimizer]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: VALUES[name] for name in rule.defaults() if name != "dialect"})


def data(seed: int) -> tuple[list[Array], list[list[Array]]]:
    params = [ordinary(shape, "float64", seed + i) for i, shape in enumerate(SHAPES)]
    gradients = [
        [ordinary(shape, "float64", seed + 100 * step + i) for i, shape in enumerate(SHAPES)]
        for step in range(1, STEPS + 1)
    ]
    for step in gradients:
        step[0][0, 0] = 0.0
    gradients[0][1][...] = 0.0
    return params, gradients


def assert_close(actual: Any, expected: Array, scale: float, what: str) -> None:
    error = float(np.max(np.abs(actual - expected)))
    assert error <= TOLERANCE * scale, f"{what}: off by {error / scale:.2g} relative"


@pytest.mark.parametrize("rule", [rule for rule in portopt.RULES if formula_of(rule.__name__)])
def test_rule_computes_the_formula_of_keras(rule: type[portopt.Optimizer]) -> None:
    @settings(max_examples=40)
    @given(hyperparameters(rule), st.integers(0, 2**20))
    def check(chosen: dict[str, Any], seed: int) -> None:
        optimizer = rule(**chosen)
        assert rule.dialects()[0] == "keras2"
        params, gradients = data(seed)
        expected = KerasRun(rule.__name__, chosen, params, tuple(optimizer.slots))
        state = optimizer.init(params)
        scales = [max(1.0, float(np.max(np.abs(p)))) for p in params]
        for number, gradient in enumerate(gradients, start=1):
            with portopt.interpreted():  # a kernel for each combination of features would take long to compile
                params, state = optimizer.apply(params, gradient, state)
            expected.step(gradient)
            scales = [max(s, float(np.max(np.abs(p)))) for s, p in zip(scales, expected.params, strict=True)]
            for j, (actual, wanted, scale) in enumerate(zip(params, expected.params, scales, strict=True)):
                assert_close(actual, wanted, scale, f"parameter {j} after step {number}")
            for name in optimizer.slots:
                for j, (actual, slots) in enumerate(zip(state.slots[name], expected.slots, strict=True)):
                    size = max(1.0, float(np.max(np.abs(slots[name]))))
                    assert_close(actual, slots[name], size, f"slot {name} of parameter {j} after step {number}")

    check()


def as_update_sees_it(optimizer: portopt.Optimizer, name: str, p: Array, array: Array) -> Array:
    """Return a slot of a parameter with the axes that the stored array lacks; one number a parameter as a number."""
    dims = slot_dims(optimizer, name, Facts(type(optimizer).__name__, p.shape))
    seen: Array = np.reshape(array, shape_of(dims, p.shape))[()]
    return seen


EACH = [(rule, dialect) for rule in portopt.RULES for dialect in rule.dialects() or [None]]


@pytest.mark.parametrize(
    ("rule", "dialect"), in_turn(EACH, 0, 2), ids=lambda given: given if isinstance(given, str) else None
)
def test_steps_are_what_the_two_functions_of_the_rule_compute(
    rule: type[portopt.Optimizer], dialect: str | None
) -> None:
    """Called directly, with NumPy as the namespace and Python's floats as the scalars: neither traced nor compiled."""
    for arguments in settings_of(rule, dialect):
        optimizer = rule(**arguments, **({"dialect": dialect} if dialect else {}))
        (p, *_), gradients = data(1)
        state = optimizer.init(p)
        slots: Mapping[str, Array] = {
            name: as_update_sees_it(optimizer, name, p, state.slots[name])
            for name in slots_of_shape(optimizer, p.shape)
        }
        scalars = {name: value for name, value in optimizer.scalar_slots.items() if name != KEY}
        expected = p
        for t, (gradient, *_) in enumerate(gradients, start=1):
            with portopt.interpreted():
                p, state = optimizer.apply(p, gradient, state)
            drawn = {name: drawn_by(optimizer, name, t, Place.of(0, p.shape)) for name in optimizer.draws}
            totals: Mapping[str, Any] = {}
            if optimizer.totals is not None:
                known = SimpleNamespace(t=t, **scalars)
                totals = optimizer.totals(np, expected, gradient, SimpleNamespace(**slots), known)
            coefficients, scalars = coefficients_of(optimizer, t, scalars, totals)
            with np.errstate(divide="ignore", invalid="ignore"):
                expected, new = optimizer.update(np, expected, gradient, by_rule(slots), coefficients, **drawn)
            slots = by_full_name(new)
            assert_close(p, expected, max(1.0, float(np.max(np.abs(expected)))), f"parameter after step {t}")
            assert set(slots) == set(slots_of_shape(optimizer, p.shape))
            for name, slot in slots.items():
                size = max(1.0, float(np.max(np.abs(slot))))
                found = as_update_sees_it(optimizer, name, p, state.slots[name])
                assert_close(found, slot, size, f"slot {name} after step {t}")
        assert np.max(np.abs(expected - data(1)[0][0])) > 1e-7, "the parameter hardly moves"


def descend(optimizer: portopt.Optimizer, gradients: list[float]) -> list[float]:
    """Return where a single parameter that starts at 0 is after each step."""
    p = np.zeros(1)
    state = optimizer.init(p)
    places = []
    for gradient in gradients:
        p, state = optimizer.apply(p, np.asarray([gradient]), state)
        places.append(float(p[0]))
    return places


def test_sgd_with_momentum_keeps_moving() -> None:
    assert descend(portopt.SGD(0.5, momentum=0.5), [1.0, 0.0, 0.0]) == [-0.5, -0.75, -0.875]


def test_sgd_nesterov_looks_ahead() -> None:
    assert descend(portopt.SGD(0.5, momentum=0.5, nesterov=True), [1.0, 0.0, 0.0]) == [-0.75, -0.875, -0.9375]


def test_sgd_with_momentum_keeps_the_learning_rate_that_a_gradient_had() -> None:
    optimizer = portopt.SGD(lambda step: portopt.scalars.where(step < 1, 0.5, 0.0), momentum=0.5)
    assert descend(optimizer, [1.0, 1.0]) == [-0.5, -0.75]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_without_momentum_is_gradient_descent(nesterov: bool) -> None:
    assert descend(portopt.SGD(0.25, nesterov=nesterov), [1.0, -2.0]) == [-0.25, 0.25]


def test_adagrad_slows_down_with_every_gradient() -> None:
    assert descend(portopt.Adagrad(1.0, epsilon=0.0), [3.0, 4.0]) == [-1.0, -1.8]


def test_adam_moves_by_the_learning_rate_whatever_the_size_of_the_first_gradient() -> None:
    for gradient in (1e-3, 1.0, 1e6):
        (place,) = descend(portopt.Adam(0.125, epsilon=0.0), [gradient])
        assert place == pytest.approx(-0.125, rel=1e-12)


def test_amsgrad_never_shrinks_the_denominator() -> None:
    gradients = [10.0, *[0.1] * 50]
    optimizer = portopt.Adam(amsgrad=True, beta_2=0.5)
    p = np.zeros(1)
    state = optimizer.init(p)
    largest = 0.0
    for gradient in gradients:
        p, state = optimizer.apply(p, np.asarray([gradient]), state)
        largest = max(largest, float(state.slots["v"][0]))
        assert state.slots["vhat"][0] == largest
    assert state.slots["v"][0] < 0.02 < largest


def test_adamax_forgets_a_large_gradient_at_the_rate_beta_2() -> None:
    optimizer = portopt.Adamax(beta_2=0.5)
    p = np.zeros(1)
    state = optimizer.init(p)
    for gradient, norm in ((8.0, 8.0), (1.0, 4.0), (1.0, 2.0), (3.0, 3.0)):
        p, state = optimizer.apply(p, np.asarray([gradient]), state)
        assert state.slots["u"][0] == norm


def test_nadam_keeps_the_product_of_its_momenta() -> None:
    optimizer = portopt.Nadam(beta_1=0.5, schedule_decay=0.0)
    p = np.zeros(1)
    state = optimizer.init(p)
    for step in range(1, 5):
        p, state = optimizer.apply(p, np.ones(1), state)
        assert state.slots["m_schedule"] == 0.25**step


@pytest.mark.parametrize("rule", [rule for rule in portopt.RULES if "decay" in rule.defaults()])
def test_decay_divides_the_learning_rate_and_leaves_the_first_step(rule: type[portopt.Optimizer]) -> None:
    decayed, plain = rule(learning_rate=0.5, decay=0.25), rule(learning_rate=0.5)
    p, g = ordinary((4,), "float64", 1), ordinary((4,), "float64", 2)
    state = plain.init(p)
    assert_same_bits(decayed.apply(p, g, state)[0], plain.apply(p, g, state)[0])
    later = state._replace(step=4)
    assert_same_bits(decayed.apply(p, g, later)[0], plain.apply(p, g, later, learning_rate=0.25)[0])


def test_nadam_has_no_decay() -> None:
    with pytest.raises(TypeError, match="Nadam got an unknown argument 'decay'; did you mean 'schedule_decay'"):
        portopt.Nadam(decay=0.1)  # type: ignore[call-arg]  # the error is the subject


@pytest.mark.parametrize("rule", portopt.RULES)
def test_feature_that_is_off_adds_no_operation(rule: type[portopt.Optimizer]) -> None:
    off = {name: field.off for name, field in rule.hyperparameters().items() if field.is_optional}
    plain = rule(**off)
    for name, value in off.items():
        assert all(name not in program.scalar_inputs for program in programs(plain))
        # None may as well stand for another value.
        if value is not None or name in ("clipnorm", "clipvalue"):
            on = plain.replace(**{name: other_values(rule).get(name, 0.5)})
            assert operations(plain) < operations(on)
