"""Source of the functions with which generated kernels reduce: what each reduction keeps, adds, combines and gives.

The steps of a sum are those of `portopt.program.bins`. What is kept of a reduction with `size` results is an array of int64:
for sums the exponents T of all results, then all first sums, all second and all third ones, and what special elements there
are; for others one number a result. A loop puts addends into a buffer of `BLOCK` elements, which is added to one result, or,
along an axis that results have, to a row of them.

To round to a multiple of a power of two is to add, and subtract, 1.5 * 2**52 times that power: while that number is added,
the multiple stands in the bits of the sum, so its integer needs no conversion.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from portopt.kernels.stages import Stages
from portopt.program import SUMS, bins

BLOCK = 512
"""Elements of a buffer: so few that those of some reductions fit into a processor's first cache."""
AHEAD = 4096
"""Elements between one that is used and one that is fetched: a processor's own fetching ends at each page of 4 KiB."""
LINES = 4
"""Lines whose elements are added to the sums of their columns together: these are in memory, and so are read less often."""

FIRST_BITS = 46
"""Bits of the first of the two integers of a square whose bins are known."""
SQUARES_AT_ONCE = 32
"""Sums to which squares of float32 numbers are added in turns."""

_MOST = bins.HIGHEST - 2 * bins.WIDTH
"""The largest exponent of bins that has a finite number, 1.5 * 2**(52 + T - 31), to which to add what they are of."""

_COMMON = f'''

def exponent_of(x):
    """Return the smallest exponent of bins above a finite number that is not negative."""
    steps = ((int64_of_bits(x) >> 52) - {1022 + bins.OFFSET - (bins.WIDTH - 1)}) // {bins.WIDTH}
    return max(steps * {bins.WIDTH} + {bins.OFFSET}, {bins.LOWEST})


def raise_bins(bins, size, i, exponent):
    """Move what was added to the bins of a larger exponent."""
    compile_once()
    if exponent - bins[i] >= {3 * bins.WIDTH}:
        bins[i] = exponent
        bins[size + i] = 0
        bins[2 * size + i] = 0
        bins[3 * size + i] = 0
    while bins[i] < exponent:
        bins[i] += {bins.WIDTH}
        bins[3 * size + i] = bins[2 * size + i]
        bins[2 * size + i] = bins[size + i]
        bins[size + i] = 0


def note_special(x, bins, size, i, is_squared):
    """Note an element that is infinite or NaN."""
    compile_once()
    bins[4 * size + i] |= 1 if x != x else 2 if x > 0.0 or is_squared else 4


def clear_bins(bins, size, lowest):
    """Begin sums."""
    compile_once()
    for i in range(size):
        bins[i] = lowest
    for i in range(size, 5 * size):
        bins[i] = 0


def combine_bins(bins, size, parts, words):
    """Add the other parts of the same sums, each so many words after the one before."""
    compile_once()
    for j in range(1, parts):
        others = part_of_int64(bins, words * j)
        for i in range(size):
            exponent = max(bins[i], others[i])
            raise_bins(bins, size, i, exponent)
            raise_bins(others, size, i, exponent)
            for k in range(1, 4):
                bins[k * size + i] += others[k * size + i]
            bins[4 * size + i] |= others[4 * size + i]


def sum_of(bins, size, i, shift):
    """Return a sum, times 2**-shift."""
    compile_once()
    special = bins[4 * size + i] & 7
    if special != 0:
        return float64_nan if special & 1 or special == 6 else float64_inf if special == 2 else float64_minus_inf
    third = bins[3 * size + i]
    carry = (third + {2 ** (bins.WIDTH - 1)}) >> {bins.WIDTH}
    third -= carry << {bins.WIDTH}
    second = bins[2 * size + i] + carry
    carry = (second + {2 ** (bins.WIDTH - 1)}) >> {bins.WIDTH}
    second -= carry << {bins.WIDTH}
    small = float(third) * 2.0**-64 + float(second) * 2.0**-32
    return (small + float(bins[size + i] + carry)) * float64_of_bits((1023 - 31 + bins[i] - shift) << 52)
'''

_ROOT = f'''

def root_of(bins, size, i):
    """Return the root of a sum of squares."""
    half = {bins.SCALING} * (int(bins[i] > {2 * bins.UNSCALED}) - int(bins[i] <= -{2 * bins.UNSCALED}))
    return sqrt(sum_of(bins, size, i, 2 * half)) * float64_of_bits((1023 + half) << 52)
'''

