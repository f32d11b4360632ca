"""Words to compare with, and the comparison."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from portopt_conformance.words import FORMATS, canonical, numpy_dtype, special_words


@functools.lru_cache(12)
def raw(count: int, dtype: str, seed: int, *, finite: bool = False) -> Any:
    """Return random words, after special ones, of which an even and an odd seed make all pairs."""
    form = FORMATS[dtype]
    words = np.random.default_rng(seed).integers(0, 1 << form.bits, count, dtype=np.uint64).astype(form.unsigned)
    special = np.asarray(special_words(dtype)).view(form.unsigned)
    pairs = min(count // 2, special.size**2)
    words[:pairs] = (np.tile(special, special.size) if seed % 2 else np.repeat(special, special.size))[:pairs]
    array = words.view(numpy_dtype(dtype))
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(array), array, np.ones_like(array)) if finite else array


@functools.lru_cache(12)
def ordinary(count: int, dtype: str, seed: int) -> Any:
    """Return numbers of many magnitudes."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        return (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 2, count)).astype(numpy_dtype(dtype))


def differing(actual: Any, expected: Any) -> dict[str, Any] | None:
    """Return how the bits differ; None if they are the same."""
    found, wanted = canonical(np.asarray(actual)), canonical(np.asarray(expected))
    wrong = np.nonzero(found != wanted)[0]
    if not wrong.size:
        return None
    i = int(wrong[0])
    counts = {"wrong": int(wrong.size), "of": int(found.size), "first": i}
    return {**counts, "actual": hex(int(found[i])), "expected": hex(int(wanted[i]))}
