"""The array operations of the contract, written once over the array API.

Every array in a program is in the compute dtype and holds no subnormal, so flushing results is enough. A backend whose
library gets one of these wrong replaces that one (`Primitives(..., overrides={"sqrt": ...})`) and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from portopt.arithmetic.dtypes import SMALLEST_NORMAL, TINY_FLOAT32
from portopt.program.array_arithmetic import elementary_function
from portopt.program.bins import Bins

_SCALE: Mapping[str, float] = {"float32": 2.0**64, "float64": 2.0**512}


class Primitives:
    """The operations of `ARRAY_OPERATIONS` for one array API namespace and compute dtype.

    Args:
        xp: an array API namespace.
        dtype: the namespace's dtype object of `compute_dtype`.
        compute_dtype: `"float32"` or `"float64"`.
        overrides: operations to replace or add, by name.

    Attributes:
        sliced: takes the place of `products.slices`, of an operand and its inner axis; None if nothing does.
        rescaled: takes the place of `products.rescaled`, of integer products and the two operands' slices.
        gram: returns the product of an operand and its transpose, given the operand's slices, or None if it cannot; None
            likewise.
        fused: runs the elementwise program of a segment, given its arrays and its scalars, and returns its results; None if each
            operation is run by itself.
        number: makes of a scalar what `fused` takes.
        joined: does what `fused` does on operands and results of products: of a segment, its arrays, some of which may be
            `products.Unscaled`, and its scalars, it returns for each result the array, or `products.Sliced` where the segment
            says that nothing needs it, and what returns its slices by the axis; or None if it cannot; None likewise.
        squares: returns the bins of the squares of all elements of an array, or None if it cannot; None likewise. Only the
            integer that their sums make together need be true, so they are not for being moved to a larger exponent.
        leading_exponent: returns the largest k, int64, with `2**k` at most a positive normal float64, and -1023 for a smaller
            one; None where the library has nothing that looks at bits.
        power_of_two: returns `2**k` in float64 for an int64 k in [-1022, 1023]; None likewise.
    """

    sliced: Callable[[Any, int], Any] | None = None
    rescaled: Callable[[Any, Any, Any], Any] | None = None
    gram: Callable[[Any], Any] | None = None
    fused: Callable[[Any, Any, Any], Any] | None = None
    number: Callable[[Any], Any] = float
    joined: Callable[[Any, Any, Any], Any] | None = None
    squares: Callable[[Any], Bins | None] | None = None
    leading_exponent: Callable[[Any], Any] | None = None
    power_of_two: Callable[[Any], Any] | None = None

    def __init__(
        self, xp: Any, dtype: Any, compute_dtype: str, overrides: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        self.xp = xp
        self.dtype = dtype
        self.compute_dtype = compute_dtype
        self.smallest_normal = SMALLEST_NORMAL[compute_dtype]
        self.scale = _SCALE[compute_dtype]
        self._wide: Callable[[], Primitives] = lambda: Primitives(xp, xp.float64, "float64")
        for name, function in (overrides or {}).items():
            setattr(self, name, function)

    def widened_by(self, wide: Callable[[], Primitives]) -> Primitives:
        """Take what returns the same library's operations in float64, with what is replaced there; return self."""
        self._wide = wide
        return self

    @property
    def wide(self) -> Primitives:
        """The same library's operations in float64."""
        return self if self.compute_dtype == "float64" else self._wide()

    def float64(self) -> AbstractContextManager[Any]:
        """Return a context in which the library has float64."""
        return contextlib.nullcontext()

    def constant(self, value: float, like: Any) -> Any:
        """Return a number as an array, of no axes or of the shape of `like`, that is combined with arrays such as `like`."""
        return self.xp.asarray(value, dtype=self.dtype, **_on_device(like))

    def arange(self, count: int, like: Any) -> Any:
        """Return the numbers from 0 to below `count`, int64, on the device of `like`."""
        return self.xp.arange(count, dtype=self.xp.int64, **_on_device(like))

    def eye(self, count: int, one: Any, like: Any) -> Any:
        """Return a square matrix of so many rows with `one`, of no axes, on its diagonal, on the device of `like`."""
        with self.float64():  # which a library may need for the whole numbers that it counts with
            rows = self.xp.reshape(self.arange(count, like), (count, 1))
            return self.xp.where(rows == self.xp.reshape(rows, (1, count)), one, 0.0)

    def flush(self, x: Any) -> Any:
        """Make subnormals zero, keeping the sign."""
        return self.xp.where(self.xp.abs(x) < self.smallest_normal, x * 0.0, x)

    def load(self, x: Any) -> Any:
        if self.compute_dtype == "float32" and x.dtype == getattr(self.xp, "float64", None):
            # As a scalar is rounded: no subnormal is left, on the rounding of which libraries disagree.
            return self.xp.astype(self.xp.where(self.xp.abs(x) < TINY_FLOAT32, x * 0.0, x), self.dtype)
        return self.flush(self.xp.astype(x, self.dtype))

    def add(self, a: Any, b: Any) -> Any:
        return self.flush(a + b)

    def subtract(self, a: Any, b: Any) -> Any:
        return self.flush(a - b)

    def multiply(self, a: Any, b: Any) -> Any:
        # The scaled product is rounded with full precision however small it is: it tells what is tiny after rounding.
        # Where the product is not tiny it may overflow, and compares false.
        larger, smaller = (a, b) if a.ndim >= b.ndim else (b, a)
        tiny = self.xp.abs((larger * self.scale) * smaller) < self.smallest_normal * self.scale
        x = a * b
        return self.xp.where(tiny, x * 0.0, x)

    def divide(self, a: Any, b: Any) -> Any:
        if isinstance(b, float | int):
            # Torch multiplies an array on a GPU by the reciprocal of a Python number.
            b = self.constant(float(b), a)
        # As in `multiply`. One quotient alone needs it: (1 - 2**-p) * 2**-n over a power of two, with p bits of precision.
        tiny = self.xp.abs((a * self.scale) / b) < self.smallest_normal * self.scale
        x = a / b
        return self.xp.where(tiny, x * 0.0, x)

    def sqrt(self, a: Any) -> Any:
        return self.xp.sqrt(a)

    def rint(self, a: Any) -> Any:
        """Round to integers, halves to even."""
        return self.xp.round(a)

    def without_negative_zero(self, a: Any) -> Any:
        return self.xp.where(a != 0.0, a, 0.0)

    def multiply_matrices(self, a: Any, b: Any) -> Any:
        """Return the product of two matrices of which every sum is exact."""
        return self.xp.matmul(a, b)

    def multiply_by_transpose(self, a: Any) -> Any:
        """Return the product of a matrix and its transpose, of which every sum is exact; NumPy computes half of it."""
        return self.multiply_matrices(a, self.xp.matrix_transpose(a))

    def negative(self, a: Any) -> Any:
        return -a

    def absolute(self, a: Any) -> Any:
        return self.xp.abs(a)

    def less(self, a: Any, b: Any) -> Any:
        return a < b

    def less_equal(self, a: Any, b: Any) -> Any:
        return a <= b

    def equal(self, a: Any, b: Any) -> Any:
        return a == b

    def logical_and(self, a: Any, b: Any) -> Any:
        return self.xp.logical_and(a, b)

    def logical_or(self, a: Any, b: Any) -> Any:
        return self.xp.logical_or(a, b)

    def logical_not(self, a: Any) -> Any:
        return self.xp.logical_not(a)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return self.xp.where(condition, a, b)

    def floor(self, a: Any) -> Any:
        return self.xp.floor(a)

    # Computed in float64 and rounded once

    def exp(self, a: Any) -> Any:
        return elementary_function(self, "exp", a)

    def log(self, a: Any) -> Any:
        return elementary_function(self, "log", a)

    def tanh(self, a: Any) -> Any:
        return elementary_function(self, "tanh", a)

    def cbrt(self, a: Any) -> Any:
        return elementary_function(self, "cbrt", a)

    def atan2(self, a: Any, b: Any) -> Any:
        return elementary_function(self, "atan2", a, b)

    def power(self, a: Any, b: Any) -> Any:
        return elementary_function(self, "power", a, b)


def _on_device(like: Any) -> dict[str, Any]:
    device = getattr(like, "device", None)
    return {} if device is None else {"device": device}