_ADD = '''

def add{suffix}(buffer, count, largest, bins, size, i{ahead}):
    """Add {what} of a buffer to one sum, given the largest magnitude."""
    compile_once()
    use_widest_vectors()
    x = float64(magnitude_to_{real}(largest))
    if not x < float64_inf:
        for j in range(count):
            if not abs(buffer[j]) < float64_inf:
                note_special(buffer[j], bins, size, i, {is_squared})
        return
{scaling}    exponent = exponent_of({value}){shift}
    if exponent > bins[i]:
        raise_bins(bins, size, i, exponent)
    if exponent + {all_bins} <= bins[i]:
        return
{adding}'''

_IN_LOOP = """    multiple_1 = 1.5 * float64_of_bits((1044 + bins[i] - shift) << 52)
    multiple_2 = multiple_1 * 2.0**-32
    multiple_3 = multiple_1 * 2.0**-64
    sum_1 = 0
    sum_2 = 0
    sum_3 = 0
    for j in range(count):
        x = buffer[j] * factor
        rest = {value}
        sum_1 += int64_of_bits(rest + multiple_1)
        rest = rest - ((rest + multiple_1) - multiple_1)
        sum_2 += int64_of_bits(rest + multiple_2)
        rest = rest - ((rest + multiple_2) - multiple_2)
        sum_3 += int64_of_bits(rest + multiple_3)
    bins[size + i] += sum_1 - count * int64_of_bits(multiple_1)
    bins[2 * size + i] += sum_2 - count * int64_of_bits(multiple_2)
    bins[3 * size + i] += sum_3 - count * int64_of_bits(multiple_3)
"""

_ADD_ROW = '''

def add_row{suffix}(buffer, count, bins, size, first):
    """Add {what} of a buffer, one to each of a row of sums."""
    compile_once()
    use_widest_vectors()
    exponent = bins[first]
    differs = 0
    for j in range(count):
        differs |= bins[first + j] ^ exponent
    largest = integer_{real}(0)
    for j in range(count):
        largest = larger_{real}(largest, magnitude_{real}(buffer[j]))
    x = float64(magnitude_to_{real}(largest))
    if differs == 0 and x < float64_inf and exponent_of({value}) <= exponent <= {most}:
        # Mostly a row has one exponent and the elements fit.
        multiple_1 = 1.5 * float64_of_bits((1044 + exponent) << 52)
        multiple_2 = multiple_1 * 2.0**-32
        multiple_3 = multiple_1 * 2.0**-64
        bits_1 = int64_of_bits(multiple_1)
        bits_2 = int64_of_bits(multiple_2)
        bits_3 = int64_of_bits(multiple_3)
        for j in range(count):
            x = float64(buffer[j])
            rest = {value}
            bins[size + first + j] += int64_of_bits(rest + multiple_1) - bits_1
            rest = rest - ((rest + multiple_1) - multiple_1)
            bins[2 * size + first + j] += int64_of_bits(rest + multiple_2) - bits_2
            rest = rest - ((rest + multiple_2) - multiple_2)
            bins[3 * size + first + j] += int64_of_bits(rest + multiple_3) - bits_3
        return
    outside = 0
    for j in range(count):
        x = float64(buffer[j])
        scale = float64_of_bits((1054 - bins[first + j]) << 52)
        outside += 0 if abs({value} * scale) < 2147483648.0 else 1
    if outside != 0:
        for j in range(count):
            x = float64(buffer[j])
            if not abs(x) < float64_inf:
                note_special(buffer[j], bins, size, first + j, {is_squared})
            else:
                raise_bins(bins, size, first + j, exponent_of(abs({value})))
    for j in range(count):
        x = float64(buffer[j])
        rest = {value} * float64_of_bits((1054 - bins[first + j]) << 52)
        bins[size + first + j] += int64_of_bits(rest + 6755399441055744.0) - 4843621399236968448
        rest = (rest - ((rest + 6755399441055744.0) - 6755399441055744.0)) * 4294967296.0
        bins[2 * size + first + j] += int64_of_bits(rest + 6755399441055744.0) - 4843621399236968448
        rest = (rest - ((rest + 6755399441055744.0) - 6755399441055744.0)) * 4294967296.0
        bins[3 * size + first + j] += int64_of_bits(rest + 6755399441055744.0) - 4843621399236968448
'''

