"""Exponential, logarithm, cosine and real power from the operations that every arithmetic has.

Libraries' own versions differ in the last bits, so scalars use these: argument reduction and a truncated series, each
step one contract operation, in a fixed order. Errors against the exact value are at most 1.2 ulp for exp, 2 for log, 2 for cos
up to |x| = 100 and 3 up to 1e5, and 2 + 3 |y ln x| for the real power x**y (measured in `tests/program/test_elementary.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portopt.arithmetic.protocol import Arithmetic

# ln 2 and pi/2 in parts: the first ones have trailing zero bits, so that a small integer times them is exact.
_LN2_HIGH = float.fromhex("0x1.62E42FEE00000p-1")
_LN2_LOW = float.fromhex("0x1.A39EF35793C76p-33")
_HALF_PI_HIGH = float.fromhex("0x1.921FB54400000p0")
_HALF_PI_MIDDLE = float.fromhex("0x1.0B4611A600000p-34")
_HALF_PI_LOW = float.fromhex("0x1.3198A2E037073p-69")

_EXP_SERIES = tuple(1 / math.factorial(k) for k in range(14))
_ATANH_SERIES = tuple(1 / (2 * k + 1) for k in range(13))
_COS_SERIES = tuple((-1) ** k / math.factorial(2 * k) for k in range(10))
_SIN_SERIES = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(10))


def _horner(ar: Arithmetic, x: Any, series: tuple[float, ...]) -> Any:
    total: Any = series[-1]
    for coefficient in reversed(series[:-1]):
        total = ar.add(ar.multiply(total, x), coefficient)
    return total


def _power_of_two(ar: Arithmetic, k: Any) -> Any:
    """Return 2**k exactly for an integral float64 k in [-1022, 1023]."""
    magnitude = ar.where(ar.less(k, 0.0), ar.negative(k), k)
    result: Any = 1.0
    for bit in (512.0, 256.0, 128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0):
        taken = ar.less_equal(bit, magnitude)
        result = ar.where(taken, ar.multiply(result, 2.0**bit), result)
        magnitude = ar.where(taken, ar.subtract(magnitude, bit), magnitude)
    return ar.where(ar.less(k, 0.0), ar.divide(1.0, result), result)


def exp(ar: Arithmetic, x: Any) -> Any:
    """Return e**x: x = k ln 2 + r with |r| <= ln(2)/2, a Taylor series in r, times 2**k."""
    x = ar.to_float(x)
    inside = ar.where(ar.less(x, -745.0), -745.0, ar.where(ar.less(710.0, x), 710.0, x))
    k = ar.floor(ar.add(ar.multiply(inside, 1 / math.log(2)), 0.5))
    r = ar.subtract(ar.subtract(inside, ar.multiply(k, _LN2_HIGH)), ar.multiply(k, _LN2_LOW))
    series = _horner(ar, r, _EXP_SERIES)
    half = ar.floor(ar.multiply(k, 0.5))
    scaled = ar.multiply(ar.multiply(series, _power_of_two(ar, half)), _power_of_two(ar, ar.subtract(k, half)))
    return ar.where(ar.equal(x, x), scaled, x)


def log(ar: Arithmetic, x: Any) -> Any:
    """Return ln x: x = m 2**k with m in [sqrt(1/2), sqrt(2)), then ln m = 2 artanh((m - 1)/(m + 1)) as a series."""
    x = ar.to_float(x)
    m: Any = x
    k: Any = 0.0
    for bit in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
        large = ar.less_equal(math.sqrt(2) * 2.0 ** (bit - 1), m)
        m = ar.where(large, ar.multiply(m, 2.0**-bit), m)
        k = ar.where(large, ar.add(k, float(bit)), k)
        small = ar.less(m, math.sqrt(0.5) * 2.0 ** (1 - bit))
        m = ar.where(small, ar.multiply(m, 2.0**bit), m)
        k = ar.where(small, ar.subtract(k, float(bit)), k)
    s = ar.divide(ar.subtract(m, 1.0), ar.add(m, 1.0))
    square = ar.multiply(s, s)
    # 2s + 2s**3/3 + ...: the leading term is kept apart, so that the series only adds a small correction to it.
    correction = ar.multiply(ar.multiply(s, square), _horner(ar, square, _ATANH_SERIES[1:]))
    small_part = ar.add(ar.multiply(correction, 2.0), ar.multiply(k, _LN2_LOW))
    result = ar.add(ar.multiply(k, _LN2_HIGH), ar.add(ar.multiply(s, 2.0), small_part))
    result = ar.where(ar.equal(x, math.inf), math.inf, result)
    result = ar.where(ar.equal(x, 0.0), -math.inf, result)
    return ar.where(ar.less_equal(0.0, x), result, math.nan)


def cos(ar: Arithmetic, x: Any) -> Any:
    """Return cos x: x = k pi/2 + r with |r| <= pi/4, then the series of the quadrant."""
    x = ar.to_float(x)
    k = ar.floor(ar.add(ar.multiply(x, 2 / math.pi), 0.5))
    r = ar.subtract(x, ar.multiply(k, _HALF_PI_HIGH))
    r = ar.subtract(r, ar.multiply(k, _HALF_PI_MIDDLE))
    r = ar.subtract(r, ar.multiply(k, _HALF_PI_LOW))
    square = ar.multiply(r, r)
    cosine = _horner(ar, square, _COS_SERIES)
    sine = ar.multiply(r, _horner(ar, square, _SIN_SERIES))
    quadrant = ar.subtract(k, ar.multiply(ar.floor(ar.multiply(k, 0.25)), 4.0))
    result = ar.where(ar.equal(quadrant, 1.0), ar.negative(sine), cosine)
    result = ar.where(ar.equal(quadrant, 2.0), ar.negative(cosine), result)
    return ar.where(ar.equal(quadrant, 3.0), sine, result)


def power(ar: Arithmetic, base: Any, exponent: Any) -> Any:
    """Return base**exponent for base >= 0 as exp(exponent ln base); 0**positive is 0, x**0 is 1, base < 0 is NaN."""
    base, exponent = ar.to_float(base), ar.to_float(exponent)
    result = exp(ar, ar.multiply(exponent, log(ar, base)))
    result = ar.where(ar.equal(base, 1.0), 1.0, result)
    return ar.where(ar.equal(exponent, 0.0), 1.0, result)
