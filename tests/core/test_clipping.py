"""Clipping by the global norm, then by value: the norm's value, and the same bits in any order of summation."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bits import Array, assert_same_bits, float_bits, ordinary, random_words
from support.libraries import BY_NAME, LIBRARIES, RUNS, Library, Run, steps

import portopt

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
MAX, TINY = 1.7976931348623157e308, 2.0**-1022


def norm(library: Library, gradients: list[Array], *, jit: bool = False) -> float:
    """Return the norm that a library's backend computes."""
    backend = library.backend
    with library.precision(str(gradients[0].dtype)):
        arrays = [library.arrays(g) for g in gradients]
        return float(backend.scalar(jitted_norm(*arrays) if jit else backend.gradient_norm(arrays)))


@jax.jit
def jitted_norm(*gradients: Any) -> Any:
    backend = BY_NAME["jax"].backend
    return backend.stored_scalar(backend.gradient_norm(gradients))


WAYS = [(library, False) for library in LIBRARIES] + [(BY_NAME["jax"], True)]
each_way = pytest.mark.parametrize(("library", "jit"), WAYS, ids=lambda x: {True: "jit", False: "eager"}.get(x, str(x)))


def exact_norm(gradients: list[Array]) -> float:
    """Return the correctly rounded norm (of the integer square root of the exact sum of squares)."""
    total = sum((Fraction(x) ** 2 for g in gradients for x in g.ravel().tolist()), Fraction(0))
    scale = 2 ** max(0, 240 - 2 * (total.numerator.bit_length() - total.denominator.bit_length()))
    shift = scale.bit_length() // 2 * 2
    root = math.isqrt(int(total * 2**shift))
    return float(Fraction(root, 2 ** (shift // 2)))


def wide(count: int, dtype: str, seed: int, decades: float = 8) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal(count) * 10.0 ** rng.uniform(-decades, decades, count), dtype)


@functools.cache
def with_exact_norm(count: int, dtype: str, seed: int, decades: float) -> tuple[list[Array], float]:
    """Return gradients and their norm, which takes longer than all libraries together."""
    gradients = [wide(count, dtype, seed, decades), wide(3, dtype, seed + 10, decades)]
    return gradients, exact_norm(gradients)


# The norm


@each_way
@each_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 100, 1000, 4097])
def test_norm_is_within_one_ulp_of_the_exact_one(count: int, dtype: str, library: Library, jit: bool) -> None:
    for seed, decades in ((1, 0.0), (2, 3.0), (3, 8.0)):
        gradients, exact = with_exact_norm(count, dtype, seed, decades)
        assert abs(norm(library, gradients, jit=jit) - exact) <= math.ulp(exact)


@each_way
def test_norms_that_are_known_exactly(library: Library, jit: bool) -> None:
    for gradients, expected in (
        ([[3.0, 4.0]], 5.0),
        ([[3.0], [4.0]], 5.0),
        ([[1.0] * 4], 2.0),
        ([[0.0, -0.0]], 0.0),
        ([[0.0], [-2.0]], 2.0),
        ([[-7.0]], 7.0),
        ([[2.0**100 * 3, 2.0**100 * 4]], 2.0**100 * 5),
        ([[2.0**-60 * 3, 2.0**-60 * 4]], 2.0**-60 * 5),
    ):
        arrays = [np.asarray(g, np.float32) for g in gradients]
        assert norm(library, arrays, jit=jit) == expected


@each_way
def test_huge_and_tiny_float64_values_neither_overflow_nor_vanish(library: Library, jit: bool) -> None:
    for gradients, expected in (
        ([3e300, 4e300], exact_norm([np.asarray([3e300, 4e300])])),
        ([2.0**1023, 0.0], 2.0**1023),
        ([MAX], MAX),
        ([MAX, MAX], math.inf),
        ([3 * 2.0**-1000, 4 * 2.0**-1000], 5 * 2.0**-1000),
        ([3 * TINY, 4 * TINY], 5 * TINY),
        ([TINY], TINY),
        ([1e200, 1e-200], 1e200),
        ([TINY / 2], 0.0),
        ([1.0, TINY / 4], 1.0),
    ):
        assert float_bits(norm(library, [np.asarray(gradients)], jit=jit)) == float_bits(expected), gradients


@each_way
@each_dtype
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, math.inf], math.inf),
        ([1.0, -math.inf], math.inf),
        ([1.0, math.nan], math.nan),
        ([math.inf, math.nan], math.nan),
        ([math.nan, math.inf], math.nan),
        ([math.nan] * 300 + [math.inf] * 300, math.nan),
        ([math.inf] * 300 + [math.nan], math.nan),
    ],
    ids=["inf", "-inf", "nan", "inf nan", "nan inf", "many", "last"],
)
def test_norm_of_infinities_and_nan(
    values: list[float], expected: float, dtype: str, library: Library, jit: bool
) -> None:
    together, apart = [np.asarray(values, dtype)], [np.asarray([v], dtype) for v in values[:20]]
    assert float_bits(norm(library, together, jit=jit)) == float_bits(expected)
    if len(values) <= 20:
        assert float_bits(norm(library, apart, jit=jit)) == float_bits(expected)


