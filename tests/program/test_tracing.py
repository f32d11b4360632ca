"""From a rule's code to a program: its text, what it may hold, its canonical form, and rules of a user's own."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import array_api_strict
import numpy as np
import pytest
from support.bits import assert_same_bits, ordinary, random_words
from support.conditional_rule import Conditional, expected_slots
from support.direct_calls import by_full_name, by_rule, coefficients_of
from support.drawing import drawn_by
from support.elementwise import ELEMENTWISE
from support.libraries import LIBRARIES, RUNS, Library, Run, steps
from support.processes import side_by_side
from support.turns import in_turns

import portopt
from portopt import UnsupportedOperationError
from portopt.arithmetic import HOST
from portopt.program import ARRAY_OPERATIONS, DRAWS, FUNCTIONS, PRODUCTS, REDUCTIONS, Kind, Op, Program
from portopt.program.draws import KEY, Place
from portopt.program.tracing import SUPPORTED
from portopt.scalars import Scalar

Update = Callable[..., Any]


def rule(update: Update, slots: tuple[str, ...] = (), coefficients: Update | None = None) -> portopt.Optimizer:
    """Return an optimizer whose `update` is a function of `xp, p, g, slots, c`; a bare result has no slots."""

    def method(self: Any, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        result = update(xp, p, g, slots, c)
        return result if isinstance(result, tuple) else (result, {})

    members: dict[str, Any] = {"update": method, "slots": slots}
    if coefficients is not None:
        members["coefficients"] = coefficients
    custom: portopt.Optimizer = type("Custom", (portopt.Optimizer,), members)()
    return custom


def text(update: Update, **more: Any) -> list[str]:
    """Return the lines of the program that compute or store, without their indentation."""
    lines = str(rule(update, **more).program()).splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


# What a program looks like


def test_program_text_of_adagrad() -> None:
    assert str(portopt.Adagrad(decay=0.1, clipvalue=1.0).program()) == (
        """\
