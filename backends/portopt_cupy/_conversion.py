"""Conversions that CuPy's own kernels, which take subnormals for zero, would not do exactly."""

from __future__ import annotations

from typing import Any


def widened(xp: Any, x: Any) -> Any:
    """Return a float32 array as float64, its subnormals included, given the library with its operations."""
    bits = x.view(xp.uint32)
    magnitude = bits & xp.uint32(0x7FFFFFFF)
    exact = magnitude.astype(xp.float64) * 2.0**-149
    exact = xp.where(bits == magnitude, exact, -exact)
    is_subnormal = (magnitude > 0) & (magnitude < 0x00800000)
    return xp.where(is_subnormal, exact, x.astype(xp.float64))
