"""Reductions, whole and along axes, by the same steps on every library: the same bits in any order of summation.

`Reductions` has what a program can ask for. Sums are made of integers (`portopt.program.bins`); a norm is the root of a sum of
squares; maxima have one definition for zeros and NaN.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from portopt.arithmetic import HOST
from portopt.arithmetic.traced import TracedArithmetic
from portopt.program import bins
from portopt.program.bins import Bins
from portopt.program.primitives import Primitives

GRADIENT_NORM = "gradient_norm"
"""The name of the total that clipping asks for: the norm of all gradients."""

Axes = tuple[int, ...] | None

# From the lowest exponent of bins to the highest, in steps of which each is one factor that a float64 can be.
_STEPS = (512, 512, 512, 256, 128, 64, 32)


class Reductions:
    """The reductions of the contract, written once over the array API.

    Each takes an array of the compute dtype, or a mask, and the axes to reduce. With axes it returns an array whose reduced axes
    have length 1, of the compute dtype (a mask for `any` and `all`). Without (None) it reduces the whole array to a value of the
    arithmetic: a Python number where the library's values are known, else one of its graph, in float64.

    A total over several arrays, or over the parts of one, is what `combine` makes of the `partial` of each.

    Args:
        primitives: the operations of the compute dtype.
        wide: those of float64.
        arithmetic_of: returns the arithmetic for scalars that are computed from an array.
        float64: returns a context in which the library has float64 and int64.
    """

    def __init__(
        self,
        primitives: Primitives,
        wide: Primitives,
        arithmetic_of: Callable[[Any], Any],
        float64: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._primitives = primitives
        self._xp = primitives.xp
        self._wide = wide
        self._arithmetic_of = arithmetic_of
        self._float64 = float64

    def sum(self, x: Any, axes: Axes) -> Any:
        if axes is None:
            return self.combine("sum", [self.partial("sum", x)])
        with self._float64():
            return self._narrow(self._sum(x, axes))

    def mean(self, x: Any, axes: Axes) -> Any:
        if axes is None:
            return self._divided_whole(self.sum(x, None), math.prod(x.shape))
        with self._float64():
            return self._narrow(self._divided(self._sum(x, axes), math.prod(x.shape[axis] for axis in axes)))

    def norm(self, x: Any, axes: Axes) -> Any:
        if axes is None:
            return self.combine("norm", [self.partial("norm", x)])
        with self._float64():
            if _is_empty(x):
                return self._narrow(self._sum(x, axes))
            binned = self._binned(x, axes, squared=True)
            return self._narrow(self._finished(binned, self._wide.sqrt(self._in_units(binned)) * binned.factor))

    def max(self, x: Any, axes: Axes) -> Any:
        return self._extreme(x, axes, self._xp.max, -math.inf)

    def min(self, x: Any, axes: Axes) -> Any:
        return self._extreme(x, axes, self._xp.min, math.inf)

    def any(self, x: Any, axes: Axes) -> Any:
        whole, along = self._laid_out(x, axes)
        return self._whole_or_narrow(self._xp.any(whole, axis=along, keepdims=True), axes, bool)

    def all(self, x: Any, axes: Axes) -> Any:
        whole, along = self._laid_out(x, axes)
        return self._whole_or_narrow(self._xp.all(whole, axis=along, keepdims=True), axes, bool)

    def count(self, x: Any, axes: Axes) -> Any:
        """Return how many elements of a mask are true, or how many of an array are not zero: an integer, if of all elements."""
        whole, along = self._laid_out(x, axes)
        is_array = whole.dtype == self._primitives.dtype
        mask = self._primitives.logical_not(whole == 0.0) if is_array else whole
        with self._float64():
            counted = self._xp.sum(self._xp.astype(mask, self._wide.xp.int64), axis=along, keepdims=True)
            if axes is None:
                return self._whole_or_narrow(counted, None, int)
            return self._narrow(self._xp.astype(counted, self._wide.dtype))

    def partial(self, name: str, x: Any) -> Any:
        """Return what a total over more than this array needs of it.

        Args:
            name: `"sum"`, `"norm"`, `"max"` or `"min"`.
            x: an array of the compute dtype.

        Returns:
            `Bins` for a sum or a norm (of the squares); else the extreme value.
        """
        if name in ("max", "min"):
            return getattr(self, name)(x, None)
        squared = name == "norm"
        if _is_empty(x):
            return bins.NO_SQUARES if squared else bins.NONE
        with self._float64():
            whole, along = self._laid_out(x, None)
            binned = self._binned(whole, along, squared=squared)
            exponent, *sums = (self._whole_or_narrow(n, None, int) for n in (binned.exponent, *binned.sums))
            return Bins(exponent, tuple(sums), self._whole_or_narrow(binned.special, None, float))

    def combine(self, name: str, parts: Sequence[Any]) -> Any:
        """Return the total, given the parts: the same for any split of the elements."""
        if name in ("max", "min"):
            return self._extreme_of(name, parts)
        root = name == "norm"
        witness = next((part.special for part in parts if not isinstance(part.special, float)), None)
        if witness is None:
            whole = bins.combined([bins.NO_SQUARES if root else bins.NONE, *parts])
            return bins.root_of(whole) if root else bins.sum_of(whole)
        arithmetic = self._arithmetic_of(witness)
        with self._float64():
            whole = functools.reduce(functools.partial(_joined, arithmetic), parts)
            value = bins.significand(arithmetic, whole)
            half = _scaling(arithmetic, whole.exponent) if root else 0
            unit = arithmetic.subtract(arithmetic.subtract(whole.exponent, half), arithmetic.add(half, 31))
            value = arithmetic.multiply(value, arithmetic.power_of_two(unit))
            if root:
                value = arithmetic.multiply(arithmetic.sqrt(value), arithmetic.power_of_two(half))
            return bins.finished(arithmetic, whole, value)

    # How each is done

    def _laid_out(self, x: Any, axes: Axes) -> tuple[Any, tuple[int, ...]]:
        """Return an array with at least one axis, and the axes to reduce."""
        if axes is not None:
            return x, axes
        return (x, tuple(range(len(x.shape)))) if len(x.shape) else (self._xp.reshape(x, (1,)), (0,))

    def _whole_or_narrow(self, reduced: Any, axes: Axes, kind: Callable[[Any], Any]) -> Any:
        """Return a reduced array itself; its only element, if all axes are reduced, as a value of the arithmetic."""
        if axes is not None:
            return reduced
        value = self._xp.reshape(reduced, ())
        return kind(value) if self._arithmetic_of(value) is HOST else value

    def _narrow(self, wide: Any) -> Any:
        """Return a float64 array in the compute dtype."""
        return self._primitives.load(wide)

    def _sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Return the sum along axes in float64."""
        if _is_empty(x):
            return self._xp.astype(self._xp.sum(x, axis=axes, keepdims=True), self._wide.dtype)
        binned = self._binned(x, axes, squared=False)
        return self._finished(binned, self._in_units(binned))

    def _divided_whole(self, total: Any, count: int) -> Any:
        arithmetic = HOST if isinstance(total, float) else self._arithmetic_of(total)
        return arithmetic.divide(total, float(count))

    def _divided(self, total: Any, count: int) -> Any:
        if count == 0:
            return total + math.nan
        if _is_empty(total):
            return total
        arithmetic = self._arithmetic_of(total)
        # A compiler that knew the divisor could make a product of the quotient.
        return self._wide.divide(total, float(count) if arithmetic is HOST else arithmetic.as_float64(float(count)))

    def _binned(self, x: Any, axes: tuple[int, ...], *, squared: bool) -> _Binned:
        """Return the bins of the elements, or of their squares, along axes; there is at least one element."""
        xp, where = self._xp, self._wide.where
        x = xp.astype(x, self._wide.dtype)
        finite = xp.abs(x) < math.inf
        zeros = xp.zeros_like(x)
        special = xp.sum(where(finite, zeros, xp.abs(x) if squared else x), axis=axes, keepdims=True)
        x = where(finite, x, zeros)
        largest = xp.max(xp.abs(x), axis=axes, keepdims=True)
        nothing = xp.zeros_like(largest)
        exponent = xp.astype(nothing, xp.int64) + bins.LOWEST
        factor = nothing + 1.0
        if squared:
            large, small = largest >= 2.0**bins.UNSCALED, largest < 2.0**-bins.UNSCALED
            up, down = nothing + 2.0**bins.SCALING, nothing + 2.0**-bins.SCALING
            scale = where(large, down, where(small, up, factor))
            factor = where(large, up, where(small, down, factor))
            x, largest = x * scale, largest * scale
            x, largest = x * x, largest * largest
            twice = 2 * bins.SCALING
            exponent = xp.where(large, exponent + twice, xp.where(small, exponent - twice, exponent))
        unit, inverse = nothing + 2.0 ** (bins.LOWEST - 31), nothing + 2.0 ** (31 - bins.LOWEST)
        for step in _STEPS:
            below = unit * 2.0 ** (step - 1) <= largest
            exponent = xp.where(below, exponent + step, exponent)
            unit = where(below, unit * 2.0**step, unit)
            inverse = where(below, inverse * 2.0**-step, inverse)
        rest, sums = x * inverse, []
        for _ in range(3):
            nearest = xp.round(rest)
            sums.append(xp.sum(xp.astype(nearest, xp.int64), axis=axes, keepdims=True))
            rest = (rest - nearest) * 2.0**bins.WIDTH
        return _Binned(exponent, (sums[0], sums[1], sums[2]), special, unit, factor)

    def _in_units(self, binned: _Binned) -> Any:
        """Return the sums that bins stand for."""
        first, second, third = (self._xp.astype(integers, self._wide.dtype) for integers in binned.sums)
        return ((third * 2.0**-64 + second * 2.0**-32) + first) * binned.unit

    def _finished(self, binned: _Binned, value: Any) -> Any:
        return self._wide.where(binned.special == 0.0, value, binned.special)

    def _extreme(self, x: Any, axes: Axes, function: Callable[..., Any], neutral: float) -> Any:
        """Return the largest or smallest elements along axes, or of all; NaN where there is one, and no -0."""
        xp, where = self._xp, self._primitives.where
        if _is_empty(x):
            return neutral if axes is None else xp.sum(x, axis=axes, keepdims=True) + neutral
        whole, along = self._laid_out(x, axes)
        # Libraries disagree on the extreme of a NaN and an infinity, and on that of two zeros.
        nan = xp.isnan(whole)
        found = function(where(nan, xp.zeros_like(whole) + neutral, whole), axis=along, keepdims=True)
        zeros = xp.zeros_like(found)
        found = where(found == 0.0, zeros, found)
        found = where(xp.any(nan, axis=along, keepdims=True), zeros + math.nan, found)
        if axes is not None:
            return found
        value = self._whole_or_narrow(found, None, float)
        return value if isinstance(value, float) else self._arithmetic_of(value).to_float(value)

    def _extreme_of(self, name: str, parts: Sequence[Any]) -> Any:
        """Return the largest or smallest of values that are NaN or not -0."""
        witness = next((part for part in parts if not isinstance(part, float)), None)
        arithmetic: Any = HOST if witness is None else self._arithmetic_of(witness)
        extreme: Any = -math.inf if name == "max" else math.inf
        for part in parts:
            further = arithmetic.less(extreme, part) if name == "max" else arithmetic.less(part, extreme)
            # A NaN is not less, and stays.
            taken = arithmetic.where(arithmetic.equal(part, part), further, True)
            extreme = arithmetic.where(taken, part, extreme)
        return extreme


