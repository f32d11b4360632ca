"""The dtypes of parameters, gradients, slots and arithmetic, and how a scalar is rounded to them."""

from __future__ import annotations

from collections.abc import Mapping

COMPUTE_DTYPE: Mapping[str, str] = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}
"""The dtype in which a parameter of each supported dtype is updated, and its slots are kept."""

ITEMSIZES: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes of an element of each of them."""


def slot_dtypes(dtype: str) -> tuple[str, ...]:
    """Return the dtypes that slots of a parameter may have, the default first: none that is wider than the arithmetic.

    Float64 ones are not narrowed: libraries disagree on rounding float64 to subnormals of a narrower dtype, and twice rounded
    values of float16 and bfloat16.
    """
    return ("float64",) if COMPUTE_DTYPE[dtype] == "float64" else ("float32", "float16", "bfloat16")


def gradient_dtypes(dtype: str) -> tuple[str, ...]:
    """Return the dtypes that gradients of a parameter may have: any, since they are converted as they are loaded."""
    return tuple(COMPUTE_DTYPE)


TINY_FLOAT32 = 2.0**-126 * (1 - 2.0**-25)
"""A float64 below it is less than the smallest normal float32 number once it is rounded with float32's full precision."""
SMALLEST_NORMAL: Mapping[str, float] = {"float32": 2.0**-126, "float64": 2.0**-1022}


def round_scalar(x: float, compute_dtype: str) -> float:
    """Round a float64 scalar to the compute dtype as the contract says; the result is exact in that dtype.

    Tininess is decided after rounding, as flushing processors do: what would round below the smallest normal number,
    had subnormals the full precision, is zero.
    """
    if compute_dtype == "float64":
        return x
    if abs(x) < TINY_FLOAT32:
        return x * 0.0
    import numpy as np

    with np.errstate(over="ignore"):
        return float(np.float32(x))
