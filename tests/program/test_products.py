"""Products of matrices: their definition in Python's integers, how far from exact, and the same bits from every library."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary, random_words
from support.libraries import LIBRARIES, Library

import portopt
from portopt.kernels.host import joined
from portopt.program import products
from portopt.program.primitives import Primitives

NUMPY = portopt.get_backend("numpy")
DTYPES = ("float32", "float64")
SHAPES = (((4, 3), (3, 5)), ((1, 1), (1, 1)), ((2, 17), (17, 1)), ((3, 2, 9), (3, 9, 4)), ((2, 2, 1, 3), (2, 3, 2)))
EMPTY = (((3, 0), (0, 4)), ((0, 3), (3, 2)), ((2, 3), (3, 0)), ((0, 2, 2), (0, 2, 2)))


def primitives_of(backend: Any, dtype: str) -> tuple[Primitives, Primitives]:
    return backend.primitives(dtype), backend.primitives("float64")


def product(a: Array, b: Array) -> Array:
    with portopt.interpreted(), np.errstate(all="ignore"):
        primitives, wide = primitives_of(NUMPY, str(a.dtype))
        result: Array = products.matmul(primitives, wide, primitives.load(a), primitives.load(b))
    return result


def on_library(library: Library, a: Array, b: Array) -> Array:
    backend: Any = library.backend
    with library.precision("float64"), np.errstate(all="ignore"):
        primitives, wide = primitives_of(backend, str(a.dtype))
        left, right = (primitives.load(library.arrays(x)) for x in (a, b))
        result: Array = library.numpy(products.matmul(primitives, wide, left, right))
    return result


def raw(shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: str, seed: int) -> tuple[Array, Array]:
    """Return operands of raw random words: some rows and columns are not finite."""
    return random_words(shapes[0], dtype, seed), random_words(shapes[1], dtype, seed + 1)


def over_decades(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    decades = 30 if dtype == "float32" else 250
    with np.errstate(under="ignore"):
        return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-decades, decades, shape)).astype(dtype)


def operands(dtype: str, shapes_of_operands: Any = (*SHAPES, ((2, 300), (300, 3)))) -> Iterator[tuple[Array, Array]]:
    for seed, shapes in enumerate(shapes_of_operands):
        for make in (ordinary, over_decades):
            yield make(shapes[0], dtype, seed), make(shapes[1], dtype, seed + 100)
        yield raw(shapes, dtype, seed)
    a, b = ordinary((6, 4), dtype, 0), ordinary((4, 5), dtype, 1)
    # An infinity and a NaN meet zeros, each other, and numbers.
    a[1, 2], a[3, 0], b[2, 4], b[2, 0], b[0, 1] = math.inf, math.nan, -math.inf, 0.0, 0.0
    yield a, b


# The definition, in fractions.


def _exponent(row: list[Fraction]) -> int:
    largest = max(map(abs, row))
    exponent = products.LOWEST
    while largest >= Fraction(2) ** exponent:
        exponent += 1
    return exponent


def _sliced(row: list[Fraction], bits: int, count: int) -> tuple[list[list[int]], int]:
    exponent = _exponent(row)
    rest = [x * Fraction(2) ** (bits - exponent) for x in row]
    integers: list[list[int]] = []
    for _ in range(count):
        integers.append([round(x) for x in rest])
        rest = [(x - n) * 2 ** (bits + 1) for x, n in zip(rest, integers[-1], strict=True)]
    return integers, exponent


def _rounded(x: Fraction, dtype: str) -> float:
    """Round to the dtype; what is tiny after rounding is zero."""
    smallest, digits = (2.0**-126, 24) if dtype == "float32" else (2.0**-1022, 53)
    if abs(x) < Fraction(smallest) * (1 - Fraction(1, 2 ** (digits + 1))):
        return -0.0 if x < 0 else 0.0
    limit = Fraction(2) ** (128 if dtype == "float32" else 1024) * (1 - Fraction(1, 2 ** (digits + 1)))
    if abs(x) >= limit:
        return math.inf if x > 0 else -math.inf
    # Half to even among numbers of so many digits.
    exponent = math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator))
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - digits + 1)
    return float(round(x / unit) * unit)


def entry(row: list[float], column: list[float], dtype: str) -> float:
    """Return one entry of a product as it is defined."""
    if not all(map(math.isfinite, (*row, *column))):
        return math.nan
    bits = products.slice_bits(len(row))
    count = products.SLICES[dtype]
    left, e = _sliced(list(map(Fraction, row)), bits, count)
    right, f = _sliced(list(map(Fraction, column)), bits, count)

    def inner(i: int, j: int) -> float:
        total = sum(x * y for x, y in zip(left[i], right[j], strict=True))
        assert abs(total) <= 2**53
        return float(total)

    total = inner(0, 0)
    if count == 3:
        second = (inner(0, 1) + inner(1, 0)) * 2.0 ** -(bits + 1)
        third = ((inner(0, 2) + inner(2, 0)) + inner(1, 1)) * 2.0 ** -(2 * bits + 2)
        total += second + third
    return _rounded(Fraction(total) * Fraction(2) ** (e - bits) * Fraction(2) ** (f - bits), dtype)


def matrices(a: Array, b: Array) -> Iterator[tuple[tuple[int, ...], Array, Array]]:
    batches = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(x, (*batches, *x.shape[-2:])) for x in (a, b))
    for batch in np.ndindex(batches):
        yield batch, a[batch], b[batch]


def by_definition(a: Array, b: Array) -> Array:
    result = np.empty(products.product_shape(a.shape, b.shape), a.dtype)
    loaded = [np.where(np.abs(x) < np.finfo(x.dtype).tiny, x * 0, x) for x in (a, b)]
    for batch, left, right in matrices(*loaded):
        for i, row in enumerate(left.tolist()):
            for j, column in enumerate(right.T.tolist()):
                result[(*batch, i, j)] = entry(row, column, str(a.dtype))
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_products_are_as_defined(dtype: str) -> None:
    for a, b in operands(dtype):
        assert_same_bits(product(a, b), by_definition(a, b), f"{a.shape} {b.shape}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_within_the_proved_bound_of_the_exact_ones(dtype: str) -> None:
    cases = [(ordinary((3, k), dtype, k), ordinary((k, 4), dtype, k + 1)) for k in (1, 2, 3, 64, 65, 500)]
    k = 64
    # Every error of a slice at its largest, and of one sign.
    worst = 1 - 2.0 ** -(products.slice_bits(k) + 1) * (1 - 2.0**-20)
    cases.append((np.full((1, k), worst, dtype), np.full((k, 1), worst, dtype)))
    nearest = 0.0
    for a, b in cases:
        result = product(a, b)
        for (i, j), value in np.ndenumerate(result):
            row, column = (list(map(Fraction, x.tolist())) for x in (a[i], b[:, j]))
            exact = sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0))
            scale = len(row) * Fraction(2) ** (_exponent(row) + _exponent(column))
            q = products.slice_bits(len(row))
            if dtype == "float32":
                sliced, rounded = Fraction(2) ** -q, abs(exact) / 2**24
            else:
                sliced, rounded = Fraction(2) ** -(3 * q + 1) + Fraction(2) ** -(q + 52), abs(exact) / 2**53
            bound = scale * sliced * (1 + Fraction(2) ** -(q - 3)) + rounded
            error = abs(Fraction(float(value)) - exact)
            assert error <= bound
            nearest = max(nearest, float(error / bound))
    # The bound is not a wide one where it can be reached.
    assert nearest > (0.4 if dtype == "float32" else 0.2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES, ids=str)
def test_every_library_has_the_same_bits(library: Library, dtype: str) -> None:
    for a, b in operands(dtype, [SHAPES[3], ((2, 300), (300, 3))]):
        assert_same_bits(on_library(library, a, b), product(a, b), f"{a.shape} {b.shape}")


@pytest.mark.parametrize("library", LIBRARIES, ids=str)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_a_product_that_adds_nothing_is_zero(library: Library, shapes: Any) -> None:
    for dtype in DTYPES:
        a, b = raw(shapes, dtype, 0)
        assert_same_bits(on_library(library, a, b), np.zeros(products.product_shape(*shapes), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_the_inner_axis_does_not_matter(dtype: str) -> None:
    for a, b in operands(dtype):
        order = np.random.default_rng(0).permutation(a.shape[-1])
        expected = product(a, b)
        assert_same_bits(product(a[..., order], b[..., order, :]), expected, "permuted")
        reversed_twice = product(a[..., ::-1], b[..., ::-1, :])
        assert_same_bits(reversed_twice, expected, "reversed")


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_the_inner_axis_add_up_to_the_whole(dtype: str) -> None:
    for a, b in operands(dtype):
        inner = a.shape[-1]
        if inner < 2:
            continue
        parts = [slice(0, 1), slice(1, inner // 2 + 1), slice(inner // 2 + 1, inner)]
        with np.errstate(all="ignore"):
            primitives, wide = primitives_of(NUMPY, dtype)
            a, b = primitives.load(a), primitives.load(b)
            pieces = [(a[..., part], b[..., part, :]) for part in parts if part.start < part.stop]
            largest = [
                np.max([products.largest_magnitudes(wide, piece[side], axis) for piece in pieces], axis=0)
                for side, axis in ((0, -1), (1, -2))
            ]
            sliced = [
                [
                    products.slices(wide, piece[side], axis, inner, dtype, largest[side])
                    for side, axis in ((0, -1), (1, -2))
                ]
                for piece in pieces
            ]
            integers = [products.integer_products(wide, *pair) for pair in sliced]
            summed = [sum(reversed(column[1:]), column[0]) for column in zip(*integers, strict=True)]
            result = products.rescaled(primitives, wide, summed, *sliced[0])
        assert_same_bits(result, product(a, b), f"{a.shape}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_slicing_serves_an_operand_and_its_transpose(dtype: str) -> None:
    for x in (ordinary((5, 7), dtype, 0), random_words((4, 6), dtype, 1), ordinary((2, 3, 4), dtype, 2)):
        with np.errstate(all="ignore"):
            primitives, wide = primitives_of(NUMPY, dtype)
            loaded = primitives.load(x)
            left = products.slices(wide, loaded, -1, x.shape[-1], dtype)
            gram = products.product(primitives, wide, left, left.transposed(wide.xp))
        assert_same_bits(gram, product(x, x.mT), f"{x.shape}")
        assert_same_bits(gram.mT, gram, "a product with its own transpose is symmetric")


class Powers(portopt.Optimizer):
    """Products of symmetric matrices and of others, on both sides, transposed once and twice."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        gram, other = g @ g.mT, g.mT @ g.mT.mT
        polynomial = 0.5 * xp.eye(g.shape[-2]) - 2 * gram * xp.abs(gram)
        u = (gram @ gram.mT + c.lr * (polynomial @ polynomial)) @ (g @ (other @ other))
        return p - c.lr * (gram @ (u @ other)) @ (2 * g).mT.mT.mT @ g, {}