@each_way
def test_norm_of_nothing_is_zero(library: Library, jit: bool) -> None:
    assert norm(library, [np.zeros(0, np.float32)], jit=jit) == 0.0
    assert norm(library, [np.zeros((3, 0), np.float32), np.asarray([2.0], np.float32)], jit=jit) == 2.0


@each_way
@each_dtype
def test_norm_has_the_same_bits_on_every_library(dtype: str, library: Library, jit: bool) -> None:
    for seed in range(10):
        gradients = [wide(1000, dtype, seed), wide(17, dtype, seed + 50), wide(1, dtype, seed + 90)]
        expected = norm(BY_NAME["numpy"], gradients)
        assert float_bits(norm(library, gradients, jit=jit)) == float_bits(expected)


@each_way
@each_dtype
def test_norm_of_raw_words_has_the_same_bits_on_every_library(dtype: str, library: Library, jit: bool) -> None:
    for seed in range(10):
        words = random_words((500,), dtype, seed)
        finite = np.where(np.isfinite(words), words, np.asarray(1.0, dtype))
        for gradients in ([words], [finite]):
            assert float_bits(norm(library, gradients, jit=jit)) == float_bits(norm(BY_NAME["numpy"], gradients))


elements = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60)
@given(st.lists(elements, min_size=1, max_size=60), st.randoms(use_true_random=False), st.integers(0, 60))
def test_norm_does_not_depend_on_the_order(values: list[float], random: Any, cut: int) -> None:
    """Nor on how the elements are spread over tensors."""
    shuffled = random.sample(values, len(values))
    gradients = [np.asarray(values, np.float32)]
    parts = [np.asarray(part, np.float32) for part in (shuffled[:cut], shuffled[cut:])]
    for library in LIBRARIES:
        if library.name != "jax":  # compiles for each shape; the next test has fixed ones
            assert float_bits(norm(library, gradients)) == float_bits(norm(library, parts))


@each_way
@each_dtype
def test_norm_of_many_elements_does_not_depend_on_the_order(dtype: str, library: Library, jit: bool) -> None:
    rng = np.random.default_rng(0)
    for seed in range(10):
        values = wide(3000, dtype, seed, 6)
        expected = norm(library, [values.reshape(50, 60)], jit=jit)
        for _ in range(3):
            assert norm(library, [rng.permutation(values).reshape(50, 60)], jit=jit) == expected
        assert norm(library, [values[:1000], values[1000:]], jit=jit) == expected


def test_plain_sum_of_squares_would_depend_on_the_order() -> None:
    """The data of the tests above can tell a careless sum from an exact one."""
    rng = np.random.default_rng(0)
    values = wide(3000, "float32", 1, 6).astype(np.float64)
    assert len({float(np.sqrt(np.sum(rng.permutation(values) ** 2))) for _ in range(20)}) > 1


# What is done with it


def clipped(gradients: Any, clipnorm: float | None = None, clipvalue: float | None = None) -> Any:
    """Return the gradients after clipping: what plain descent with learning rate 1 takes away from zero."""
    optimizer = portopt.SGD(1.0, clipnorm=clipnorm, clipvalue=clipvalue)
    zeros = {name: np.zeros_like(g) for name, g in gradients.items()}
    return {name: -p for name, p in optimizer.apply(zeros, gradients, optimizer.init(zeros))[0].items()}


@each_dtype
def test_gradients_are_scaled_by_one_factor(dtype: str) -> None:
    result = clipped({"a": np.asarray([3.0], dtype), "b": np.asarray([4.0, 0.0], dtype)}, clipnorm=2.5)
    assert_same_bits(result["a"], np.asarray([1.5], dtype))
    assert_same_bits(np.abs(result["b"]), np.asarray([2.0, 0.0], dtype))


def test_short_gradients_are_left_as_they_are() -> None:
    gradients = {"a": wide(50, "float32", 1, 2)}
    length = norm(BY_NAME["numpy"], [gradients["a"]])
    assert_same_bits(clipped(gradients, clipnorm=math.nextafter(length, math.inf))["a"], gradients["a"])


def test_norm_exactly_at_the_limit_changes_nothing() -> None:
    gradients = {"a": np.asarray([3.0, 4.0], np.float32)}
    assert_same_bits(clipped(gradients, clipnorm=5.0)["a"], gradients["a"])


def test_norm_just_above_the_limit_is_scaled() -> None:
    gradients = {"a": np.asarray([3.0, 4.0])}
    result = clipped(gradients, clipnorm=math.nextafter(5.0, 0.0))["a"]
    assert np.all(result < gradients["a"])


def test_zero_gradients_stay_zero() -> None:
    assert_same_bits(np.abs(clipped({"a": np.zeros(3)}, clipnorm=1.0)["a"]), np.zeros(3))


def test_infinite_gradient_makes_finite_ones_zero_and_itself_nan() -> None:
    """As in Keras: the factor is zero, and zero times infinity is NaN."""
    result = clipped({"a": np.asarray([2.0, math.inf]), "b": np.asarray([-3.0])}, clipnorm=1.0)
    assert result["a"][0] == 0.0
    assert math.isnan(result["a"][1])
    assert result["b"][0] == 0.0


