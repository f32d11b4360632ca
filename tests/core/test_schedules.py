"""Learning-rate schedules: values, errors, configs, users' own, and the same bits on the host and inside JAX."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bits import assert_same_bits
from support.jax_evaluation import each_x64, jitted, scanned
from support.libraries import LIBRARIES, Library, each_library
from support.turns import in_turn, in_turns

import portopt
from portopt import scalars, schedules
from portopt.arithmetic import HOST
from portopt.nested import value_of
from portopt.program.interpreter import evaluate_scalars
from portopt.scalars import Scalar
from portopt.schedules import (
    Constant,
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstant,
    PolynomialDecay,
    Schedule,
)


@dataclass(frozen=True)
class Case:
    """A schedule and its formula in plain Python, for one step number."""

    schedule: Schedule
    formula: Callable[[int], float]

    def __str__(self) -> str:
        return repr(self.schedule)


def cosine(initial: float, steps: float, end: float, s: float) -> float:
    return (initial - end) * 0.5 * (1 + math.cos(math.pi * min(s, steps) / steps)) + end


CASES = [
    Case(Constant(0.1), lambda s: 0.1),
    Case(InverseTimeDecay(0.5, rate=0.3), lambda s: 0.5 / (1 + 0.3 * s)),
    Case(InverseTimeDecay(0.5, rate=0.3, steps=7), lambda s: 0.5 / (1 + 0.3 * s / 7)),
    Case(InverseTimeDecay(0.5, rate=0.3, steps=7, staircase=True), lambda s: 0.5 / (1 + 0.3 * (s // 7))),
    Case(ExponentialDecay(0.5, rate=0.999), lambda s: 0.5 * 0.999**s),
    Case(ExponentialDecay(0.5, rate=0.9, steps=50), lambda s: 0.5 * 0.9 ** (s / 50)),
    Case(ExponentialDecay(0.5, rate=0.9, steps=50, staircase=True), lambda s: 0.5 * 0.9 ** (s // 50)),
    Case(ExponentialDecay(1e-3, rate=1.5, steps=2000), lambda s: 1e-3 * 1.5 ** (s / 2000)),
    Case(PolynomialDecay(0.5, steps=60), lambda s: 0.5 * (1 - min(s, 60) / 60)),
    Case(PolynomialDecay(0.5, 60, end=0.1, power=2), lambda s: 0.4 * (1 - min(s, 60) / 60) ** 2 + 0.1),
    Case(PolynomialDecay(0.1, 60, end=0.5, power=0.5), lambda s: -0.4 * (1 - min(s, 60) / 60) ** 0.5 + 0.5),
    Case(PiecewiseConstant([], [0.25]), lambda s: 0.25),
    Case(PiecewiseConstant([10, 60], [0.5, 0.1, 0.01]), lambda s: 0.5 if s < 10 else 0.1 if s < 60 else 0.01),
    Case(CosineDecay(0.5, steps=60), lambda s: cosine(0.5, 60, 0.0, s)),
    Case(CosineDecay(0.5, 60, end=0.1), lambda s: cosine(0.5, 60, 0.1, s)),
    Case(
        CosineDecay(0.5, 60, end=0.1, warmup_steps=20, warmup_initial=0.05),
        lambda s: 0.05 + 0.45 * s / 20 if s < 20 else cosine(0.5, 60, 0.1, s - 20),
    ),
]

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def on_host(function: Callable[[Scalar], Any], steps: int) -> list[float]:
    return [float(function(Scalar(s, HOST))) for s in range(steps)]


# Values


def ready_made() -> set[type[Schedule]]:
    """Return the schedules of portopt, without those that a test may have defined."""
    return {kind for kind in Schedule.__subclasses__() if kind.__module__ == schedules.__name__}


def test_every_ready_made_schedule_has_a_case() -> None:
    assert {type(case.schedule) for case in CASES} == ready_made()


@each_case
def test_values_are_those_of_the_formula(case: Case) -> None:
    for s in [*range(130), 1000, 9999]:
        assert case.schedule(s) == pytest.approx(case.formula(s), rel=2e-14, abs=2e-16), s


@each_case
def test_schedule_gives_a_float_for_a_number_and_a_scalar_for_a_scalar(case: Case) -> None:
    value = case.schedule(3)
    assert type(value) is float
    result = case.schedule(Scalar(3, HOST))
    assert (result.value if isinstance(result, Scalar) else result) == value


def test_decay_of_the_optimizers_is_inverse_time_decay_over_one_step() -> None:
    optimizer, schedule = portopt.SGD(0.3, decay=0.07), InverseTimeDecay(0.3, rate=0.07)
    for s in range(50):
        rate = optimizer.learning_rate_at(Scalar(s + 1, HOST))
        assert float(rate) == schedule(s)


def test_first_step_gets_the_value_at_zero() -> None:
    asked: list[int] = []

    def schedule(step: Any) -> float:
        asked.append(int(step))
        return 0.5

    optimizer = portopt.SGD(schedule)
    p = np.zeros(1)
    state = optimizer.init(p)
    for _ in range(3):
        p, state = optimizer.apply(p, np.ones(1), state)
    assert asked == [0, 1, 2]


def test_schedule_and_decay_multiply() -> None:
    optimizer = portopt.SGD(ExponentialDecay(0.5, rate=0.5), decay=1.0)
    p = np.zeros(1)
    state = optimizer.init(p)._replace(step=3)
    assert optimizer.apply(p, np.ones(1), state)[0] == -(0.5 * 0.5**3) * (1 / 4)


@pytest.mark.parametrize("schedule", [PolynomialDecay(0.5, 60, end=0.125), CosineDecay(0.5, 60, end=0.125)], ids=repr)
def test_end_is_reached_exactly_and_kept(schedule: Schedule) -> None:
    assert schedule(0) == 0.5
    assert schedule(59) > 0.125
    assert schedule(60) == schedule(61) == schedule(10**9) == 0.125


def test_piecewise_value_changes_at_its_boundary() -> None:
    schedule = PiecewiseConstant([1, 2, 100], [1.0, 2.0, 3.0, 4.0])
    assert [schedule(s) for s in (0, 1, 2, 99, 100, 101)] == [1.0, 2.0, 3.0, 3.0, 4.0, 4.0]


def test_warm_up_meets_the_cosine_at_its_top() -> None:
    schedule = CosineDecay(0.5, steps=100, warmup_steps=8)
    assert [schedule(s) for s in (0, 2, 4, 8)] == [0.0, 0.125, 0.25, 0.5]
    assert schedule(9) < 0.5


def test_staircase_is_flat_between_its_steps() -> None:
    schedule = ExponentialDecay(1.0, rate=0.5, steps=10, staircase=True)
    assert [schedule(s) for s in (0, 9, 10, 19, 20)] == [1.0, 1.0, 0.5, 0.5, 0.25]


rates = st.floats(0, 10)


@given(rates, rates, st.integers(1, 500), st.integers(0, 600), st.floats(0.1, 4))
def test_polynomial_and_cosine_stay_between_their_ends(
    initial: float, end: float, steps: int, step: int, power: float
) -> None:
    low, high = min(initial, end), max(initial, end)
    slack = 1e-14 * high
    for schedule in (PolynomialDecay(initial, steps, end, power), CosineDecay(initial, steps, end)):
        assert low - slack <= schedule(step) <= high + slack


@given(rates, st.floats(0.01, 1), st.integers(1, 500), st.integers(0, 600), st.booleans())
def test_decays_never_rise(initial: float, rate: float, steps: int, step: int, staircase: bool) -> None:
    """A real power is good to a few ulp, so it may rise by that much."""
    for kind in (ExponentialDecay, InverseTimeDecay):
        schedule = kind(initial, rate, steps, staircase)
        assert schedule(step + 1) <= schedule(step) * (1 + 1e-14)


# Errors


@pytest.mark.parametrize(
    ("make", "name", "allowed", "value"),
    [
        (lambda x: Constant(x), "Constant value", "[0, inf)", -1.0),
        (lambda x: Constant(x), "Constant value", "[0, inf)", math.nan),
        (lambda x: InverseTimeDecay(x, 1.0), "InverseTimeDecay initial", "[0, inf)", math.inf),
        (lambda x: InverseTimeDecay(1.0, x), "InverseTimeDecay rate", "[0, inf)", -0.5),
        (lambda x: InverseTimeDecay(1.0, 1.0, x), "InverseTimeDecay steps", "(0, inf)", 0),
        (lambda x: ExponentialDecay(x, 1.0), "ExponentialDecay initial", "[0, inf)", -1),
        (lambda x: ExponentialDecay(1.0, x), "ExponentialDecay rate", "(0, inf)", 0.0),
        (lambda x: ExponentialDecay(1.0, 1.0, x), "ExponentialDecay steps", "(0, inf)", -3),
        (lambda x: PolynomialDecay(x, 10), "PolynomialDecay initial", "[0, inf)", -1),
        (lambda x: PolynomialDecay(1.0, x), "PolynomialDecay steps", "(0, inf)", 0),
        (lambda x: PolynomialDecay(1.0, 10, end=x), "PolynomialDecay end", "[0, inf)", -0.1),
        (lambda x: PolynomialDecay(1.0, 10, power=x), "PolynomialDecay power", "(0, inf)", 0),
        (lambda x: PiecewiseConstant([], [x]), "PiecewiseConstant values", "[0, inf)", -1),
        (lambda x: CosineDecay(x, 10), "CosineDecay initial", "[0, inf)", -1),
        (lambda x: CosineDecay(1.0, x), "CosineDecay steps", "(0, inf)", 0),
        (lambda x: CosineDecay(1.0, 10, end=x), "CosineDecay end", "[0, inf)", -1),
        (lambda x: CosineDecay(1.0, 10, warmup_steps=x), "CosineDecay warmup_steps", "[0, inf)", -1),
        (lambda x: CosineDecay(1.0, 10, warmup_initial=x), "CosineDecay warmup_initial", "[0, inf)", -1),
    ],
)
def test_argument_out_of_range_is_refused(make: Callable[[Any], object], name: str, allowed: str, value: float) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared as a whole
        make(value)
    assert str(caught.value) == f"{name} must be in {allowed}, but {value!r} was given"
    with pytest.raises(TypeError) as refused:
        make("fast")
    assert str(refused.value) == f"{name} must be a Python number in {allowed}, but 'fast' of type str was given"


@pytest.mark.parametrize("boundaries", [[0], [-1], [3, 3], [5, 3], [1.5], [True], ["1"]], ids=str)
def test_boundaries_that_do_not_increase_are_refused(boundaries: list[Any]) -> None:
    with pytest.raises(
        ValueError, match="PiecewiseConstant boundaries must be increasing integers of at least 1, but "
    ):
        PiecewiseConstant(boundaries, [0.1] * (len(boundaries) + 1))


def test_boundaries_may_be_numpy_integers() -> None:
    assert PiecewiseConstant(np.asarray([3, 5]), [1.0, 2.0, 3.0]) == PiecewiseConstant([3, 5], [1.0, 2.0, 3.0])  # type: ignore[arg-type]  # an array is a sequence in all but name


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.2, 0.3]], ids=str)
def test_number_of_values_must_fit_the_boundaries(values: list[float]) -> None:
    with pytest.raises(
        ValueError,
        match=f"PiecewiseConstant needs one more value than boundaries, but {len(values)} values and 1 boundaries were given",
    ):
        PiecewiseConstant([10], values)


@pytest.mark.parametrize("kind", [InverseTimeDecay, ExponentialDecay])
def test_staircase_is_a_flag(kind: Any) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__} staircase must be True or False, but 'no' was given"):
        kind(1.0, 0.5, 10, staircase="no")


def test_schedule_without_a_formula_says_what_to_define() -> None:
    class Empty(Schedule):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must define at\(self, step\)"):
        Empty()(0)


def test_schedules_are_immutable_values() -> None:
    schedule = CosineDecay(0.5, 60)
    with pytest.raises(AttributeError):
        schedule.initial = 1.0  # type: ignore[misc]  # the error is the subject
    assert schedule == CosineDecay(0.5, steps=60.0)
    assert hash(schedule) == hash(CosineDecay(0.5, 60))
    assert portopt.SGD(schedule) == portopt.SGD(CosineDecay(0.5, 60))
    assert portopt.SGD(schedule) != portopt.SGD(CosineDecay(0.5, 61))


# Configs


@each_case
def test_config_goes_through_json_and_back(case: Case) -> None:
    optimizer = portopt.Adam(case.schedule)
    config = json.loads(json.dumps(portopt.serialize(optimizer)))
    assert config["config"]["learning_rate"]["class_name"] == type(case.schedule).__name__
    again = portopt.deserialize(config)
    assert again == optimizer
    assert again.learning_rate == case.schedule


def test_schedule_config_is_taken_under_the_alias() -> None:
    config = {"lr": {"class_name": "Constant", "config": {"value": 0.5}}}
    assert portopt.SGD.from_config(config) == portopt.SGD(Constant(0.5))


@portopt.register_schedule
class HalvedEvery:
    """A user's schedule: any class with `__call__` and `get_config`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        return 0.5 ** scalars.floor(step / self.steps)

    def get_config(self) -> dict[str, Any]:
        return {"steps": self.steps}


