"""Reductions against exact arithmetic, and against each other: permuted, split in parts, on every library, inside `jax.jit`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, assert_same_float, float_bits, ordinary, random_words
from support.libraries import BY_NAME, Library, each_library

import portopt
from portopt.arithmetic import HOST
from portopt.program import bins
from portopt.program.primitives import Primitives
from portopt.program.reductions import Reductions

NUMPY: Any = portopt.get_backend("numpy")
NAMES = ("sum", "mean", "norm", "max", "min", "count")
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}


def loaded(x: Array) -> Array:
    """Return an array as a program has it: without subnormals."""
    return np.where(np.abs(x) < TINY[x.dtype.name], np.copysign(np.zeros_like(x), x), x)


def spread(dtype: str, seed: int, shape: tuple[int, ...] = (240,), decades: int = 30) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-decades, decades, shape), dtype)


def finite_words(dtype: str, seed: int, shape: tuple[int, ...] = (240,)) -> Array:
    x = loaded(random_words(shape, dtype, seed))
    return np.where(np.isfinite(x), x, x.dtype.type(1.5))


def finite_cases(dtype: str) -> Iterator[Array]:
    yield ordinary((240,), dtype, 0)
    yield spread(dtype, 1)
    yield finite_words(dtype, 2)
    yield -np.abs(ordinary((1000,), dtype, 3))
    yield np.zeros(0, dtype)
    yield np.full(3, -0.0, dtype)
    for word in (np.finfo(dtype).max, np.finfo(dtype).tiny, -np.finfo(dtype).max, 1.0, 0.5, 2.0**31, 2.0**-32):
        yield np.asarray([word], dtype)
    yield np.full(5, np.finfo(dtype).max, dtype)
    yield np.asarray([np.finfo(dtype).max, -np.finfo(dtype).max, np.finfo(dtype).tiny], dtype)
    if dtype == "float64":
        for exponent in (-1021, -1009, -1008, -500, -393, -392, -391, 391, 392, 393, 511, 1020):
            x = ordinary((50,), dtype, 5) * 2.0**exponent
            yield np.where(np.abs(x) < np.finfo(dtype).tiny, 0.0, x)  # no array in a program holds subnormals
    for bound in (-16, 16, -912, 976, 1008)[: 2 if dtype == "float32" else None]:
        yield from cancelling(dtype, bound)


def cancelling(dtype: str, bound: int) -> Iterator[Array]:
    """Yield numbers of which the largest, at a bound of bins or just below, cancel: the last bits of the others show the bins."""
    small = np.random.default_rng(bound + 1000).uniform(-1.0, 1.0, 9) * 2.0 ** (bound - 60)
    for largest in (1.0, 1.0 - np.finfo(dtype).epsneg):
        yield np.asarray([largest * 2.0**bound, *small, -largest * 2.0**bound], dtype)


def magnitude_of(x: Fraction) -> int:
    """Return the smallest integer `e` with `|x| < 2**e`, for a number other than zero."""
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent + (abs(x) >= Fraction(2) ** exponent)


def exponent_of(x: Sequence[Fraction], lowest: int) -> int:
    """Return the smallest number `32 k + 16`, not below the lowest, with every magnitude below that power of two."""
    largest = max(map(abs, x), default=Fraction(0))
    return max(-(-(magnitude_of(largest) - 16) // 32) * 32 + 16, lowest) if largest else lowest


def exact_sum(x: Sequence[Fraction], lowest: int) -> tuple[int, int]:
    """Return the sum of numbers, each rounded to a multiple of 2**unit, in this unit; and `unit`."""
    unit = exponent_of(x, lowest) - 95
    return sum(round(number / Fraction(2) ** unit) for number in x), unit


def nearest(x: Fraction, bits: int = 53) -> Fraction:
    """Return a number rounded to nearest even, as if exponents had no bounds."""
    if not x:
        return x
    exponent = magnitude_of(x) - bits
    return round(x / Fraction(2) ** exponent) * Fraction(2) ** exponent


def rounded_sum(total: int, unit: int) -> Fraction:
    """Return the sum as it is computed from digits of 32 bits."""
    third = (total + 2**31) % 2**32 - 2**31
    second = ((total - third) // 2**32 + 2**31) % 2**32 - 2**31
    first = (total - third - second * 2**32) // 2**64
    small = nearest(Fraction(third) + second * 2**32)
    return nearest(small + nearest(Fraction(first)) * 2**64) * Fraction(2) ** unit


def expected_sum(x: Array) -> float:
    exact = rounded_sum(*exact_sum([Fraction(float(v)) for v in x.ravel()], -912))
    return (math.inf if exact > 0 else -math.inf) if abs(exact) >= Fraction(2) ** 1024 else float(exact)


def expected_norm(x: Array) -> float:
    exact = rounded_sum(*exact_sum([nearest(Fraction(float(v)) ** 2) for v in x.ravel()], -9600))
    if not exact:
        return 0.0
    half = (math.frexp(float(np.max(np.abs(x))))[1]) & ~1
    return math.sqrt(float(exact / Fraction(2) ** (2 * half))) * 2.0 ** (half // 2) * 2.0 ** (half - half // 2)


def whole(name: str, x: Array, reductions: Callable[[str], Reductions] = NUMPY.reductions) -> Any:
    with np.errstate(all="ignore"):
        return getattr(reductions(x.dtype.name), name)(x, None)


@DTYPES
def test_sum_and_norm_are_those_of_the_definition(dtype: str) -> None:
    for x in finite_cases(dtype):
        assert_same_float(whole("sum", x), expected_sum(x))
        assert_same_float(whole("norm", x), expected_norm(x))


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("float32", -8), ("float32", 8), *(("float64", bound) for bound in (-488, -392, -8, 8, 392, 504))],
)
def test_squares_at_a_bound_of_bins_are_those_of_the_definition(dtype: str, bound: int) -> None:
    small = np.full(2**14, 1.4 * 2.0 ** (bound - 33), dtype)
    for largest in (2.0**bound, 2.0**bound * (1.0 - float(np.finfo(dtype).epsneg))):
        x = np.asarray([largest, *small], dtype)
        assert_same_float(whole("norm", x), expected_norm(x))
        # From the bound on, the last bins have no place for the small ones.
        assert (whole("norm", x) == largest) is (largest == 2.0**bound)


@DTYPES
def test_sum_is_within_the_proved_bound(dtype: str) -> None:
    for x in finite_cases(dtype):
        exact = sum(map(Fraction, x.tolist()), Fraction(0))
        if abs(exact) < Fraction(2) ** 1023:
            largest = Fraction(float(np.max(np.abs(x), initial=0.0)))
            bound = abs(exact) / 2**51 + x.size * max(largest / 2**63, Fraction(2) ** -1007)
            assert abs(Fraction(whole("sum", x)) - exact) <= bound


@DTYPES
def test_norm_is_within_the_proved_bound(dtype: str) -> None:
    for x in finite_cases(dtype):
        squares = sum((Fraction(float(v)) ** 2 for v in x), Fraction(0))
        norm = whole("norm", x)
        if math.isfinite(norm) and squares:
            # (1 + e)**2 of the norm's relative error e, compared without a root.
            error = Fraction(2) ** -51 + x.size * Fraction(2) ** -64
            assert squares * (1 - error) ** 2 <= Fraction(norm) ** 2 <= squares * (1 + error) ** 2


@DTYPES
def test_sum_of_ordinary_numbers_is_that_of_fsum(dtype: str) -> None:
    x = ordinary((5000,), dtype, 8)
    assert_same_float(whole("sum", x), math.fsum(x.tolist()))


@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_order_changes_nothing(name: str, dtype: str) -> None:
    rng = np.random.default_rng(11)
    for x in (*finite_cases(dtype), loaded(random_words((60,), dtype, 12))):
        assert_same_float(float(whole(name, x)), float(whole(name, x[rng.permutation(x.size)])))


@DTYPES
@pytest.mark.parametrize("name", ["sum", "norm", "max", "min"])
def test_parts_combine_to_the_whole(name: str, dtype: str) -> None:
    reductions = NUMPY.reductions(dtype)
    rng = np.random.default_rng(13)
    for x in (*finite_cases(dtype), loaded(random_words((60,), dtype, 14))):
        x = x[np.argsort(np.abs(x))] if np.all(np.isfinite(x)) else x
        ends = np.sort(rng.integers(0, x.size + 1, 4))
        with np.errstate(all="ignore"):
            parts = [reductions.partial(name, part) for part in np.split(x, ends)]
            assert_same_float(reductions.combine(name, parts), whole(name, x))
            assert_same_float(reductions.combine(name, parts[::-1]), whole(name, x))


def test_a_norm_of_parts_of_both_precisions_is_that_of_all() -> None:
    narrow, wide = spread("float32", 15), spread("float64", 16)
    for scale in (2.0**-600, 2.0**-1000, 1.0, 2.0**900):
        wide_scaled = np.where(np.isfinite(wide * scale), loaded(wide * scale), 0.0)
        for x in (narrow, np.zeros(3, np.float32)):
            parts = [
                NUMPY.reductions("float32").partial("norm", x),
                NUMPY.reductions("float64").partial("norm", wide_scaled),
            ]
            together = np.concatenate([x.astype("float64"), wide_scaled])
            assert_same_float(NUMPY.reductions("float32").combine("norm", parts), whole("norm", together))


@DTYPES
@pytest.mark.parametrize(
    ("numbers", "results"),
    [
        ([], {"sum": 0.0, "mean": math.nan, "norm": 0.0, "max": -math.inf, "min": math.inf, "count": 0}),
        ([-0.0, -0.0], {"sum": 0.0, "mean": 0.0, "norm": 0.0, "max": 0.0, "min": 0.0, "count": 0}),
        ([-0.0, 0.0], {"max": 0.0, "min": 0.0}),
        ([math.inf, 1.0], {"sum": math.inf, "mean": math.inf, "norm": math.inf, "max": math.inf, "min": 1.0, "count": 2}),
        ([-math.inf, 1.0], {"sum": -math.inf, "mean": -math.inf, "norm": math.inf, "max": 1.0, "min": -math.inf}),
        ([math.inf, -math.inf], {"sum": math.nan, "mean": math.nan, "norm": math.inf, "max": math.inf, "min": -math.inf}),
        ([math.inf, math.nan, 1.0], dict.fromkeys(("sum", "mean", "norm", "max", "min"), math.nan) | {"count": 3}),
        ([1.0, -2.0, 0.0, 4.0], {"sum": 3.0, "mean": 0.75, "norm": math.sqrt(21), "max": 4.0, "min": -2.0, "count": 3}),
    ],
    ids=["nothing", "zeros", "both zeros", "infinity", "minus infinity", "both infinities", "NaN", "ordinary"],
)  # fmt: skip
def test_special_numbers(numbers: list[float], results: dict[str, float], dtype: str) -> None:
    for name, expected in results.items():
        result = whole(name, np.asarray(numbers, dtype))
        assert type(result) is (int if name == "count" else float)
        assert float_bits(float(result)) == float_bits(float(expected)), name


@DTYPES
def test_along_axes_every_slice_is_reduced_by_itself(dtype: str) -> None:
    reductions = NUMPY.reductions(dtype)
    with np.errstate(all="ignore"):
        for x in (spread(dtype, 17, (3, 4, 5)), loaded(random_words((3, 4, 5), dtype, 18)), np.zeros((3, 0, 5), dtype)):
            for axes in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
                kept = tuple(axis for axis in range(3) if axis not in axes)
                for name in NAMES:
                    narrow = getattr(reductions, name)(x, axes)
                    assert narrow.shape == tuple(x.shape[axis] if axis in kept else 1 for axis in range(3))
                    slices = x.transpose(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), -1 if x.size else 0)
                    for index in np.ndindex(*slices.shape[:-1]):
                        value = np.asarray(whole(name, np.ascontiguousarray(slices[index])), "float64")
                        found = narrow.reshape(slices.shape[:-1])[index]
                        assert_same_bits(found, loaded(value).astype(dtype)[()], f"{name} {axes}")


def test_a_narrow_mean_is_rounded_once() -> None:
    x = np.random.default_rng(19).standard_normal((50, 7), np.float32)
    sums = [math.fsum(row) for row in x.tolist()]
    expected = np.asarray([[total / 7.0] for total in sums], np.float32)
    assert_same_bits(NUMPY.reductions("float32").mean(x, (1,)), expected)
    twice = np.asarray([[total] for total in sums], np.float32) / np.float32(7.0)
    assert twice.tobytes() != expected.tobytes()


def test_masks() -> None:
    reductions = NUMPY.reductions("float32")
    mask = np.asarray([[True, False, True], [True, True, True]])
    for name, everything, along in (
        ("any", True, [True, True]),
        ("all", False, [False, True]),
        ("count", 5, [2.0, 3.0]),
    ):
        reduce = getattr(reductions, name)
        assert reduce(mask, None) == everything
        assert type(reduce(mask, None)) is type(everything)
        assert reduce(mask, (1,)).ravel().tolist() == along
        assert reduce(mask, (1,)).dtype == (np.float32 if name == "count" else np.bool_)
    assert reductions.any(mask[:0], None) is False
    assert reductions.all(mask[:0], None) is True
    assert reductions.count(mask[:0], None) == 0


def _with(**functions: Any) -> Callable[[str], Reductions]:
    """Return reductions of a NumPy some of whose functions are wrong."""

    def reductions(dtype: str) -> Reductions:
        namespace = SimpleNamespace(**{name: getattr(NUMPY.xp, name) for name in dir(NUMPY.xp) if name[:2] != "__"})
        vars(namespace).update(functions)
        narrow, wide = (Primitives(namespace, NUMPY.dtype(name), name) for name in (dtype, "float64"))
        return Reductions(narrow, wide, lambda value: HOST)

    return reductions


class _TwoBins(Reductions):
    def _binned(self, *arguments: Any, **options: Any) -> Any:
        first, second, third = super()._binned(*arguments, **options)
        return [first, second, 0 * third]


class _FloatSum(Reductions):
    def sum(self, x: Any, axes: Any) -> Any:
        return float(np.sum(x))


def _as(kind: type[Reductions]) -> Callable[[str], Reductions]:
    return lambda dtype: kind(NUMPY.primitives(dtype), NUMPY.primitives("float64"), lambda value: HOST)


@pytest.mark.parametrize(
    "wrong",
    [
        _with(round=np.floor),
        _with(round=lambda x: np.floor(x + 0.5)),
        _with(max=lambda x, **axes: x.ravel()[:1]),
        _as(_TwoBins),
        _as(_FloatSum),
    ],
    ids=["rounded down", "halves up", "first for largest", "two bins", "float sum"],
)
def test_a_wrong_sum_is_found(wrong: Callable[[str], Reductions]) -> None:
    halves = np.asarray([2.0**31, -(2.0**31), 2.0**-48])
    cases = [spread("float64", 1), halves, *finite_cases("float64")]
    assert any(float_bits(whole("sum", x, wrong)) != float_bits(expected_sum(x)) for x in cases)


def _cases(dtype: str) -> Iterator[Array]:
    yield spread(dtype, 20, (6, 4), 15)
    yield loaded(random_words((6, 4), dtype, 21))
    yield finite_words(dtype, 22, (6, 4))
    yield np.full((6, 4), np.finfo(dtype).max, dtype)
    yield np.full((6, 4), -0.0, dtype)
    yield np.asarray(np.arange(24).reshape(6, 4) - 12, dtype) * np.finfo(dtype).tiny
    if dtype == "float64":
        yield spread(dtype, 23, (6, 4), 10) * 2.0**450
        yield spread(dtype, 24, (6, 4), 10) * 2.0**-450


def _everything(reductions: Reductions, x: Any) -> list[Any]:
    results = _some(reductions, x, NAMES, (None, (0,), (1,)))
    masks = [getattr(reductions, name)(x > 0.0, axes) for name in ("any", "all", "count") for axes in (None, (0,))]
    return [*results, *masks]


def _some(reductions: Reductions, x: Any, names: Sequence[str], axes: Sequence[Any]) -> list[Any]:
    return [getattr(reductions, name)(x, along) for name in names for along in axes]


def _assert_equal(found: Sequence[Any], expected: Sequence[Any], what: str) -> None:
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_same_bits(np.asarray(a), np.asarray(b), f"{what}, result {i}")


@each_library
@DTYPES
def test_every_library_gives_the_same_bits(library: Library, dtype: str) -> None:
    backend: Any = library.backend
    # Eager JAX compiles each operation for each shape; what it does beyond this is below, inside one function.
    compute = (
        functools.partial(_some, names=("sum", "norm"), axes=(None, (0,))) if library.name == "jax" else _everything
    )
    alone = [np.asarray(2.5, dtype), np.zeros((0, 4), dtype)] if library.name != "jax" else []
    for x in (*_cases(dtype), *alone):
        with library.precision(dtype), np.errstate(all="ignore"):
            both = [(backend.reductions(dtype), library.arrays(x)), (NUMPY.reductions(dtype), x)]
            results, expected = (
                compute(r, a) if x.ndim == 2 and x.size else _some(r, a, NAMES, (None,)) for r, a in both
            )
            numbers = [r if isinstance(r, float | int) else backend.to_numpy(r) for r in results]
        _assert_equal(numbers, expected, str(library))


@pytest.mark.needs("jax")
@DTYPES
def test_jit_gives_the_same_bits(dtype: str) -> None:
    import jax

    backend: Any = BY_NAME["jax"].backend
    reductions = backend.reductions(dtype)

    def compute(x: Any) -> Any:
        parts = {n: [reductions.partial(n, x[:2]), reductions.partial(n, x[2:])] for n in ("sum", "norm", "max", "min")}
        return _everything(reductions, x), [reductions.combine(name, part) for name, part in parts.items()]

    with backend.dtype_context(dtype):
        compiled = jax.jit(compute)
        for x in _cases(dtype):
            results, totals = compiled(jax.numpy.asarray(x))
            with np.errstate(all="ignore"):
                expected = _everything(NUMPY.reductions(dtype), x)
                expected_totals = [
                    getattr(NUMPY.reductions(dtype), name)(x, None) for name in ("sum", "norm", "max", "min")
                ]
            _assert_equal(results, expected, "jit")
            _assert_equal(totals, expected_totals, "jit, of parts")


@pytest.mark.needs("jax")
def test_jax_differentiates_through_reductions() -> None:
    import jax
    import jax.numpy as jnp

    reductions = BY_NAME["jax"].backend.reductions("float32")  # type: ignore[attr-defined]  # the protocol has none

    def function(kind: Any, x: Any) -> Any:
        whole = kind.sum(x, None) + kind.norm(x, None) + kind.max(x, None) * kind.mean(x, None)
        along = kind.norm(x, (0,)) * kind.sum(x, (0,)) + kind.min(x, (0,)) * kind.mean(x, (0,))
        return jnp.asarray(whole, jnp.float32) + jnp.sum(along)

    class Library:
        sum, mean, max, min = (
            staticmethod(lambda x, axes, f=f: f(x, axis=axes, keepdims=axes is not None))
            for f in (jnp.sum, jnp.mean, jnp.max, jnp.min)
        )
        norm = staticmethod(lambda x, axes: jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=axes is not None)))

    x = jnp.asarray(ordinary((5, 3), "float32", 30))
    # What is computed again for a derivative is differentiated later than it is traced, where float64 is off.
    actual, expected = (
        jax.jit(jax.grad(jax.checkpoint(lambda x, kind=kind: function(kind, x))))(x) for kind in (reductions, Library)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    # Outside of jit too, where a derivative is asked for with numbers that are known; and there is one at zero.
    of_norm = jax.grad(lambda x: jnp.asarray(reductions.norm(x, None), jnp.float32))
    np.testing.assert_allclose(of_norm(jnp.asarray([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)
    assert not np.any(of_norm(jnp.zeros(2)))


@DTYPES
def test_norms_of_parts_of_different_sizes_make_the_integers_of_the_whole(dtype: str) -> None:
    small, large = ordinary((3000,), dtype, 1), ordinary((7,), dtype, 2) * np.asarray(2.0**24, dtype)
    found = NUMPY.reductions(dtype)
    parts = [found.partial("norm", x) for x in (small, large)]
    whole = found.partial("norm", np.concatenate([small, large]))
    assert parts[0].exponent < whole.exponent
    assert bins.combined(parts).sums == whole.sums