class _Binned(NamedTuple):
    """Bins along axes, each an array.

    Attributes:
        exponent: as in `Bins`, int64.
        sums: as in `Bins`, int64.
        special: as in `Bins`.
        unit: what 1 in the first sum stands for; of squares, of scaled ones.
        factor: by what the root of squares is multiplied.
    """

    exponent: Any
    sums: tuple[Any, Any, Any]
    special: Any
    unit: Any
    factor: Any


def _is_empty(x: Any) -> bool:
    return bool(math.prod(x.shape) == 0)


def _joined(arithmetic: Any, a: Bins, b: Bins) -> Bins:
    """Return the bins of two parts together, which a graph computes."""
    exponent = arithmetic.where(arithmetic.less(a.exponent, b.exponent), b.exponent, a.exponent)
    first, second = (_raised(arithmetic, part, exponent) for part in (a, b))
    sums = tuple(map(arithmetic.add, first, second))
    return Bins(exponent, (sums[0], sums[1], sums[2]), arithmetic.add(a.special, b.special))


def _raised(arithmetic: Any, part: Bins, exponent: Any) -> tuple[Any, ...]:
    """Return the sums of a part in the bins of an exponent that is not smaller."""
    moved = arithmetic.subtract(exponent, part.exponent)

    def at(distance: int, integer: Any, otherwise: Any) -> Any:
        return arithmetic.where(arithmetic.equal(moved, distance), integer, otherwise)

    first, second, third = part.sums
    return (
        at(0, first, 0),
        at(0, second, at(bins.WIDTH, first, 0)),
        at(0, third, at(bins.WIDTH, second, at(2 * bins.WIDTH, first, 0))),
    )