def test_registered_schedule_goes_through_a_config() -> None:
    config = portopt.SGD(HalvedEvery(3)).get_config()
    assert config["learning_rate"] == {"class_name": "HalvedEvery", "config": {"steps": 3}}
    again = portopt.SGD.from_config(json.loads(json.dumps(config)))
    assert isinstance(again.learning_rate, HalvedEvery)
    assert [float(again.learning_rate(s)) for s in (0, 2, 3, 6)] == [1.0, 1.0, 0.5, 0.25]


def test_registering_the_same_class_again_is_fine() -> None:
    assert portopt.register_schedule(HalvedEvery) is HalvedEvery


def test_registering_another_schedule_under_a_taken_name_is_refused() -> None:
    class Constant:
        def __call__(self, step: Any) -> float:
            return 1.0

        def get_config(self) -> dict[str, Any]:
            return {}

    with pytest.raises(
        ValueError, match=r"another schedule is registered as 'Constant': .*schedules\.Constant.*; rename one"
    ):
        portopt.register_schedule(Constant)


def test_registering_a_class_that_is_no_schedule_is_refused() -> None:
    class NoConfig:
        def __call__(self, step: Any) -> float:
            return 1.0

    message = r"NoConfig must define __call__\(self, step\) and get_config\(self\) to be registered as a schedule"
    with pytest.raises(TypeError, match=message):
        portopt.register_schedule(NoConfig)


