"""Products of matrices by integers: the same bits from any library that multiplies float64 matrices, in any order of summation.

Sums of products of rounded numbers depend on their order. Here each row of A and each column of B is first made integers, so
small that every partial sum is an integer that float64 holds exactly; what a library, thread count or sharding then adds
in which order makes no difference (after Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix
multiplication by using fast routines of matrix multiplication", 2012).

Steps for an inner axis of length k, all in float64:

1. `q = (53 - ceil(log2(k))) // 2` bits. For each row of A, `2**e` is the smallest power of two above its magnitudes, at least
   `2**LOWEST`. Its first slice is `A1 = rint(x * 2**(q - e))`: at most `2**q`, so that k products of two of them sum to at most
   `2**53`. In float64, `A2 = rint((x * 2**(q - e) - A1) * 2**(q + 1))` and, of what that leaves, `A3`; the differences are exact.
   Columns of B likewise.
2. The integer products `N11 = A1 @ B1`, in float64 also `N12`, `N21`, `N13`, `N31` and `N22`.
3. `N = N11`; in float64 `N = N11 + ((N12 + N21) * 2**-(q + 1) + ((N13 + N31) + N22) * 2**-(2 * q + 2))`. A zero is +0.
4. `N * 2**(e - q) * 2**(f - q)` of the row's and the column's power, rounded once to the compute dtype.

A row of A, or a column of B, that holds a NaN or an infinity makes its row or column of the result NaN. Nothing to add is +0.

With `a` and `b` the powers of two of row and column and c the exact result, the error is at most, times `1 + 2**-(q - 3)`,
`k * a * b * 2**-q + 2**-24 * |c|` in float32 and `k * a * b * (2**-(3 * q + 1) + 2**-(q + 52)) + 2**-53 * |c|` in float64, beside
what is lost below the smallest normal number. docs/arithmetic.md has the proof.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.program.ir import ARRAY_OPERATIONS, FUNCTIONS, Op, Program
from portopt.program.primitives import Primitives

SLICES = {"float32": 1, "float64": 3}
"""How many slices an operand has, by compute dtype."""

LOWEST = -960
"""The least exponent of a row's power of two: what it is scaled by stays a normal number."""

_LARGEST = math.ldexp(1 - 2.0**-53, 1024)


class Slices(NamedTuple):
    """An operand as integers: the rows of a left one, or the columns of a right one.

    Attributes:
        integers: the slices, float64 arrays of the operand's shape.
        factor: `2**(e - q)` of each row or column, NaN for one that is not finite; float64, the inner axis of length 1.
        axis: the inner axis: -1 for a left operand, -2 for a right one.
        bits: q.
    """

    integers: tuple[Any, ...]
    factor: Any
    axis: int
    bits: int

    def transposed(self, xp: Any) -> Slices:
        """Return the slices of the transpose, which is an operand of the other side: `A @ A.mT` needs one slicing."""
        integers = tuple(map(xp.matrix_transpose, self.integers))
        return Slices(integers, xp.matrix_transpose(self.factor), -3 - self.axis, self.bits)


class Unscaled:
    """A product that is not scaled back yet: what is computed of its elements next may do that, too.

    Args:
        primitives: the operations of the operands' library in the compute dtype.
        wide: its operations in float64.
        integers: the integer products.
        left: the left operand's slices, without the integers.
        right: the right operand's.
    """

    __slots__ = ("integers", "left", "primitives", "right", "wide")

    def __init__(
        self, primitives: Primitives, wide: Primitives, integers: Sequence[Any], left: Slices, right: Slices
    ) -> None:
        self.primitives = primitives
        self.wide = wide
        self.integers = integers
        self.left = left
        self.right = right

    def scaled(self) -> Any:
        """Return the product in the compute dtype."""
        scale = self.primitives.rescaled
        if scale is not None:
            return scale(self.integers, self.left, self.right)
        return rescaled(self.primitives, self.wide, self.integers, self.left, self.right)


