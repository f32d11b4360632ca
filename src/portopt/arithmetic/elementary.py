"""Elementary functions from the operations that every arithmetic has.

Libraries' own versions differ in the last bits, so scalars and arrays use these: argument reduction and a truncated series,
each step one contract operation, in a fixed order. Errors against the exact value are at most 1.2 ulp for exp, 2 for log, 2 for
cos and sin up to |x| = 100 and 3 up to 1e5, 1.5 for tanh, 1 for cbrt, 2 for atan2, and 2 + 3 |y ln x| for the real power x**y
(measured in `tests/program/test_elementary.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portopt.arithmetic.protocol import Reals

# ln 2 and pi/2 in parts: the first ones have trailing zero bits, so that a small integer times them is exact.
_LN2_HIGH = float.fromhex("0x1.62E42FEE00000p-1")
_LN2_LOW = float.fromhex("0x1.A39EF35793C76p-33")
_HALF_PI_HIGH = float.fromhex("0x1.921FB54400000p0")
_HALF_PI_MIDDLE = float.fromhex("0x1.0B4611A600000p-34")
_HALF_PI_LOW = float.fromhex("0x1.3198A2E037073p-69")

# Numbers and what their nearest float64 leaves.
_PI = (math.pi, float.fromhex("0x1.1A62633145C07p-53"))
_HALF_PI = (math.pi / 2, float.fromhex("0x1.1A62633145C07p-54"))
_ATAN_OF_HALF = (math.atan(0.5), float.fromhex("0x1.a2b7f222f65e2p-56"))
_ATAN_OF_ONE = (math.pi / 4, float.fromhex("0x1.1A62633145C07p-55"))

_EXP_SERIES = tuple(1 / math.factorial(k) for k in range(14))
_ATANH_SERIES = tuple(1 / (2 * k + 1) for k in range(13))
_ATAN_SERIES = tuple((-1) ** k / (2 * k + 1) for k in range(14))
_COSH_SERIES = tuple(1 / math.factorial(2 * k) for k in range(11))
# cosh x - sinh x / x, without the constant term, which is zero.
_COSH_MINUS_SINH_SERIES = tuple(2 * k / math.factorial(2 * k + 1) for k in range(1, 11))
# Ratios from which on 1/2 and 1 are taken off: with the first one, a sum with atan(1/2) is not below 1/4, so it is as accurate.
_ATAN_BOUNDS = (0.2554, 0.721)
_COS_SERIES = tuple((-1) ** k / math.factorial(2 * k) for k in range(10))
_SIN_SERIES = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(10))


def _horner(ar: Reals, x: Any, series: tuple[float, ...]) -> Any:
    total: Any = series[-1]
    for coefficient in reversed(series[:-1]):
        total = ar.add(ar.multiply(total, x), coefficient)
    return total


def _power_of_two(ar: Reals, k: Any) -> Any:
    """Return 2**k exactly for an integral float64 k in [-1022, 1023]."""
    magnitude = ar.where(ar.less(k, 0.0), ar.negative(k), k)
    result: Any = 1.0
    for bit in (512.0, 256.0, 128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0):
        taken = ar.less_equal(bit, magnitude)
        result = ar.where(taken, ar.multiply(result, 2.0**bit), result)
        magnitude = ar.where(taken, ar.subtract(magnitude, bit), magnitude)
    return ar.where(ar.less(k, 0.0), ar.divide(1.0, result), result)


def exp(ar: Reals, x: Any) -> Any:
    """Return e**x: x = k ln 2 + r with |r| <= ln(2)/2, a Taylor series in r, times 2**k."""
    x = ar.to_float(x)
    inside = ar.where(ar.less(x, -745.0), -745.0, ar.where(ar.less(710.0, x), 710.0, x))
    k = ar.floor(ar.add(ar.multiply(inside, 1 / math.log(2)), 0.5))
    r = ar.subtract(ar.subtract(inside, ar.multiply(k, _LN2_HIGH)), ar.multiply(k, _LN2_LOW))
    series = _horner(ar, r, _EXP_SERIES)
    half = ar.floor(ar.multiply(k, 0.5))
    scaled = ar.multiply(ar.multiply(series, _power_of_two(ar, half)), _power_of_two(ar, ar.subtract(k, half)))
    return ar.where(ar.equal(x, x), scaled, x)


def log(ar: Reals, x: Any) -> Any:
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


def _quadrant(ar: Reals, x: Any) -> tuple[Any, Any, Any]:
    """Return the quadrant of an angle, 0 to 3, and cosine and sine of the angle from its middle: x = k pi/2 + r."""
    k = ar.floor(ar.add(ar.multiply(x, 2 / math.pi), 0.5))
    r = ar.subtract(x, ar.multiply(k, _HALF_PI_HIGH))
    r = ar.subtract(r, ar.multiply(k, _HALF_PI_MIDDLE))
    r = ar.subtract(r, ar.multiply(k, _HALF_PI_LOW))
    square = ar.multiply(r, r)
    cosine = _horner(ar, square, _COS_SERIES)
    sine = ar.multiply(r, _horner(ar, square, _SIN_SERIES))
    return ar.subtract(k, ar.multiply(ar.floor(ar.multiply(k, 0.25)), 4.0)), cosine, sine


def cos(ar: Reals, x: Any) -> Any:
    """Return cos x: x = k pi/2 + r with |r| <= pi/4, then the series of the quadrant."""
    quadrant, cosine, sine = _quadrant(ar, ar.to_float(x))
    result = ar.where(ar.equal(quadrant, 1.0), ar.negative(sine), cosine)
    result = ar.where(ar.equal(quadrant, 2.0), ar.negative(cosine), result)
    return ar.where(ar.equal(quadrant, 3.0), sine, result)


def sin(ar: Reals, x: Any) -> Any:
    """Return sin x; see `cos`."""
    quadrant, cosine, sine = _quadrant(ar, ar.to_float(x))
    result = ar.where(ar.equal(quadrant, 1.0), cosine, sine)
    result = ar.where(ar.equal(quadrant, 2.0), ar.negative(sine), result)
    return ar.where(ar.equal(quadrant, 3.0), ar.negative(cosine), result)


def power(ar: Reals, base: Any, exponent: Any) -> Any:
    """Return base**exponent for base >= 0 as exp(exponent ln base); 0**positive is 0, x**0 is 1, base < 0 is NaN."""
    base, exponent = ar.to_float(base), ar.to_float(exponent)
    result = exp(ar, ar.multiply(exponent, log(ar, base)))
    result = ar.where(ar.equal(base, 1.0), 1.0, result)
    return ar.where(ar.equal(exponent, 0.0), 1.0, result)


def tanh(ar: Reals, x: Any) -> Any:
    """Return tanh x: 1 - 2/(e**2x + 1) from |x| = 1 on, below it x - x (cosh x - sinh x / x) / cosh x, both as series."""
    x = ar.to_float(x)
    square = ar.multiply(x, x)
    missing = ar.divide(
        ar.multiply(square, _horner(ar, square, _COSH_MINUS_SINH_SERIES)), _horner(ar, square, _COSH_SERIES)
    )
    near = ar.multiply(x, ar.subtract(1.0, missing))
    magnitude = _absolute(ar, x)
    far = ar.subtract(1.0, ar.divide(2.0, ar.add(exp(ar, ar.multiply(magnitude, 2.0)), 1.0)))
    far = ar.where(ar.less(x, 0.0), ar.negative(far), far)
    return ar.where(ar.less(magnitude, 1.0), near, far)


def cbrt(ar: Reals, x: Any) -> Any:
    """Return the cube root of x: exp(ln |x| / 3), then one step of Newton's method, then the sign."""
    x = ar.to_float(x)
    magnitude = _absolute(ar, x)
    start = exp(ar, ar.divide(log(ar, magnitude), 3.0))
    excess = ar.subtract(start, ar.divide(magnitude, ar.multiply(start, start)))
    root = ar.subtract(start, ar.divide(excess, 3.0))
    root = ar.where(ar.less(x, 0.0), ar.negative(root), root)
    root = ar.where(ar.equal(magnitude, math.inf), x, root)
    return ar.where(ar.equal(x, 0.0), x, root)