def test_registering_a_class_that_cannot_be_called_is_refused() -> None:
    class NoCall:
        def get_config(self) -> dict[str, Any]:
            return {}

    with pytest.raises(TypeError, match=r"NoCall must define __call__"):
        portopt.register_schedule(NoCall)


def test_schedule_that_no_config_can_hold_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        ValueError,
        match=r"the learning-rate schedule <function .*lambda.*> cannot be put into a config: use one of portopt.schedules "
        r"\(.*CosineDecay.*\), or a class with get_config registered by portopt.register_schedule",
    ):
        portopt.SGD(lambda step: 0.1).get_config()


def test_unknown_schedule_in_a_config_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="unknown learning-rate schedule 'Sawtooth'; known are Constant, InverseTimeDecay, "
    ):
        portopt.SGD.from_config({"learning_rate": {"class_name": "Sawtooth", "config": {}}})


def test_unknown_argument_in_a_schedule_config_suggests_the_nearest() -> None:
    config = {"class_name": "CosineDecay", "config": {"initial": 1.0, "steps": 3, "warm_up_steps": 2}}
    with pytest.raises(
        TypeError, match="CosineDecay got an unknown argument 'warm_up_steps'; did you mean 'warmup_steps'"
    ):
        portopt.SGD.from_config({"learning_rate": config})


