"""Scalars on a device, and array operations that wait for none of them: for programs that no kernel holds.

A library's own operations compute the scalars, as arrays of no axes. So a graph can repeat a step operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from portopt.arithmetic import HOST, Arithmetic
from portopt.arithmetic.dtypes import round_scalar
from portopt.arithmetic.traced import TracedArithmetic
from portopt.backend import ArrayAPIBackend
from portopt.program import Program
from portopt.program.primitives import Primitives

_BITS_OF_STEPS = 31
_FRACTION, _BIAS = 52, 1023


class DeviceArithmetic(TracedArithmetic):
    """The contract on arrays of no axes: int64 integers, float64 scalars, conditions.

    Args:
        backend: of the arrays.
        witness: an array on the device.
    """

    place = "a step that a graph repeats"

    def __init__(self, backend: ArrayAPIBackend, witness: Any) -> None:
        super().__init__(backend.xp, witness)
        self._backend = backend
        self._wide = backend.primitives("float64")

    def as_float64(self, value: Any) -> Any:
        if isinstance(value, int | float):
            return self._backend.full(self._witness, float(value), "float64", ())
        return self._library.astype(value, self._library.float64)

    def is_integer(self, value: Any) -> bool:
        return isinstance(value, int) or (not isinstance(value, float) and "int" in str(value.dtype))

    def is_condition(self, value: Any) -> bool:
        return isinstance(value, bool) or (not isinstance(value, int | float) and "bool" in str(value.dtype))

    def as_integers(self, *values: Any) -> tuple[Any, ...]:
        return tuple(
            self._backend.full(self._witness, value, "int64", ())
            if isinstance(value, int)
            else self._library.astype(value, self._library.int64)
            for value in values
        )

    def flush(self, x: Any) -> Any:
        return self._wide.flush(x)

    def product(self, a: Any, b: Any) -> Any:
        return self._wide.multiply(a, b)

    def quotient(self, a: Any, b: Any) -> Any:
        return self._wide.divide(a, b)

    def root(self, x: Any) -> Any:
        return self._wide.sqrt(x)

    def exponent(self, x: Any) -> Any:
        return (x.view(self._library.int64) >> _FRACTION) - _BIAS

    def power_of_two(self, k: Any) -> Any:
        return ((k + _BIAS) << _FRACTION).view(self._library.float64)

    def power_by_squaring(self, base: Any, exponent: Any) -> Any:
        (exponent,) = self.as_integers(exponent)
        remaining, result = self._library.abs(exponent), self.as_float64(1.0)
        for _ in range(_BITS_OF_STEPS):
            result = self._library.where((remaining & 1) == 1, self.product(result, base), result)
            base, remaining = self.product(base, base), remaining >> 1
        return self._library.where(exponent < 0, self.divide(1.0, result), result)


class DeviceOperations(ArrayAPIBackend):
    """What a backend is where the host waits for no scalar; to be mixed into its class."""

    def arithmetic(self, values: Iterable[Any]) -> Arithmetic:
        witness = next(filter(self.owns, values), None)
        return HOST if witness is None else DeviceArithmetic(self, witness)

    def primitives(self, compute_dtype: str) -> Primitives:
        found = super().primitives(compute_dtype)
        # These take numbers of the host, or give such.
        found.fused = found.joined = found.squares = None
        found.constant = lambda value, like: self.full(like, value, compute_dtype, ())  # type: ignore[method-assign]  # no copy from the host
        return found

    def rounded_scalars(
        self, program: Program, scalars: Sequence[Any], compute_dtype: str, like: Any
    ) -> dict[int, Any]:
        return {i: self.rounded_scalar(scalars[j], compute_dtype, like) for i, j in program.rounded_scalars}

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        if isinstance(value, int | float):
            return self.full(like, round_scalar(float(value), compute_dtype), compute_dtype, ())
        return self.primitives(compute_dtype).load(self.xp.astype(value, self.dtype("float64")))
