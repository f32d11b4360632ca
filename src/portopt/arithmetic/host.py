"""The contract's scalar arithmetic on Python numbers."""

from __future__ import annotations

import math
from typing import cast

from portopt.arithmetic import elementary
from portopt.arithmetic.dtypes import SMALLEST_NORMAL
from portopt.arithmetic.protocol import Number

_SMALLEST = SMALLEST_NORMAL["float64"]


def flush(x: float) -> float:
    """Return `x`, or zero of the same sign where `x` is subnormal."""
    return x * 0.0 if -_SMALLEST < x < _SMALLEST else x


class HostArithmetic:
    """The contract on Python numbers."""

    def is_integer(self, value: Number) -> bool:
        return isinstance(value, int)

    def is_condition(self, value: Number) -> bool:
        return isinstance(value, bool)

    def add(self, a: Number, b: Number) -> Number:
        return a + b if isinstance(a, int) and isinstance(b, int) else flush(float(a) + float(b))

    def subtract(self, a: Number, b: Number) -> Number:
        return a - b if isinstance(a, int) and isinstance(b, int) else flush(float(a) - float(b))

    def multiply(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        a, b = float(a), float(b)
        x = a * b
        # Tininess is decided after rounding, as processors do that flush in hardware: a product just below the smallest
        # normal number that only the coarser subnormal spacing rounds up to it is still flushed.
        if -_SMALLEST <= x <= _SMALLEST and abs((a * 2.0**512) * b) < 2.0**-510:
            return x * 0.0
        return x

    def divide(self, a: Number, b: Number) -> float:
        a, b = float(a), float(b)
        if b == 0.0:
            if a == 0.0 or a != a:
                return math.nan
            return math.copysign(math.inf, a) * math.copysign(1.0, b)
        x = a / b
        tiny = -_SMALLEST <= x <= _SMALLEST and abs((a * 2.0**512) / b) < 2.0**-510
        return x * 0.0 if tiny else x

    def floor_divide(self, a: Number, b: Number) -> Number:
        return a // b if isinstance(a, int) and isinstance(b, int) else self.floor(self.divide(a, b))

    def negative(self, a: Number) -> Number:
        return -a

    def sqrt(self, a: Number) -> float:
        a = float(a)
        return math.sqrt(a) if a >= 0.0 else math.nan

    def floor(self, a: Number) -> float:
        a = float(a)
        return float(math.floor(a)) if math.isfinite(a) and a != 0.0 else a

    def less(self, a: Number, b: Number) -> bool:
        return a < b

    def less_equal(self, a: Number, b: Number) -> bool:
        return a <= b

    def equal(self, a: Number, b: Number) -> bool:
        return a == b

    def where(self, condition: bool, a: Number, b: Number) -> Number:
        return a if condition else b

    def integer_power(self, base: Number, exponent: int) -> float:
        base, result = float(base), 1.0
        n = abs(exponent)
        while n:
            if n & 1:
                result = cast(float, self.multiply(result, base))
            n >>= 1
            if n:
                base = cast(float, self.multiply(base, base))
        return self.divide(1.0, result) if exponent < 0 else result

    def power(self, base: Number, exponent: Number) -> float:
        return cast(float, elementary.power(self, base, exponent))

    def exp(self, a: Number) -> float:
        return cast(float, elementary.exp(self, a))

    def log(self, a: Number) -> float:
        return cast(float, elementary.log(self, a))

    def cos(self, a: Number) -> float:
        return cast(float, elementary.cos(self, a))

    def sin(self, a: Number) -> float:
        return cast(float, elementary.sin(self, a))

    def tanh(self, a: Number) -> float:
        return cast(float, elementary.tanh(self, a))

    def cbrt(self, a: Number) -> float:
        return cast(float, elementary.cbrt(self, a))

    def atan2(self, y: Number, x: Number) -> float:
        return cast(float, elementary.atan2(self, y, x))

    def to_float(self, a: Number) -> float:
        return flush(float(a))

    def concrete(self, value: Number) -> Number:
        return value


HOST = HostArithmetic()
