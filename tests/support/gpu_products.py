"""What slicing and scaling back are tested with on each kind of GPU kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from support.bits import Array, assert_same_bits, ordinary, random_words

import portopt
from portopt.program import products

NUMPY: Any = portopt.get_backend("numpy")
SHAPES = (((1, 1), (1, 1)), ((5, 3), (3, 4)), ((3, 2, 9), (3, 9, 4)), ((2, 3, 4), (4, 5)), ((2, 600), (600, 40)))


def _loaded(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Return raw words as a program loads them: without subnormals, few of them not finite."""
    x = random_words(shape, dtype, seed)
    return np.where(np.abs(x) < np.finfo(dtype).tiny, x * 0, x)


def _operands(dtype: str, few: bool) -> Iterator[tuple[Array, Array]]:
    for seed, (first, second) in enumerate(SHAPES[2:3] if few else SHAPES):
        yield ordinary(first, dtype, seed), ordinary(second, dtype, seed + 50)
        yield _loaded(first, dtype, seed), _loaded(second, dtype, seed + 50)
    a, b = ordinary((6, 4), dtype, 0), ordinary((4, 5), dtype, 1)
    a[1, 2], a[3, 0], a[4] = math.inf, math.nan, 0.0
    b[2, 4], b[2, 0], b[0, 1] = -math.inf, 0.0, 0.0
    # Factors whose product is out of range where the result is not, and results beyond both ends.
    a[0], a[2], a[5] = (a[k] * np.finfo(dtype).max ** power for k, power in ((0, 0.8), (2, -0.8), (5, 0.99)))
    b[:, 2], b[:, 3] = b[:, 2] * np.finfo(dtype).max ** -0.9, b[:, 3] * np.finfo(dtype).max ** 0.9
    yield a, b


def compare_products(
    primitives: Any, to_device: Callable[[Any], Any], to_host: Callable[[Any], Array], *, few: bool = False
) -> None:
    """Compare slices, and products of several layouts, with the definition's on NumPy."""
    dtype = primitives.compute_dtype
    assert primitives.sliced is not None
    assert primitives.rescaled is not None
    # The kernels played on the host are NumPy's as well: it warns of overflow there.
    with np.errstate(all="ignore"), portopt.interpreted():
        own = NUMPY.primitives(dtype)
        for a, b in _operands(dtype, few):
            for x, axis in ((a, -1), (b, -2)):
                _compare_slices(primitives.sliced(to_device(x), axis), x, dtype, to_host)
            expected = products.matmul(own, own.wide, a, b)
            layouts = [(a, b), (a.mT.copy().mT, b), (a, b.mT.copy().mT)]
            for left, right in layouts[:1] if few and a.ndim > 2 else layouts:
                found = products.matmul(primitives, primitives.wide, to_device(left), to_device(right))
                assert_same_bits(to_host(found), expected, f"{a.shape} {b.shape}")
        left, right = primitives.sliced(to_device(a), -1), primitives.sliced(to_device(b), -2)
        zeros = [to_device(np.full(expected.shape, -0.0))] * {"float32": 1, "float64": 6}[dtype]
        assert not np.signbit(to_host(primitives.rescaled(zeros, left, right))[4]).any()


def _compare_slices(found: products.Slices, x: Array, dtype: str, to_host: Callable[[Any], Array]) -> None:
    wanted = products.slices(NUMPY.primitives("float64"), x, found.axis, x.shape[found.axis], dtype)
    assert found.bits == wanted.bits
    factor = to_host(found.factor)
    assert_same_bits(factor, wanted.factor)
    for integers, others in zip(found.integers, wanted.integers, strict=True):
        # A zero has no sign among integers, and nothing is said of a line that is not finite.
        finite = np.where(np.isfinite(factor), others, 0.0)
        assert_same_bits(to_host(integers) + 0.0, finite + 0.0)