# Users' own schedules

TABLE = [0.5, 0.25, 0.125]


def branching(step: Any) -> float:
    if step < 1:
        return 0.5
    return 0.25 if step == 1 else 0.125


HOST_ONLY: dict[str, Callable[[Any], Any]] = {
    "table": lambda step: TABLE[step],
    "table, around": lambda step: TABLE[step % len(TABLE)],
    "table, every second": lambda step: TABLE[(2 * step) // 2],
    "dict": lambda step: {0: 0.5, 1: 0.25, 2: 0.125}[int(step)],
    "if": branching,
    "math": lambda step: 0.5 * math.pow(0.5, step),
    "float": lambda step: 0.5 / 2 ** float(step),
    "NumPy float": lambda step: np.float32(TABLE[step]),
    "NumPy array": lambda step: np.asarray(TABLE[step]),
    "JAX array": lambda step: jnp.asarray(TABLE)[int(step)],
}
ANYWHERE: dict[str, Callable[[Any], Any]] = {
    "operators": lambda step: 0.5 * 0.5**step,
    "where": lambda step: scalars.where(step < 1, 0.5, scalars.where(step < 2, 0.25, 0.125)),
    "maximum": lambda step: scalars.maximum(0.125, 0.5 - 0.25 * step),
    "quotient": lambda step: 0.5 ** (1 + step // 1),
    "remainder": lambda step: 0.5 ** (1 + step % 3),
    "partial": functools.partial(lambda rate, step: 0.5 * rate**step, 0.5),
}


def three_steps(library: Library, optimizer: portopt.Optimizer, apply: Callable[..., Any]) -> list[float]:
    params, grads = library.arrays(np.zeros(1, np.float32)), library.arrays(np.ones(1, np.float32))
    state = optimizer.init(params)
    places = [0.0]
    for _ in range(3):
        params, state = apply(params, grads, state)
        places.append(float(library.numpy(params)[0]))
    return [before - after for before, after in itertools.pairwise(places)]


@each_library
@pytest.mark.parametrize("schedule", [*HOST_ONLY.values(), *ANYWHERE.values()], ids=[*HOST_ONLY, *ANYWHERE])
def test_any_callable_is_a_schedule(schedule: Callable[[Any], Any], library: Library) -> None:
    optimizer = portopt.SGD(schedule)
    assert three_steps(library, optimizer, optimizer.apply) == TABLE


@each_x64
@pytest.mark.parametrize("schedule", ANYWHERE.values(), ids=ANYWHERE)
def test_callable_of_contract_operations_works_inside_jit(schedule: Callable[[Any], Any], x64: bool) -> None:
    library = next(library for library in LIBRARIES if library.name == "jax")
    optimizer = portopt.SGD(schedule)
    with jax.enable_x64(x64):
        assert three_steps(library, optimizer, jax.jit(optimizer.apply)) == TABLE


@pytest.mark.parametrize(
    "name", ["table", "table, around", "dict", "if", "math", "float", "NumPy float", "NumPy array", "JAX array"]
)
def test_callable_that_needs_the_value_says_so_inside_jit(name: str) -> None:
    optimizer = portopt.SGD(HOST_ONLY[name])
    p = jnp.zeros(1)
    with pytest.raises(
        TypeError,
        match=r"a schedule asked for the value of the step inside a JAX transformation, where it is not known yet: use the "
        r"functions of portopt.scalars \(where, minimum, maximum, floor, exp, cos\) in place of `if`, int\(\), float\(\)",
    ):
        jax.jit(optimizer.apply)(p, p, optimizer.init(p))


# Schedules of other libraries


OF_OTHERS: dict[str, Callable[[Any], Any]] = {
    "optax": optax.exponential_decay(0.5, 1, 0.5),
    "optax, joined": optax.join_schedules([optax.constant_schedule(0.5), optax.exponential_decay(0.25, 1, 0.5)], [1]),
    "jax.numpy": lambda step: 0.5 * jnp.exp2(-step),
    "jax.numpy table": lambda step: jnp.asarray(TABLE)[step],
    "jax.numpy interpolation": lambda step: jnp.interp(step, jnp.arange(3.0), jnp.asarray(TABLE)),
}
NUMPY_ONLY: dict[str, Callable[[Any], Any]] = {
    "NumPy": lambda step: 0.5 * np.exp2(-step),
    "NumPy table": lambda step: np.asarray(TABLE)[step],
    "NumPy interpolation": lambda step: np.interp(step, np.arange(3.0), TABLE),
    "NumPy choice": lambda step: np.select([step < 1, step < 2], [0.5, 0.25], 0.125),
    "NumPy clip": lambda step: np.clip(0.5 - 0.25 * step, 0.125, 1.0),
    "NumPy array first": lambda step: 0.5 ** (np.asarray(step) + 1),
}


@each_library
@pytest.mark.parametrize("schedule", [*OF_OTHERS.values(), *NUMPY_ONLY.values()], ids=[*OF_OTHERS, *NUMPY_ONLY])
def test_a_schedule_of_another_library_gets_the_plain_step(schedule: Callable[[Any], Any], library: Library) -> None:
    optimizer = portopt.SGD(schedule)
    assert three_steps(library, optimizer, optimizer.apply) == TABLE


@pytest.mark.parametrize("schedule", OF_OTHERS.values(), ids=OF_OTHERS)
def test_a_schedule_of_jax_gets_the_traced_step_inside_jit(schedule: Callable[[Any], Any]) -> None:
    library = next(library for library in LIBRARIES if library.name == "jax")
    optimizer = portopt.SGD(schedule)
    assert three_steps(library, optimizer, jax.jit(optimizer.apply)) == TABLE


@pytest.mark.parametrize("name", NUMPY_ONLY)
def test_a_schedule_of_numpy_says_so_inside_jit(name: str) -> None:
    optimizer, p = portopt.SGD(NUMPY_ONLY[name]), jnp.zeros(1)
    with pytest.raises(TypeError, match=r"inside a JAX transformation, .* or those of jax.numpy in place of NumPy's"):
        jax.jit(optimizer.apply)(p, p, optimizer.init(p))


def test_a_schedule_that_calls_numpy_is_evaluated_once_a_step() -> None:
    seen: list[int] = []

    def schedule(step: Any) -> float:
        seen.append(int(step))
        return float(np.exp2(-np.asarray(step, np.float64)))

    library = next(library for library in LIBRARIES if library.name == "numpy")
    three_steps(library, optimizer := portopt.SGD(schedule), optimizer.apply)
    assert seen == [0, 1, 2]


def test_a_schedule_that_takes_no_scalar_is_tried_with_one_only_once() -> None:
    seen: list[type] = []

    def schedule(step: Any) -> float:
        seen.append(type(step))
        return float(jnp.exp2(-step))

    library = next(library for library in LIBRARIES if library.name == "numpy")
    three_steps(library, optimizer := portopt.SGD(schedule), optimizer.apply)
    assert seen == [scalars.Scalar, int, int, int]


def test_a_schedule_without_a_hash_may_take_no_scalar() -> None:
    class Halves(list[float]):
        def __call__(self, step: Any) -> Any:
            return jnp.asarray(self)[step]

    library = next(library for library in LIBRARIES if library.name == "numpy")
    optimizer = portopt.SGD(Halves(TABLE))
    assert three_steps(library, optimizer, optimizer.apply) == TABLE


def test_the_error_of_a_schedule_is_its_own() -> None:
    with pytest.raises(KeyError, match="warm"):
        portopt.SGD(lambda step: dict[str, float]()["warm"]).apply(P, P, portopt.SGD().init(P))
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for \*: 'int' and 'NoneType'"):
        portopt.SGD(lambda step: step * None).apply(P, P, portopt.SGD().init(P))


def test_a_traced_rate_may_come_from_the_schedule_alone() -> None:
    p = jnp.ones(2)

    @jax.jit
    def after(rate: Any) -> Any:
        optimizer = portopt.SGD(lambda step: rate)
        return optimizer.apply(p, p, optimizer.init(p))[0]

    assert after(0.25).tolist() == [0.75, 0.75]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.int32])
