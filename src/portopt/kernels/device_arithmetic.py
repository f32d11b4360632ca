"""Scalars on a device, and array operations that wait for none of them: for programs that no kernel holds.

Scalars are arrays of no axes: those of the step a kernel computes, those of a parameter the library's own operations. Kernels
take them from there. So a graph can repeat a step that is done product by product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from portopt.arithmetic import HOST, Arithmetic
from portopt.arithmetic.dtypes import round_scalar
from portopt.arithmetic.traced import TracedArithmetic
from portopt.backend import ArrayAPIBackend, is_interpreted
from portopt.program import Program
from portopt.program.primitives import Primitives
from portopt.program.reductions import Reductions

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


class _Reductions(Reductions):
    """Reductions of which kernels find the norm of all elements of an array, which stays on the device.

    Args:
        norm_of: returns it; None if it cannot.
        given: what reductions are made of.
    """

    def __init__(self, norm_of: Callable[[Any], Any], *given: Any) -> None:
        super().__init__(*given)
        self._norm_of = norm_of

    def total(self, name: str, *xs: Any) -> Any:
        if name == "norm" and len(xs) == 1 and (found := self._norm_of(xs[0])) is not None:
            return found
        return super().total(name, *xs)


class DeviceOperations(ArrayAPIBackend):
    """What a backend is where the host waits for no scalar; to be mixed into its class.

    Attributes:
        graphs: of the library, whose kernels find norms.
    """

    graphs: Any

    def arithmetic(self, values: Iterable[Any]) -> Arithmetic:
        witness = next(filter(self.owns, values), None)
        return HOST if witness is None else DeviceArithmetic(self, witness)

    def primitives(self, compute_dtype: str) -> Primitives:
        found = super().primitives(compute_dtype)
        # These take numbers of the host, or give such.
        found.joined = found.squares = None
        if (fused := found.fused) is not None:
            found.number = self._number
            found.fused = lambda program, arrays, scalars: fused(program, arrays, [*map(self._placed, scalars)])
        found.constant = lambda value, like: self.full(like, value, compute_dtype, ())  # type: ignore[method-assign]  # no copy from the host
        return found

    def reductions(self, compute_dtype: str) -> Reductions:
        return _Reductions(self.norm_of, self.primitives(compute_dtype), self.primitives("float64"), self.arithmetic_of)

    def norm_of(self, x: Any) -> Any:
        """Return the norm of all elements of an array, as an array of no axes; None if no kernel finds it."""
        return None if is_interpreted() else self.graphs.norm_of(x)

    def _number(self, value: Any) -> Any:
        if isinstance(value, int | float):
            return float(value)
        return self.xp.astype(value, self.dtype("float64"))

    def _placed(self, value: Any) -> Any:
        return value if isinstance(value, float) else self.graphs.place(value)

    def rounded_scalars(
        self, program: Program, scalars: Sequence[Any], compute_dtype: str, like: Any
    ) -> dict[int, Any]:
        return {i: self.rounded_scalar(scalars[j], compute_dtype, like) for i, j in program.rounded_scalars}

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        if isinstance(value, int | float):
            return self.full(like, round_scalar(float(value), compute_dtype), compute_dtype, ())
        return self.primitives(compute_dtype).load(self.xp.astype(value, self.dtype("float64")))
