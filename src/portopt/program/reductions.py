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
from portopt.program import bins
from portopt.program.bins import Bins
from portopt.program.ir import Dim
from portopt.program.primitives import Primitives

GRADIENT_NORM = "gradient_norm"
"""The name of the total that clipping asks for: the norm of all gradients."""

TOTALS_GIVEN = "totals"
"""The name under which a step is given totals that are known, by their names."""

Axes = tuple[int, ...] | None

# From the lowest exponent of bins to the highest, in steps of which each is one factor that a float64 can be.
_STEPS = (512, 512, 512, 256, 128, 64, 32)
_WIDTH_BITS = bins.WIDTH.bit_length() - 1


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

    def of(self, dims: tuple[Dim, ...] | None) -> Reductions:
        """Return the reductions of an array that has these axes of the parameter, as `Op.dims` says it."""
        return self

    def sum(self, x: Any, axes: Axes) -> Any:
        if axes is None:
            return self.total("sum", x)
        with self._float64():
            return self._narrow(self.wide_sum(x, axes))

    def mean(self, x: Any, axes: Axes) -> Any:
        if axes is None:
            return self._divided_whole(self.sum(x, None), math.prod(x.shape))
        with self._float64():
            return self._narrow(self._divided(self.wide_sum(x, axes), math.prod(x.shape[axis] for axis in axes)))

    def norm(self, x: Any, axes: Axes) -> Any:
        if axes is None:
            return self.total("norm", x)
        with self._float64():
            if _is_empty(x):
                return self._narrow(self.wide_sum(x, axes))
            split, scaling, squares = self._along(x, axes, squared=True)
            return self._narrow(self._finished(split, self._wide.sqrt(squares) * scaling.factor))

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

    def partial(self, name: str, *xs: Any) -> Any:
        """Return what a total over more than these arrays needs of them.

        Args:
            name: `"sum"`, `"norm"`, `"max"` or `"min"`.
            xs: arrays, each in its compute dtype.

        Returns:
            `Bins` for a sum or a norm (of the squares); else the extreme value.
        """
        if name in ("max", "min"):
            return self._extreme_of(name, [getattr(self, name)(x, None) for x in xs])
        squared = name == "norm"
        laid_out = [self._laid_out(x, None) for x in xs if not _is_empty(x)]
        if not laid_out:
            return bins.NO_SQUARES if squared else bins.NONE
        xp = self._xp
        with self._float64():
            split = [self._split(x, axes, squared=squared) for x, axes in laid_out]
            largest = functools.reduce(xp.maximum, [xp.reshape(part.largest, ()) for part in split])
            scaling = self._scaling(largest, squared=squared)
            parts = [
                self._binned(part.finite, axes, scaling, squared=squared)
                for part, (_, axes) in zip(split, laid_out, strict=True)
            ]
            sums = [functools.reduce(operator.add, [xp.reshape(part[i], ()) for part in parts]) for i in range(3)]
            special = functools.reduce(operator.add, [xp.reshape(part.special, ()) for part in split])
            exponent, *sums = (self._whole_or_narrow(n, None, int) for n in (scaling.exponent, *sums))
            return Bins(exponent, (sums[0], sums[1], sums[2]), self._whole_or_narrow(special, None, float))

    def total(self, name: str, *xs: Any) -> Any:
        """Return a reduction over all elements of several arrays, each in its compute dtype."""
        if name == "norm" and len(xs) == 1 and (found := self._squares(xs[0])) is not None:
            return self.combine(name, [found])
        return self.combine(name, [self.partial(name, *xs)])

    def combine(self, name: str, parts: Sequence[Any]) -> Any:
        """Return the total, given the parts: the same for any split of the elements."""
        if name in ("max", "min"):
            return self._extreme_of(name, parts)
        root = name == "norm"
        witness = next((part.special for part in parts if not isinstance(part.special, float)), None)
        if witness is None:
            return of_numbers(name, parts)
        arithmetic = self._arithmetic_of(witness)
        with self._float64():
            whole = functools.reduce(functools.partial(_joined, arithmetic), parts)
            value = bins.significand(arithmetic, whole)
            half = _scaling_of_squares(arithmetic, whole.exponent) if root else 0
            unit = arithmetic.subtract(arithmetic.subtract(whole.exponent, half), arithmetic.add(half, 31))
            value = arithmetic.multiply(value, arithmetic.power_of_two(unit))
            if root:
                value = arithmetic.multiply(arithmetic.sqrt(value), arithmetic.power_of_two(half))
            return arithmetic.where(arithmetic.equal(whole.special, 0.0), value, whole.special)

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

    def wide_sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Return the sum along axes in float64."""
        if _is_empty(x):
            return self._xp.astype(self._xp.sum(x, axis=axes, keepdims=True), self._wide.dtype)
        split, _, total = self._along(x, axes, squared=False)
        return self._finished(split, total)

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

    def _along(self, x: Any, axes: tuple[int, ...], *, squared: bool) -> tuple[_Split, _Scaling, Any]:
        """Return what the sums along axes, or those of squares, are made from, and what the finite elements add up to."""
        split = self._split(x, axes, squared=squared)
        scaling = self._scaling(split.largest, squared=squared)
        sums = self._binned(split.finite, axes, scaling, squared=squared)
        return split, scaling, self._significand(sums) * scaling.unit

    def _split(self, x: Any, axes: tuple[int, ...], *, squared: bool) -> _Split:
        xp, where = self._xp, self._wide.where
        x = xp.astype(x, self._wide.dtype)
        finite, zeros = xp.abs(x) < math.inf, xp.zeros_like(x)
        special = xp.sum(where(finite, zeros, xp.abs(x) if squared else x), axis=axes, keepdims=True)
        x = where(finite, x, zeros)
        return _Split(x, xp.max(xp.abs(x), axis=axes, keepdims=True), special)

    def _squares(self, x: Any) -> Bins | None:
        """Return the bins of the squares of all elements if the library finds them at once: to be combined with no others."""
        return None if self._primitives.squares is None else self._primitives.squares(x)

    def _scaling(self, largest: Any, *, squared: bool) -> _Scaling:
        """Return the bins of sums, or of sums of squares, given the largest magnitudes."""
        xp, where = self._xp, self._wide.where
        nothing = xp.zeros_like(largest)
        exponent = xp.astype(nothing, xp.int64) + bins.LOWEST
        one = nothing + 1.0
        scale, factor = one, one
        if squared:
            large, small = largest >= 2.0**bins.UNSCALED, largest < 2.0**-bins.UNSCALED
            up, down, twice = nothing + 2.0**bins.SCALING, nothing + 2.0**-bins.SCALING, 2 * bins.SCALING
            scale = where(large, down, where(small, up, one))
            factor = where(large, up, where(small, down, one))
            exponent = xp.where(large, exponent + twice, xp.where(small, exponent - twice, exponent))
            largest = largest * scale
            largest = largest * largest
        exponent, unit, inverse = self._bins_above(largest, exponent)
        return _Scaling(exponent, unit, inverse, scale, factor)

    def _bins_above(self, largest: Any, lowest: Any) -> tuple[Any, Any, Any]:
        """Return exponents, units and inverse units of the bins of numbers up to these, given what counts as the lowest."""
        leading_exponent, power_of_two = self._wide.leading_exponent, self._wide.power_of_two
        xp, where = self._xp, self._wide.where
        if leading_exponent is not None and power_of_two is not None:
            least = leading_exponent(largest) + 1
            steps = xp.bitwise_right_shift(least + (bins.WIDTH - 1 - bins.OFFSET), _WIDTH_BITS)
            above = xp.maximum(steps * bins.WIDTH + bins.OFFSET, bins.LOWEST)
            return lowest + (above - bins.LOWEST), power_of_two(above - 31), power_of_two(31 - above)
        exponent, nothing = lowest, xp.zeros_like(largest)
        unit, inverse = nothing + 2.0 ** (bins.LOWEST - 31), nothing + 2.0 ** (31 - bins.LOWEST)
        for step in _STEPS:
            below = unit * 2.0 ** (step - 1) <= largest
            exponent = xp.where(below, exponent + step, exponent)
            unit = where(below, unit * 2.0**step, unit)
            inverse = where(below, inverse * 2.0**-step, inverse)
        return exponent, unit, inverse

    def _binned(self, x: Any, axes: tuple[int, ...], scaling: _Scaling, *, squared: bool) -> list[Any]:
        """Return the three sums of integers along axes, of finite elements or of their squares."""
        xp = self._xp
        if squared:
            x = x * scaling.scale
            x = x * x
        rest, sums = x * scaling.inverse, []
        for _ in range(3):
            nearest = xp.round(rest)
            sums.append(xp.sum(xp.astype(nearest, xp.int64), axis=axes, keepdims=True))
            rest = (rest - nearest) * 2.0**bins.WIDTH
        return sums

    def _significand(self, sums: Sequence[Any]) -> Any:
        """Do `bins.significand` on arrays."""
        xp, (first, second, third) = self._xp, sums
        half = 2 ** (bins.WIDTH - 1)
        # Not every library has operations on bits.
        has_bits = self._wide.leading_exponent is not None
        carry = (third + half) >> bins.WIDTH if has_bits else (third + half) // 2**bins.WIDTH
        third, second = third - carry * 2**bins.WIDTH, second + carry
        carry = (second + half) >> bins.WIDTH if has_bits else (second + half) // 2**bins.WIDTH
        second, first = second - carry * 2**bins.WIDTH, first + carry
        low, middle, high = (xp.astype(integers, self._wide.dtype) for integers in (third, second, first))
        # By operations of the contract: TensorFlow's graphs add three numbers in another order.
        return self._wide.add(self._wide.add(low * 2.0**-64, middle * 2.0**-32), high)

    def _finished(self, split: _Split, value: Any) -> Any:
        return self._wide.where(split.special == 0.0, value, split.special)

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
        witness = next((part for part in parts if not isinstance(part, float)), None)
        return _extreme_of(HOST if witness is None else self._arithmetic_of(witness), name, parts)


def of_numbers(name: str, parts: Sequence[Any]) -> float:
    """Return the total, given the parts in Python numbers; see `Reductions.combine`."""
    if name in ("max", "min"):
        return float(_extreme_of(HOST, name, parts))
    whole = bins.combined([bins.NO_SQUARES if name == "norm" else bins.NONE, *parts])
    return bins.root_of(whole) if name == "norm" else bins.sum_of(whole)


def _extreme_of(arithmetic: Any, name: str, parts: Sequence[Any]) -> Any:
    """Return the largest or smallest of values that are NaN or not -0."""
    extreme: Any = -math.inf if name == "max" else math.inf
    for part in parts:
        further = arithmetic.less(extreme, part) if name == "max" else arithmetic.less(part, extreme)
        # A NaN is not less, and stays.
        taken = arithmetic.where(arithmetic.equal(part, part), further, True)
        extreme = arithmetic.where(taken, part, extreme)
    return extreme


class _Split(NamedTuple):
    """An array in float64, to be reduced.

    Attributes:
        finite: the elements, zeros in place of infinities and NaN.
        largest: the largest magnitudes of those along axes.
        special: the sums of the infinities and NaN along axes.
    """

    finite: Any
    largest: Any
    special: Any


class _Scaling(NamedTuple):
    """Which bins sums are in.

    Attributes:
        exponent: as in `Bins`, int64.
        unit: what 1 in the first bin stands for; of squares, of scaled ones.
        inverse: its reciprocal.
        scale: what elements are multiplied by before they are squared.
        factor: its reciprocal.
    """

    exponent: Any
    unit: Any
    inverse: Any
    scale: Any
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


def _scaling_of_squares(arithmetic: Any, exponent: Any) -> Any:
    """Do `bins.scaling_of_squares` in a graph."""
    small = arithmetic.less_equal(exponent, -2 * bins.UNSCALED)
    large = arithmetic.less(2 * bins.UNSCALED, exponent)
    return arithmetic.where(large, bins.SCALING, arithmetic.where(small, -bins.SCALING, 0))