def test_numbers_of_numpy_meet_scalars_as_numbers(kind: Any) -> None:
    step = scalars.Scalar(3, HOST)
    two = kind(2)
    found = [two * step, step * two, two / step, step / two, step - two, two - step, step**two, two**step, step % two]
    plain = [2 * step, step * 2, 2 / step, step / 2, step - 2, 2 - step, step**2, 2**step, step % 2]
    assert all(isinstance(value, scalars.Scalar) for value in found)
    assert list(map(float, found)) == list(map(float, plain))
    assert [bool(two < step), bool(two == step), bool(step != two)] == [True, False, True]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_of_numpy_keep_their_fraction_beside_scalars(kind: Any) -> None:
    step, half = scalars.Scalar(3, HOST), kind(0.5)
    assert [float(step**half), float(scalars.where(step < 1, 0.0, half))] == [float(step**0.5), 0.5]


# Values that no learning rate can have


def returning(value: Any) -> Callable[[Any], Any]:
    return lambda step: value


P = np.ones(2, np.float32)


@each_library
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -1, np.float32(-1), np.asarray(-1.0)], ids=repr)
def test_returned_value_out_of_range_is_refused(value: Any, library: Library) -> None:
    optimizer, p = portopt.SGD(returning(value)), library.arrays(P)
    with pytest.raises(
        ValueError, match=r"the schedule <function .*> of SGD: learning_rate must be in \[0, inf\), but .* was"
    ):
        optimizer.apply(p, p, optimizer.init(p))


