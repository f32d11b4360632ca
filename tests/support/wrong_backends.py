"""Backends that are wrong on purpose, each in one way; NumPy arrays, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portopt.arithmetic import HOST
from portopt.backend import Arrays, Work
from portopt.program import FUNCTIONS
from portopt.program.primitives import Primitives
from portopt.program.products import Slices, slice_bits
from portopt.program.reductions import Reductions
from portopt_conformance.platform import ReferenceBackend

Overrides = Mapping[str, Any]


def _parameters(works: Sequence[Work]) -> list[Arrays]:
    return [arrays for work in works for arrays in work.parameters]


class WrongOperations(ReferenceBackend):
    """NumPy with some operations replaced."""

    def __init__(self, name: str, overrides: Callable[[Primitives], Overrides]) -> None:
        super().__init__()
        self.name = name
        self._overrides = overrides

    def primitives(self, compute_dtype: str) -> Primitives:
        right = super().primitives(compute_dtype)
        return Primitives(right.xp, right.dtype, compute_dtype, self._overrides(right))


def _root_one_ulp_off(right: Primitives) -> Overrides:
    def sqrt(a: Any) -> Any:
        root = np.sqrt(a)
        above = np.nextafter(root, np.inf, dtype=root.dtype)
        return np.where(np.signbit(np.sin(root.astype(np.float64) * 1e6)) & np.isfinite(root) & (root > 0), above, root)

    return {"sqrt": sqrt}


class _Product(np.ndarray[Any, np.dtype[Any]]):
    """A rounded product that remembers what it was before rounding."""

    exact: Any


def _contracted(right: Primitives) -> Overrides:
    def multiply(a: Any, b: Any) -> Any:
        product = np.asarray(right.multiply(np.asarray(a), np.asarray(b)))
        remembering = product.copy().view(_Product)
        remembering.exact = np.asarray(a).astype(np.longdouble) * np.asarray(b).astype(np.longdouble)
        return remembering

    def add(a: Any, b: Any) -> Any:
        if not isinstance(a, _Product) and not isinstance(b, _Product):
            return right.add(a, b)
        product, other = (a, b) if isinstance(a, _Product) else (b, a)
        return right.flush((product.exact + np.asarray(other).astype(np.longdouble)).astype(right.dtype))

    return {"multiply": multiply, "add": add}


def _subnormals_kept(right: Primitives) -> Overrides:
    return {
        "load": lambda x: x.astype(right.dtype),
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "divide": lambda a, b: a / b,
    }


def _total_order_less_equal(right: Primitives) -> Overrides:
    """Put -0 below +0, as some libraries' maximum does: max(-0, +0) is then +0, not the first operand."""
    return {"less_equal": lambda a, b: (a < b) | ((a == b) & (np.signbit(a) | ~np.signbit(b)))}


def _unsliced(x: Any, axis: int) -> Slices:
    """Return an operand as it is, so that its products are the library's own in float64."""
    return Slices(
        (x.astype(np.float64),), np.ones(np.max(x, axis, keepdims=True).shape), axis, slice_bits(x.shape[axis])
    )


class _ReshapesForTranspose:
    """NumPy, but that the elements of a transpose stay where they are."""

    def permute_dims(self, x: Any, axes: Sequence[int]) -> Any:
        return np.reshape(x, [x.shape[axis] for axis in axes])

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _of_the_library(name: str) -> Callable[[Primitives], Overrides]:
    """Return what replaces an elementary function by NumPy's own in the compute dtype."""
    function = {"atan2": np.arctan2, "power": np.power}.get(name) or getattr(np, name)
    return lambda right: {name: function}