program Adagrad
  scalars, float64, given learning_rate, clipvalue, epsilon, decay, t
    s0 = negative(clipvalue)
    s1 = t - 1
    s2 = decay * s1
    s3 = 1 + s2
    s4 = 1 / s3
    s5 = learning_rate * s4
  arrays, compute dtype, loaded p, g, accumulator
    a0 = round(s0)
    a1 = a0 <= g
    a2 = g == g
    a3 = logical_not(a2)
    a4 = a1 | a3
    a5 = where(a4, g, a0)
    a6 = round(clipvalue)
    a7 = a5 <= a6
    a8 = a5 == a5
    a9 = logical_not(a8)
    a10 = a7 | a9
    a11 = where(a10, a5, a6)
    a12 = a11 * a11
    a13 = accumulator + a12
    a14 = round(s5)
    a15 = a14 * a11
    a16 = sqrt(a13)
    a17 = round(epsilon)
    a18 = a16 + a17
    a19 = a15 / a18
    a20 = p - a19
    store p <- a20
    store accumulator <- a13"""
    )


def test_program_lists_scalars_of_the_state_among_its_outputs() -> None:
    program = portopt.Nadam().program()
    assert program.scalar_outputs.keys() == {"m_schedule"}
    assert "    m_schedule <- s11" in str(program).splitlines()


def test_clipping_asks_for_the_norm_of_all_gradients() -> None:
    program = portopt.SGD(clipnorm=1.0).program()
    assert str(program).splitlines()[:6] == [
        "program SGD",
        "  scalars, float64, given learning_rate, clipnorm",
        "    gradient_norm = total_norm(g)",
        "    s0 = clipnorm <= gradient_norm",
        "    s1 = clipnorm / gradient_norm",
        "    s2 = where(s0, s1, 1.0)",
    ]
    assert [(name, op.name, program.ops[op.args[0]].reads) for name, op in program.totals.items()] == [
        ("gradient_norm", "total_norm", "g")
    ]
    assert not portopt.SGD(clipvalue=1.0).program().totals


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_totals_have_any_name_and_are_of_any_array(run: Run) -> None:
    """The parameter becomes the norm of all parameters, and the slot that of all of its own kind."""
    load = [Op("load", Kind.ARRAY, label=name) for name in ("p", "g", "m")]
    norms = [Op("total_norm", Kind.FLOAT, (i,), name) for i, name in ((2, "of_slots"), (0, "of_parameters"))]
    rounded = [Op("round", Kind.ARRAY, (i,)) for i in (3, 4)]
    program = Program("Norms", (*load, *norms, *rounded, Op("add", Kind.ARRAY, (1, 5))), {"p": 6, "m": 7})

    class Norms(portopt.Optimizer):
        slots = ("m",)

        def program(self, overrides: Mapping[str, Any] | None = None, shape: tuple[int, ...] | None = None) -> Program:
            return program

        def fixed_program(self, overrides: Mapping[str, Any] | None = None) -> Program:
            return program

    params = [np.asarray([3.0], np.float32), np.asarray([[4.0, 0.0]], np.float32)]
    expected, slot = np.float32(5), np.float32(1)
    for k in (1, 2, 3):  # in the third, a loop in place is under way
        gradients = [[np.full_like(p, i + 1) for p in params] for i in range(k)]
        new, state = steps(run, Norms(), params, gradients, "float32")
        for p, m in zip(new, state.slots["m"], strict=True):
            assert_same_bits(p, np.full_like(p, expected), f"parameters after {k}")
            assert_same_bits(m, np.full_like(m, slot), f"slots after {k}")
        root = np.sqrt(np.float64(3))  # of the number of elements, which are equal
        expected, slot = np.float32(root * expected), np.float32(k + 1) + np.float32(root * slot)


def test_program_tells_its_inputs() -> None:
    program = portopt.Adam(clipnorm=1.0).program()
    assert program.array_inputs == ("p", "g", "m", "v")
    assert set(program.scalar_inputs) == {
        "learning_rate",
        "beta_1",
        "beta_2",
        "epsilon",
        "clipnorm",
        "gradient_norm",
        "t",
    }
    assert program.uses_gradient_norm
    assert not portopt.Adam().program().uses_gradient_norm


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_program_holds_only_the_operations_of_the_contract(kind: type[portopt.Optimizer]) -> None:
    program = kind(clipnorm=1.0, clipvalue=1.0).program(shape=(3, 4))
    for i, op in enumerate(program.ops):
        assert op.kind.is_scalar or op.name in {*ARRAY_OPERATIONS, *REDUCTIONS, *PRODUCTS, *FUNCTIONS, *DRAWS}
        assert all(j < i for j in op.args), "each operation stands after its operands"


def test_program_is_traced_once_for_each_set_of_features() -> None:
    optimizer = portopt.SGD()
    assert optimizer.program() is optimizer.program()
    assert optimizer.program({"momentum": 0.5}) is optimizer.program({"momentum": 0.9})
    assert optimizer.program({"momentum": 0.5}) is not optimizer.program()


# Canonical form


def test_array_over_scalar_is_a_product_with_the_reciprocal() -> None:
    assert text(lambda xp, p, g, slots, c: p - g / c.lr) == [
        "s0 = 1.0 / learning_rate",
        "a0 = round(s0)",
        "a1 = g * a0",
        "a2 = p - a1",
        "store p <- a2",
    ]
    assert text(lambda xp, p, g, slots, c: g / 3)[:2] == ["s0 = 1.0 / 3.0", "a0 = round(s0)"]


def test_scalar_over_array_and_array_over_array_stay_divisions() -> None:
    assert "a1 = a0 / g" in text(lambda xp, p, g, slots, c: c.lr / g)
    assert "a0 = p / g" in text(lambda xp, p, g, slots, c: p / g)


def test_scalar_is_rounded_once_where_it_meets_an_array() -> None:
    assert text(lambda xp, p, g, slots, c: p - 2 * c.lr * g - 2 * c.lr * p) == [
        "s0 = 2 * learning_rate",
        "a0 = round(s0)",
        "a1 = a0 * g",
        "a2 = p - a1",
        "a3 = a0 * p",
        "a4 = a2 - a3",
        "store p <- a4",
    ]


def test_maximum_and_minimum_are_comparisons() -> None:
    assert text(lambda xp, p, g, slots, c: xp.maximum(p, g)) == [
        "a0 = g <= p",
        "a1 = p == p",
        "a2 = logical_not(a1)",
        "a3 = a0 | a2",
        "a4 = where(a3, p, g)",
        "store p <- a4",
    ]
    assert text(lambda xp, p, g, slots, c: xp.minimum(p, g))[0] == "a0 = p <= g"


def test_sign_is_comparisons() -> None:
    assert text(lambda xp, p, g, slots, c: xp.sign(g)) == [
        "a0 = round(0.0)",
        "a1 = g < a0",
        "a2 = round(-1.0)",
        "a3 = where(a1, a2, g)",
        "a4 = a0 < g",
        "a5 = round(1.0)",
        "a6 = where(a4, a5, a3)",
        "store p <- a6",
    ]


def test_what_no_output_needs_is_gone() -> None:
    def update(xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        xp.sqrt(g) + c.unused
        return p - g

    def coefficients(self: Any, t: Any) -> Mapping[str, Any]:
        return {"unused": self.learning_rate_at(t) ** t}

    program = rule(update, coefficients=coefficients).program()
    assert text(update, coefficients=coefficients) == ["a0 = p - g", "store p <- a0"]
    assert program.scalar_inputs == ()


def test_equal_operations_are_one() -> None:
    program = rule(lambda xp, p, g, slots, c: xp.sqrt(xp.square(g)) - g * g).program()
    assert [op.name for op in program.ops if op.kind is Kind.ARRAY and op.name != "load"] == [
        "multiply",
        "sqrt",
        "subtract",
    ]


def test_zeros_of_both_signs_are_two_constants() -> None:
    lines = text(lambda xp, p, g, slots, c: xp.where(p < g, p * 0.0, p * -0.0))
    assert {"a1 = round(0.0)", "a3 = round(-0.0)"} <= set(lines)


@pytest.mark.parametrize(
    ("exponent", "lines"),
    [
        (1, ["store p <- g"]),
        (2, ["a0 = g * g", "store p <- a0"]),
        (3, ["a0 = g * g", "a1 = g * a0", "store p <- a1"]),
        (4.0, ["a0 = g * g", "a1 = a0 * a0", "store p <- a1"]),
        (6, ["a0 = g * g", "a1 = a0 * a0", "a2 = a0 * a1", "store p <- a2"]),
    ],
)
def test_integer_power_is_repeated_products(exponent: float, lines: list[str]) -> None:
    assert text(lambda xp, p, g, slots, c: g**exponent) == lines
    assert text(lambda xp, p, g, slots, c: xp.pow(g, exponent)) == lines


# What every operation means, on every library

SPECIAL = np.asarray(
    [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, np.inf, -np.inf, np.nan, 2.0**-126, -(2.0**-126), 3e38, 1e-20], np.float32
)
LEFT, RIGHT = (np.ascontiguousarray(x) for x in np.meshgrid(SPECIAL, SPECIAL, indexing="ij"))


def choose(left: float, right: float, wins: bool) -> float:
    return left if left != left or wins else right


MEANING: dict[str, tuple[Update, Callable[[float, float], float]]] = {
    "maximum": (lambda xp, p, g: xp.maximum(p, g), lambda a, b: choose(a, b, b <= a)),
    "minimum": (lambda xp, p, g: xp.minimum(p, g), lambda a, b: choose(a, b, a <= b)),
    "sign": (lambda xp, p, g: xp.sign(p), lambda a, b: 1.0 if a > 0 else -1.0 if a < 0 else a),
    "clip": (
        lambda xp, p, g: xp.clip(p, -1.0, 1.0),
        lambda a, b: a if a != a else 1.0 if a > 1 else -1.0 if a < -1 else a,
    ),
    "clip below": (lambda xp, p, g: xp.clip(p, min=0.5), lambda a, b: a if a != a or a >= 0.5 else 0.5),
    "clip above": (lambda xp, p, g: xp.clip(p, max=0.5), lambda a, b: a if a != a or a <= 0.5 else 0.5),
    "abs": (lambda xp, p, g: abs(p), lambda a, b: abs(a)),
    "negative": (lambda xp, p, g: -p, lambda a, b: -a),
    "positive": (lambda xp, p, g: +p, lambda a, b: a),
    "less": (lambda xp, p, g: xp.where(p < g, p, g), lambda a, b: a if a < b else b),
    "greater": (lambda xp, p, g: xp.where(p > g, p, g), lambda a, b: a if a > b else b),
    "less_equal": (lambda xp, p, g: xp.where(p <= g, p, g), lambda a, b: a if a <= b else b),
    "greater_equal": (lambda xp, p, g: xp.where(p >= g, p, g), lambda a, b: a if a >= b else b),
    "equal": (lambda xp, p, g: xp.where(p == g, p, g), lambda a, b: a if a == b else b),
    "not_equal": (lambda xp, p, g: xp.where(p != g, p, g), lambda a, b: a if a != b else b),
    "and": (lambda xp, p, g: xp.where((p < g) & (g < 1), p, g), lambda a, b: a if a < b and b < 1 else b),
    "or": (lambda xp, p, g: xp.where((p < g) | (g < 1), p, g), lambda a, b: a if a < b or b < 1 else b),
    "not": (lambda xp, p, g: xp.where(~(p < g), p, g), lambda a, b: b if a < b else a),
    "isnan": (lambda xp, p, g: xp.where(xp.isnan(p), g, p), lambda a, b: b if a != a else a),
    "zeros_like": (lambda xp, p, g: xp.where(p < g, xp.zeros_like(p), g), lambda a, b: 0.0 if a < b else b),
    "ones_like": (lambda xp, p, g: xp.where(p < g, xp.ones_like(p), g), lambda a, b: 1.0 if a < b else b),
    "full_like": (lambda xp, p, g: xp.where(p < g, xp.full_like(p, 2.5), g), lambda a, b: 2.5 if a < b else b),
    "constant result": (lambda xp, p, g: xp.ones_like(p), lambda a, b: 1.0),
}


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_operations_mean_the_same_on_every_library(run: Run) -> None:
    """One program does all of them, and leaves each result in a slot of its own."""
    names = {name: name.replace(" ", "_") for name in MEANING}

    def update(xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p, {slot: MEANING[name][0](xp, p, g) for name, slot in names.items()}

    _, state = steps(run, rule(update, slots=tuple(names.values())), LEFT, [RIGHT], "float32")
    for name, slot in names.items():
        meaning = MEANING[name][1]
        expected = np.asarray([[meaning(a, b) for b in SPECIAL.tolist()] for a in SPECIAL.tolist()], np.float32)
        assert_same_bits(state.slots[slot], expected, name)


def test_functions_and_operators_record_the_same() -> None:
    pairs: list[tuple[Update, Update]] = [
        (lambda xp, p, g: p + g, lambda xp, p, g: xp.add(p, g)),
        (lambda xp, p, g: p - g, lambda xp, p, g: xp.subtract(p, g)),
        (lambda xp, p, g: p * g, lambda xp, p, g: xp.multiply(p, g)),
        (lambda xp, p, g: p / g, lambda xp, p, g: xp.divide(p, g)),
        (lambda xp, p, g: -p, lambda xp, p, g: xp.negative(p)),
        (lambda xp, p, g: +p, lambda xp, p, g: xp.positive(p)),
        (lambda xp, p, g: abs(p), lambda xp, p, g: xp.abs(p)),
        (lambda xp, p, g: p * p, lambda xp, p, g: xp.square(p)),
        (lambda xp, p, g: xp.where(p < g, p, g), lambda xp, p, g: xp.where(xp.less(p, g), p, g)),
        (lambda xp, p, g: xp.where(p <= g, p, g), lambda xp, p, g: xp.where(xp.less_equal(p, g), p, g)),
        (lambda xp, p, g: xp.where(p > g, p, g), lambda xp, p, g: xp.where(xp.greater(p, g), p, g)),
        (lambda xp, p, g: xp.where(p >= g, p, g), lambda xp, p, g: xp.where(xp.greater_equal(p, g), p, g)),
        (lambda xp, p, g: xp.where(p == g, p, g), lambda xp, p, g: xp.where(xp.equal(p, g), p, g)),
        (lambda xp, p, g: xp.where(p != g, p, g), lambda xp, p, g: xp.where(xp.not_equal(p, g), p, g)),
        (
            lambda xp, p, g: xp.where((p < 1) & ~(g < 1) | (p == 1), p, g),
            lambda xp, p, g: xp.where(xp.logical_or(xp.logical_and(p < 1, xp.logical_not(g < 1)), p == 1), p, g),
        ),
    ]
    for operators, functions in pairs:
        one, other = (rule(lambda xp, p, g, slots, c, f=f: f(xp, p, g)).program() for f in (operators, functions))
        assert one == other


# Conditions of scalars


def test_condition_of_scalars_is_a_rounded_scalar_above_zero() -> None:
    assert text(lambda xp, p, g, slots, c: xp.where(c.lr > 0.5, p, g)) == [
        "s0 = 0.5 < learning_rate",
        "s1 = where(s0, 1.0, 0.0)",
        "a0 = round(0.0)",
        "a1 = round(s1)",
        "a2 = a0 < a1",
        "a3 = where(a2, p, g)",
        "store p <- a3",
    ]
    assert text(lambda xp, p, g, slots, c: xp.where(True, p, g))[:3] == [
        "a0 = round(0.0)",
        "a1 = round(1.0)",
        "a2 = a0 < a1",
    ]


@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("rate", [0.2, 0.05])
def test_conditions_of_scalars_choose_between_arrays_on_every_library(run: Run, rate: float) -> None:
    p, g = LEFT[0], RIGHT[:, 0]
    states = [steps(run, Conditional(rate), p, [g] * n, "float32")[1] for n in (1, 2, 3)]
    moved = [p, *(steps(RUNS[0], Conditional(rate), p, [g] * n, "float32")[0] for n in (1, 2))]
    for t, (state, before) in enumerate(zip(states, moved, strict=True), start=1):
        with np.errstate(all="ignore"):
            expected = expected_slots(before, g, t, rate)
        assert expected.keys() == state.slots.keys()
        for name, values in expected.items():
            assert_same_bits(state.slots[name], values, f"{name} in step {t}")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda xp, p, g, c: xp.where(c.lr, p, g), "a rule gave xp.where an array that is no mask: compare it first"),
        (lambda xp, p, g, c: xp.where((g > 0) & c.lr, p, g), "a rule gave xp.logical_and an array that is no mask"),
        (lambda xp, p, g, c: xp.where(c.lr > 0, 1.0, c.lr), "xp.where was called without an array: on scalars use"),
        (lambda xp, p, g, c: p if c.lr > 0 else g, "xp.where(condition, a, b) to choose between arrays"),
        (lambda xp, p, g, c: c.lr > 0 and p, "xp.where(condition, a, b) to choose between arrays"),
    ],
    ids=["number", "number beside a mask", "no array", "if", "and"],
)
def test_what_is_no_condition_of_scalars_is_refused(use: Update, message: str) -> None:
    assert message in refused(lambda xp, p, g, slots, c: use(xp, p, g, c))


# What a rule may not do


def refused(update: Update, **more: Any) -> str:
    with pytest.raises(UnsupportedOperationError) as caught:
        rule(update, **more).program()
    assert isinstance(caught.value, TypeError)
    return str(caught.value)


@pytest.mark.parametrize("name", ["sin", "prod", "tensordot", "float32", "sort", "reciprocal"])
def test_unsupported_function_is_named_and_the_supported_are_listed(name: str) -> None:
    message = refused(lambda xp, p, g, slots, c: getattr(xp, name)(g))
    assert message.startswith(f"a rule used xp.{name}, which programs cannot hold; supported are xp.abs, xp.add, ")
    for supported in SUPPORTED:
        assert f"xp.{supported}" in message
    assert "the operators + - * / **" in message


@pytest.mark.parametrize("name", ["T", "dtype", "sum", "astype", "flat"])
def test_array_attribute_is_refused(name: str) -> None:
    message = refused(lambda xp, p, g, slots, c: getattr(g, name))
    assert message.startswith(f"a rule used the array attribute .{name}, which programs cannot hold")
    assert "supported are the operators + - * / **" in message
    assert "xp.sqrt" in message


@pytest.mark.parametrize(
    ("symbol", "use"),
    [
        ("//", lambda xp, g: g // 2),
        ("%", lambda xp, g: g % 2),
        ("**", lambda xp, g: 2**g),
        ("[", lambda xp, g: g[0]),
        ("float", lambda xp, g: float(g)),
        ("iter", lambda xp, g: list(g)),
        ("len", lambda xp, g: len(g)),
    ],
)
def test_other_python_operations_are_refused(symbol: str, use: Update) -> None:
    message = refused(lambda xp, p, g, slots, c: use(xp, g))
    assert symbol in message
    assert "supported are" in message


def test_if_on_an_array_is_refused() -> None:
    message = refused(lambda xp, p, g, slots, c: p if g > 0 else g)
    assert message == (
        "a rule asked for the truth value of an array while it was traced: use xp.where(condition, a, b) in place of `if`"
    )


@pytest.mark.parametrize(
    "use",
    [lambda lr: 1 if lr > 0.5 else 2, float, int, lambda lr: [1, 2][lr], lambda lr: math_sqrt(lr)],
    ids=["if", "float", "int", "index", "math"],
)
def test_value_of_a_scalar_cannot_be_asked_for(use: Callable[[Any], Any]) -> None:
    def coefficients(self: Any, t: Any) -> Mapping[str, Any]:
        return {"factor": use(self.learning_rate)}

    message = refused(lambda xp, p, g, slots, c: c.factor * g, coefficients=coefficients)
    assert message.startswith("a rule asked for the value of a scalar while it was traced")
    assert "use portopt.scalars (where, sqrt, exp, log, cos, floor, minimum, maximum) in place of `if`" in message


def math_sqrt(x: Any) -> float:
    import math

    return math.sqrt(x)


@pytest.mark.parametrize(
    ("use", "instead"),
    [
        (np.sqrt, "numpy.sqrt was called on a scalar: use portopt.scalars.sqrt; "),
        (np.exp, "numpy.exp was called on a scalar: use portopt.scalars.exp; "),
        (lambda x: np.minimum(x, 0.5), "numpy.minimum was called on a scalar: use portopt.scalars.minimum; "),
        (np.abs, "numpy.absolute was called on a scalar: use abs(); "),
        (
            np.sinh,
            "numpy.sinh was called on a scalar: scalars have the operators + - * / ** // % abs(), comparisons, & | ~ and ",
        ),
        (np.sinh, "portopt.scalars.sqrt, cbrt, exp, log, cos, sin, tanh, atan2, floor, minimum, maximum, where; "),
    ],
    ids=["sqrt", "exp", "minimum", "abs", "sinh", "sinh and all"],
)
def test_numpy_on_a_scalar_names_the_function_to_use(use: Callable[[Any], Any], instead: str) -> None:
    def coefficients(self: Any, t: Any) -> Mapping[str, Any]:
        return {"factor": use(self.learning_rate / t)}

    message = refused(lambda xp, p, g, slots, c: c.factor * g, coefficients=coefficients)
    assert instead in message
    assert message.startswith("numpy.")
    assert "a rule asked for the value of a scalar while it was traced" in message


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (np.sqrt, "a rule called numpy.sqrt on an array: use xp.sqrt"),
        (np.abs, "a rule called numpy.absolute on an array: use xp.abs"),
        (
            np.sinh,
            "a rule called numpy.sinh on an array: which programs cannot hold; supported are the operators + - * / **",
        ),
        (lambda g: np.ones(2) * g, "a rule combined an array with array([1., 1.]) of type ndarray"),
        (lambda g: np.add.reduce(g), "a rule called numpy.add on an array: use xp.add"),
    ],
    ids=["sqrt", "abs", "tanh", "times an array of NumPy", "reduction"],
)
def test_numpy_function_of_an_array_names_the_function_to_use(use: Callable[[Any], Any], message: str) -> None:
    assert refused(lambda xp, p, g, slots, c: use(g)).startswith(message)


def test_numbers_of_numpy_combine_with_arrays() -> None:
    for use in (lambda g, x: x * g, lambda g, x: g * x, lambda g, x: x - g, lambda g, x: x / g):
        assert text(lambda xp, p, g, slots, c, f=use: f(g, np.float64(0.5))) == text(
            lambda xp, p, g, slots, c, f=use: f(g, 0.5)
        )
    assert "a1 = a0 < g" in text(lambda xp, p, g, slots, c: xp.where(np.float64(0.5) < g, p, g))


def test_numpy_on_an_array_is_refused() -> None:
    message = refused(lambda xp, p, g, slots, c: np.asarray(g))
    assert message == (
        "a rule called NumPy on an array: use the functions of its argument `xp`, so that it runs on every array library"
    )


def test_function_without_an_array_is_refused() -> None:
    message = refused(lambda xp, p, g, slots, c: g * xp.sqrt(2.0))
    assert message == "xp.sqrt was called without an array: on scalars use the functions of portopt.scalars"


@pytest.mark.parametrize("exponent", [0, -1, True, "2"], ids=repr)
def test_power_that_is_no_positive_integer_is_refused(exponent: Any) -> None:
    message = refused(lambda xp, p, g, slots, c: g**exponent)
    assert message == (
        f"a rule raised an array to the power {exponent!r}: allowed are positive integers, as repeated products, and real "
        "numbers that are no integers; use a division for a negative integer power"
    )


@pytest.mark.parametrize("value", ["1", None, 1j, [1.0], {"a": 1}], ids=repr)
def test_array_combined_with_something_else_is_refused(value: object) -> None:
    message = refused(lambda xp, p, g, slots, c: g + value)
    assert message == (
        f"a rule combined an array with {value!r} of type {type(value).__name__}: allowed are the parameter, its gradient and "
        "slots, coefficients, hyperparameters and Python numbers"
    )


@pytest.mark.parametrize("value", ["1", None, 1j, [1.0], {"a": 1}], ids=repr)
def test_result_that_is_something_else_is_refused(value: object) -> None:
    said = f"a rule returned {value!r} of type {type(value).__name__} as its new "
    end = ": return an array or a number"
    assert refused(lambda xp, p, g, slots, c: (value, {})) == f"{said}parameter{end}"
    assert refused(lambda xp, p, g, slots, c: (p, {"m": value}), slots=("m",)) == f"{said}value of the slot 'm'{end}"


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda p, c: portopt.scalars.sqrt(p), "sqrt"),
        (lambda p, c: portopt.scalars.exp(p), "exp"),
        (lambda p, c: portopt.scalars.where(p > 0, c.lr, 1.0), "where"),
        (lambda p, c: portopt.scalars.where(c.lr > 0, p, 1.0), "where"),
        (lambda p, c: portopt.scalars.maximum(p, c.lr), "where"),
    ],
    ids=["sqrt", "exp", "where a mask", "where an array", "maximum"],
)
def test_function_of_scalars_on_an_array_names_that_of_arrays(use: Update, name: str) -> None:
    assert refused(lambda xp, p, g, slots, c: p - use(p, c)) == (
        f"portopt.scalars.{name} was called on an array, but it is a function of scalars: use xp.{name}, of `update`'s argument "
        "`xp`, if programs can hold it"
    )


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        (lambda p, g: p, "one array"),
        (lambda p, g: [p, g], "a list of 2: one array, one array"),
        (lambda p, g: (p, g, {}), "a tuple of 3: one array, one array, an object of type dict"),
        (lambda p, g: None, "None"),
    ],
    ids=["array", "list", "three", "None"],
)
@pytest.mark.parametrize("slots", [(), ("m", "v")], ids=["no slots", "slots"])
def test_update_says_what_to_return(returned: Update, what: str, slots: tuple[str, ...]) -> None:
    kind = type("Custom", (portopt.Optimizer,), {"slots": slots, "update": lambda self, xp, p, g, s, c: returned(p, g)})
    form = '{"m": new_m, "v": new_v}' if slots else "{}"
    with pytest.raises(TypeError) as caught:
        kind().program()
    assert str(caught.value) == (
        f"Custom.update must return the new parameter and a dict with the new value of each slot, `return new_p, {form}`, "
        f"but it returned {what}"
    )


def test_slots_must_be_a_mapping() -> None:
    with pytest.raises(TypeError, match="but it returned a tuple of 2: one array, one array"):
        rule(lambda xp, p, g, slots, c: (p, g), slots=("m",)).program()


@pytest.mark.parametrize(("returned", "what"), [(None, "None"), (0.5, "an object of type float")])
def test_coefficients_says_what_to_return(returned: Any, what: str) -> None:
    message = (
        'Custom.coefficients must return the scalars of a step by name, as in `return {"lr": self.learning_rate_at(t)}`, '
        f"but it returned {what}"
    )
    with pytest.raises(TypeError) as caught:
        rule(lambda xp, p, g, slots, c: p, coefficients=lambda self, t: returned).program()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "update",
    [
        lambda xp, p, g: (g > 0) * g,
        lambda xp, p, g: xp.sqrt(g > 0),
        lambda xp, p, g: xp.where(g, p, g),
        lambda xp, p, g: xp.where(~g, p, g),
        lambda xp, p, g: xp.where((g > 0) & p, p, g),
        lambda xp, p, g: g > 0,
    ],
    ids=["times a mask", "root of a mask", "where an array", "not an array", "and an array", "a mask as result"],
)
def test_masks_and_arrays_do_not_mix(update: Update) -> None:
    assert "mask" in refused(lambda xp, p, g, slots, c: update(xp, p, g))


@pytest.mark.parametrize(
    ("returned", "missing", "unknown"),
    [
        ({}, "['m', 'v']", "[]"),
        ({"m": 0.0}, "['v']", "[]"),
        ({"m": 0.0, "v": 0.0, "w": 0.0}, "[]", "['w']"),
        ({"m": 0.0, "velocity": 0.0}, "['v']", "['velocity']"),
    ],
)
def test_slots_that_do_not_fit_are_refused(returned: dict[str, float], missing: str, unknown: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared as a whole
        rule(lambda xp, p, g, slots, c: (p, returned), slots=("m", "v")).program()
    assert str(caught.value) == (
        f"Custom.update must return a new value for each of its slots ['m', 'v']: missing {missing}, unknown {unknown}"
    )


def test_rule_without_update_says_so() -> None:
    class Nothing(portopt.Optimizer):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing must define update\(self, xp, p, g, slots, c\)"):
        Nothing().program()


def test_misspelt_slot_or_coefficient_names_what_there_is() -> None:
    with pytest.raises(AttributeError) as caught:
        rule(lambda xp, p, g, slots, c: slots.velocty, slots=("m", "velocity")).program()
    assert str(caught.value) == (
        "a rule asked for the slot 'velocty', which it does not have; did you mean 'velocity'? it has m, velocity: "
        "name it in the rule's `slots` too"
    )
    with pytest.raises(AttributeError) as caught:
        rule(lambda xp, p, g, slots, c: c.rate * g).program()
    assert str(caught.value) == (
        "a rule asked for the coefficient 'rate', which it does not have; it has lr: "
        "return it from the rule's `coefficients` too"
    )
    with pytest.raises(AttributeError, match="the slot 'm', which it does not have; it has none: name it"):
        rule(lambda xp, p, g, slots, c: slots.m).program()


def test_a_rule_may_ask_whether_there_is_a_slot_or_a_coefficient() -> None:
    def update(xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        assert (hasattr(slots, "m"), hasattr(slots, "v"), getattr(c, "rate", None)) == (True, False, None)
        return p, {"m": g}

    rule(update, slots=("m",)).program()


def test_error_in_a_rule_leaves_the_arrays_alone() -> None:
    optimizer = rule(lambda xp, p, g, slots, c: xp.sin(g))
    p = np.ones(2)
    with pytest.raises(UnsupportedOperationError):
        optimizer.apply_(p, p, portopt.OptimizerState(0, {}))
    assert_same_bits(p, np.ones(2))


# Rules of a user's own


class Everything(portopt.Optimizer):
    """A rule that uses hyperparameters, an option, a scalar slot, schedules, and most of the supported functions."""

    slots = ("m", "largest")
    scalar_slots = {"product": 1.0}  # noqa: RUF012  # a mapping that nothing writes to

    beta: float = portopt.hyperparameter(default=0.9, at_least=0, below=1)
    weight_decay: float = portopt.hyperparameter(default=0.0, at_least=0, off=0.0)
    delta: float = portopt.hyperparameter(default=1e-3, above=0)
    signed: bool = portopt.option(default=False)

    def coefficients(self, t: Any, product: Any) -> Mapping[str, Any]:
        product = product * self.beta
        warm = portopt.scalars.minimum(1.0, t / 5)
        return {"lr": self.learning_rate_at(t) * warm, "correction": 1 - product, "product": product}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        if self.weight_decay:
            g = g + self.weight_decay * p
        m = self.beta * slots.m + (1 - self.beta) * g
        largest = xp.maximum(0.5 * slots.largest, xp.abs(g))
        mean = m / c.correction
        direction = xp.sign(mean) if self.signed else mean / ((xp.sqrt(largest) + self.delta) + 1e-8)
        direction = xp.where(xp.isnan(direction), xp.zeros_like(p), xp.clip(direction, -10, 10))
        return p - c.lr * direction / 7, {"m": m, "largest": largest}


CONFIGURATIONS: Mapping[str, portopt.Optimizer] = {
    "plain": Everything(0.1),
    "signed": Everything(0.1, signed=True),
    "all on": Everything(
        portopt.schedules.CosineDecay(0.1, 30, warmup_steps=3), weight_decay=0.01, clipnorm=1.0, clipvalue=0.5
    ),
}


WORDS: Mapping[str, tuple[Any, str]] = {
    "ordinary float64": (ordinary, "float64"),
    "raw float32": (random_words, "float32"),
}


@pytest.mark.parametrize(
    ("run", "words", "options"),
    [(run, words, options) for words in WORDS for run, options in in_turns(RUNS[1:], list(CONFIGURATIONS))],
    ids=str,
)
def test_custom_rule_gives_the_same_bits_on_every_library(run: Run, words: str, options: str) -> None:
    (make, dtype), optimizer = WORDS[words], CONFIGURATIONS[options]
    params = {"a": make((40, 5), dtype, 1), "b": [make((7,), dtype, 2)]}
    gradients = [{"a": make((40, 5), dtype, 10 + i), "b": [make((7,), dtype, 20 + i)]} for i in range(4)]
    expected, expected_state = steps(RUNS[0], optimizer, params, gradients, dtype)
    actual, actual_state = steps(run, optimizer, params, gradients, dtype)
    assert actual_state.step == 4
    assert actual_state.slots["product"] == expected_state.slots["product"] == 0.9 * (0.9 * 0.9 * 0.9)
    for ours, theirs in (
        (actual, expected),
        *((actual_state.slots[n], expected_state.slots[n]) for n in optimizer.slots),
    ):
        assert_same_bits(ours["a"], theirs["a"], "a")
        assert_same_bits(ours["b"][0], theirs["b"][0], "b")


def test_custom_rule_computes_what_it_says() -> None:
    optimizer = Everything(0.1)
    p, state = np.asarray([1.0, -2.0]), optimizer.init(np.zeros(2))
    g = np.asarray([0.5, -4.0])
    p, state = optimizer.apply(p, g, state)
    direction = g / (np.sqrt(np.abs(g)) + 1e-3 + 1e-8)
    assert p == pytest.approx(np.asarray([1.0, -2.0]) - 0.1 * 0.2 * direction / 7, rel=1e-14)
    assert state.slots["product"] == 0.9


def test_custom_rule_has_all_the_conveniences() -> None:
    assert Everything(lr=0.5, beta=0.25).get_config() == {
        "learning_rate": 0.5, "beta": 0.25, "weight_decay": 0.0, "delta": 0.001, "signed": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"Everything beta must be in \[0, 1\), but 1.0 was given"):
        Everything(beta=1.0)
    with pytest.raises(TypeError, match="Everything got an unknown argument 'bta'; did you mean 'beta'"):
        Everything(bta=0.5)  # type: ignore[call-arg]  # the error is the subject
    optimizer = Everything()
    weights = optimizer.get_weights(optimizer.init([np.zeros(3)]))
    assert [w.shape for w in weights] == [(), (), (3,), (3,)]


def test_scalar_slot_that_coefficients_do_not_return_stays() -> None:
    class Keeping(portopt.Optimizer):
        scalar_slots = {"kept": 0.25}  # noqa: RUF012  # a mapping that nothing writes to

        def coefficients(self, t: Any, kept: Any) -> Mapping[str, Any]:
            return {"factor": 2 * kept}

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
            return p - c.factor * g, {}

    optimizer = Keeping()
    p = np.zeros(1)
    state = optimizer.init(p)
    for place in (-0.5, -1.0):
        p, state = optimizer.apply(p, np.ones(1), state)
        assert p[0] == place
        assert state.slots["kept"] == 0.25


def test_rule_may_do_without_the_gradient_or_the_parameter() -> None:
    for update, expected in ((lambda xp, p, g, slots, c: p * 2, 6.0), (lambda xp, p, g, slots, c: g * 2, 10.0)):
        optimizer = rule(update)
        assert optimizer.apply(np.asarray(3.0), np.asarray(5.0), optimizer.init(np.asarray(3.0)))[0] == expected


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_slots_may_have_any_name(run: Run) -> None:
    names = ("first", "last", "a0", "a1", "new_p", "sqrt", "class", "lr", "t", "out", "i")

    def update(xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        old = vars(slots)
        return p - xp.sqrt(c.lr + old["sqrt"]), {name: old[name] + k * g for k, name in enumerate(names)}

    params, state = steps(
        run, rule(update, names), np.ones(3, np.float32), [np.full(3, 0.5, np.float32)] * 2, "float32"
    )
    root = np.sqrt(np.float32(0.01)), np.sqrt(np.float32(0.01) + np.float32(2.5))
    assert_same_bits(params, np.full(3, (np.float32(1) - root[0]) - root[1], np.float32))
    for k, name in enumerate(names):
        assert_same_bits(state.slots[name], np.full(3, k, np.float32), name)


@pytest.mark.parametrize("library", LIBRARIES, ids=str)
def test_result_that_depends_on_no_array_has_the_shape_of_the_parameter(library: Library) -> None:
    optimizer = rule(lambda xp, p, g, slots, c: c.lr + xp.zeros_like(p))
    p = library.arrays(np.ones((2, 3), np.float32))
    actual = library.numpy(optimizer.apply(p, p, optimizer.init(p))[0])
    assert_same_bits(actual, np.full((2, 3), 0.01, np.float32))


# `update` is plain array API code


def strict(x: Any) -> Any:
    """Return an array, or the number that a rule sees of a slot with one number a parameter."""
    return array_api_strict.asarray(np.asarray(x, np.float64)) if np.ndim(x) else float(x)


class StrictNamespace:
    """array-api-strict, but what reduces a whole array gives a number, as the contract has it."""

    linalg: Any = SimpleNamespace(vector_norm=lambda x: float(array_api_strict.linalg.vector_norm(x)))

    def __getattr__(self, name: str) -> Any:
        function = getattr(array_api_strict, name)
        if name == "where":
            return lambda condition, a, b: (
                (a if condition else b) if isinstance(condition, bool) else function(condition, a, b)
            )
        if name not in ("sum", "mean", "max", "min", "any", "all", "count_nonzero"):
            return function
        return lambda x, **axes: function(x, **axes) if axes else function(x).__array__()[()]


@pytest.mark.parametrize(
    "optimizer",
    [*(kind() for kind in (*ELEMENTWISE, portopt.NoisySGD)), portopt.Adam(amsgrad=True), Everything()],
    ids=repr,
)
def test_update_runs_as_written_on_strict_arrays(optimizer: portopt.Optimizer) -> None:
    """Only the reciprocal of `array / scalar` and zero for subnormals tell the program from the code it was traced from."""
    p, g = ordinary((6,), "float64", 1), ordinary((6,), "float64", 2)
    shapes = {name: slot.shape for name, slot in optimizer.init(p).slots.items() if name in optimizer.slots}
    slots = {name: np.abs(ordinary(shape, "float64", 3)) for name, shape in shapes.items()}
    first_step: Any = 1  # a number will do for a scalar
    scalars = {name: value for name, value in optimizer.scalar_slots.items() if name != KEY}
    drawn = {name: strict(drawn_by(optimizer, name, 1, Place.of(0, p.shape))) for name in optimizer.draws}
    c, _ = coefficients_of(optimizer, first_step, scalars, {})
    # Python's powers are not portopt's, and those with a number in a rule's text not those with a hyperparameter.
    as_scalars = {name: Scalar(value, HOST) for name, value in scalars.items()}
    of_scalars = copy.copy(optimizer)
    for name in optimizer.numeric_hyperparameters():
        if isinstance(value := getattr(optimizer, name, None), float):
            object.__setattr__(of_scalars, name, Scalar(value, HOST))
    _, new_scalars = coefficients_of(of_scalars, Scalar(1, HOST), as_scalars, {})
    new_p, new_slots = optimizer.update(
        StrictNamespace(),
        strict(p),
        strict(g),
        by_rule({name: strict(slot) for name, slot in slots.items()}),
        c,
        **drawn,
    )
    state = portopt.OptimizerState(0, {**optimizer.scalar_slots, **slots})
    expected, expected_state = optimizer.apply(p, g, state)
    np.testing.assert_allclose(np.asarray(new_p), expected, rtol=1e-15, atol=1e-16)
    for name, slot in by_full_name(new_slots).items():
        np.testing.assert_allclose(np.asarray(slot), expected_state.slots[name], rtol=1e-15)
    for name, scalar in new_scalars.items():
        assert float(scalar) == expected_state.slots[name]


def test_pickled_program_has_its_hash_in_another_process(tmp_path: Path) -> None:
    # Hashes of strings, and so of programs, differ between processes.
    code = """
import pickle, sys, portopt
program, expected = pickle.load(open(sys.argv[1], "rb")), portopt.Adam().program()
assert program == expected and hash(program) == hash(expected)
"""
    path, program = tmp_path / "program", portopt.Adam().program()
    hash(program)
    path.write_bytes(pickle.dumps(program))
    seeds = [{"PYTHONHASHSEED": seed} for seed in ("1", "2")]
    for done in side_by_side([[sys.executable, "-c", code, str(path)]] * 2, seeds):
        assert done.returncode == 0, done.stderr
