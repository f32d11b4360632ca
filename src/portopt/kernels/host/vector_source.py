"""Loops over many elements as the source of a kernel: in vectors, with whole sums for which the bins are known.

Adding up costs most where it is not known how large the elements of a sum are: each is three integers, since what was added
must be moved to larger bins once a larger element comes. If all elements lie below the bins' exponent, two integers do, one of
which is a float64 number until the end: of elements rounded to `FIRST_BITS_OF_MANY` bits below that, and of what this leaves.
Such a sum cannot be moved, so it is *fixed*.

So the exponent is found from some of the elements, which are added in the other way; then come all others, a chunk at a time. A
chunk that does not fit is added in the other way too. If what is there is fixed, the sums are begun anew, and what came before
is added again at the end, from the results that are stored by then. So the bits are those of any other way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from portopt.kernels.key import KernelKey
from portopt.kernels.stages import Loop, Stages
from portopt.kernels.writer import Language
from portopt.program import SUMS

LANES = 16
"""Elements of a vector: as many float32 as the widest registers hold; LLVM takes several where they are shorter."""
FIRST_BITS_OF_MANY = 44
"""Bits of the first of the two integers of an element."""
CHUNK = LANES << (52 - FIRST_BITS_OF_MANY - 1)
"""Elements that are added before it is seen whether they fit: each first sum, a float64, takes as many as 51 bits can hold."""
MANY = 1 << 16
"""Elements of a parameter, or of a thread's part of it, from which on this is worth its while."""
PIECES = 8
"""Pieces of a loop, from each of which some elements are looked at."""
HEAD = 512
"""Elements of each piece that are."""

FIXED = 8
"""The bit of a sum's special elements that says that it must not be moved."""
WORDS = 3
"""Words that a loop keeps of each part: its first and last element, and up to which one it is to be added again, or -1.

After them comes the exponent of each of its sums.
"""

FUNCTIONS = f'''

def excess_of(x, bins, size, i):
    """Return 0 if numbers up to x fit into the bins, 4 if the bins cannot be moved, 1 if the numbers have to be looked at."""
    if not x < float64_inf:
        return 1
    if exponent_of(x) <= bins[i]:
        return 0
    return 4 if bins[4 * size + i] & {FIXED} else 1


def add_fixed(memory, count, largest, first_number, second_number, bins, size, i):
    """Add what was found of a chunk, of so many elements, and of which the largest is known."""
    found = found_sums(memory)
    sum_1 = found[0] - {LANES} * int64_of_bits(first_number)
    sum_2 = found[1] - count * int64_of_bits(second_number)
    bins[size + i] += sum_1 >> {FIRST_BITS_OF_MANY - 31}
    bins[2 * size + i] += ((sum_1 & {2 ** (FIRST_BITS_OF_MANY - 31) - 1}) << {63 - FIRST_BITS_OF_MANY}) + (sum_2 >> 32)
    bins[3 * size + i] += sum_2 & 0xFFFFFFFF
    if largest > 0.0:
        bins[4 * size + i] |= {FIXED}
'''
"""Functions that such loops call."""
RESERVED = (
    *("words", "piece", "excess", "excess_of", "add_fixed"),
    *(
        "begin_sum",
        "found_sums",
        "no_magnitudes",
        "larger_magnitudes",
        "largest_magnitude",
        "add_vector",
        "fetch_later",
    ),
    *("add_squares_of_vector", "use_widest_vectors", "magnitude_to_float32"),
)
"""Names that they need for themselves, beside those that end with `_of`."""

_OPERATIONS = {
    "add": "add_vectors({0}, {1})",
    "subtract": "subtract_vectors({0}, {1})",
    "multiply": "multiply_vectors({0}, {1})",
    "divide": "divide_vectors({0}, {1})",
    "negative": "negative_vector({0})",
    "absolute": "absolute_vector({0})",
    "sqrt": "sqrt_vector({0})",
    "less": "less_vectors({0}, {1})",
    "less_equal": "less_equal_vectors({0}, {1})",
    "equal": "equal_vectors({0}, {1})",
    "logical_and": "and_vectors({0}, {1})",
    "logical_or": "or_vectors({0}, {1})",
    "logical_not": "not_vector({0})",
    "where": "where_vectors({0}, {1}, {2})",
}