class Sliced:
    """An operand that is known by its shape and its slices alone."""

    __slots__ = ("shape",)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def product_shape(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a product.

    Args:
        a: shape of the left operand: batches, rows, inner axis.
        b: shape of the right one: batches, inner axis, columns.

    Raises:
        ValueError: an operand is no matrix, the inner axes have different lengths, or the batches do not broadcast.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(
            f"a product needs two matrices, but arrays of shapes {tuple(a)} and {tuple(b)} were given; reshape the vector "
            "to a matrix of one row or column"
        )
    if a[-1] != b[-2]:
        raise ValueError(
            f"a product of shapes {tuple(a)} and {tuple(b)} adds over the last axis of the first and the last but one of "
            f"the second, which have {a[-1]} and {b[-2]} elements; transpose one with .mT, or reshape it"
        )
    ahead = itertools.zip_longest(reversed(a[:-2]), reversed(b[:-2]), fillvalue=1)
    batches = [max(lengths) if 0 not in lengths else 0 for lengths in ahead]
    for batch in (a[:-2], b[:-2]):
        if any(n not in (1, length) for n, length in zip(reversed(batch), batches, strict=False)):
            raise ValueError(
                f"the axes before the last two are batches, which must broadcast, but the shapes are {tuple(a)} and {tuple(b)}"
            )
    return (*reversed(batches), a[-2], b[-1])


def slice_bits(inner: int) -> int:
    """Return q: how many bits a slice has if the inner axis has so many elements."""
    return (53 - max(inner - 1, 0).bit_length()) // 2


def matmul(primitives: Primitives, wide: Primitives, a: Any, b: Any) -> Any:
    """Return `a @ b` in the compute dtype.

    Args:
        primitives: the operations of the operands' library in the compute dtype.
        wide: its operations in float64.
        a: left operand, of the compute dtype without subnormals; axes before the last two are batches.
        b: right operand.
    """
    if _adds_nothing(a, b):
        return primitives.xp.matmul(a, b)
    return product(primitives, wide, _sliced(primitives, wide, a, -1), _sliced(primitives, wide, b, -2))


def _adds_nothing(a: Any, b: Any) -> bool:
    return 0 in (a.shape[-1], *product_shape(a.shape, b.shape))


def _sliced(primitives: Primitives, wide: Primitives, x: Any, axis: int) -> Slices:
    if primitives.sliced is not None:
        found: Slices = primitives.sliced(x, axis)
        return found
    return slices(wide, x, axis, int(x.shape[axis]), primitives.compute_dtype)


class Operand(NamedTuple):
    """An operand of a product in a program.

    Attributes:
        source: the operation that it is the result of, or the one whose result's transpose it is.
        axis: the inner axis of that operation's result; -1 of a symmetric one, which is its own transpose.
        is_transposed: whether it is the transpose.
        is_last: whether no later product needs the same slices.
    """

    source: int
    axis: int
    is_transposed: bool
    is_last: bool


class SlicedOperands:
    """The products of one run of a program: what is an operand of several is sliced once."""

    def __init__(self, program: Program) -> None:
        self._operands = operands_of(program)
        self._kept: dict[tuple[int, int], Slices] = {}
        self._found: dict[tuple[int, int], Callable[[], Slices]] = {}

    def offer(self, index: int, found: Mapping[int, Callable[[], Slices]]) -> None:
        """Take what returns the slices of the operation with this index, by the inner axis."""
        self._found.update({(index, axis): slices_of for axis, slices_of in found.items()})

    def matmul(
        self, primitives: Primitives, wide: Primitives, index: int, a: Any, b: Any, *, unscaled: bool = False
    ) -> Any:
        """Return the result of the product with this index in the program, as `matmul` does; with `unscaled` maybe that."""
        if _adds_nothing(a, b):
            known = [x for x in (a, b) if not isinstance(x, Sliced)]
            # What has elements is known by its slices: then the other operand has none, and neither has the product.
            return (
                primitives.xp.matmul(a, b)
                if len(known) == 2
                else primitives.xp.reshape(known[0], product_shape(a.shape, b.shape))
            )
        operands = self._operands[index]
        left, right = (
            self._sliced(primitives, wide, operand, x, axis)
            for operand, x, axis in zip(operands, (a, b), (-1, -2), strict=True)
        )
        return product(primitives, wide, left, right, of_transpose=_are_transposes(*operands), unscaled=unscaled)

    def _sliced(self, primitives: Primitives, wide: Primitives, operand: Operand, x: Any, axis: int) -> Slices:
        key = (operand.source, operand.axis)
        found = self._kept.pop(key, None)
        if found is None and key in self._found:
            found = self._found.pop(key)()
        if found is not None and operand.is_transposed:
            found = found.transposed(wide.xp)
        if found is None:
            found = _sliced(primitives, wide, x, axis)
        if not operand.is_last:
            self._kept[key] = found.transposed(wide.xp) if operand.is_transposed else found
        return found


@functools.lru_cache(maxsize=512)
def operands_of(program: Program) -> Mapping[int, tuple[Operand, Operand]]:
    """Return the operands of each product of a program, by its index."""
    symmetric = _symmetric(program)
    seen: set[tuple[int, int]] = set()
    found: dict[int, tuple[Operand, Operand]] = {}
    for i, op in reversed(list(enumerate(program.ops))):
        if op.name != "matmul":
            continue
        # From the last to the first, so the right one comes before the left one.
        right, left = (_operand(program, j, axis, symmetric, seen) for j, axis in ((op.args[1], -2), (op.args[0], -1)))
        found[i] = left, right
    return found


def _operand(program: Program, index: int, axis: int, symmetric: Sequence[bool], seen: set[tuple[int, int]]) -> Operand:
    source, is_transposed = _untransposed(program, index)
    axis = -3 - axis if is_transposed else axis
    if symmetric[source] and axis == -2:
        axis, is_transposed = -1, not is_transposed
    is_last = (source, axis) not in seen
    seen.add((source, axis))
    return Operand(source, axis, is_transposed, is_last)


def _untransposed(program: Program, index: int) -> tuple[int, bool]:
    """Return the operation that an array is the result of, or the transpose of the result of, and whether it is that."""
    is_transposed = False
    while (op := program.ops[index]).name == "transpose" and _exchanges_the_last_two(op.label):
        index, is_transposed = op.args[0], not is_transposed
    return index, is_transposed


def _exchanges_the_last_two(axes: Any) -> bool:
    ndim = len(axes)
    return ndim >= 2 and tuple(axes) == (*range(ndim - 2), ndim - 1, ndim - 2)


def _are_transposes(a: Operand, b: Operand) -> bool:
    return (a.source, a.axis) == (b.source, b.axis) and a.is_transposed != b.is_transposed


def _symmetric(program: Program) -> list[bool]:
    """Tell of each operation whether its result is known to be symmetric matrices: its finite numbers are, in bits."""
    found: list[bool] = []
    for op in program.ops:
        if op.name == "matmul":
            (a, a_is_transposed), (b, b_is_transposed) = (_untransposed(program, j) for j in op.args)
            # Exact sums have no order, and what is rounded is the same above and below the diagonal.
            found.append(a == b and (a_is_transposed != b_is_transposed or found[a]))
        elif op.name == "transpose":
            found.append(_exchanges_the_last_two(op.label) and found[op.args[0]])
        elif op.reads is None and (op.name in ARRAY_OPERATIONS or op.name in FUNCTIONS):
            matrices = [j for j in op.args if not _is_uniform(program, j)]
            found.append(bool(matrices) and all(found[j] for j in matrices) and _is_square(op))
        else:
            found.append(op.name == "eye")
    return found


def _is_square(op: Op) -> bool:
    # Numbers for all elements of another shape may widen a matrix of one row and column.
    return op.dims is not None and len(op.dims) >= 2 and op.dims[-1] == op.dims[-2]


def _is_uniform(program: Program, index: int) -> bool:
    op = program.ops[index]
    return op.kind.is_scalar or op.name == "round"


def slices(wide: Primitives, x: Any, axis: int, inner: int, compute_dtype: str, largest: Any | None = None) -> Slices:
    """Return the slices of an operand.

    Args:
        wide: the operations of the operand's library in float64.
        x: the operand, or a part of it.
        axis: -1 for a left operand, -2 for a right one.
        inner: length of the whole inner axis, at least 1.
        compute_dtype: `"float32"` or `"float64"`.
        largest: `largest_magnitudes` over all parts of the inner axis, if `x` is one of several.
    """
    xp = wide.xp
    x = xp.astype(x, wide.dtype)
    if largest is None:
        largest = largest_magnitudes(wide, x, axis)
    finite = largest <= _LARGEST
    least = 2.0 ** (LOWEST - 1)
    unit = _leading_power(wide, xp.where(finite, xp.where(largest >= least, largest, least), 1.0), compute_dtype)
    bits = slice_bits(inner)
    rest = xp.where(xp.abs(x) <= _LARGEST, x, 0.0) * (2.0 ** (bits - 1) / unit)
    integers = [wide.rint(rest)]
    for _ in range(1, SLICES[compute_dtype]):
        rest = (rest - integers[-1]) * 2.0 ** (bits + 1)
        integers.append(wide.rint(rest))
    return Slices(tuple(integers), xp.where(finite, unit * 2.0 ** (1 - bits), math.nan), axis, bits)


def largest_magnitudes(wide: Primitives, x: Any, axis: int) -> Any:
    """Return the largest magnitude along the inner axis, which is kept; infinite if a number is not finite."""
    xp = wide.xp
    magnitude = xp.abs(xp.astype(x, wide.dtype))
    # Libraries and compilers disagree on the maximum of a NaN and other numbers.
    return xp.max(xp.where(magnitude <= _LARGEST, magnitude, math.inf), axis=axis, keepdims=True)


def _leading_power(wide: Primitives, x: Any, compute_dtype: str) -> Any:
    """Return the largest power of two that is not above `x`, a normal number of the dtype, of at least `2**LOWEST / 2`.

    With `x = s (1 + f)`, s the power: `y = x (2**52 + 1)`, rounded, is a multiple of s in ((2**52) s, (2**53) s], so that
    `y (1 - 2**-53)` rounds to `y - s` (Rump, "Ultimately fast accurate summation", 2009, algorithm 3.6).
    """
    if compute_dtype == "float32":  # for which nothing is too large
        y = wide.flush(x * (2.0**52 + 1))
        return y - wide.flush(y * (1 - 2.0**-53))
    large = x >= 2.0**500
    power = _leading_power(wide, wide.xp.where(large, x * 2.0**-600, x), "float32")
    return wide.xp.where(large, power * 2.0**600, power)


def product(
    primitives: Primitives,
    wide: Primitives,
    left: Slices,
    right: Slices,
    *,
    of_transpose: bool = False,
    unscaled: bool = False,
) -> Any:
    """Return the product, in the compute dtype, of operands that are sliced for an inner axis of one length.

    Args:
        primitives: the operations of the operands' library in the compute dtype.
        wide: its operations in float64.
        left: left operand.
        right: right operand.
        of_transpose: whether the right operand is the transpose of the left one.
        unscaled: whether an `Unscaled` may be returned.
    """
    if of_transpose and primitives.gram is not None and (gram := primitives.gram(left)) is not None:
        return gram
    integers = integer_products(wide, left, right, of_transpose=of_transpose)
    found = Unscaled(primitives, wide, integers, left._replace(integers=()), right._replace(integers=()))
    return found if unscaled else found.scaled()


def integer_products(wide: Primitives, left: Slices, right: Slices, *, of_transpose: bool = False) -> list[Any]:
    """Return the integer products; those of parts of the inner axis may be added, in any order, before they are rescaled.

    `of_transpose` says that the right operand is the transpose of the left one, so that half of the numbers are the others.
    """
    a, b = left.integers, right.integers

    def of(i: int, j: int) -> Any:
        return wide.multiply_by_transpose(a[i]) if of_transpose and i == j else wide.multiply_matrices(a[i], b[j])

    if len(a) == 1:
        return [of(0, 0)]
    n11, n12, n13, n22 = of(0, 0), of(0, 1), of(0, 2), of(1, 1)
    n21, n31 = map(wide.xp.matrix_transpose, (n12, n13)) if of_transpose else (of(1, 0), of(2, 0))
    return [n11, n12, n21, n13, n31, n22]


def rescaled(primitives: Primitives, wide: Primitives, integers: Sequence[Any], left: Slices, right: Slices) -> Any:
    """Return the product in the compute dtype, given its integer products."""
    xp = wide.xp
    total = integers[0]
    if len(integers) > 1:
        n12, n21, n13, n31, n22 = integers[1:]
        below = 2.0 ** -(left.bits + 1)
        third = wide.add(wide.add(n13, n31), n22) * (below * below)
        total = wide.add(total, wide.add(wide.add(n12, n21) * below, third))
    total = wide.without_negative_zero(total)
    if primitives.compute_dtype == "float32":
        return primitives.load((total * left.factor) * right.factor)
    # The product of the two factors may be out of range where the result is not.
    (low_a, high_a), (low_b, high_b) = (_parts(xp, factor) for factor in (left.factor, right.factor))
    return wide.multiply(wide.flush(wide.flush(total * low_a) * low_b), high_a * high_b)


def _parts(xp: Any, factor: Any) -> tuple[Any, Any]:
    """Return two powers of two with this product, the first between 2**-476 and 2**514, the second 1, 2**510 or 2**-510."""
    large, small = factor >= 2.0**256, factor <= 2.0**-256
    low = xp.where(large, factor * 2.0**-510, xp.where(small, factor * 2.0**510, factor))
    return low, factor / low
