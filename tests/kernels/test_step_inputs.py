"""What the call of a planned step computes itself, learning rates and the norm: the same bits and errors as in Python."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, numpy_dtype
from support.libraries import BY_NAME, Library, each_planned
from support.twins import Twin

import portopt
from portopt import schedules
from portopt.hyperparameters import Range
from portopt.kernels.host import plan, threads
from portopt.kernels.host.scalar_script import scalar_script
from portopt.kernels.rates import ARE_ALLOWED, Rate, rates_program
from portopt.program.interpreter import StepScalars

pytestmark = pytest.mark.needs("numba")

SCHEDULES = [
    schedules.Constant(0.25),
    schedules.InverseTimeDecay(0.1, rate=0.3, steps=7),
    schedules.InverseTimeDecay(0.1, rate=0.3, steps=7, staircase=True),
    schedules.ExponentialDecay(0.1, rate=0.9),
    schedules.ExponentialDecay(0.1, rate=0.9, steps=13),
    schedules.ExponentialDecay(0.1, rate=0.9, steps=13, staircase=True),
    schedules.PolynomialDecay(0.1, steps=100, end=0.003),
    schedules.PolynomialDecay(0.1, steps=100, end=0.003, power=3),
    schedules.PolynomialDecay(0.1, steps=100, power=0.7),
    schedules.PiecewiseConstant([3, 10, 100], [0.1, 0.2, 0.3, 0.4]),
    schedules.CosineDecay(0.1, steps=90, end=0.003),
    schedules.CosineDecay(0.1, steps=90, warmup_steps=10, warmup_initial=0.01),
]
STEPS = (0, 1, 2, 3, 5, 7, 9, 10, 11, 50, 89, 90, 99, 100, 101, 1000, 12345, 2**31 - 3)


def ready(optimizer: portopt.Optimizer, library: Library, shape: tuple[int, ...] = (3,)) -> tuple[Any, Any, Any]:
    """Return arguments of a step that is planned."""
    w, g = library.arrays(np.zeros(shape)), library.arrays(-np.ones(shape))
    state = optimizer.init(w)
    for _ in range(3):
        state = optimizer.apply_(w, g, state)
    assert len(optimizer._cache.plans) == 1
    return w, g, state


def test_every_ready_made_schedule_is_among_those_tested() -> None:
    # Adapters have some of their own.
    ready_made = {kind for kind in schedules.Schedule.__subclasses__() if kind.__module__ == schedules.__name__}
    assert {type(s) for s in SCHEDULES} == ready_made


@each_planned
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_learning_rates_have_the_bits_that_python_gives_them(
    schedule: schedules.Schedule, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [schedule(step) for step in STEPS]
    optimizer = portopt.SGD(schedule)
    w, g, state = ready(optimizer, library)

    def by_python(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(type(schedule), "at", by_python)
    for step, rate in zip(STEPS, expected, strict=True):
        w[...] = 0.0
        optimizer.apply_(w, g, state._replace(step=step))
        assert_same_bits(library.numpy(w), np.full(3, rate), str(step))


@each_planned
def test_a_rate_out_of_range_is_refused_as_ever_and_nothing_is_written(library: Library) -> None:
    optimizer = portopt.SGD(schedules.ExponentialDecay(1.0, rate=4.0))
    w, g, state = ready(optimizer, library)
    before = library.numpy(w)
    late = state._replace(step=600)
    with pytest.raises(
        ValueError, match=r"the schedule .* of SGD: learning_rate must be in \[0, inf\), but inf was given"
    ):
        optimizer.apply_(w, g, late)
    assert_same_bits(library.numpy(w), before)
    assert optimizer.apply_(w, g, state).step == state.step + 1


@pytest.mark.parametrize(
    ("range_", "allowed"),
    [
        (Range(at_least=0.125), (0.125, 0.5)),
        (Range(above=0.125), (0.5,)),
        (Range(at_most=0.125), (-1.0, 0.125)),
        (Range(below=0.125), (-1.0,)),
    ],
)
def test_what_is_allowed_is_what_the_range_holds(range_: Range, allowed: tuple[float, ...]) -> None:
    values = (-1.0, 0.125, 0.5, math.inf, -math.inf, math.nan)
    assert tuple(v for v in values if v in range_) == allowed
    # A rate that the constructors of schedules would not let through.
    for value in values:
        schedule = schedules.PolynomialDecay(1.0, steps=1)
        object.__setattr__(schedule, "end", value)
        program = rates_program([Rate("learning_rate", schedule, range_)])
        found = StepScalars(program, portopt.arithmetic.HOST, {"t": 5}).outputs()
        assert found[ARE_ALLOWED] == (value in range_)


def test_integers_too_large_for_a_script_are_left_to_python() -> None:
    schedule = schedules.PiecewiseConstant([5, 2**70], [1.0, 2.0, 3.0])
    assert scalar_script(rates_program([Rate("learning_rate", schedule, Range(at_least=0))]), 0) is None
    optimizer, library = portopt.SGD(schedule), BY_NAME["numpy"]
    w, g, state = ready(optimizer, library)
    for step, rate in ((4, 1.0), (5, 2.0), (6, 2.0)):
        w[...] = 0.0
        optimizer.apply_(w, g, state._replace(step=step))
        assert w.tolist() == [rate] * 3


def shapes_and_values(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 5), "b": (7,), "c": (2, 1, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


SCALED = [rule for rule in portopt.RULES if rule().scalar_slots or rule.totals is not None]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.5},
    "both": {"clipnorm": 0.5, "learning_rate": schedules.CosineDecay(0.1, steps=4, warmup_steps=2)},
}


@each_planned
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", SCALED)
def test_rules_with_totals_or_scalars_of_the_state(
    rule: type[portopt.Optimizer], variant: str, library: Library
) -> None:
    twin = Twin(rule(**VARIANTS[variant]), shapes_and_values(1), library.arrays)
    for step in range(6):
        twin.step(shapes_and_values(10 * step))
        twin.compare()
    assert len(twin.rule._cache.plans) == 1


@each_planned
@pytest.mark.parametrize("kind", [np.float64, np.asarray, int])
def test_a_scalar_of_the_state_that_is_no_python_float(kind: Any, library: Library) -> None:
    optimizer, expected = portopt.Nadam(), portopt.Nadam()
    w, g, state = ready(optimizer, library)
    slots = {**state.slots, "m_schedule": kind(1)}
    pure, pure_state = expected.apply(w, g, state._replace(slots={**state.slots, "m_schedule": 1.0}))
    state = optimizer.apply_(w, g, state._replace(slots=slots))
    assert_same_bits(library.numpy(w), library.numpy(pure))
    assert type(state.slots["m_schedule"]) is float
    assert state.slots["m_schedule"] == pure_state.slots["m_schedule"]


@each_planned
def test_a_schedule_of_a_users_is_called_once_a_step_with_clipping_too(library: Library) -> None:
    steps: list[int] = []

    def schedule(step: Any) -> float:
        steps.append(int(step))
        return 0.5

    optimizer = portopt.SGD(schedule, clipnorm=0.5)
    w, g, state = ready(optimizer, library, (4,))
    for _ in range(3):
        state = optimizer.apply_(w, g, state)
    assert steps == list(range(6))
    assert library.numpy(w).tolist() == [6 * 0.5 * 0.25] * 4


@each_planned
def test_a_given_norm_takes_the_place_of_the_computed_one_for_a_step(library: Library) -> None:
    optimizer = portopt.SGD(1.0, clipnorm=1.0)
    w, g, state = ready(optimizer, library, (4,))
    for norm, moved in ((None, 0.5), (4.0, 0.25), (None, 0.5), (4.0, 0.25), (8.0, 0.125), (None, 0.5), (0.0, 1.0)):
        w[...] = 0.0
        state = optimizer.apply_(w, g, state, gradient_norm=norm)
        assert library.numpy(w).tolist() == [moved] * 4


@each_planned
def test_numbers_given_for_a_step_may_change_without_being_looked_at_in_full(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(step: int) -> dict[str, Any]:
        return {"lr": 0.1 + 0.01 * step, "beta_1": 0.9 - 0.05 * step}

    twin = Twin(portopt.Adam(clipnorm=0.5), shapes_and_values(1), library.arrays)
    for step in range(3):
        twin.step(shapes_and_values(10 * step), **given(step))
    expected = [portopt.Adam(clipnorm=0.5, **given(step)) for step in range(6)]

    def in_full(*_: Any) -> Any:
        raise AssertionError

    for step in range(3, 6):
        grads = shapes_and_values(10 * step)
        with portopt.interpreted():
            twin.expected, twin.expected_state = expected[step].apply(twin.expected, grads, twin.expected_state)
        with monkeypatch.context() as patched:
            patched.setattr(portopt.Adam, "check_overrides", in_full)
            twin.state = twin.rule.apply_(twin.params, library.arrays(grads), twin.state, **given(step))
        twin.compare()


@each_planned
def test_whatever_is_given_for_a_step_counts_for_it(library: Library) -> None:
    optimizer = portopt.SGD(1.0, momentum=0.0)
    w, g, state = ready(optimizer, library)
    steps: list[tuple[dict[str, Any], float]] = [
        ({"lr": 0.5}, 0.5), ({"lr": 0.25}, 0.25), ({"learning_rate": 2.0}, 2.0), ({"lr": 3}, 3.0), ({"lr": 0.125}, 0.125),
        ({}, 1.0), ({"lr": np.float64(0.5)}, 0.5), ({"lr": 4.0}, 4.0), ({"lr": np.asarray(8.0)}, 8.0), ({"lr": 16.0}, 16.0),
        ({"lr": 0.0}, 0.0), ({"lr": 5e-324}, 0.0), ({"clipnorm": 3.0**0.5 / 2, "lr": 2.0}, 1.0), ({"lr": 2.0}, 2.0),
        ({"clipnorm": 3.0**0.5 / 4, "lr": 2.0}, 0.5), ({"clipnorm": None, "lr": 2.0}, 2.0),
    ]  # fmt: skip
    for overrides, moved in [*steps, *steps]:
        w[...] = 0.0
        state = optimizer.apply_(w, g, state, **overrides)
        assert np.allclose(library.numpy(w), moved, rtol=1e-12, atol=0.0), overrides
    for wrong in (-1.0, math.inf, math.nan):
        state = optimizer.apply_(w, g, state, lr=1.0)
        before = library.numpy(w)
        with pytest.raises(ValueError, match=r"SGD\.apply lr must be in \[0, inf\)"):
            optimizer.apply_(w, g, state, lr=wrong)
        assert_same_bits(library.numpy(w), before)


class TotalsOfGradients(portopt.Optimizer):
    """Puts the norm of all gradients into every element, and other totals into the state."""

    scalar_slots = {"added": 0.0, "root": 0.0, "most": 0.0}  # noqa: RUF012  # a mapping that nothing writes to

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        found = {"size": xp.linalg.vector_norm(g), "total": xp.sum(xp.where(p == p, g, g))}
        return {**found, "norm": xp.linalg.vector_norm(g - p), "largest": xp.max(g - p)}

    def coefficients(
        self, t: Any, added: Any, root: Any, most: Any, size: Any, total: Any, norm: Any, largest: Any
    ) -> Any:
        return {"size": size, "added": total, "root": norm, "most": largest}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return xp.where(p == p, c.size, c.size) + 0.0 * p, {}


def outlier(dtype: str, size: int, place: int, exponent: float, base: float = -3.0) -> Array:
    """Return small numbers and a large one, which no guess finds."""
    x = np.full(size, 2.0**base)
    x[place] = 2.0**exponent
    return np.asarray(x, numpy_dtype(dtype))


LARGE = 3 * threads.ELEMENTS_PER_THREAD
GRADIENTS: dict[str, list[Array]] = {
    "small": [np.asarray([3.0, 4.0], np.float32), np.asarray([12.0])],
    "an outlier": [outlier("float32", 5000, 4097, 40)],
    "an outlier in another dtype": [outlier("float32", 5000, 4097, 10), outlier("float64", 5000, 4099, 600)],
    "half precision": [outlier("float16", 3000, 2049, 9), outlier("bfloat16", 3000, 2049, 100)],
    "smallest and largest": [np.full(9, 2.0**-1020), np.full(9, 2.0**1020)],
    "zeros": [np.zeros(9, np.float32), np.zeros(0, np.float32)],
    "infinity": [outlier("float32", 5000, 4097, math.inf), np.ones(3)],
    "NaN after infinity": [outlier("float32", 5000, 4097, math.inf), np.asarray([math.nan])],
    "infinities of both signs": [outlier("float32", 50, 7, math.inf), -outlier("float32", 50, 7, math.inf)],
    "large": [outlier("float32", LARGE, LARGE - 5, 40), np.ones(7)],
    "large, parts in other bins": [np.arange(LARGE, dtype=np.float32) ** 2 / 2**21 + np.float32(0.1), np.ones(7)],
    "large, of two dtypes": [outlier("float32", LARGE, 5, 3), outlier("float64", LARGE, LARGE - 5, 900)],
    "large with infinity": [outlier("float32", LARGE, LARGE // 2 + 1, math.inf), np.ones(7)],
}


@functools.cache
def totals_by_python(case: str) -> tuple[float, Mapping[str, float]]:
    """Return the norm of a case, and what its totals are, operation by operation."""
    params = [np.zeros(g.shape) for g in GRADIENTS[case]]
    optimizer = TotalsOfGradients()
    with portopt.interpreted(), np.errstate(all="ignore"):
        params, state = optimizer.apply(params, GRADIENTS[case], optimizer.init(params))
    return float(BY_NAME["numpy"].backend.gradient_norm(GRADIENTS[case])), state.slots


@each_planned
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", GRADIENTS)
def test_totals_are_those_of_python(case: str, count: int, library: Library) -> None:
    norm, slots = totals_by_python(case)
    gradients = GRADIENTS[case]
    params = library.arrays([np.zeros(g.shape) for g in gradients])
    grads = library.arrays(gradients)
    optimizer = TotalsOfGradients()
    portopt.set_num_threads(count)
    try:
        state = optimizer.init(params)
        for _ in range(3):
            for p in params:
                p[...] = 0.0
            state = optimizer.apply_(params, grads, state)
    finally:
        portopt.set_num_threads(None)
    (planned,) = optimizer._cache.plans
    assert planned.was_used
    for p in params:
        assert_same_bits(library.numpy(p), np.full(p.shape, norm))
    for name, value in slots.items():
        assert_same_bits(np.float64(state.slots[name]), np.float64(value), name)


@each_planned
@pytest.mark.parametrize("size", [9, LARGE])
def test_zeros_of_one_dtype_hide_no_tiny_numbers_of_another(size: int, library: Library) -> None:
    optimizer = TotalsOfGradients()
    zeros, tiny = np.zeros(size, np.float32), np.full(size, 2.0**-600)
    params, grads = library.arrays([zeros, 0.0 * tiny]), library.arrays([zeros, tiny])
    state = optimizer.init(params)
    for _ in range(3):
        state = optimizer.apply_(params, grads, state)
        for p in params:
            p[...] = 0.0
        assert_same_bits(np.float64(state.slots["root"]), np.float64(BY_NAME["numpy"].backend.gradient_norm([tiny])))
    (planned,) = optimizer._cache.plans
    assert planned.was_used


def test_totals_too_large_for_integers_are_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_ELEMENTS", 4)
    for optimizer in (portopt.DoG(), portopt.SGD(clipnorm=1.0)):
        w = np.ones(4)
        state = optimizer.init(w)
        for _ in range(3):
            state = optimizer.apply_(w, w.copy(), state)
        found = portopt.explain(optimizer, w, w.copy(), state, in_place=True)
        assert str(found) == (
            "checked: of 4 elements and more, Python adds up the integers that make a total over all parameters"
        )
