"""The passes of compiled products: the same bits as the definition's, whatever the layout, the batches and the threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary, random_words

import portopt
from portopt.kernels.host import products as compiled
from portopt.program import products

SHAPES = (((1, 1), (1, 1)), ((5, 3), (3, 4)), ((3, 2, 9), (3, 9, 4)), ((2, 3, 4), (4, 5)), ((2, 1000), (1000, 2)))


def by_definition(a: Array, b: Array) -> Array:
    with portopt.interpreted(), np.errstate(all="ignore"):
        backend: Any = portopt.get_backend("numpy")
        result: Array = products.matmul(backend.primitives("float32"), backend.primitives("float64"), a, b)
    return result


def by_passes(a: Array, b: Array) -> Array:
    left, right = compiled.slices(a, -1), compiled.slices(b, -2)
    result: Array = compiled.rescaled([np.matmul(left.integers[0], right.integers[0])], left, right)
    return result


def raw(shape: tuple[int, ...], seed: int) -> Array:
    """Return raw words without subnormals, few of which are not finite."""
    x = random_words(shape, "float32", seed)
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def operands() -> Iterator[tuple[Array, Array]]:
    for seed, (first, second) in enumerate(SHAPES):
        yield ordinary(first, "float32", seed), ordinary(second, "float32", seed + 50)
        yield raw(first, seed), raw(second, seed + 50)
    a, b = ordinary((6, 4), "float32", 0), ordinary((4, 5), "float32", 1)
    a[1, 2], a[3, 0], a[4] = np.inf, np.nan, 0.0
    b[2, 4], b[2, 0], b[0, 1] = -np.inf, 0.0, 0.0
    yield a, b


@pytest.mark.filterwarnings("ignore:overflow")
def test_passes_have_the_bits_of_the_definition() -> None:
    for a, b in operands():
        expected = by_definition(a, b)
        assert_same_bits(by_passes(a, b), expected, f"{a.shape} {b.shape}")
        for x, y in ((a.mT.copy().mT, b), (a, b.mT.copy().mT), (a[..., ::-1], b[..., ::-1, :])):
            assert_same_bits(by_passes(x, y), expected, f"another layout of {a.shape} {b.shape}")


def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "ELEMENTS_PER_THREAD", 1 << 12)
    a, b = raw((2, 600, 500), 0), raw((2, 500, 700), 1)
    a[0], b[1] = ordinary((600, 500), "float32", 2), ordinary((500, 700), "float32", 3)
    found = []
    try:
        for count in (1, 2, 7):
            portopt.set_num_threads(count)
            found.append(by_passes(a, b))
    finally:
        portopt.set_num_threads(None)
    assert_same_bits(found[0], by_definition(a, b))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("shape", [(128, 128), (2, 200, 77), (300, 1000)], ids=str)
def test_transposes_are_copied_in_tiles(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = random_words(shape, "float32", 0)
    expected = np.ascontiguousarray(x.mT)
    monkeypatch.setattr(np, "ascontiguousarray", None)
    found = compiled.dense(x.mT)
    assert found.flags.c_contiguous
    assert found.tobytes() == expected.tobytes()
    assert compiled.dense(x) is x


@pytest.mark.filterwarnings("ignore:overflow")
def test_half_of_a_product_with_the_transpose_is_mirrored() -> None:
    for shape in ((1, 1), (3, 5), (16, 4), (2, 37, 9), (2, 3, 48, 2)):
        for x in (ordinary(shape, "float32", 0), raw(shape, 1)):
            left = compiled.slices(x, -1)
            lower = left.integers[0] @ left.integers[0].mT
            lower[..., *np.triu_indices(shape[-2], 1)] = np.nan
            assert_same_bits(compiled.rescaled_gram(lower, left), by_definition(x, x.mT), f"{shape}")


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_products_of_arrays_in_host_memory_use_the_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = portopt.get_backend(name)
    a, b = (backend.from_numpy(ordinary((3, 3), "float32", seed), "cpu") for seed in (0, 1))
    expected = by_definition(backend.to_numpy(a), backend.to_numpy(b))
    monkeypatch.setattr(products, "slices", None)
    monkeypatch.setattr(products, "rescaled", None)
    found = products.matmul(backend.primitives("float32"), backend.primitives("float64"), a, b)
    assert_same_bits(backend.to_numpy(found), expected)