def test_returned_scalar_out_of_range_is_refused() -> None:
    optimizer = portopt.SGD(lambda step: step - 0.5)
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, inf\), but -0.5 was given"):
        optimizer.apply(P, P, optimizer.init(P))


@pytest.mark.parametrize("value", [-1.0, math.nan], ids=repr)
def test_returned_value_that_is_known_inside_jit_is_checked_there(value: float) -> None:
    optimizer, p = portopt.SGD(returning(value)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"the schedule .* of SGD: learning_rate must be in \[0, inf\), but "):
        jax.jit(optimizer.apply)(p, p, optimizer.init(p))


@each_library
@pytest.mark.parametrize("value", [None, "fast", True, [0.5], 0.5j, np.asarray(0.5j), np.asarray("fast")], ids=repr)
def test_returned_value_that_is_no_number_is_refused(value: Any, library: Library) -> None:
    optimizer, p = portopt.SGD(returning(value)), library.arrays(P)
    with pytest.raises(
        TypeError, match=r"the schedule <function .*> of SGD: learning_rate must be a (Python )?number "
    ):
        optimizer.apply(p, p, optimizer.init(p))


@pytest.mark.parametrize("form", [np.ones, jnp.ones], ids=["numpy", "jax"])
def test_returned_array_with_a_shape_is_refused(form: Any) -> None:
    optimizer = portopt.SGD(returning(form(2)))
    with pytest.raises(
        ValueError, match=r"the schedule .*: learning_rate must be .* 0-d array, but an array of shape \(2,\)"
    ):
        optimizer.apply(P, P, optimizer.init(P))


