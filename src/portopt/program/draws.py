"""Random numbers: Philox4x32-10 in int64 arithmetic, which any array library has, and what is drawn with it.

Philox (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011) makes four random words of 32 bits of a
counter of four words and a key of two. A counter is a place and a time, so that a number depends on nothing else: not on what
was drawn before, on threads, on shards or on the library. It is

1. the low 32 bits of the element's number, row by row in the whole parameter;
2. the element's bits 32 to 47, and in the upper 16 bits the number of the draw among those of the rule;
3. the parameter's number in its tree;
4. the step.

The key is the seed: its low 32 bits, then the others. With the words `w0` to `w3`, `k = w0 2**21 + floor(w1 / 2**11)` and `j` of
`w2` and `w3` likewise, 53 bits each:

- uniform: `k 2**-53`, rounded to the compute dtype; the largest number below 1 in place of what would round to 1;
- normal: `sqrt(-2 log((k + 1) 2**-53)) cos(2 pi j 2**-53)` in float64, by the functions of `elementary.py`, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from portopt.arithmetic import elementary
from portopt.program.array_arithmetic import ArrayArithmetic, rounded_to_compute
from portopt.program.primitives import Primitives

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
MOST_UNIFORM = {"float32": 2**53 - 2**29, "float64": 2**53 - 1}
"""The largest number of units of 2**-53 that a compute dtype does not round to 1."""
_WORD = 2**32 - 1

KEY = "key"
"""The name of the scalar of the state from which random numbers come, a whole number in [0, 2**53)."""
SEED = "seed"
"""The name of the hyperparameter that is its first value."""

MOST_ELEMENTS = 2**48
"""How many elements a parameter can have whose draws differ from each other."""


@dataclass(frozen=True)
class Place:
    """Where elements are that something is drawn for.

    Attributes:
        number: the parameter's number in its tree.
        shape: of the elements at hand.
        offset: where the first of them is in the whole parameter.
        whole: the shape of the whole parameter.
        is_part: whether other processes hold other elements.
    """

    is_part: ClassVar[bool] = False

    number: int
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    whole: tuple[int, ...]

    @classmethod
    def of(cls, number: int, shape: Sequence[int]) -> Place:
        """Return the place of a whole parameter."""
        shape = tuple(shape)
        return cls(number, shape, (0,) * len(shape), shape)


def draw(primitives: Primitives, distribution: str, key: Any, step: Any, stream: int, place: Place, like: Any) -> Any:
    """Return random numbers in the compute dtype.

    Args:
        primitives: the operations of the arrays' library in the compute dtype.
        distribution: one of `DISTRIBUTIONS`.
        key: an integer in [0, 2**64), or an int64 array of no axes.
        step: an integer, or an int64 array of no axes.
        stream: the number of the draw among those of the rule, below 2**16.
        place: of the elements.
        like: an array on whose device the numbers are made.
    """
    with primitives.float64():
        words = words_at(primitives, key, step, stream, place, like)
        return DISTRIBUTIONS[distribution](primitives, words)


def words_at(primitives: Primitives, key: Any, step: Any, stream: int, place: Place, like: Any) -> list[Any]:
    """Return the four words of each element, int64 arrays; arguments are those of `draw`. Must be called with float64 enabled."""
    xp = primitives.xp
    element = _element_numbers(primitives, place, like)
    counter = (element & _WORD, _shifted(xp, element, 32) | (stream << 16), place.number, step & _WORD)
    return philox(xp, counter, (key & _WORD, _shifted(xp, key, 32) & _WORD))


def philox(xp: Any, counter: Sequence[Any], key: Sequence[Any]) -> list[Any]:
    """Return the four words that Philox4x32-10 makes.

    Args:
        xp: the array namespace.
        counter: four words, int64 arrays or Python numbers; one of them an array of the shape of the results.
        key: two words, of no axes or of that shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_number in range(ROUNDS):
        if round_number:
            k0, k1 = (k0 + KEY_STEPS[0]) & _WORD, (k1 + KEY_STEPS[1]) & _WORD
        high0, low0 = _product(xp, c0, MULTIPLIERS[0])
        high1, low1 = _product(xp, c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return [c0, c1, c2, c3]


def _product(xp: Any, x: Any, multiplier: int) -> tuple[Any, Any]:
    """Return the upper and the lower word of a word times a multiplier, halved so that nothing has more than 63 bits."""
    lower = x * (multiplier & 0xFFFF)
    upper = x * (multiplier >> 16) + _shifted(xp, lower, 16)
    return _shifted(xp, upper, 16), (upper & 0xFFFF) * 2**16 + (lower & 0xFFFF)


def _shifted(xp: Any, x: Any, bits: int) -> Any:
    return x >> bits if isinstance(x, int) else xp.bitwise_right_shift(x, bits)


def _element_numbers(primitives: Primitives, place: Place, like: Any) -> Any:
    xp = primitives.xp
    if place.shape == place.whole:
        return xp.reshape(primitives.arange(math.prod(place.shape), like), place.shape)
    number, stride, axes = 0, 1, len(place.shape)
    for axis in reversed(range(axes)):
        along = primitives.arange(place.shape[axis], like) + place.offset[axis]
        shape = tuple(place.shape[axis] if i == axis else 1 for i in range(axes))
        number = number + xp.reshape(along * stride, shape)
        stride *= place.whole[axis]
    return number


def _uniform(primitives: Primitives, words: Sequence[Any]) -> Any:
    wide = primitives.wide
    most = MOST_UNIFORM["float64" if wide is primitives else "float32"]
    bits = _bits(wide.xp, *words[:2])
    bits = wide.xp.where(bits < most, bits, wide.xp.full_like(bits, most))
    return rounded_to_compute(primitives, _fraction(wide, bits))


def _normal(primitives: Primitives, words: Sequence[Any]) -> Any:
    wide = primitives.wide
    length, angle = _fraction(wide, _bits(wide.xp, *words[:2]) + 1), _fraction(wide, _bits(wide.xp, *words[2:]))
    ar = ArrayArithmetic(wide, length)
    radius = ar.sqrt(ar.multiply(elementary.log(ar, length), -2.0))
    return rounded_to_compute(primitives, ar.multiply(radius, elementary.cos(ar, ar.multiply(angle, 2 * math.pi))))


def _bits(xp: Any, upper: Any, lower: Any) -> Any:
    return upper * 2**21 + _shifted(xp, lower, 11)


def _fraction(wide: Primitives, bits: Any) -> Any:
    return wide.xp.astype(bits, wide.dtype) * 2.0**-53


DISTRIBUTIONS: Mapping[str, Callable[[Primitives, Sequence[Any]], Any]] = {"normal": _normal, "uniform": _uniform}
"""What can be drawn: the function that makes numbers of four words for each, by name."""