def atan2(ar: Reals, y: Any, x: Any) -> Any:
    """Return the angle of the point (x, y), from -pi to pi, as IEEE 754 has it for zeros and infinities.

    The ratio of the smaller to the larger coordinate has the angle atan c + atan u, u = (smaller - c larger) / (larger + c
    smaller), with the c of 0, 1/2 and 1 for which |u| < 0.26; atan u is a series.
    """
    y, x = ar.to_float(y), ar.to_float(x)
    height, width = _absolute(ar, y), _absolute(ar, x)
    steep = ar.less(width, height)
    smaller, larger = ar.where(steep, width, height), ar.where(steep, height, width)
    smaller = ar.where(ar.equal(larger, math.inf), ar.where(ar.equal(smaller, math.inf), 1.0, 0.0), smaller)
    larger = ar.where(ar.equal(larger, math.inf), 1.0, ar.where(ar.equal(larger, 0.0), 1.0, larger))
    # Neither a sum may overflow nor a difference be subnormal.
    scale = ar.where(ar.less(larger, 2.0**-900), 2.0**100, ar.where(ar.less(2.0**1000, larger), 2.0**-100, 1.0))
    smaller, larger = ar.multiply(smaller, scale), ar.multiply(larger, scale)

    above_first = ar.less(ar.multiply(larger, _ATAN_BOUNDS[0]), smaller)
    above_second = ar.less(ar.multiply(larger, _ATAN_BOUNDS[1]), smaller)

    def chosen(zero: float, half: float, one: float) -> Any:
        return ar.where(above_second, one, ar.where(above_first, half, zero))

    c = chosen(0.0, 0.5, 1.0)
    u = ar.divide(ar.subtract(smaller, ar.multiply(larger, c)), ar.add(larger, ar.multiply(smaller, c)))
    square = ar.multiply(u, u)
    series = ar.add(u, ar.multiply(ar.multiply(u, square), _horner(ar, square, _ATAN_SERIES[1:])))
    low = ar.add(chosen(0.0, _ATAN_OF_HALF[1], _ATAN_OF_ONE[1]), series)
    angle = ar.add(chosen(0.0, _ATAN_OF_HALF[0], _ATAN_OF_ONE[0]), low)

    to_the_left = _is_negative(ar, x)
    flat = ar.where(to_the_left, _subtracted(ar, _PI, angle), angle)
    upright = _subtracted(ar, _HALF_PI, ar.where(to_the_left, ar.negative(angle), angle))
    angle = ar.where(steep, upright, flat)
    angle = ar.where(_is_negative(ar, y), ar.negative(angle), angle)
    return ar.where(ar.equal(x, x), ar.where(ar.equal(y, y), angle, y), x)


def _subtracted(ar: Reals, constant: tuple[float, float], angle: Any) -> Any:
    return ar.subtract(constant[0], ar.subtract(angle, constant[1]))


def _absolute(ar: Reals, x: Any) -> Any:
    """Return |x|, but -0 for -0."""
    return ar.where(ar.less(x, 0.0), ar.negative(x), x)


def _is_negative(ar: Reals, x: Any) -> Any:
    """Tell whether the sign of a number is minus, that of -0 too."""
    return ar.less(ar.where(ar.equal(x, 0.0), ar.divide(1.0, x), x), 0.0)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function for function in (exp, log, cos, sin, power, tanh, cbrt, atan2)
}
"""Each function by the name of the operation that it defines, given an arithmetic and the operands."""