# The same bits on the host and inside JAX


@pytest.mark.parametrize(("case", "x64"), in_turns(CASES, (False, True)), ids=str)
def test_schedule_gives_the_same_bits_under_jit(case: Case, x64: bool) -> None:
    steps = [*range(100), 999, 1000, 12345, 10**6]
    expected = np.asarray([case.schedule(s) for s in steps])
    assert_same_bits(jitted(case.schedule.at, np.asarray(steps), x64=x64) + np.zeros(len(steps)), expected)


@pytest.mark.parametrize(("case", "x64"), in_turns(CASES, (False, True)), ids=str)
def test_schedule_gives_the_same_bits_inside_scan(case: Case, x64: bool) -> None:
    assert_same_bits(scanned(case.schedule, 130, x64=x64), np.asarray(on_host(case.schedule, 130)))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "x64"), in_turns(CASES, (True, False)), ids=str)
def test_schedule_gives_the_same_bits_over_ten_thousand_scanned_steps(case: Case, x64: bool) -> None:
    assert_same_bits(scanned(case.schedule, 10_000, x64=x64), np.asarray(on_host(case.schedule, 10_000)))


def of_the_step(optimizer: portopt.Optimizer) -> list[int]:
    """Return the scalars of the optimizer's program that depend on the step."""
    program = optimizer.program(shape=(3, 4))
    depending: set[int] = set()
    for i, op in enumerate(program.ops):
        if (op.name == "input" and op.label in ("t", *optimizer.rates)) or depending & set(op.args):
            depending.add(i)
    # What a step computes before it has looked at an array.
    of_arrays = program.parameter_scalars.union(i for i, op in enumerate(program.ops) if op.name.startswith("total_"))
    for i, op in enumerate(program.ops):
        if op.kind.is_scalar and not of_arrays.isdisjoint(op.args):
            of_arrays |= {i}
    return [i for i in sorted(depending) if program.ops[i].kind.is_scalar and i not in of_arrays]


