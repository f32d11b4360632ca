"""Arrays compared bit by bit, and arrays of raw random bit patterns. Two NaNs are the same; +0 and -0 are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from portopt_conformance.words import FORMATS, canonical
from portopt_conformance.words import numpy_dtype as numpy_dtype

Array = npt.NDArray[Any]


def words(array: Any) -> Array:
    """Return the bit pattern of each float as an unsigned integer, with one pattern for all NaNs; integers are their own."""
    array = np.asarray(array)
    return canonical(array).reshape(array.shape) if array.dtype.name in FORMATS else array


def assert_same_bits(actual: Any, expected: Any, what: str = "arrays") -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    differing = np.argwhere(words(actual) != words(expected))
    if len(differing):
        first = tuple(differing[0])
        raise AssertionError(
            f"{what}: {len(differing)} of {actual.size} elements differ, the first at {first}: "
            f"{actual[first]!r} ({words(actual)[first]:x}), expected {expected[first]!r} ({words(expected)[first]:x})"
        )


def assert_same_float(actual: float, expected: float) -> None:
    assert float_bits(actual) == float_bits(expected)


def float_bits(x: float) -> str:
    """Return a Python float so that equal text means equal bits."""
    return "nan" if x != x else x.hex()


def random_words(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Return raw random bit patterns: subnormals, infinities and NaN among them."""
    kind = numpy_dtype(dtype)
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*shape, kind.itemsize), dtype=np.uint8).view(kind).reshape(shape)


def ordinary(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Return normally distributed values."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), numpy_dtype(dtype))
