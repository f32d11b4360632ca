"""Scalars: operators, IEEE special cases on the host, zero for subnormals, and the same bits inside JAX."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.bits import Array, assert_same_bits, float_bits, random_words
from support.jax_evaluation import each_x64, jitted, on_host
from support.turns import in_turns

from portopt import scalars
from portopt.arithmetic import HOST, dtypes
from portopt.scalars import Scalar, maximum, minimum, where

SMALLEST_NORMAL = dtypes.SMALLEST_NORMAL["float64"]

INF, NAN = math.inf, math.nan

numbers = st.floats(allow_subnormal=False)
finite = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
integers = st.integers(-(10**6), 10**6)


def rounded(exact: Fraction) -> float:
    """Round once, to 53 bits whatever the size, then make what is tiny zero: what the contract says."""
    try:
        value = float(exact)
    except OverflowError:
        return INF if exact > 0 else -INF
    if abs(value) > SMALLEST_NORMAL:
        return value
    # Rounded where there are 53 bits, far above the subnormal numbers.
    precise = float(exact * 2**600)
    return value if abs(precise) >= 2.0**-422 else math.copysign(0.0, exact)


# Operators


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
each_binary = pytest.mark.parametrize("name", BINARY)


def all_ways(function: Callable[[Any, Any], Any], a: float, b: float) -> list[Any]:
    x, y = Scalar(a, HOST), Scalar(b, HOST)
    return [function(x, y), function(x, b), function(a, y)]


@each_binary
def test_operators_on_integers_are_those_of_python(name: str) -> None:
    function = BINARY[name]
    for a in (-7, -1, 0, 3, 12):
        for b in (-4, -1, 1, 3, 5):
            expected = function(a, b)
            for result in (
                function(Scalar(a, HOST), Scalar(b, HOST)),
                function(Scalar(a, HOST), b),
                function(a, Scalar(b, HOST)),
            ):
                assert isinstance(result, Scalar)
                assert result.value == expected
                assert isinstance(expected, bool) or type(result.value) is type(expected)


@each_binary
def test_operators_take_numbers_on_either_side(name: str) -> None:
    function = BINARY[name]
    for a, b in ((2.5, 0.5), (0.5, 2.5), (-3.0, 2), (2, -0.75), (0.25, 0.25)):
        expected = function(float(a), float(b))
        for result in (
            function(Scalar(a, HOST), Scalar(b, HOST)),
            function(Scalar(a, HOST), b),
            function(a, Scalar(b, HOST)),
        ):
            assert result.value == expected


def test_unary_operators() -> None:
    assert (-Scalar(2.5, HOST)).value == -2.5
    assert (+Scalar(2.5, HOST)).value == 2.5
    assert abs(Scalar(-2.5, HOST)).value == 2.5
    assert abs(Scalar(-3, HOST)).value == 3


def test_powers_by_integers_are_repeated_products() -> None:
    assert (Scalar(3.0, HOST) ** 4).value == 81.0
    assert (Scalar(2.0, HOST) ** -2).value == 0.25
    assert (2 ** Scalar(10, HOST)).value == 1024.0
    assert (0.5 ** Scalar(3, HOST)).value == 0.125
    assert (Scalar(0.1, HOST) ** 3).value == 0.1 * (0.1 * 0.1)
    assert (Scalar(2, HOST) ** Scalar(3, HOST)).value == 8.0


def test_power_by_an_integral_float_is_an_integer_power() -> None:
    assert (Scalar(-2.0, HOST) ** 3.0).value == -8.0


def test_power_by_another_float_is_a_real_power() -> None:
    assert (Scalar(2.25, HOST) ** 0.5).value == pytest.approx(1.5, rel=1e-15)
    assert math.isnan((Scalar(-2.25, HOST) ** 0.5).value)


def test_division_of_integers_is_a_float() -> None:
    assert (Scalar(1, HOST) / 3).value == 1 / 3
    assert type((Scalar(4, HOST) / 2).value) is float


@pytest.mark.parametrize("other", ["2", None, [1.0], 2j, np.ones(2)], ids=repr)
@pytest.mark.parametrize("name", ["+", "-", "*", "/", "<"])
def test_operators_refuse_what_is_no_number(name: str, other: object) -> None:
    for left, right in ((Scalar(1.0, HOST), other), (other, Scalar(1.0, HOST))):
        with pytest.raises(TypeError):
            BINARY[name](left, right)


def test_scalar_equals_nothing_that_is_no_number() -> None:
    assert (Scalar(1.0, HOST) == "1") is False
    assert (Scalar(1.0, HOST) != "1") is True


def test_known_scalar_converts_to_python() -> None:
    step = Scalar(2, HOST)
    assert (int(step), float(step), bool(step), bool(Scalar(0, HOST))) == (2, 2.0, True, False)
    assert ["a", "b", "c"][step] == "c"
    assert list(range(step)) == [0, 1]
    assert math.sqrt(Scalar(2.25, HOST)) == 1.5
    assert repr(Scalar(2.25, HOST)) == "Scalar(2.25)"


def test_float_scalar_is_no_index() -> None:
    with pytest.raises(
        TypeError, match=r"a scalar with the value 2\.0 cannot be an index: only an integer can; use // or int"
    ):
        [1, 2, 3][Scalar(2.0, HOST)]


def test_scalar_is_no_key() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        {Scalar(1, HOST): 1}


def test_where_minimum_and_maximum() -> None:
    a, b = Scalar(1.0, HOST), Scalar(2.0, HOST)
    assert where(a < b, a, b).value == 1.0
    assert where(b < a, a, b).value == 2.0
    assert (minimum(a, b).value, minimum(b, a).value, minimum(a, 0.5).value) == (1.0, 1.0, 0.5)
    assert (maximum(a, b).value, maximum(b, a).value, maximum(a, 1.5).value) == (2.0, 2.0, 1.5)
    assert float_bits(minimum(Scalar(0.0, HOST), -0.0).value) == "0x0.0p+0"
    assert float_bits(maximum(Scalar(-0.0, HOST), 0.0).value) == "-0x0.0p+0"
    assert math.isnan(minimum(Scalar(NAN, HOST), 1.0).value)
    assert minimum(Scalar(1.0, HOST), NAN).value == 1.0


CONDITIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "and": (lambda a, b: (a < b) & (a > 0), lambda a, b: a < b and a > 0),
    "or": (lambda a, b: (a < b) | (a > 0), lambda a, b: a < b or a > 0),
    "not": (lambda a, b: ~(a < b), lambda a, b: not a < b),
    "unequal": (lambda a, b: a != b, lambda a, b: a != b),
    "with a bool": (lambda a, b: (True & (a < b)) | False, lambda a, b: a < b),
    "of conditions": (lambda a, b: ~((a < b) & ~(a > 0)) | (a != b), lambda a, b: not (a < b and not a > 0) or a != b),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_combine(name: str) -> None:
    combined, expected = CONDITIONS[name]
    for a in (-1.0, 0.0, 2.0, NAN):
        for b in (-1.0, 0.0, 3.0, NAN):
            for x, y in ((Scalar(a, HOST), Scalar(b, HOST)), (Scalar(a, HOST), b)):
                found = combined(x, y)
                assert isinstance(found, Scalar)
                assert found.value is expected(a, b)


@pytest.mark.parametrize(("name", "use"), [("&", operator.and_), ("|", operator.or_), ("~", lambda a, b: ~a)])
@pytest.mark.parametrize("number", [3, 0.5])
def test_only_conditions_combine(name: str, use: Callable[[Any, Any], Any], number: float) -> None:
    condition = Scalar(1.0, HOST) < 2
    pairs: list[tuple[Any, Any]] = [(Scalar(number, HOST), condition), (Scalar(number, HOST), number)]
    pairs += [] if name == "~" else [(condition, number), (condition, Scalar(number, HOST)), (number, condition)]
    for a, b in pairs:
        with pytest.raises(TypeError) as caught:
            use(a, b)
        assert str(caught.value) == (
            f"{name} was used on a scalar that is a number, but only conditions, the results of comparisons, can be "
            f"combined so: compare it first, as in {'~(x > 0)' if name == '~' else f'(x > 0) {name} (y > 0)'}"
        )
    if name != "~":
        with pytest.raises(TypeError, match="unsupported operand"):
            use(condition, "x")


def test_functions_of_plain_numbers_give_plain_numbers() -> None:
    assert (scalars.sqrt(2.25), scalars.floor(2.5), scalars.exp(0.0), scalars.log(1.0), scalars.cos(0.0)) == (
        1.5, 2.0, 1.0, 0.0, 1.0,
    )  # fmt: skip
    assert (minimum(1.0, 2.0), maximum(1.0, 2.0), where(True, 1.0, 2.0)) == (1.0, 2.0, 1.0)
    assert type(scalars.sqrt(4)) is float


@pytest.mark.parametrize("name", ["sqrt", "exp", "log", "cos", "floor"])
def test_functions_are_documented_by_name(name: str) -> None:
    function = getattr(scalars, name)
    assert function.__name__ == name
    assert function.__doc__


# One rounding for each operation; subnormals are zero


@given(finite, finite)
@example(1 - 2.0**-53, 2.0**-1022)
@example(2.0**-511, 2.0**-511 * (1 - 2.0**-53))
@example(2.0**-1022, 0.5)
@example(1e308, 10.0)
def test_product_is_rounded_once_and_flushed(a: float, b: float) -> None:
    expected = rounded(Fraction(a) * Fraction(b))
    if expected == 0.0:
        expected = math.copysign(0.0, a) * math.copysign(1.0, b)
    assert float_bits(HOST.multiply(a, b)) == float_bits(expected)


@given(finite, finite.filter(bool))
@example(1 - 2.0**-53, 2.0**1022)
@example(2.0**-1022, 2.0)
@example(2.0**-1021 - 2.0**-1073, 2.0)
@example(1e308, 0.1)
def test_quotient_is_rounded_once_and_flushed(a: float, b: float) -> None:
    expected = rounded(Fraction(a) / Fraction(b))
    if expected == 0.0:
        expected = math.copysign(0.0, a) * math.copysign(1.0, b)
    assert float_bits(HOST.divide(a, b)) == float_bits(expected)


@given(finite, finite)
@example(2.0**-1022, -(2.0**-1022) * (1 + 2.0**-52))
@example(1e308, 1e308)
def test_sum_and_difference_are_rounded_once_and_flushed(a: float, b: float) -> None:
    for result, exact in (
        (HOST.add(a, b), Fraction(a) + Fraction(b)),
        (HOST.subtract(a, b), Fraction(a) - Fraction(b)),
    ):
        if exact:
            assert float_bits(float(result)) == float_bits(rounded(exact))
        else:
            assert result == 0.0


def test_product_in_the_gap_below_the_smallest_normal_is_zero() -> None:
    """Exactly `2**-1022 * (1 - 2**-53)`: plain IEEE arithmetic rounds it up to the smallest normal number."""
    a, b = 1 - 2.0**-53, 2.0**-1022
    assert a * b == SMALLEST_NORMAL
    assert float_bits(HOST.multiply(a, b)) == "0x0.0p+0"
    assert float_bits(HOST.multiply(-a, b)) == "-0x0.0p+0"


def test_quotient_in_the_gap_below_the_smallest_normal_is_zero() -> None:
    a, b = 1 - 2.0**-53, 2.0**1022
    assert a / b == SMALLEST_NORMAL
    assert float_bits(HOST.divide(a, b)) == "0x0.0p+0"
    assert float_bits(HOST.divide(a, -b)) == "-0x0.0p+0"


def test_smallest_normal_number_is_kept() -> None:
    assert HOST.multiply(SMALLEST_NORMAL, 1.0) == SMALLEST_NORMAL
    assert HOST.divide(SMALLEST_NORMAL, 1.0) == SMALLEST_NORMAL
    assert HOST.add(SMALLEST_NORMAL, 0.0) == SMALLEST_NORMAL
    assert HOST.multiply(2.0**-511, 2.0**-511) == SMALLEST_NORMAL


def test_subnormal_becomes_zero_of_its_sign_where_it_enters() -> None:
    assert float_bits(HOST.to_float(5e-324)) == "0x0.0p+0"
    assert float_bits(HOST.to_float(-5e-324)) == "-0x0.0p+0"
    assert HOST.to_float(3) == 3.0
    assert type(HOST.to_float(3)) is float


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1.0, 0.0, INF),
        (1.0, -0.0, -INF),
        (-1.0, 0.0, -INF),
        (-1.0, -0.0, INF),
        (0.0, 0.0, NAN),
        (-0.0, 0.0, NAN),
        (INF, 0.0, INF),
        (INF, -0.0, -INF),
        (NAN, 0.0, NAN),
        (0.0, NAN, NAN),
        (INF, INF, NAN),
        (1.0, INF, 0.0),
        (-1.0, INF, -0.0),
        (1, 0, INF),
        (0, 0, NAN),
    ],
)
def test_division_by_zero_and_infinity_is_that_of_ieee(a: float, b: float, expected: float) -> None:
    assert float_bits(HOST.divide(a, b)) == float_bits(expected)


@pytest.mark.parametrize(
    ("function", "a", "b", "expected"),
    [
        (HOST.multiply, INF, 0.0, NAN),
        (HOST.multiply, -INF, 2.0, -INF),
        (HOST.multiply, NAN, 2.0, NAN),
        (HOST.multiply, 1e200, 1e200, INF),
        (HOST.multiply, -0.0, 2.0, -0.0),
        (HOST.add, INF, -INF, NAN),
        (HOST.add, 1e308, 1e308, INF),
        (HOST.add, -0.0, -0.0, -0.0),
        (HOST.add, -0.0, 0.0, 0.0),
        (HOST.subtract, INF, INF, NAN),
        (HOST.subtract, -0.0, 0.0, -0.0),
    ],
)
def test_special_sums_and_products_are_those_of_ieee(
    function: Callable[[float, float], float], a: float, b: float, expected: float
) -> None:
    assert float_bits(function(a, b)) == float_bits(expected)


def test_comparisons_with_nan_are_false() -> None:
    for name in ("<", "<=", ">", ">=", "=="):
        assert not bool(BINARY[name](Scalar(NAN, HOST), 1.0))
        assert not bool(BINARY[name](Scalar(1.0, HOST), NAN))
    assert bool(Scalar(NAN, HOST) != 1.0)


def test_integers_are_exact_until_they_meet_a_float() -> None:
    large = 2**53 + 1
    assert HOST.add(large, 1) == large + 1
    assert type(HOST.add(large, 1)) is int
    assert HOST.add(large, 0.0) == 2.0**53
    assert type(HOST.multiply(3, 2.0)) is float


# The same bits inside JAX

COUNT = 20_000
RAW = random_words((COUNT,), "float64", seed=11)
A = np.where(np.abs(RAW) < SMALLEST_NORMAL, np.copysign(0.0, RAW), RAW)
B = A[::-1].copy()
SPECIAL = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, SMALLEST_NORMAL, -SMALLEST_NORMAL, 1 - 2.0**-53, 2.0**1022, 1.7e308]
A[: len(SPECIAL) ** 2] = np.repeat(SPECIAL, len(SPECIAL))
B[: len(SPECIAL) ** 2] = np.tile(SPECIAL, len(SPECIAL))
C = np.concatenate([A, A, np.full(1000, 2.0**-1022)])
D = np.concatenate([B, A[::-1], 1 - np.arange(1000) * 2.0**-53])


def compare(function: Callable[..., Any], *columns: Array, x64: bool) -> None:
    assert_same_bits(jitted(function, *columns, x64=x64), on_host(function, *columns))


@pytest.mark.parametrize(("name", "x64"), in_turns(["+", "-", "*", "/", "//", "<", "<=", "=="], (False, True)))
def test_operator_gives_the_same_bits_on_jax(name: str, x64: bool) -> None:
    compare(BINARY[name], C, D, x64=x64)


@pytest.mark.parametrize(
    ("name", "constant", "x64"),
    [
        (name, constant, x64)
        for i, name in enumerate(["+", "-", "*", "/", "//"])
        for constant, x64 in in_turns([50.0, 0.3, 1e-3, 7, 1 - 2.0**-53, 2.0**1022, 0.0, INF], (False, True), start=i)
    ],
    ids=str,
)
def test_operator_with_a_constant_gives_the_same_bits_on_jax(name: str, constant: float, x64: bool) -> None:
    """A compiler may rewrite what it knows: `x / 50` as `x * (1 / 50)`, for example."""
    function = BINARY[name]
    compare(lambda x: function(x, constant), A, x64=x64)
    compare(lambda x: function(constant, x), A, x64=x64)


CHAINS: dict[str, Callable[[Any], Any]] = {
    "(x + c) + d": lambda x: (x + 0.3) + 1e-3,
    "(x + c) - c": lambda x: (x + 3e5) - 3e5,
    "(x - c) - d": lambda x: (x - 0.3) - 1e-3,
    "c + (d - x)": lambda x: 0.3 + (1e-3 - x),
    "(x * c) * d": lambda x: (x * 0.3) * 1e-3,
    "(x / c) / d": lambda x: (x / 0.3) / 7.0,
    "(x * c) + d": lambda x: (x * 0.3) + 1e-3,
    "c / (d / x)": lambda x: 0.3 / (7.0 / x),
    "x * c + x * d": lambda x: x * 0.3 + x * 1e-3,
    "1 / sqrt(x)": lambda x: 1 / scalars.sqrt(x),
    "sqrt(x) * sqrt(x)": lambda x: scalars.sqrt(x) * scalars.sqrt(x),
    "(x + x) - x": lambda x: (x + x) - x,
}


@pytest.mark.parametrize(("name", "x64"), in_turns(list(CHAINS), (False, True)))
def test_chain_with_constants_gives_the_same_bits_on_jax(name: str, x64: bool) -> None:
    points = np.concatenate([A, np.random.default_rng(1).uniform(-2, 2, COUNT)])
    compare(CHAINS[name], points, x64=x64)


@each_x64
def test_fused_multiply_add_is_not_used_on_jax(x64: bool) -> None:
    a, b, c = np.random.default_rng(2).standard_normal((3, COUNT))
    compare(lambda a, b, c: a * b + c, a, b, c, x64=x64)
    fused = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a[:100], b[:100], c[:100], strict=True)]
    assert np.any(np.asarray(fused) != on_host(lambda a, b, c: a * b + c, a[:100], b[:100], c[:100]))


@each_x64
@pytest.mark.parametrize("name", ["+", "-", "*", "//", "%", "<", "<=", "=="])
def test_integers_are_integers_on_jax(name: str, x64: bool) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(-30_000, 30_000, 1000), rng.integers(1, 30_000, 1000)
    compare(BINARY[name], a, b, x64=x64)
    compare(lambda x: BINARY[name](x, 7), a, x64=x64)


@each_x64
def test_integer_meets_float_on_jax(x64: bool) -> None:
    steps = np.arange(1000)
    for function in (
        lambda s: s + 0.5,
        lambda s: 0.1 * s,
        lambda s: s / 3,
        lambda s: s - 2.5,
        lambda s: 1 / (1 + 0.1 * s),
    ):
        compare(function, steps, x64=x64)


@each_x64
def test_selection_gives_the_same_bits_on_jax(x64: bool) -> None:
    for function in (
        minimum,
        maximum,
        lambda a, b: where(a < b, a, b),
        lambda a, b: abs(a) - abs(b),
        lambda a, b: where(a != b, -a, +b),
    ):
        compare(function, A, B, x64=x64)


@pytest.mark.parametrize(("name", "x64"), in_turns(list(CONDITIONS), (False, True)))
def test_conditions_combine_on_jax(name: str, x64: bool) -> None:
    combined = CONDITIONS[name][0]
    compare(lambda a, b: where(combined(a, b), a, b), A, B, x64=x64)
    compare(lambda a, b: where(combined(a, b), 0.5, b), np.arange(-5, 5), np.arange(5, -5, -1), x64=x64)


def test_value_inside_jit_cannot_be_asked_for() -> None:
    asking: list[Callable[[Scalar], Any]] = [
        float,
        int,
        bool,
        operator.index,
        lambda s: [1, 2][s],
        lambda s: s if s < 1 else 0,
    ]
    for ask in asking:
        with pytest.raises(TypeError, match="asked for the value of the step inside a JAX transformation"):
            jitted(ask, np.arange(3))