def with_other_coefficients() -> list[type[portopt.Optimizer]]:
    """Return the rules with a formula of the step that none before has: each scan is compiled, which takes seconds."""
    seen: set[str] = set()
    found = []
    for rule in portopt.RULES:
        optimizer = rule()
        texts: list[str] = []
        for op in optimizer.program(shape=(3, 4)).ops:
            texts.append(f"{op.name} {op.label}({', '.join(texts[i] for i in op.args)})" if op.kind.is_scalar else "")
        if formulas := {texts[i] for i in of_the_step(optimizer)} - seen:
            seen |= formulas
            found.append(rule)
    return found


def coefficients(rule: type[portopt.Optimizer]) -> Callable[[Scalar], list[Scalar]]:
    """Return a function of the finished steps: every scalar of the rule's program that depends on the step."""
    optimizer = rule(learning_rate=CosineDecay(0.5, 9000, end=0.01, warmup_steps=500))
    program, chosen = optimizer.program(shape=(3, 4)), of_the_step(optimizer)
    fixed = {
        name: value_of(optimizer, name)
        for name in program.scalar_inputs
        if name not in ("t", *optimizer.rates, *optimizer.scalar_slots, *program.totals)
    }
    fixed |= dict.fromkeys(program.totals, 0.5)

    def evaluate(finished: Scalar) -> list[Scalar]:
        schedule: Any = optimizer.learning_rate
        rate = schedule(finished)
        rates = dict.fromkeys(optimizer.rates, rate.value)
        given = {**fixed, **optimizer.scalar_slots, **rates, "t": (finished + 1).value}
        values = evaluate_scalars(program, finished.arithmetic, given)
        return [Scalar(values[i], finished.arithmetic) for i in chosen]

    return evaluate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "x64"),
    in_turns(in_turn(with_other_coefficients(), 0, 2), (False, True), in_all=(portopt.Adam, portopt.Nadam)),
)
def test_coefficients_give_the_same_bits_over_thousands_of_scanned_steps(
    rule: type[portopt.Optimizer], x64: bool
) -> None:
    """Bias corrections, powers and the scheduled rate."""
    # The host takes a second for them. Two rules have the powers of all.
    count = 10_000 if rule in (portopt.Adam, portopt.Nadam) else 1_000
    function = coefficients(rule)
    expected = np.asarray([[float(value) for value in function(Scalar(step, HOST))] for step in range(count)])
    assert_same_bits(scanned(function, count, x64=x64), expected)


@pytest.mark.slow
@each_x64
@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam])
def test_training_gives_the_same_bits_over_ten_thousand_scanned_steps(rule: type[portopt.Optimizer], x64: bool) -> None:
    """The whole step, parameters recorded along the way; the gradient is a function of the parameter, exact in float32."""
    optimizer = (
        rule(learning_rate=CosineDecay(0.5, 9000, end=0.01, warmup_steps=500), decay=0.001)
        if rule is portopt.Adam
        else rule()
    )
    start = np.asarray([3.0, -0.001, 1e-30], np.float32)
    target = np.asarray([1.0, 1.0, 1.0], np.float32)

    params, state = start, optimizer.init(start)
    expected = []
    for _ in range(10_000):
        params, state = optimizer.apply(params, params - target, state)
        expected.append(params)

    def body(carry: Any, _: None) -> tuple[Any, Any]:
        params, state = optimizer.apply(carry[0], carry[0] - target, carry[1])
        return (params, state), params

    with jax.enable_x64(x64):
        first = jnp.asarray(start)
        _, actual = jax.jit(lambda carry: jax.lax.scan(body, carry, None, length=10_000))(
            (first, optimizer.init(first))
        )
    assert_same_bits(np.asarray(actual), np.asarray(expected))


def test_schedules_module_offers_what_the_registry_knows() -> None:
    for kind in ready_made():
        assert getattr(schedules, kind.__name__) is kind
