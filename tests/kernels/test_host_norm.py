"""The compiled norm against the one of array operations: guesses that fail, bins out of reach, dtypes together, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_float, numpy_dtype, random_words
from support.gpu_cases import reference_norm

import portopt
from portopt.kernels.host import norm, threads

pytestmark = pytest.mark.needs("numba")
BLOCKS = 3 * 2048 + 17


def values(dtype: str, exponents: Any, seed: int = 0) -> Array:
    """Return numbers of about these powers of two."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.uniform(1, 2, len(exponents)) * 2.0 ** np.asarray(exponents), numpy_dtype(dtype))


def rising(dtype: str, lowest: int, highest: int) -> Array:
    return values(dtype, np.linspace(lowest, highest, BLOCKS))


def outlier(dtype: str, exponent: int) -> Array:
    """Return small numbers and a large one, which no guess finds."""
    x = values(dtype, np.full(BLOCKS, -3))
    x[2048 + 5] = 2.0**exponent
    return x


CASES = {
    "rising": [rising("float32", -60, 60)],
    "falling": [rising("float32", -60, 60)[::-1]],
    "an outlier": [outlier("float32", 40)],
    "an outlier that bins have just no place for": [outlier("float32", 8), outlier("float64", 8)],
    "smallest numbers": [np.full(BLOCKS, np.float32(2.0**-126)), np.full(3, 2.0**-127)],
    "smallest float64": [np.full(BLOCKS, 2.0**-1022)],
    "an outlier in the second array": [values("float32", np.zeros(BLOCKS)), outlier("float32", 100)],
    "zeros and a number": [np.where(np.arange(BLOCKS) == 4000, np.float32(3), np.float32(0))],
    "zeros": [np.zeros(BLOCKS, np.float32)],
    "NaN after infinity": [np.where(np.arange(BLOCKS) < 99, np.float32(np.inf), np.float32(np.nan))],
    "infinity": [np.where(np.arange(BLOCKS) == 5000, np.float32(-np.inf), np.float32(1))],
    "half precision": [rising("float16", -14, 14), rising("bfloat16", -100, 100)],
    "rising float64": [rising("float64", -1000, 1000)],
    "small and large float64": [rising("float64", -1020, -700), rising("float64", 500, 1020)],
    "as large as bins allow": [np.full(BLOCKS, np.float32(2.0**8 * (1 - 2.0**-24)))],
    "squares round up": [np.full(BLOCKS, 2.0**8 * (1 - 2.0**-53))],
    "largest numbers": [np.full(3, np.finfo(np.float64).max)],
    "float32 and much larger float64": [rising("float32", -100, 120), rising("float64", 400, 1000)],
    "float32 and larger float64": [rising("float32", 0, 120), rising("float64", 0, 150)],
    "float32 and smaller float64": [rising("float32", -125, -110), rising("float64", -1000, -130)],
    "zeros of float32 and small float64": [np.zeros(9, np.float32), rising("float64", -1000, -900)],
    "raw words": [random_words((BLOCKS,), "float32", 1)],
    "nothing": [np.zeros(0, np.float32)],
}


@pytest.mark.parametrize("flush", [None, "where"], ids=["default", "where"])
@pytest.mark.parametrize("name", CASES)
def test_norm_has_the_bits_of_the_reference(name: str, flush: Any) -> None:
    arrays, tables = CASES[name], []
    for array in map(np.ascontiguousarray, arrays):
        address, size = np.array([array.ctypes.data]), np.array([array.size])
        tables.append((norm.GradientTable(array.dtype.name, address.ctypes.data, 1, 0, size), address, array))
    actual = norm.gradient_norm([table for table, *_ in tables], flush)
    assert_same_float(actual, reference_norm(arrays))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_threads_change_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ELEMENTS_PER_THREAD", 256)
    portopt.set_num_threads(count)
    try:
        for name in ("rising", "an outlier", "rising float64", "raw words"):
            arrays = CASES[name]
            assert_same_float(norm.norm_of_arrays(arrays, [a.dtype.name for a in arrays]), reference_norm(arrays))
    finally:
        portopt.set_num_threads(None)


def test_a_good_guess_reads_the_gradients_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    parts = norm._Work.parts

    def counted(self: Any, exponent: int) -> Any:
        passes.append(exponent)
        return parts(self, exponent)

    monkeypatch.setattr(norm._Work, "parts", counted)
    x = values("float32", np.zeros(BLOCKS))
    norm.norm_of_arrays([x], ["float32"])
    assert passes == [16]
    norm.norm_of_arrays([outlier("float32", 40)], ["float32"])
    assert passes == [16, 16, 112]
    # Magnitudes about 1, as those of normalized updates are, have one exponent.
    norm.norm_of_arrays([outlier("float32", 1)], ["float32"])
    assert passes[3:] == [16]
    for dtype in ("float32", "float64"):
        norm.norm_of_arrays([outlier(dtype, 8)], [dtype])
    assert passes[4:] == [16, 48, 16, 48]