def _scaling(arithmetic: Any, exponent: Any) -> Any:
    """Do `bins.scaling_of_squares` in a graph."""
    small = arithmetic.less_equal(exponent, -2 * bins.UNSCALED)
    large = arithmetic.less(2 * bins.UNSCALED, exponent)
    return arithmetic.where(large, bins.SCALING, arithmetic.where(small, -bins.SCALING, 0))


PASSES = 3


def rounding_constants(count: int) -> tuple[float, ...]:
    """Return the constant of each pass for `count` addends of at most 4."""
    k = max(count - 1, 0).bit_length()
    # What a pass leaves is at most half an ulp of its constant, 2**(exponent - 53); the next constant has room for 2**k of
    # them with their signs, and two bits to spare.
    return tuple(1.5 * 2.0 ** (k + 4 + i * (k - 51)) for i in range(PASSES))


def partial_sums(primitives: Primitives, scaled: Any, constants: Sequence[Any]) -> list[Any]:
    """Return each pass's exact sum over the squares of one float64 array of numbers below 2."""
    rest = primitives.multiply(scaled, scaled)
    sums = []
    for constant in constants:
        rounded = (rest + constant) - constant
        sums.append(primitives.xp.sum(rounded))
        rest = rest - rounded
    return sums


def host_norm(primitives: Primitives, gradients: Sequence[Any]) -> float:
    """Return the Euclidean norm of all gradients together as a Python float.

    Args:
        primitives: the operations of the gradients' library in float64.
        gradients: arrays in the compute dtype without subnormals, as `Primitives.load` gives them.

    Returns:
        The norm; NaN if an element is NaN, else infinite if one is.
    """
    largest = largest_magnitude(primitives, gradients)
    scale = scaling(largest, sum(math.prod(g.shape) for g in gradients))
    if scale is None:
        return largest
    return norm_of_sums(scale, sums_of_parts(primitives, gradients, scale))


