"""Comparing results: bits, never tolerances."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from portopt_conformance.words import FORMATS, Format, Words, canonical, distances, format_of, is_nan, to_words

BLOCKS = 16
"""Into how many blocks a result is cut, so that a wrong checksum tells where to look."""


@dataclass(frozen=True)
class Difference:
    """How results differ from what was expected.

    Attributes:
        elements: number of elements that differ.
        bits: number of bits that differ.
        exact: whether the numbers are exact; else they are lower bounds, since only checksums were at hand.
        text: what differs, where, and by how much.
    """

    elements: int
    bits: int
    exact: bool
    text: str


def size(results: Mapping[str, Words]) -> int:
    """Return the number of elements of all results."""
    return sum(array.size for array in results.values())


def checksums(results: Mapping[str, Words]) -> list[str]:
    """Return 64 bits, in hexadecimal, of the SHA-256 of each block of all results; NaNs count as equal."""
    blocks = [hashlib.sha256() for _ in range(BLOCKS)]
    for name, array in sorted(results.items()):
        words = canonical(array)
        for block, part in zip(blocks, np.array_split(words, BLOCKS), strict=True):
            block.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
            block.update(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
    return [block.hexdigest()[:16] for block in blocks]


def compare(
    actual: Mapping[str, Words], expected: Mapping[str, Words], inputs: Mapping[str, Words] | None = None
) -> Difference | None:
    """Return how `actual` differs from `expected`, or None if it does not."""
    lines: list[str] = []
    elements = bits = 0
    if set(actual) != set(expected):
        return Difference(1, 1, False, f"results {sorted(actual)} were given, but {sorted(expected)} were expected")
    for name, wanted in expected.items():
        found = actual[name]
        for what, left, right in (("shape", found.shape, wanted.shape), ("dtype", found.dtype, wanted.dtype)):
            if left != right:
                lines.append(f"{name} has {what} {left}, expected {right}")
                elements, bits = elements + max(wanted.size, 1), bits + max(wanted.size, 1)
                break
        else:
            form = format_of(wanted)
            left_words, right_words = canonical(found), canonical(wanted)
            where = np.nonzero(left_words != right_words)[0]
            if where.size:
                elements += int(where.size)
                bits += int(np.bitwise_count(left_words[where] ^ right_words[where]).sum())
                lines.append(_describe(name, form, left_words, right_words, where))
                lines += _inputs_at(int(where[0]), wanted.size, inputs or {})
    if not lines:
        return None
    return Difference(elements, bits, True, "\n".join(lines))


def _describe(name: str, form: Format, found: Words, wanted: Words, where: Words) -> str:
    first = int(where[0])
    return (
        f"{name}: {where.size} of {wanted.size} elements differ, worst {_worst(form, found[where], wanted[where])}; "
        f"first at {first}: expected {_show(wanted[first], form)}, got {_show(found[first], form)}"
    )


def _worst(form: Format, found: Words, wanted: Words) -> str:
    nan_only_on_one_side = is_nan(found, form) | is_nan(wanted, form)
    if nan_only_on_one_side.any():
        return f"a NaN against a number ({int(nan_only_on_one_side.sum())} times)"
    worst = int(distances(found, wanted, form).max())
    return f"{worst} ulp" if worst else "+0 against -0"


def _show(word: object, form: Format) -> str:
    bits = int(word)  # type: ignore[call-overload]  # a NumPy integer
    value = float_of(bits, form)
    return f"0x{bits:0{form.bits // 4}x} ({value!r})"


def float_of(word: int, form: Format) -> float:
    """Return the value of a word."""
    sign = -1.0 if word & form.sign else 1.0
    exponent, mantissa = (word & form.infinity) >> form.mantissa_bits, word & ((1 << form.mantissa_bits) - 1)
    if exponent == form.infinity >> form.mantissa_bits:
        return float("nan") if mantissa else sign * float("inf")
    implicit = 1 << form.mantissa_bits if exponent else 0
    return sign * float(implicit | mantissa) * 2.0 ** (max(exponent, 1) - form.bias - form.mantissa_bits)


def _inputs_at(index: int, count: int, inputs: Mapping[str, Words]) -> list[str]:
    lines = []
    for name, array in inputs.items():
        if array.size == count and array.dtype.name in FORMATS:
            lines.append(f"    {name} there: {_show(to_words(array)[index], format_of(array))}")
    return lines


def compare_checksums(found: list[str], wanted: list[str], results: Mapping[str, Words]) -> Difference:
    """Say in which blocks results differ, when what was expected is known by its checksums only."""
    differing = [i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b]
    first = differing[0]
    places = []
    for name, array in sorted(results.items()):
        ends = np.cumsum([0, *(part.size for part in np.array_split(np.empty(array.size, bool), BLOCKS))])
        places.append(f"{name}[{ends[first]}:{ends[first + 1]}]")
    text = f"{len(differing)} of {BLOCKS} blocks have another checksum; the first holds {', '.join(places)}"
    return Difference(len(differing), len(differing), False, text)
