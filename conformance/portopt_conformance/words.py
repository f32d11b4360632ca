"""Raw bit patterns: special and random words, and what is said about two words that differ.

Inputs are words rather than "floats", so that subnormals, both zeros and every NaN occur on libraries that flush them. The
random words come from SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), written out
here because committed vectors need a generator that never changes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[Any]]
"""An array of floats, or of the unsigned integers with their bits."""


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: a sign bit, `exponent_bits`, `mantissa_bits`."""

    name: str
    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def unsigned(self) -> np.dtype[Any]:
        """The NumPy dtype of the words."""
        return np.dtype(f"uint{self.bits}")

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def quiet_nan(self) -> int:
        return self.infinity | 1 << (self.mantissa_bits - 1)

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def one(self) -> int:
        return self.bias << self.mantissa_bits


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (Format("float16", 5, 10), Format("bfloat16", 8, 7), Format("float32", 8, 23), Format("float64", 11, 52))
}


def missing_dtype(name: str) -> str | None:
    """Return why NumPy arrays of a dtype cannot be made here, or None if they can."""
    if name == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        return "NumPy has no bfloat16 without ml_dtypes: pip install ml_dtypes"
    return None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a format."""
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def format_of(array: Words) -> Format:
    """Return the format of a float array; raise `TypeError` for another kind of array."""
    if array.dtype.name not in FORMATS:
        raise TypeError(f"an array of {', '.join(FORMATS)} was expected, but it has dtype {array.dtype}")
    return FORMATS[array.dtype.name]


def to_words(array: Words) -> Words:
    """Return the bits of a float array, in one dimension."""
    return np.ascontiguousarray(array).reshape(-1).view(format_of(array).unsigned)


def to_floats(words: Words, dtype: str) -> Words:
    """Return the float array that has these words."""
    return np.ascontiguousarray(words).view(numpy_dtype(dtype))


def is_nan(words: Words, form: Format) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell for each word whether it is a NaN."""
    return np.asarray((words & np.array(form.sign - 1, words.dtype)) > np.array(form.infinity, words.dtype))


def canonical(array: Words) -> Words:
    """Return the words of a float array with every NaN replaced by one: two NaNs count as equal."""
    form = format_of(array)
    words = to_words(array)
    return np.where(is_nan(words, form), np.array(form.quiet_nan, words.dtype), words)


def distances(a: Words, b: Words, form: Format) -> Words:
    """Return how many values lie between those of words, uint64: neighbours have a distance of 1, both zeros none."""
    wide = [words.astype(np.uint64) for words in (a, b)]
    first, second = (words & np.uint64(form.sign - 1) for words in wide)
    apart = (wide[0] ^ wide[1]) & np.uint64(form.sign)
    return np.where(apart, first + second, np.maximum(first, second) - np.minimum(first, second))


@functools.cache
def special_words(dtype: str) -> Words:
    """Return the words at which implementations part: zeros, subnormals, ends of ranges, ones, infinities, NaNs."""
    form = FORMATS[dtype]
    smallest, one, top = 1 << form.mantissa_bits, form.one, form.infinity
    half_ulp_below_two = one + smallest - 1
    third = one - 2 * smallest + ((1 << form.mantissa_bits) * 2 + 3) // 6  # about 1/3, every second bit set
    positive = [
        0, 1, 2, smallest // 2, smallest - 1, smallest, smallest + 1, 2 * smallest,
        one // 2, third, one - 1, one, one + 1, one + smallest // 2, half_ulp_below_two, one + smallest, one + 3 * smallest,
        one + (top - one) // 2, top - smallest, top - 1, top, top + 1, form.quiet_nan,
    ]  # fmt: skip
    words = np.array(positive, np.uint64).astype(form.unsigned)
    return np.concatenate([words, words | np.array(form.sign, form.unsigned)])


def crossed(dtype: str, count: int, key: str) -> Words:
    """Return `count` special words in random order: arrays with different keys meet in random combinations."""
    specials = special_words(dtype)
    chosen: Words = specials[_splitmix64(key, count) % np.uint64(specials.size)]
    return chosen


