"""Sums of buffers in vectors, as numba sees them. Imports numba: only the compiler imports this module.

LLVM takes shorter vectors for a loop with numbers of several lengths, and would take an element apart anew for each sum it is
added to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from portopt.kernels.host.llvm_support import (
    DOUBLE,
    DOUBLES_AT_ONCE,
    FLOAT,
    INT32,
    INT64,
    LINE,
    call,
    fetch,
    multiply_add,
    repeated,
)
from portopt.kernels.host.reduction_source import BLOCK, LINES
from portopt.program.bins import WIDTH

_WHOLE = 52 + 1 - WIDTH
"""Beside that of the bins, the exponent of a number to which multiples of the first of them are added with all their bits."""
_SINGLES, _DOUBLES, _WORDS = (ir.VectorType(kind, DOUBLES_AT_ONCE) for kind in (FLOAT, DOUBLE, INT64))
_MASK = ir.VectorType(ir.IntType(1), DOUBLES_AT_ONCE)
_NOTHING = ir.Constant(_WORDS, [0] * DOUBLES_AT_ONCE)

_integer, _integers, _buffer, _real = (
    types.int64,
    types.CPointer(types.int64),
    types.CPointer(types.float32),
    types.float64,
)


def _word(value: int) -> Any:
    return ir.Constant(INT64, value)


class _Access:
    """How vectors are in memory: whole, or, given how many elements there are, the first part of one."""

    def __init__(self, builder: Any, rest: Any = None) -> None:
        self._builder = builder
        numbers = ir.Constant(_WORDS, list(range(DOUBLES_AT_ONCE)))
        self._mask = (
            None if rest is None else builder.icmp_signed("<", numbers, repeated(builder, rest, DOUBLES_AT_ONCE))
        )

    def _place(self, place: Any, vector: Any) -> Any:
        return self._builder.bitcast(place, vector.as_pointer())

    def singles(self, place: Any) -> Any:
        """Return float32 elements as float64, zeros where there are none."""
        zeros = ir.Constant(_SINGLES, [0.0] * DOUBLES_AT_ONCE)
        return self._builder.fpext(self._load(self._place(place, _SINGLES), "f32", 4, zeros), _DOUBLES)

    def words(self, place: Any) -> Any:
        """Return integers."""
        return self._load(self._place(place, _WORDS), "i64", 8, _NOTHING)

    def _load(self, place: Any, element: str, align: int, zeros: Any) -> Any:
        if self._mask is None:
            return self._builder.load(place, align=align)
        size = ir.Constant(INT32, align)
        name = f"masked.load.v{DOUBLES_AT_ONCE}{element}.p0"
        return call(self._builder, name, zeros.type, place, size, self._mask, zeros)

    def store_words(self, value: Any, place: Any) -> None:
        """Store integers."""
        place = self._place(place, _WORDS)
        if self._mask is None:
            self._builder.store(value, place, align=8)
            return
        size = ir.Constant(INT32, 8)
        call(self._builder, f"masked.store.v{DOUBLES_AT_ONCE}i64.p0", ir.VoidType(), value, place, size, self._mask)


def _each(builder: Any, count: Any, do: Callable[[Any, int, _Access], None]) -> None:
    """Write loops over the vectors of a buffer, given what does one: it is told which one of a line of a cache it is."""
    full = builder.and_(count, _word(-LINE))
    with cgutils.for_range_slice(builder, _word(0), full, _word(LINE), INT64) as (index, _):
        for k in range(LINE // DOUBLES_AT_ONCE):
            do(builder.add(index, _word(DOUBLES_AT_ONCE * k)), k, _Access(builder))
    with cgutils.for_range_slice(builder, full, count, _word(DOUBLES_AT_ONCE), INT64) as (index, _):
        do(index, 0, _Access(builder, builder.sub(count, index)))


class _Splitter:
    """Takes vectors of numbers apart into the integers of bins."""

    def __init__(self, builder: Any, multiple: Any, *, squared: bool) -> None:
        self._builder = builder
        self._squared = squared
        scales = [ir.Constant(DOUBLE, 2.0**exponent) for exponent in (0, -32, -64)]
        self.multiples = [builder.fmul(multiple, scale) for scale in scales]
        self._vectors = [repeated(builder, number, DOUBLES_AT_ONCE) for number in self.multiples]

    def biases(self, lanes: Any) -> list[Any]:
        """Return what is too much in the sums of the integers of so many numbers, one for each bin."""
        return [self._builder.mul(self._builder.bitcast(number, INT64), lanes) for number in self.multiples]

    def __call__(self, x: Any) -> list[Any]:
        """Return, for each bin, the integers of numbers, or of their squares, each too large by the bits of its multiple."""
        builder, found = self._builder, []
        for k, multiple in enumerate(self._vectors):
            is_square = self._squared and k == 0
            added = multiply_add(builder, x, x, multiple) if is_square else builder.fadd(x, multiple)
            found.append(builder.bitcast(added, _WORDS))
            if k < 2:
                if is_square:
                    x = multiply_add(builder, x, x, builder.fsub(multiple, added))
                else:
                    x = builder.fsub(x, builder.fsub(added, multiple))
        return found


def _add(builder: Any, sums: Sequence[Any], integers: Sequence[Any]) -> None:
    for kept, integer in zip(sums, integers, strict=True):
        builder.store(builder.add(builder.load(kept), integer), kept)


def _three_sums(builder: Any) -> list[Any]:
    return [cgutils.alloca_once_value(builder, _NOTHING) for _ in range(3)]


def _add_totals(builder: Any, bins: Any, size: Any, sums: Sequence[Sequence[Any]], biases: Sequence[Any]) -> None:
    """Add, to the sums of each bin of a result, those of vectors, less what is too much in them."""
    place = bins
    for kept, bias in zip(zip(*sums, strict=True), biases, strict=True):
        total = _NOTHING
        for vector in kept:
            total = builder.add(total, builder.load(vector))
        total = call(builder, f"vector.reduce.add.v{DOUBLES_AT_ONCE}i64", INT64, total)
        place = builder.gep(place, [size])
        builder.store(builder.add(builder.load(place), builder.sub(total, bias)), place)


def _lanes(builder: Any, count: Any) -> Any:
    """Return the number of elements of the vectors that so many elements are in."""
    return builder.and_(builder.add(count, _word(DOUBLES_AT_ONCE - 1)), _word(-DOUBLES_AT_ONCE))


def _fetch(builder: Any, address: Any, index: Any) -> None:
    """Fetch so many elements after an address."""
    fetch(builder, builder.inttoptr(builder.add(address, builder.shl(index, _word(2))), FLOAT.as_pointer()))


def _block(*, squared: bool) -> Any:
    @intrinsic
    def add_block(
        typing_context: Any, buffer: Any, count: Any, multiple: Any, bins: Any, size: Any, i: Any, ahead: Any
    ) -> Any:
        """Add the elements of a buffer to a sum of which the bins are large enough, and fetch as many from an address on."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            buffer, count, multiple, bins, size, i, ahead = args
            split = _Splitter(builder, multiple, squared=squared)
            sums = [_three_sums(builder) for _ in range(LINE // DOUBLES_AT_ONCE)]

            def add(index: Any, k: int, access: _Access) -> None:
                if k == 0:
                    _fetch(builder, ahead, index)
                _add(builder, sums[k], split(access.singles(builder.gep(buffer, [index]))))

            _each(builder, count, add)
            _add_totals(builder, builder.gep(bins, [i]), size, sums, split.biases(_lanes(builder, count)))
            return context.get_dummy_value()

        return types.none(_buffer, _integer, _real, _integers, _integer, _integer, _integer), codegen

    return add_block


def _block_of_lines(*, squared: bool) -> Any:
    @intrinsic
    def add_block_of_lines(
        typing_context: Any, buffer: Any, count: Any, multiple: Any,
        bins: Any, size: Any, i: Any, columns: Any, width: Any, first: Any, ahead: Any, pitch: Any,
    ) -> Any:  # fmt: skip
        """Add the elements of `LINES` lines, each to the sum of its line and to that of its column, of equal bins.

        As many elements are fetched, from an address on and of lines with this number of bytes.
        """

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            buffer, count, multiple, bins, size, i, columns, width, first, ahead, pitch = args
            split = _Splitter(builder, multiple, squared=squared)
            sums = [_three_sums(builder) for _ in range(LINES)]
            biases = [repeated(builder, bias, DOUBLES_AT_ONCE) for bias in split.biases(_word(LINES))]
            turns = LINE // DOUBLES_AT_ONCE

            def add(index: Any, k: int, access: _Access) -> None:
                found = [builder.sub(_NOTHING, bias) for bias in biases]
                for line in range(LINES):
                    if line % turns == k:
                        _fetch(builder, builder.add(ahead, builder.mul(pitch, _word(line))), index)
                    place = builder.gep(buffer, [builder.add(index, _word(BLOCK * line))])
                    integers = split(access.singles(place))
                    _add(builder, sums[line], integers)
                    found = [builder.add(total, integer) for total, integer in zip(found, integers, strict=True)]
                place = builder.gep(columns, [builder.add(first, index)])
                for total in found:
                    place = builder.gep(place, [width])
                    access.store_words(builder.add(access.words(place), total), place)

            _each(builder, count, add)
            for line in range(LINES):
                place = builder.gep(bins, [builder.add(i, _word(line))])
                _add_totals(builder, place, size, [sums[line]], split.biases(_lanes(builder, count)))
            return context.get_dummy_value()

        sums_of = (_integers, _integer, _integer)
        return types.none(_buffer, _integer, _real, *sums_of, *sums_of, _integer, _integer), codegen

    return add_block_of_lines


def _exponents(builder: Any, number: Any, amount: int, fraction: float = 1.0) -> Any:
    """Return the numbers `fraction * 2**(number + amount)`, of integers; the fraction is in [1, 2)."""
    bits = struct.unpack("q", struct.pack("d", fraction))[0] + (amount << 52)
    shifted = builder.shl(number, ir.Constant(_WORDS, [52] * DOUBLES_AT_ONCE))
    return builder.bitcast(builder.add(shifted, ir.Constant(_WORDS, [bits] * DOUBLES_AT_ONCE)), _DOUBLES)


def _squared(builder: Any, x: Any, *, squared: bool) -> Any:
    return builder.fmul(x, x) if squared else x


def _fits_in_row(*, squared: bool) -> Any:
    @intrinsic
    def fits_in_row(typing_context: Any, buffer: Any, count: Any, bins: Any, first: Any) -> Any:
        """Tell whether the bins of each of a row of sums are large enough for an element of a buffer."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            buffer, count, bins, first = args
            outside = cgutils.alloca_once_value(builder, ir.Constant(_MASK, [0] * DOUBLES_AT_ONCE))

            def look(index: Any, k: int, access: _Access) -> None:
                x = access.singles(builder.gep(buffer, [index]))
                limit = _exponents(builder, access.words(builder.gep(bins, [builder.add(first, index)])), 0)
                magnitude = call(
                    builder, f"fabs.v{DOUBLES_AT_ONCE}f64", _DOUBLES, _squared(builder, x, squared=squared)
                )
                does_not = builder.fcmp_unordered(">=", magnitude, limit)
                builder.store(builder.or_(builder.load(outside), does_not), outside)

            _each(builder, count, look)
            found = builder.bitcast(builder.load(outside), ir.IntType(DOUBLES_AT_ONCE))
            return builder.icmp_unsigned("==", found, ir.Constant(found.type, 0))

        return types.boolean(_buffer, _integer, _integers, _integer), codegen

    return fits_in_row


def _add_to_row(*, squared: bool) -> Any:
    @intrinsic
    def add_to_row(typing_context: Any, buffer: Any, count: Any, bins: Any, size: Any, first: Any) -> Any:
        """Add the elements of a buffer, one to each of a row of sums, of which the bins are large enough."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            buffer, count, bins, size, first = args

            def add(index: Any, k: int, access: _Access) -> None:
                place = builder.gep(bins, [builder.add(first, index)])
                exponents = access.words(place)
                rest = _squared(builder, access.singles(builder.gep(buffer, [index])), squared=squared)
                for number in range(3):
                    multiple = _exponents(builder, exponents, _WHOLE - WIDTH * number, 1.5)
                    added = builder.fadd(rest, multiple)
                    rest = builder.fsub(rest, builder.fsub(added, multiple))
                    integer = builder.sub(*(builder.bitcast(x, _WORDS) for x in (added, multiple)))
                    place = builder.gep(place, [size])
                    access.store_words(builder.add(access.words(place), integer), place)

            _each(builder, count, add)
            return context.get_dummy_value()

        return types.none(_buffer, _integer, _integers, _integer, _integer), codegen

    return add_to_row


@intrinsic
def _place_of(typing_context: Any, array: Any, index: Any) -> Any:
    """Return the address of an element."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(builder.gep(args[0], [args[1]]), INT64)

    return types.int64(array, types.int64), codegen


NAMESPACE: dict[str, Any] = {
    "add_block": _block(squared=False),
    "add_block_squares": _block(squared=True),
    "add_block_of_lines": _block_of_lines(squared=False),
    "add_block_of_lines_squares": _block_of_lines(squared=True),
    "fits_in_row": _fits_in_row(squared=False),
    "fits_in_row_squares": _fits_in_row(squared=True),
    "add_to_row": _add_to_row(squared=False),
    "add_to_row_squares": _add_to_row(squared=True),
    "place_of": _place_of,
}
"""Global names of a generated kernel that adds up numbers of float32."""