def largest_magnitude(primitives: Primitives, gradients: Sequence[Any]) -> float:
    """Return the largest |g| of all gradients; 0 if there is no element, NaN if an element is NaN."""
    xp = primitives.xp
    filled = [g for g in gradients if math.prod(g.shape)]
    # Libraries disagree on the maximum of a NaN and an infinity.
    if any(bool(xp.any(xp.isnan(g))) for g in filled):
        return math.nan
    return max((float(xp.max(xp.abs(g))) for g in filled), default=0.0)


class Scaling(NamedTuple):
    """What the addends are scaled by and rounded with.

    Attributes:
        factors: two powers of two whose product is `1 / unit`; one alone could be subnormal.
        constants: the constant of each pass.
    """

    factors: tuple[float, float]
    constants: tuple[float, ...]


def scaling(largest: float, count: int) -> Scaling | None:
    """Return the scaling for `count` elements of at most this magnitude; None where `largest` is the norm itself."""
    if largest == 0.0 or not math.isfinite(largest):
        return None
    exponent = math.frexp(largest)[1] - 1
    return Scaling((2.0 ** -(exponent // 2), 2.0 ** -(exponent - exponent // 2)), rounding_constants(count))


def sums_of_parts(primitives: Primitives, gradients: Sequence[Any], scale: Scaling) -> list[list[float]]:
    """Return each pass's exact sum over each gradient."""
    first, second = scale.factors
    wide = (primitives.xp.astype(g, primitives.dtype) for g in gradients if math.prod(g.shape))
    return [[float(part) for part in partial_sums(primitives, (g * first) * second, scale.constants)] for g in wide]


def norm_of_sums(scale: Scaling, sums: Sequence[Sequence[float]]) -> float:
    """Return the norm, given each pass's exact sum over each part of the elements."""
    first, second, third = (math.fsum(parts) for parts in zip(*sums, strict=True))
    root = HOST.sqrt(HOST.add(first, HOST.add(second, third)))
    return float(HOST.multiply(HOST.multiply(root, 1 / scale.factors[0]), 1 / scale.factors[1]))


def traced_norm(primitives: Primitives, wide: Sequence[Any], arithmetic_of: Callable[[Any], TracedArithmetic]) -> Any:
    """Return the norm of arrays whose elements are not known yet, by the same steps; where those branch, it chooses.

    Args:
        primitives: the operations of the arrays' library in float64.
        wide: gradients in float64 without subnormals, none of them empty; at least one.
        arithmetic_of: returns the arithmetic for scalars that are computed from the one that it is given.
    """
    xp = primitives.xp
    # Compilers may lose a NaN to an infinity in a maximum over many elements.
    has_nan = functools.reduce(xp.logical_or, [xp.any(xp.isnan(g)) for g in wide])
    largest = functools.reduce(xp.maximum, [xp.max(xp.abs(g)) for g in wide])
    arithmetic = arithmetic_of(largest)
    regular = (largest > 0.0) & (largest < math.inf)
    exponent = arithmetic.exponent(arithmetic.where(regular, largest, 1.0))
    half = exponent // 2
    first_factor, second_factor = map(arithmetic.power_of_two, (-half, half - exponent))
    # Compilers multiply the factors with each other first, if nothing stands between.
    scaled = [primitives.flush(g * first_factor) * second_factor for g in wide]
    constants = tuple(map(arithmetic.as_float64, rounding_constants(sum(math.prod(g.shape) for g in wide))))
    sums = [partial_sums(primitives, g, constants) for g in scaled]
    first, second, third = (functools.reduce(operator.add, parts) for parts in zip(*sums, strict=True))
    root = arithmetic.sqrt(arithmetic.add(first, arithmetic.add(second, third)))
    norm = functools.reduce(arithmetic.multiply, map(arithmetic.power_of_two, (half, exponent - half)), root)
    return arithmetic.where(has_nan, math.nan, arithmetic.where(regular, norm, largest))