def _splitmix64(key: str, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def random_words(dtype: str, count: int, key: str) -> Words:
    """Return random words, every bit pattern equally likely."""
    form = FORMATS[dtype]
    return (_splitmix64(key, count) >> np.uint64(64 - form.bits)).astype(form.unsigned)


def random_between(dtype: str, low: int, high: int, count: int, key: str) -> Words:
    """Return random words of magnitude in [2**low, 2**(high + 1)), narrowed to the dtype's normal numbers, of either sign."""
    form = FORMATS[dtype]
    low, high = (min(max(exponent, 1 - form.bias), form.bias) for exponent in (low, high))
    exponents = _splitmix64(f"{key}/exponent", count) % np.uint64(high - low + 1)
    biased = exponents + np.uint64(low + form.bias)
    rest = _splitmix64(key, count)
    mantissa = rest & np.uint64((1 << form.mantissa_bits) - 1)
    sign = (rest >> np.uint64(63)) << np.uint64(form.bits - 1)
    words: Words = (sign | biased << np.uint64(form.mantissa_bits) | mantissa).astype(form.unsigned)
    return words


def without_nan(words: Words, dtype: str) -> Words:
    """Replace each NaN by the infinity of its sign."""
    form = FORMATS[dtype]
    return np.where(is_nan(words, form), words & np.array(form.sign | form.infinity, words.dtype), words)


def finite(words: Words, dtype: str) -> Words:
    """Replace each NaN and infinity by a finite number of its sign: the highest exponent bit is cleared."""
    form = FORMATS[dtype]
    infinity = np.array(form.infinity, words.dtype)
    highest = np.array(1 << (form.bits - 2), words.dtype)
    return np.where(words & infinity == infinity, words & ~highest, words)


def magnitude(words: Words, dtype: str) -> Words:
    """Clear the sign bits."""
    unsigned: Words = words & np.array(FORMATS[dtype].sign - 1, words.dtype)
    return unsigned


@functools.cache
def products_near_smallest_normal(dtype: str, count: int) -> tuple[Words, Words]:
    """Return operands whose exact product is just below the smallest normal number.

    Half of the products lie in 2**emin * [1 - 2**-p, 1 - 2**-(p + 1)), p the precision: rounded with the precision of a
    subnormal they would be the smallest normal number, with full precision they are below it, so the contract makes them
    zero. The others lie next to that gap, on both sides.
    """
    form = FORMATS[dtype]
    precision = form.mantissa_bits + 1
    product = 1 << (2 * precision - 1)
    # In units in which 2**emin is `product`: the gap's two ends.
    low, high = product - (1 << (precision - 1)), product - (1 << (precision - 2))
    targets = {
        "inside": (low, high),
        "below": (low - (1 << precision), low),
        "above": (high, product + (1 << precision)),
    }
    left, right = [], []
    for name, wanted in (("inside", count // 2), ("below", count // 4), ("above", count - count // 2 - count // 4)):
        first, last = targets[name]
        found = 0
        for block in range(1000):
            words = _splitmix64(f"gap/{dtype}/{name}/{block}", 4096)
            for word in map(int, words):
                a = (1 << form.mantissa_bits) | (word & ((1 << form.mantissa_bits) - 1))
                b = (last - 1) // a
                if not (1 << form.mantissa_bits <= b < 1 << precision and a * b >= first):
                    continue
                # a 2**i and b 2**j with i + j such that `product` stands for 2**emin.
                exponent = 1 - form.bias - (2 * precision - 1)
                split = -(form.bias // 2) - form.mantissa_bits + (word >> 56) % 16
                left.append(_word(form, a, split, word >> 62 & 1))
                right.append(_word(form, b, exponent - split, word >> 63 & 1))
                found += 1
                if found == wanted:
                    break
            if found == wanted:
                break
    return np.array(left, np.uint64).astype(form.unsigned), np.array(right, np.uint64).astype(form.unsigned)


def _word(form: Format, significand: int, exponent: int, sign: int) -> int:
    """Return the word of (-1)**sign * significand * 2**exponent, the significand with all its bits."""
    biased = exponent + form.mantissa_bits + form.bias
    if not 0 < biased < (1 << form.exponent_bits) - 1:
        raise ValueError(f"2**{exponent} times {significand} is no normal {form.name} number")
    return sign << (form.bits - 1) | biased << form.mantissa_bits | significand & ((1 << form.mantissa_bits) - 1)