@pytest.mark.parametrize("shape", [(5, 7), (6, 4), (1, 3), (3, 3), (2, 4, 5)], ids=str)
@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict"])
@pytest.mark.filterwarnings("ignore:.*encountered")
def test_products_of_what_is_symmetric_have_the_bits_of_others(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import portopt_torch._products

    monkeypatch.setattr(portopt_torch._products, "_LEAST", 2)
    library = next(library for library in LIBRARIES if str(library) == name)

    def stepped() -> list[Array]:
        found = []
        for dtype in DTYPES:
            for g in (ordinary(shape, dtype, 0), random_words(shape, dtype, 1)):
                p = library.arrays(ordinary(shape, dtype, 2))
                found.append(library.numpy(Powers(0.5).apply(p, library.arrays(g), Powers(0.5).init(p))[0]))
        return found

    found = stepped()
    # A result that only products need is known by its slices alone.
    monkeypatch.setattr(joined, "run", lambda *_: None)
    monkeypatch.setattr(
        products.SlicedOperands,
        "matmul",
        lambda self, primitives, wide, index, a, b, **_: products.matmul(primitives, wide, a, b),
    )
    for one, other in zip(found, stepped(), strict=True):
        assert_same_bits(one, other)


def polynomial(xp: Any, gram: Any) -> Any:
    return xp.exp(xp.where(gram > 0, 2 * gram, xp.eye(3))).mT - gram @ gram


@pytest.mark.parametrize(
    ("operands_of_product", "expected"),
    [
        (lambda xp, x, gram: (x, x.mT), True),
        (lambda xp, x, gram: (x.mT.mT.mT, x), True),
        (lambda xp, x, gram: (gram, gram), True),
        (lambda xp, x, gram: (gram, gram.mT), True),
        (lambda xp, x, gram: (polynomial(xp, gram),) * 2, True),
        (lambda xp, x, gram: (x, x), False),
        (lambda xp, x, gram: (x @ x,) * 2, False),
        (lambda xp, x, gram: (gram, x.mT @ x), False),
        (lambda xp, x, gram: (gram + x,) * 2, False),
        (lambda xp, x, gram: (gram * xp.sum(x, axis=-1, keepdims=True),) * 2, False),
    ],
)
def test_what_is_symmetric_is_known(operands_of_product: Any, expected: bool) -> None:
    class Product(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
            a, b = operands_of_product(xp, g, g @ g.mT)
            return p - a @ b, {}

    found = products.operands_of(Product(0.5).program(shape=(3, 3)))
    a, b = found[max(found)]
    assert ((a.source, a.axis) == (b.source, b.axis) and a.is_transposed != b.is_transposed) == expected


def test_numbers_for_all_elements_are_no_symmetric_matrix() -> None:
    class Filled(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
            filled = xp.where(c.lr > 0, xp.zeros_like(p) + c.lr, 1.0) * xp.ones_like(p)
            return p - (filled @ g.mT) @ (g @ (filled.mT @ filled)), {}

    p, g = ordinary((2, 3), "float32", 0), ordinary((2, 3), "float32", 1)
    found, _ = Filled(0.5).apply(p, g, Filled(0.5).init(p))
    filled = np.full((2, 3), 0.5, np.float32)
    expected = product(product(filled, g.mT), product(g, product(filled.mT, filled)))
    assert_same_bits(found, p - expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_layout_and_threads_do_not_matter(dtype: str) -> None:
    import torch

    a, b = ordinary((65, 130), dtype, 0), ordinary((130, 67), dtype, 1)
    expected = product(a, b)
    assert_same_bits(product(np.asfortranarray(a), np.asfortranarray(b)), expected, "column-major")
    wider_a, wider_b = np.repeat(a, 2, axis=1)[:, ::2], np.repeat(b, 3, axis=0)[::3]
    assert_same_bits(product(wider_a, wider_b), expected, "strided")
    backend: Any = portopt.get_backend("torch")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            tensors = [torch.asarray(x) for x in (a, b)]
            assert_same_bits(products.matmul(*primitives_of(backend, dtype), *tensors), expected, f"{count} threads")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x64", [False, True], ids=["x64 off", "x64 on"])
def test_jax_compiled_has_the_same_bits(dtype: str, x64: bool) -> None:
    import jax

    backend: Any = portopt.get_backend("jax")

    def both(a: Any, b: Any) -> Any:
        with jax.enable_x64(True):
            primitives, wide = primitives_of(backend, dtype)
            return products.matmul(primitives, wide, primitives.load(a), primitives.load(b))

    for a, b in [
        raw(((40, 33), (33, 20)), dtype, 0),
        (over_decades((9, 33), dtype, 1), over_decades((33, 20), dtype, 2)),
    ]:
        with jax.enable_x64(x64 or dtype == "float64"):
            result = np.asarray(jax.jit(both)(a, b))
        assert_same_bits(result, product(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_in_jax_are_those_of_the_product(dtype: str) -> None:
    import jax

    backend: Any = portopt.get_backend("jax")
    with jax.enable_x64(True):
        a, b, da, db = (jax.numpy.asarray(ordinary((4, 4), dtype, seed)) for seed in range(4))
        # A product that is zero has a derivative as well.
        a = a.at[1].set(0.0)
        _, found = jax.jvp(lambda a, b: products.matmul(*primitives_of(backend, dtype), a, b), (a, b), (da, db))
        expected = da @ b + a @ db
        assert np.allclose(
            found, expected, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-6 if dtype == "float32" else 0
        )


def test_jax_differentiates_products_again_where_float64_is_off() -> None:
    import jax

    backend: Any = portopt.get_backend("jax")
    a, b = (jax.numpy.asarray(ordinary((3, 3), "float32", seed)) for seed in range(2))

    def total(a: Any) -> Any:
        with jax.enable_x64(True):
            return products.matmul(*primitives_of(backend, "float32"), a, b).sum()

    found = jax.jit(jax.grad(jax.checkpoint(total)))(a)
    np.testing.assert_allclose(found, np.broadcast_to(b.sum(axis=1), (3, 3)), rtol=1e-6)


def test_the_power_of_a_row_is_found_at_every_exponent_and_near_its_ends() -> None:
    _, wide = primitives_of(NUMPY, "float64")
    for exponent in range(products.LOWEST, 1024):
        for mantissa in (1.0, 1 + 2.0**-52, 1.5, 2 - 2.0**-51, 2 - 2.0**-52):
            x = np.asarray([[math.ldexp(mantissa, exponent)]])
            with np.errstate(over="ignore"):
                sliced = products.slices(wide, x, -1, 1, "float64")
            assert sliced.factor.item() == math.ldexp(1.0, exponent + 1 - sliced.bits)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (3, 2)), "a product needs two matrices, but arrays of shapes (3,) and (3, 2) were given"),
        (((2, 3), (2, 3)), "which have 3 and 2 elements; transpose one with .mT"),
        (((2, 3, 3), (4, 3, 3)), "the axes before the last two are batches, which must broadcast"),
    ],
)
def test_a_product_of_shapes_that_do_not_fit_is_refused(shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        products.product_shape(*shapes)


def _wrong(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    monkeypatch.setattr(products, name, function)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", ["a bit too many", "a library's own product", "NaN forgotten", "negative zeros"])
def test_a_wrong_product_is_found(mistake: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [product(a, b) for a, b in operands(dtype)]
    if mistake == "a bit too many":
        right = products.slice_bits
        _wrong(monkeypatch, "slice_bits", lambda inner: right(inner) + 1)
    elif mistake == "a library's own product":
        _wrong(monkeypatch, "matmul", lambda primitives, wide, a, b: primitives.xp.matmul(a, b))
    elif mistake == "NaN forgotten":
        integers = products.slices
        _wrong(monkeypatch, "slices", lambda *a: integers(*a)._replace(factor=np.nan_to_num(integers(*a).factor)))
    else:
        integer_products = products.integer_products
        _wrong(
            monkeypatch,
            "integer_products",
            lambda *args, **options: [np.where(n == 0, -0.0, n) for n in integer_products(*args, **options)],
        )
    found = [product(a, b) for a, b in operands(dtype)]
    same = all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(found, expected, strict=True))
    assert same == (mistake == "negative zeros")  # which is made good