_SCALED = (
    "    shift = 0\n",
    f"""    factor = 1.0
    if bins[i] > {_MOST}:
        shift = {2 * bins.WIDTH}
        factor = {2.0 ** (-2 * bins.WIDTH)!r}
""",
)
_SCALED_SQUARES = (
    f"""    shift = 0
    factor = 1.0
    if x >= {2.0**bins.UNSCALED!r}:
        shift = {2 * bins.SCALING}
        factor = {2.0**-bins.SCALING!r}
    elif x < {2.0**-bins.UNSCALED!r}:
        shift = -{2 * bins.SCALING}
        factor = {2.0**bins.SCALING!r}
    x = x * factor
""",
    "",
)
"""What comes before the exponent of the bins of a buffer of float64 numbers is known, and after."""

_IN_VECTORS = """    multiple = 1.5 * float64_of_bits((1044 + bins[i]) << 52)
    add_block{suffix}(buffer, count, multiple, bins, size, i, ahead)
"""

_ADD_ROW_IN_VECTORS = '''

def add_row{suffix}(buffer, count, bins, size, first):
    """Add {what} of a buffer, one to each of a row of sums."""
    compile_once()
    use_widest_vectors()
    if not fits_in_row{suffix}(buffer, count, bins, first):
        for j in range(count):
            x = float64(buffer[j])
            if not abs(x) < float64_inf:
                note_special(buffer[j], bins, size, first + j, {is_squared})
            elif exponent_of(abs({value})) > bins[first + j]:
                raise_bins(bins, size, first + j, exponent_of(abs({value})))
    add_to_row{suffix}(buffer, count, bins, size, first)
'''

_ADD_LINES = '''

def add_lines{suffix}(buffer, lines, count, magnitudes, bins, size, i, columns, width, first, ahead, pitch):
    """Add {what} of lines in a buffer, each to the sum of its line and to that of its column, given largest magnitudes."""
    compile_once()
    use_widest_vectors()
    exponent = columns[first]
    differs = 0
    for j in range(count):
        differs |= columns[first + j] ^ exponent
    is_alike = differs == 0 and lines == {lines}
    for k in range(lines):
        x = float64(magnitudes[k])
        if x < float64_inf:
            raise_bins(bins, size, i + k, exponent_of({value}))
        is_alike = is_alike and x < float64_inf and bins[i + k] == exponent
    if is_alike:
        # Mostly all have one exponent.
        multiple = 1.5 * float64_of_bits((1044 + exponent) << 52)
        add_block_of_lines{suffix}(buffer, count, multiple, bins, size, i, columns, width, first, ahead, pitch)
        return
    for k in range(lines):
        line = part_of_float32(buffer, {block} * k)
        add{suffix}(line, count, magnitude_float32(magnitudes[k]), bins, size, i + k, ahead + pitch * k)
        x = float64(magnitudes[k])
        if differs != 0 or not x < float64_inf or exponent_of({value}) + {all_bins} > exponent:
            add_row{suffix}(line, count, columns, width, first)
'''

_ADD_ROW_OF_SCALED_SQUARES = '''

def add_row_squares(buffer, count, bins, size, first):
    """Add the squares of a buffer, one to each of a row of sums: each has a scale of its own."""
    for j in range(count):
        add_squares(part_of_float64(buffer, j), 1, magnitude_float64(buffer[j]), bins, size, first + j)
'''

_OTHER = '''

def clear_numbers(numbers, size, first):
    """Begin extremes or counts."""
    for i in range(size):
        numbers[i] = first


def combine_counts(numbers, size, parts, words):
    """Add other parts of the same counts."""
    for j in range(1, parts):
        others = part_of_int64(numbers, words * j)
        for i in range(size):
            numbers[i] += others[i]


def combine_max(numbers, size, parts, words):
    """Take the largest of two parts."""
    for j in range(1, parts):
        others = part_of_int64(numbers, words * j)
        for i in range(size):
            numbers[i] = max(numbers[i], others[i])


def combine_min(numbers, size, parts, words):
    """Take the smallest of two parts."""
    for j in range(1, parts):
        others = part_of_int64(numbers, words * j)
        for i in range(size):
            numbers[i] = min(numbers[i], others[i])


def add_row_of_counts(buffer, count, numbers, first):
    """Count a buffer of ones and zeros, each element for one of a row of counts."""
    for j in range(count):
        numbers[first + j] += numpy_int64(buffer[j])


def max_of_row(buffer, count, numbers, first):
    """Take the largest, for each of a row."""
    for j in range(count):
        numbers[first + j] = max(numbers[first + j], numpy_int64(order_{real}(buffer[j], {above})))


def min_of_row(buffer, count, numbers, first):
    """Take the smallest, for each of a row."""
    for j in range(count):
        numbers[first + j] = min(numbers[first + j], numpy_int64(order_{real}(buffer[j], {below})))
'''