OPERATIONS_WRONG: Mapping[str, Callable[[Primitives], Overrides]] = {
    "root_one_ulp_off": _root_one_ulp_off,
    "contracted": _contracted,
    "subnormals_kept": _subnormals_kept,
    "subnormals_kept_on_load": lambda right: {"load": lambda x: x.astype(right.dtype)},
    "tininess_before_rounding": lambda right: {"multiply": lambda a, b: right.flush(a * b)},
    "tininess_before_rounding_of_quotients": lambda right: {"divide": lambda a, b: right.flush(a / b)},
    "total_order_of_zeros": _total_order_less_equal,
    "reciprocal": lambda right: {"divide": lambda a, b: right.multiply(a, right.divide(np.ones_like(b), b))},
    "sum_with_a_zero": lambda right: {"multiply": lambda a, b: right.add(right.multiply(a, b), np.zeros_like(a))},
    "products_of_the_library": lambda right: {"sliced": _unsliced},
    "identity_with_negative_zeros": lambda right: {
        "eye": lambda count, one, like: np.where(np.eye(count, dtype=bool), one, np.negative(one * 0))
    },
    "transpose_without_moving": lambda right: {"xp": _ReshapesForTranspose()},
    **{f"{name}_of_the_library": _of_the_library(name) for name in FUNCTIONS},
    "elements_counted_from_the_end": lambda right: {"arange": lambda count, like: np.arange(count)[::-1]},
    "nan_equals_itself": lambda right: {"equal": lambda a, b: (a == b) | (np.isnan(a) & np.isnan(b))},
}
"""What is wrong with an operation, by name."""


class FlushesRoundedGradients(ReferenceBackend):
    """Converts float64 gradients without asking whether they are tiny: just below the smallest normal number, they round up."""

    name = "flushes_rounded_gradients"

    def primitives(self, compute_dtype: str) -> Primitives:
        right = super().primitives(compute_dtype)
        return Primitives(
            right.xp, right.dtype, compute_dtype, {"load": lambda x: right.flush(right.xp.astype(x, right.dtype))}
        )


class GradientsInTheDtypeOfParameters(ReferenceBackend):
    """Rounds gradients to the dtype of their parameter before they are loaded."""

    name = "gradients_in_the_dtype_of_parameters"

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        with self.quiet():
            rounded = [
                work._replace(
                    parameters=[{**arrays, "g": arrays["g"].astype(arrays["p"].dtype)} for arrays in work.parameters]
                )
                for work in works
            ]
        return super().update(rounded, in_place=in_place)


class WritesIntoItsInputs(ReferenceBackend):
    """Uses the slots that it is given as scratch memory."""

    name = "writes_into_its_inputs"

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        results = super().update(works, in_place=in_place)
        for arrays, result in zip(_parameters(works), results, strict=True):
            for name, value in result.items():
                if name != "p" and arrays[name].flags.writeable:
                    arrays[name][...] = value
        return results


class WritesIntoGradients(ReferenceBackend):
    """Clips gradients where they are."""

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        results = super().update(works, in_place=in_place)
        for arrays in _parameters(works):
            if arrays["g"].flags.writeable:
                arrays["g"][...] = np.clip(arrays["g"].astype(np.float64), -1, 1)
        return results


class SlotsKeptInFloat16(ReferenceBackend):
    """Saves memory without being asked to."""

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        results = super().update(works, in_place=in_place)
        with np.errstate(over="ignore"):
            for result in results:
                for name in result:
                    if name != "p":
                        result[name][...] = result[name].astype(np.float16)
        return results


class OrderDependentNorm(ReferenceBackend):
    """Sums squares from the first to the last."""

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        with np.errstate(all="ignore"):
            squares = [np.cumsum(g.astype(np.float64).reshape(-1) ** 2)[-1] for g in gradients if g.size]
            return float(np.sqrt(sum(squares)))


class NormOfEachTensor(ReferenceBackend):
    """Takes the norm of the first gradient for that of all."""

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        filled = [g for g in gradients if g.size]
        return super().gradient_norm(filled[:1])


class NanLostInNorm(ReferenceBackend):
    """Lets an infinity win over a NaN, as a maximum over many elements may."""

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        if any(np.isinf(g).any() for g in gradients):
            return float("inf")
        return super().gradient_norm(gradients)