def test_nan_gradient_switches_clipping_off() -> None:
    """As in Keras: a comparison with NaN is false."""
    result = clipped({"a": np.asarray([20.0, math.nan])}, clipnorm=1.0)
    assert result["a"][0] == 20.0
    assert math.isnan(result["a"][1])


def test_clipvalue_bounds_each_element() -> None:
    gradients = np.asarray([-3.0, -0.5, -0.25, 0.0, 0.25, 0.5, 7.0, math.inf, -math.inf, math.nan], np.float32)
    expected = np.asarray([-0.5, -0.5, -0.25, 0.0, 0.25, 0.5, 0.5, 0.5, -0.5, math.nan], np.float32)
    assert_same_bits(clipped({"a": gradients}, clipvalue=0.5)["a"] + np.float32(0), expected)


def test_norm_is_clipped_before_values() -> None:
    gradients = {"a": np.asarray([3.0, 4.0])}
    assert clipped(gradients, clipnorm=2.5, clipvalue=1.75)["a"].tolist() == [1.5, 1.75]
    assert clipped({"a": np.asarray([1.75, 1.75])}, clipnorm=2.5)["a"].tolist() != [1.5, 1.75]


@pytest.mark.parametrize("run", RUNS[1:], ids=str)
@each_dtype
def test_clipped_training_has_the_same_bits_everywhere(dtype: str, run: Run) -> None:
    optimizer = portopt.SGD(0.5, momentum=0.5, clipnorm=1.0, clipvalue=0.125)
    params = {"a": ordinary((30, 4), dtype, 1), "b": ordinary((3,), dtype, 2)}
    gradients = [{"a": wide(120, dtype, i, 2).reshape(30, 4), "b": ordinary((3,), dtype, 30 + i)} for i in range(3)]
    expected, _ = steps(RUNS[0], optimizer, params, gradients, dtype)
    actual, _ = steps(run, optimizer, params, gradients, dtype)
    for name in params:
        assert_same_bits(actual[name], expected[name], name)


def test_gradients_of_different_dtypes_share_one_norm() -> None:
    gradients = {"a": np.asarray([3.0], np.float32), "b": np.asarray([4.0]), "c": np.asarray([12.0], np.float16)}
    result = clipped(gradients, clipnorm=6.5)
    assert [float(result[name][0]) for name in "abc"] == [1.5, 2.0, 6.0]


# The norm given for a step


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_parts_are_clipped_together_if_their_norm_is_given(run: Run) -> None:
    library, rule = run.library, portopt.SGD(0.1, momentum=0.9, clipnorm=0.5)
    params = [ordinary((5,), "float32", 1), ordinary((2, 3), "float32", 2)]
    gradients = [[ordinary(p.shape, "float32", 10 * step + i) for i, p in enumerate(params)] for step in range(2)]
    expected, _ = steps(run, rule, params, gradients, "float32")
    step = run.mode.step(rule)
    parts = [library.arrays([p]) for p in params]
    states = [rule.init(part) for part in parts]
    for both in gradients:
        norm = float(library.backend.scalar(library.backend.gradient_norm(library.arrays(both))))
        for i, g in enumerate(both):
            parts[i], states[i] = step(parts[i], [library.arrays(g)], states[i], gradient_norm=norm)
    for part, whole in zip(parts, expected, strict=True):
        assert_same_bits(library.numpy(part)[0], whole)


def test_the_same_arrays_may_be_given_another_norm_at_each_step() -> None:
    rule, w = portopt.SGD(1.0, clipnorm=1.0), np.zeros(1)
    state = rule.init(w)
    for norm, expected in ((2.0, -0.5), (4.0, -0.75), (8.0, -0.875), (None, -1.875), (math.inf, -1.875), (0, -2.875)):
        state = rule.apply_(w, np.ones(1), state, gradient_norm=norm)
        assert w == expected


def test_a_norm_without_clipnorm_changes_nothing() -> None:
    w, state = np.zeros(1), portopt.SGD(1.0).init(np.zeros(1))
    assert portopt.SGD(1.0).apply(w, np.ones(1), state, gradient_norm=5.0)[0] == -1.0


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        (-1.0, ValueError, "SGD.apply gradient_norm must be at least 0, but -1.0 was given"),
        (True, TypeError, "gradient_norm must be a Python number or a 0-d array, but True of type bool"),
        (np.ones(2), TypeError, "must be a Python number or a 0-d array, but .* of type ndarray"),
        ("1", TypeError, "must be a Python number or a 0-d array, but '1' of type str was given"),
    ],
)
def test_what_is_no_norm_is_refused(norm: Any, error: type[Exception], message: str) -> None:
    rule, w = portopt.SGD(1.0, clipnorm=1.0), np.zeros(1)
    with pytest.raises(error, match=message):
        rule.apply_(w, np.ones(1), rule.init(w), gradient_norm=norm)
    assert w == 0.0
