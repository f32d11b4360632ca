"""`ArraySymbol`: what a rule gets in place of arrays, whose operators record what is asked of them."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from portopt.program.builder import UnsupportedOperationError
from portopt.program.ir import Kind
from portopt.program.tracing.elementwise import checked, power, record
from portopt.program.tracing.matrices import matmul, matrix_transpose
from portopt.program.tracing.shapes import length, shape_of
from portopt.program.tracing.symbol import Symbol
from portopt.scalars import OPERATORS


class ArraySymbol(Symbol):
    """Stands for a parameter, gradient, slot or intermediate array while a rule is traced."""

    __slots__ = ()

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self._recorder.namespace

    @property
    def ndim(self) -> int:
        """The number of axes; what is computed from it is fixed in the program."""
        dims = self._recorder.ops[self._index].dims
        return self._recorder.facts.ndim if dims is None else len(dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis; what is computed from it is fixed in the program."""
        return shape_of(self._recorder, self._index)

    @property
    def size(self) -> int:
        """The number of elements; what is computed from it is fixed in the program."""
        facts, dims = self._recorder.facts, self._recorder.ops[self._index].dims
        return facts.size if dims is None else math.prod(length(facts, dim) for dim in dims)

    @property
    def mT(self) -> Any:
        """The array with its last two axes exchanged."""
        return matrix_transpose(self)

    def __add__(self, other: Any) -> Any:
        return record("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return record("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return record("subtract", self, other)

    def __rsub__(self, other: Any) -> Any:
        return record("subtract", other, self)

    def __mul__(self, other: Any) -> Any:
        return record("multiply", self, other)

    def __rmul__(self, other: Any) -> Any:
        return record("multiply", other, self)

    def __truediv__(self, other: Any) -> Any:
        return record("divide", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return record("divide", other, self)

    def __pow__(self, other: Any) -> Any:
        return power(self, other)

    def __neg__(self) -> Any:
        return record("negative", self)

    def __pos__(self) -> ArraySymbol:
        return self

    def __abs__(self) -> Any:
        return record("absolute", self)

    def __lt__(self, other: Any) -> Any:
        return record("less", self, other, kind=Kind.MASK)

    def __le__(self, other: Any) -> Any:
        return record("less_equal", self, other, kind=Kind.MASK)

    def __gt__(self, other: Any) -> Any:
        return record("less", other, self, kind=Kind.MASK)

    def __ge__(self, other: Any) -> Any:
        return record("less_equal", other, self, kind=Kind.MASK)

    def __eq__(self, other: object) -> Any:
        return record("equal", self, other, kind=Kind.MASK)

    def __ne__(self, other: object) -> Any:
        return record("logical_not", self == other, kind=Kind.MASK)

    def __and__(self, other: Any) -> Any:
        return record("logical_and", self, other, kind=Kind.MASK)

    def __rand__(self, other: Any) -> Any:
        return record("logical_and", other, self, kind=Kind.MASK)

    def __or__(self, other: Any) -> Any:
        return record("logical_or", self, other, kind=Kind.MASK)

    def __ror__(self, other: Any) -> Any:
        return record("logical_or", other, self, kind=Kind.MASK)

    def __invert__(self) -> Any:
        return record("logical_not", self, kind=Kind.MASK)

    __hash__ = None  # type: ignore[assignment]  # equality is elementwise

    def __bool__(self) -> NoReturn:
        raise UnsupportedOperationError(
            "a rule asked for the truth value of an array while it was traced: use xp.where(condition, a, b) in place of `if`"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Do the operator that a number of NumPy's asks for; refuse every other function of NumPy's."""
        operation = OPERATORS.get(ufunc.__name__) if method == "__call__" and not options else None
        if operation is not None:
            # The symbol's own operator has to be the one that is called, not NumPy's again.
            operands = [
                x[()] if not isinstance(x, ArraySymbol) and getattr(x, "ndim", None) == 0 else x for x in inputs
            ]
            return operation(*(float(x) if isinstance(x, float) else checked(self._recorder, x) for x in operands))
        name = "abs" if ufunc.__name__ == "absolute" else ufunc.__name__
        remedy = (
            f"use xp.{name}" if name in self._recorder.functions else f"which programs cannot hold; {self._supported()}"
        )
        raise UnsupportedOperationError(f"a rule called numpy.{ufunc.__name__} on an array: {remedy}")

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        raise UnsupportedOperationError(
            "a rule called NumPy on an array: use the functions of its argument `xp`, so that it runs on every array library"
        )

    def __floordiv__(self, other: object) -> NoReturn:
        self._refuse("//")

    def __rfloordiv__(self, other: object) -> NoReturn:
        self._refuse("//")

    def __mod__(self, other: object) -> NoReturn:
        self._refuse("%")

    def __rmod__(self, other: object) -> NoReturn:
        self._refuse("%")

    def __rpow__(self, other: object) -> NoReturn:
        self._refuse("** with an array as the exponent")

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul(other, self)

    def __xor__(self, other: object) -> NoReturn:
        self._refuse("^")

    def __getitem__(self, key: object) -> NoReturn:
        self._refuse("[] (indexing)")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        self._refuse("[] (assignment to elements)")

    def __iter__(self) -> NoReturn:
        self._refuse("iteration")

    def __len__(self) -> NoReturn:  # noqa: PLE0303  # it always raises
        self._refuse("len()")

    def __float__(self) -> NoReturn:
        self._refuse("float()")

    def __int__(self) -> NoReturn:
        self._refuse("int()")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperationError(
            f"a rule used the array attribute .{name}, which programs cannot hold: an array has .ndim, .shape, .size and .mT; "
            f"{self._supported()}"
        )

    def _supported(self) -> str:
        return f"supported are the operators + - * / ** @ abs() comparisons & | ~ and xp.{', xp.'.join(self._recorder.functions)}"

    def _refuse(self, operation: str) -> NoReturn:
        raise UnsupportedOperationError(
            f"a rule used {operation} on an array, which programs cannot hold; {self._supported()}"
        )