class WrongReductions(ReferenceBackend):
    """NumPy with wrong reductions of one kind."""

    def __init__(self, kind: type[Reductions]) -> None:
        super().__init__()
        self._kind = kind

    def reductions(self, compute_dtype: str) -> Reductions:
        return self._kind(self.primitives(compute_dtype), self.primitives("float64"), lambda value: HOST)


class FloatTotals(Reductions):
    """Adds floats up where all elements of parameters are added."""

    def partial(self, name: str, *xs: Any) -> Any:
        if name != "sum":
            return super().partial(name, *xs)
        # In the array's own dtype, from the first to the last: a sum in float64 is often the right one of float32 numbers.
        with np.errstate(all="ignore"):
            return float(np.cumsum(xs[0])[-1])

    def combine(self, name: str, parts: Sequence[Any]) -> Any:
        return float(sum(parts)) if name == "sum" else super().combine(name, parts)


class LargerBins(Reductions):
    """Takes bins of which the largest number would have place if it were 2**16 times as large."""

    def _bins_above(self, largest: Any, lowest: Any) -> tuple[Any, Any, Any]:
        return super()._bins_above(largest * 2.0**16, lowest)


class TotalsOfMagnitudes(Reductions):
    """Forgets signs where it looks for the largest element of parameters."""

    def partial(self, name: str, *xs: Any) -> Any:
        return super().partial(name, *(map(np.abs, xs) if name == "max" else xs))


REDUCTIONS_WRONG: Mapping[str, Callable[..., Any]] = {
    "sum": lambda x, **over: np.sum(x, dtype=x.dtype, **over),
    "mean": lambda x, **over: np.mean(x, dtype=x.dtype, **over),
    "norm": lambda x, **over: np.sqrt(np.sum(x * x, dtype=x.dtype, **over)),
    "max": np.fmax.reduce,
    "min": np.min,
    "any": np.all,
    "all": np.any,
    "count": np.any,
}
"""What takes the place of a reduction: sums that round, squares that overflow, NaNs lost, negative zeros kept, some for all."""


def wrong_reduction(name: str, *, whole: bool) -> type[Reductions]:
    """Return reductions of which one is wrong: of whole arrays, or along axes."""

    def reduce(self: Reductions, x: Any, axes: Any) -> Any:
        if (axes is None) is not whole:
            return getattr(Reductions, name)(self, x, axes)
        found = REDUCTIONS_WRONG[name](x, axis=axes, keepdims=axes is not None)
        if whole:
            return found.item()
        return found if name in ("any", "all") else found.astype(self._primitives.dtype)

    return type(f"Wrong_{name}", (Reductions,), {name: reduce})


class ScalarsInFloat32(ReferenceBackend):
    """Keeps the scalars of the state in float32."""

    def stored_scalar(self, value: Any) -> Any:
        with np.errstate(over="ignore"):
            return float(np.float32(value))


class RoundsScalarsTwice(ReferenceBackend):
    """Rounds scalars to float32 as NumPy does, subnormals included."""

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        with np.errstate(over="ignore"):
            return np.asarray(value, dtype=compute_dtype)


class SharesMemory(ReferenceBackend):
    """Converts without copying."""

    def from_numpy(self, array: Any, device: str | None) -> Any:
        return array


class ForgetsADevice(ReferenceBackend):
    """Takes any device for its own."""

    def from_numpy(self, array: Any, device: str | None) -> Any:
        return super().from_numpy(array, "cpu")


class IgnoresStrides(ReferenceBackend):
    """Wrong where views are given: reads the memory behind them."""

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        def contiguous(array: Any) -> Any:
            base = array.base
            if base is None or array.flags.c_contiguous or base.dtype != array.dtype:
                return array
            return base.reshape(-1)[: array.size].reshape(array.shape)

        if in_place:
            return super().update(works, in_place=True)
        read = [
            work._replace(
                parameters=[{name: contiguous(array) for name, array in arrays.items()} for arrays in work.parameters]
            )
            for work in works
        ]
        return super().update(read, in_place=False)