def in_vectors(language: Language) -> Language:
    """Return the language of a kernel's source with operations on vectors."""
    return dataclasses.replace(
        language,
        arrays=_OPERATIONS,
        element="load_vector({0}, i)",
        store="store_vector({0}, i, {1})",
        flush="flush_vector({0})",
    )


class Sum(NamedTuple):
    """A whole sum in a loop.

    Attributes:
        name: of the reduction.
        added: of what is added up.
        kept: of what is kept of it.
        is_squared: whether the squares are.
    """

    name: str
    added: str
    kept: str
    is_squared: bool


def can_be_many(stages: Stages, loop: Loop, key: KernelKey) -> bool:
    """Tell whether there is a loop in vectors: one with whole sums, of float32 numbers without any conversion."""
    ops = stages.program.ops
    if stages.axes is not None or not loop.reductions or key.flush == "where":
        return False
    if any(stages.is_uniform(ops[i].args[0]) for i in loop.reductions):
        return False
    if {key.compute_dtype, *dict(key.dtypes).values()} != {"float32"}:
        return False
    if not all(ops[i].name in SUMS and i not in stages.left for i in loop.reductions):
        return False
    return all(ops[i].name in ("load", "round") or ops[i].name in _OPERATIONS for i in loop.operations)


def chunks(
    arrays: Sequence[str],
    sums: Sequence[Sum],
    element: Sequence[str],
    stores: Sequence[str],
    again: Sequence[str],
    anew: Sequence[str],
) -> list[str]:
    """Return the lines of a loop in vectors, from `first` to `last`.

    Args:
        arrays: names of those that it reads.
        sums: what it adds up.
        element: the statements that compute what a vector of elements needs.
        stores: those that store its results.
        again: the lines that add up elements `start` to `stop` in the other way.
        anew: those that begin the sums anew, and note that all before `start` is to be added again.
    """
    added = dict.fromkeys(item.added for item in sums)
    before = [f"largest_{x}_of = no_magnitudes()" for x in added]
    fetches = [f"fetch_later({array}, i)" for array in dict.fromkeys(arrays)]
    body = [*fetches, *element, *stores, *(f"largest_{x}_of = larger_magnitudes(largest_{x}_of, {x})" for x in added)]
    after = [f"bound_{x}_of = float64(magnitude_to_float32(largest_magnitude(largest_{x}_of)))" for x in added]
    found, excess = [], []
    for item in sums:
        name, kept, bound = item.name, item.kept, f"bound_{item.added}_of"
        value = f"{bound} * {bound}" if item.is_squared else bound
        # Numbers so large that what is added to them is rounded to the units of the two integers.
        for number, bits in (("first", FIRST_BITS_OF_MANY), ("rest", 95)):
            before.append(f"{number}_{name}_of = 1.5 * float64_of_bits(({kept}[0] + {1023 - bits + 52}) << 52)")
        before.append(f"sum_{name}_of = begin_sum(first_{name}_of)")
        add = "add_squares_of_vector" if item.is_squared else "add_vector"
        body.append(f"{add}(sum_{name}_of, {item.added}, rest_{name}_of)")
        excess.append(f"excess_of({value}, {kept}, one, zero)")
        numbers = f"first_{name}_of, rest_{name}_of"
        found.append(f"add_fixed(sum_{name}_of, stop - start, {bound}, {numbers}, {kept}, one, zero)")
    return [
        "use_widest_vectors()",
        f"for start in range(first, last, {CHUNK}):",
        f"    stop = min(start + {CHUNK}, last)",
        *(f"    {line}" for line in before),
        f"    for i in range(start, stop, {LANES}):",
        *(f"        {line}" for line in body),
        *(f"    {line}" for line in after),
        f"    excess = {' | '.join(excess)}",
        "    if excess == 0:",
        *(f"        {line}" for line in found),
        "    elif excess == 1:",
        *(f"        {line}" for line in again),
        "    else:",
        *(f"        {line}" for line in [*anew, *again]),
    ]


def words_of_loops(stages: Stages) -> int:
    """Return how many words loops keep of each part, whatever the dtypes."""
    return sum(words(stages.loops[k]) for k in loops_with_words(stages))


def words(loop: Loop) -> int:
    """Return how many words a loop keeps of each part."""
    return WORDS + len(loop.reductions)


def loops_with_words(stages: Stages) -> list[int]:
    """Return the numbers of the loops that keep words of each part."""
    return [k for k, loop in enumerate(stages.loops) if loop.reductions and stages.axes is None]
