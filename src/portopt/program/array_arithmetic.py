"""Elementary functions of arrays: `elementary.py` on float64 arrays of any library, rounded once to the compute dtype."""

from __future__ import annotations

from typing import Any

from portopt.arithmetic import elementary
from portopt.arithmetic.host import HOST


class ArrayArithmetic:
    """Float64 arrays as the numbers that elementary functions compute with; what only depends on Python numbers is one.

    Args:
        wide: the operations of the arrays' library in float64.
        like: one of the arrays, on whose device constants are made.
    """

    def __init__(self, wide: Any, like: Any) -> None:
        self._wide = wide
        self._like = like
        self._constants: dict[float, Any] = {}

    def array(self, value: Any) -> Any:
        """Return an array as it is, and a Python number as one of no axes."""
        if not _is_number(value):
            return value
        number = float(value)
        if number not in self._constants:
            self._constants[number] = self._wide.constant(number, self._like)
        return self._constants[number]

    def _operate(self, name: str, *values: Any) -> Any:
        if all(map(_is_number, values)):
            return getattr(HOST, name)(*values)
        return getattr(self._wide, name)(*map(self.array, values))

    def add(self, a: Any, b: Any) -> Any:
        return self._operate("add", a, b)

    def subtract(self, a: Any, b: Any) -> Any:
        return self._operate("subtract", a, b)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._operate("multiply", a, b)

    def divide(self, a: Any, b: Any) -> Any:
        return self._operate("divide", a, b)

    def negative(self, a: Any) -> Any:
        return self._operate("negative", a)

    def sqrt(self, a: Any) -> Any:
        return self._operate("sqrt", a)

    def floor(self, a: Any) -> Any:
        return self._operate("floor", a)

    def less(self, a: Any, b: Any) -> Any:
        return self._operate("less", a, b)

    def less_equal(self, a: Any, b: Any) -> Any:
        return self._operate("less_equal", a, b)

    def equal(self, a: Any, b: Any) -> Any:
        return self._operate("equal", a, b)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, bool):
            return a if condition else b
        return self._wide.where(condition, self.array(a), self.array(b))

    def to_float(self, a: Any) -> Any:
        # Arrays of a program hold no subnormals.
        return a


def _is_number(value: Any) -> bool:
    # NumPy's float64, which an array of no axes may be, is a float too.
    return type(value) in (float, int, bool)


def elementary_function(primitives: Any, name: str, *operands: Any) -> Any:
    """Return a function of `elementary.FUNCTIONS` of arrays in the compute dtype.

    Args:
        primitives: the operations of the arrays' library in the compute dtype.
        name: of the function.
        operands: arrays without subnormals.
    """
    with primitives.float64():
        wide = primitives.wide
        values = [wide.xp.astype(x, wide.dtype) for x in operands]
        result = elementary.FUNCTIONS[name](ArrayArithmetic(wide, values[0]), *values)
        return rounded_to_compute(primitives, result)


def rounded_to_compute(primitives: Any, x: Any) -> Any:
    """Return a float64 array rounded once to the compute dtype of operations."""
    return x if primitives.compute_dtype == "float64" else primitives.load(x)