ABOVE = {"float32": 0x7FFFFFFF, "float64": 0x7FFFFFFFFFFFFFFF}
"""What stands for NaN in the order of numbers of which the largest is looked for."""
BELOW = {real: -number - 1 for real, number in ABOVE.items()}
"""The same, of which the smallest is looked for."""
INFINITE = {"float32": 0x7F800000, "float64": 0x7FF0000000000000}
"""What stands for infinity in that order; one less than its negative stands for minus infinity."""


class Reduction(NamedTuple):
    """How a reduction is written; templates have the names of what is kept, the number of its results, and one of them.

    Attributes:
        words: of what is kept, for each result.
        clear: what begins it.
        combine: adds the other parts.
        result: a result in float64, an integer or a truth; `{count}` is the number of elements of each.
    """

    words: int
    clear: str
    combine: str
    result: str


def first_words(name: str, real: str) -> tuple[int, ...]:
    """Return what a reduction to one result begins with: what its `clear` writes."""
    match name:
        case "sum" | "mean" | "norm":
            # Squares of float32 numbers are not that small.
            return (bins.LOWEST_OF_SQUARES if (name, real) == ("norm", "float64") else bins.LOWEST, 0, 0, 0, 0)
        case "max":
            return (-INFINITE[real] - 1,)
        case "min":
            return (INFINITE[real],)
        case _:
            return (0,)


def reduction(name: str, real: str) -> Reduction:
    """Return how a reduction of arrays of a compute dtype is written."""
    first, *_ = first_words(name, real)
    match name:
        case "sum" | "mean" | "norm":
            clear, combine = f"clear_bins({{kept}}, {{size}}, {first})", "combine_bins({kept}, {size}, parts, words)"
            return Reduction(
                5,
                clear,
                combine,
                "root_of({kept}, {size}, {i})" if name == "norm" else "sum_of({kept}, {size}, {i}, 0)",
            )
        case "max" | "min":
            return Reduction(
                1, f"clear_numbers({{kept}}, {{size}}, {first})", f"combine_{name}({{kept}}, {{size}}, parts, words)",
                f"extreme_{real}({{kept}}[{{i}}])",
            )  # fmt: skip
        case _:
            result = {"count": "{kept}[{i}]", "any": "{kept}[{i}] > 0", "all": "{kept}[{i}] == {count}"}[name]
            return Reduction(
                1, "clear_numbers({kept}, {size}, 0)", "combine_counts({kept}, {size}, parts, words)", result
            )  # fmt: skip


def reducing_functions_source(stages: Stages, real: str, lines: Container[bool] = ()) -> str:
    """Return the source of the functions that the reductions of a program need.

    Args:
        stages: of the program.
        real: the compute dtype.
        lines: whether elements are added by `add_lines`, in which case it holds False, or their squares, True.
    """
    names = {stages.program.ops[i].name for i in stages.reductions}
    text = ""
    if names & SUMS:
        text += _COMMON
    if "norm" in names:
        text += _ROOT
    for squared in (False, True):
        if names & ({"norm"} if squared else {"sum", "mean"}):
            text += _adding(real, squared=squared)
        if squared in lines:
            text += _ADD_LINES.format(lines=LINES, block=BLOCK, all_bins=3 * bins.WIDTH, **_words(squared=squared))
    if names - SUMS:
        text += _OTHER.format(real=real, above=ABOVE[real], below=BELOW[real])
    return text


def _adding(real: str, *, squared: bool) -> str:
    given = {"real": real, "is_squared": squared, "all_bins": 3 * bins.WIDTH, **_words(squared=squared)}
    scaling = shift = ahead = ""
    if real == "float32":
        ahead, adding = ", ahead", _IN_VECTORS.format(**given)
    else:
        shift, (scaling, unit) = " + shift", _SCALED_SQUARES if squared else _SCALED
        adding = unit + _IN_LOOP.format(**given)
    text = _ADD.format(scaling=scaling, shift=shift, ahead=ahead, adding=adding, **given)
    if real == "float64" and squared:
        return text + _ADD_ROW_OF_SCALED_SQUARES
    row = _ADD_ROW_IN_VECTORS if real == "float32" else _ADD_ROW
    return text + row.format(most=_MOST, **given)


def _words(*, squared: bool) -> dict[str, str]:
    if squared:
        return {"what": "the squares", "value": "x * x", "suffix": "_squares"}
    return {"what": "the elements", "value": "x", "suffix": ""}
