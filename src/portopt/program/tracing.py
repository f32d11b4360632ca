"""From a rule to a `Program`: the rule's own code runs once on symbols that record what is asked of them."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from portopt.program.builder import Builder, Node, UnsupportedOperationError
from portopt.program.canonical import canonicalize
from portopt.program.facts import Facts
from portopt.program.ir import Dim, Kind, Program
from portopt.program.named_values import Coefficients, Slots
from portopt.program.reductions import GRADIENT_NORM
from portopt.scalars import OPERATORS, Scalar, where


class TracedRule(Protocol):
    """What tracing asks of an optimizer."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that it keeps for each parameter."""

    @property
    def scalar_slots(self) -> Mapping[str, float]:
        """Names of the scalars that it keeps for all parameters together."""

    def numeric_hyperparameters(self) -> tuple[str, ...]:
        """Return the names of the hyperparameters that are numbers, and so may be given for one step."""

    def is_optional(self, name: str, /) -> bool:
        """Tell whether a hyperparameter has a value that switches its feature off."""

    @property
    def coefficients(self) -> Callable[..., Mapping[str, Any]]:
        """Returns the scalars of step number `t` that `update` uses, and the new values of `scalar_slots`."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that a step may be given for each parameter beside the gradient."""

    @property
    def totals(self) -> Callable[..., Mapping[str, Any]] | None:
        """Returns what is reduced over all parameters, by name."""

    @property
    def update(self) -> Callable[..., tuple[Any, Mapping[str, Any]]]:
        """Returns the new parameter, and the new value of each slot by name."""


class Recorder(Builder):
    """The operations recorded so far, and what is known of the parameter."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts


class ArraySymbol:
    """Stands for a parameter, gradient, slot or intermediate array while a rule is traced."""

    __slots__ = ("_builder", "_index")

    def __init__(self, builder: Recorder, index: int) -> None:
        self._builder = builder
        self._index = index

    def __array_namespace__(self, *, api_version: str | None = None) -> SymbolicNamespace:
        return SymbolicNamespace(self._builder)

    @property
    def ndim(self) -> int:
        """The number of axes; what is computed from it is fixed in the program."""
        dims = self._builder.ops[self._index].dims
        return self._builder.facts.ndim if dims is None else len(dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis; what is computed from it is fixed in the program."""
        facts, dims = self._builder.facts, self._builder.ops[self._index].dims
        return facts.shape if dims is None else tuple(_length(facts, dim) for dim in dims)

    @property
    def size(self) -> int:
        """The number of elements; what is computed from it is fixed in the program."""
        facts, dims = self._builder.facts, self._builder.ops[self._index].dims
        return facts.size if dims is None else math.prod(_length(facts, dim) for dim in dims)

    @property
    def mT(self) -> ArraySymbol:
        """The array with its last two axes exchanged."""
        return _matrix_transpose(self)

    def __add__(self, other: Any) -> ArraySymbol:
        return _record("add", self, other)

    def __radd__(self, other: Any) -> ArraySymbol:
        return _record("add", other, self)

    def __sub__(self, other: Any) -> ArraySymbol:
        return _record("subtract", self, other)

    def __rsub__(self, other: Any) -> ArraySymbol:
        return _record("subtract", other, self)

    def __mul__(self, other: Any) -> ArraySymbol:
        return _record("multiply", self, other)

    def __rmul__(self, other: Any) -> ArraySymbol:
        return _record("multiply", other, self)

    def __truediv__(self, other: Any) -> ArraySymbol:
        return _record("divide", self, other)

    def __rtruediv__(self, other: Any) -> ArraySymbol:
        return _record("divide", other, self)

    def __pow__(self, other: Any) -> ArraySymbol:
        return _power(self, other)

    def __neg__(self) -> ArraySymbol:
        return _record("negative", self)

    def __pos__(self) -> ArraySymbol:
        return self

    def __abs__(self) -> ArraySymbol:
        return _record("absolute", self)

    def __lt__(self, other: Any) -> ArraySymbol:
        return _record("less", self, other, kind=Kind.MASK)

    def __le__(self, other: Any) -> ArraySymbol:
        return _record("less_equal", self, other, kind=Kind.MASK)

    def __gt__(self, other: Any) -> ArraySymbol:
        return _record("less", other, self, kind=Kind.MASK)

    def __ge__(self, other: Any) -> ArraySymbol:
        return _record("less_equal", other, self, kind=Kind.MASK)

    def __eq__(self, other: object) -> ArraySymbol:  # type: ignore[override]  # arrays compare elementwise
        return _record("equal", self, other, kind=Kind.MASK)

    def __ne__(self, other: object) -> ArraySymbol:  # type: ignore[override]  # arrays compare elementwise
        return _record("logical_not", self == other, kind=Kind.MASK)

    def __and__(self, other: Any) -> ArraySymbol:
        return _record("logical_and", self, other, kind=Kind.MASK)

    def __rand__(self, other: Any) -> ArraySymbol:
        return _record("logical_and", other, self, kind=Kind.MASK)

    def __or__(self, other: Any) -> ArraySymbol:
        return _record("logical_or", self, other, kind=Kind.MASK)

    def __ror__(self, other: Any) -> ArraySymbol:
        return _record("logical_or", other, self, kind=Kind.MASK)

    def __invert__(self) -> ArraySymbol:
        return _record("logical_not", self, kind=Kind.MASK)

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
            return operation(*(float(x) if isinstance(x, float) else _checked(self._builder, x) for x in operands))
        name = "abs" if ufunc.__name__ == "absolute" else ufunc.__name__
        remedy = f"use xp.{name}" if name in SUPPORTED else f"which programs cannot hold; {_supported()}"
        raise UnsupportedOperationError(f"a rule called numpy.{ufunc.__name__} on an array: {remedy}")

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        raise UnsupportedOperationError(
            "a rule called NumPy on an array: use the functions of its argument `xp`, so that it runs on every array library"
        )

    def __floordiv__(self, other: object) -> NoReturn:
        _refuse("//")

    def __rfloordiv__(self, other: object) -> NoReturn:
        _refuse("//")

    def __mod__(self, other: object) -> NoReturn:
        _refuse("%")

    def __rmod__(self, other: object) -> NoReturn:
        _refuse("%")

    def __rpow__(self, other: object) -> NoReturn:
        _refuse("** with an array as the exponent")

    def __matmul__(self, other: Any) -> ArraySymbol:
        return _matmul(self, other)

    def __rmatmul__(self, other: Any) -> ArraySymbol:
        return _matmul(other, self)

    def __xor__(self, other: object) -> NoReturn:
        _refuse("^")

    def __getitem__(self, key: object) -> NoReturn:
        _refuse("[] (indexing)")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        _refuse("[] (assignment to elements)")

    def __iter__(self) -> NoReturn:
        _refuse("iteration")

    def __len__(self) -> NoReturn:  # noqa: PLE0303  # it always raises
        _refuse("len()")

    def __float__(self) -> NoReturn:
        _refuse("float()")

    def __int__(self) -> NoReturn:
        _refuse("int()")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperationError(
            f"a rule used the array attribute .{name}, which programs cannot hold: an array has .ndim, .shape, .size and .mT; "
            f"{_supported()}"
        )


def _supported() -> str:
    return f"supported are the operators + - * / ** @ abs() comparisons & | ~ and xp.{', xp.'.join(SUPPORTED)}"


def _refuse(operation: str) -> NoReturn:
    raise UnsupportedOperationError(f"a rule used {operation} on an array, which programs cannot hold; {_supported()}")


def _checked(builder: Builder, value: Any) -> Any:
    """Return what may be combined with an array, or raise an error."""
    _operand(builder, value)
    return value


def _array_output(builder: Recorder, name: str, value: Any, dims: tuple[Dim, ...] | None) -> int:
    if dims == () and isinstance(value, Scalar | int | float):
        return builder.record("round", Kind.ARRAY, builder.scalar(_plain(value)), dims=())
    try:
        index = _operand(builder, value)
    except UnsupportedOperationError:
        what = "parameter" if name == "p" else f"value of the slot {name!r}"
        raise UnsupportedOperationError(
            f"a rule returned {value!r:.80} of type {type(value).__name__} as its new {what}: return an array or a number"
        ) from None
    if builder.ops[index].kind is Kind.MASK:
        raise UnsupportedOperationError(
            f"a rule returned a mask, the result of a comparison, as its new {name}: use xp.where(mask, a, b)"
        )
    if builder.ops[index].name != "round" and builder.ops[index].dims != dims:
        wanted = "one number, a scalar" if dims == () else f"the shape {_shape_text(builder, dims)}"
        raise UnsupportedOperationError(
            f"a rule returned an array of shape {_shape_text(builder, builder.ops[index].dims)} as its new {name}, which has "
            f"{wanted}"
        )
    return index


def _shape_text(builder: Recorder, dims: tuple[Dim, ...] | None) -> str:
    return "of the parameter" if dims is None else str(tuple(_length(builder.facts, dim) for dim in dims))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Scalar) else value


def _operand(builder: Builder, value: Any) -> int:
    if isinstance(value, ArraySymbol):
        return value._index  # noqa: SLF001  # of this module
    if isinstance(value, Scalar):
        value = value.value
    if isinstance(value, Node):
        number = builder.where(value, 1.0, 0.0) if builder.is_condition(value) else value
        return builder.record("round", Kind.ARRAY, number.index)
    if isinstance(value, int | float):
        return builder.rounded_constant(float(value))
    raise UnsupportedOperationError(
        f"a rule combined an array with {value!r} of type {type(value).__name__}: allowed are the parameter, its gradient and "
        "slots, coefficients, hyperparameters and Python numbers"
    )


def _mask_operand(builder: Builder, value: Any) -> int:
    """Return the index of a mask; a condition of scalars becomes one that is the same for all elements."""
    plain = value.value if isinstance(value, Scalar) else value
    if builder.is_condition(plain):
        return builder.record("condition", Kind.MASK, builder.scalar(plain))
    return _operand(builder, value)


def _record(name: str, *values: Any, kind: Kind = Kind.ARRAY) -> ArraySymbol:
    builder = next((v._builder for v in values if isinstance(v, ArraySymbol)), None)  # noqa: SLF001  # of this module
    if builder is None:
        raise UnsupportedOperationError(
            f"xp.{name} was called without an array: on scalars use the functions of portopt.scalars"
        )
    operands = []
    for position, value in enumerate(values):
        takes_mask = name.startswith("logical") or (name == "where" and position == 0)
        i = _mask_operand(builder, value) if takes_mask else _operand(builder, value)
        operands.append(i)
        is_mask = builder.ops[i].kind is Kind.MASK
        if is_mask and not takes_mask:
            raise UnsupportedOperationError(
                f"a rule gave xp.{name} a mask, the result of a comparison, which only xp.where and & | ~ take: "
                "use xp.where(mask, a, b)"
            )
        if takes_mask and not is_mask:
            raise UnsupportedOperationError(
                f"a rule gave xp.{name} an array that is no mask: compare it first, as in xp.where(g > 0, a, b)"
            )
    return ArraySymbol(builder, builder.record(name, kind, *operands, dims=_common_dims(builder, name, operands)))


def _length(facts: Facts, dim: Dim) -> int:
    """Return the length of an axis."""
    if isinstance(dim, str):
        return int(dim)
    return 1 if dim == -1 else facts.shape[dim]


def _all_dims(builder: Recorder, index: int) -> tuple[Dim, ...]:
    """Return the shape of an operation's result, written out if it is the parameter's."""
    dims = builder.ops[index].dims
    return tuple(range(builder.facts.ndim)) if dims is None else dims


def _shortened(builder: Recorder, dims: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """Return a shape as operations have it: None if it is the parameter's."""
    return None if dims == tuple(range(builder.facts.ndim)) else dims


def _common_dims(builder: Recorder, name: str, operands: Sequence[int]) -> tuple[Dim, ...] | None:
    """Return the shape of what an operation makes of each element of arrays that broadcast to it."""
    arrays = [i for i in operands if builder.ops[i].name not in ("round", "condition")]
    if all(builder.ops[i].dims is None for i in arrays):
        return None
    shapes = [_all_dims(builder, i) for i in arrays]
    result: list[Dim] = []
    for position in range(-max(map(len, shapes)), 0):
        lengths = [dims[position] for dims in shapes if len(dims) >= -position]
        long = next((dim for dim in sorted(lengths, key=str) if dim != -1), -1)
        if any(
            dim not in (-1, long) and _length(builder.facts, dim) != _length(builder.facts, long) for dim in lengths
        ):
            described = " and ".join(str(ArraySymbol(builder, i).shape) for i in arrays)
            raise UnsupportedOperationError(
                f"a rule gave xp.{name} arrays of shapes {described}, which do not broadcast to each other"
            )
        result.append(next((dim for dim in lengths if isinstance(dim, int) and dim != -1), long))
    return _shortened(builder, tuple(result))


def _array(function: str, x: Any) -> ArraySymbol:
    if not isinstance(x, ArraySymbol):
        what = "a scalar" if isinstance(x, Scalar) else f"{x!r:.80} of type {type(x).__name__}"
        raise UnsupportedOperationError(
            f"a rule gave xp.{function} {what}, but it takes an array: the parameter, its gradient, a slot, or what is computed "
            "from them for each element"
        )
    return x


def _reduced(function: str, name: str, x: Any, axis: Any, keepdims: Any, kind: Kind) -> Any:
    """Record a reduction; a whole one gives a scalar, one along axes an array in which these have length one."""
    x = _array(f"{function}", x)
    builder, index = x._builder, x._index  # noqa: SLF001  # of this module
    is_mask = builder.ops[index].kind is Kind.MASK
    if is_mask != (name in ("any", "all", "count")):
        remedy = (
            "use xp.count_nonzero, xp.any or xp.all" if is_mask else f"compare it first, as in xp.{function}(g > 0)"
        )
        raise UnsupportedOperationError(
            f"a rule gave xp.{function} {'a mask, the result of a comparison' if is_mask else 'an array that is no mask'}: "
            f"{remedy}"
        )
    if axis is None and not keepdims:
        return Scalar(Node(builder.record(name, kind, index)), builder)
    if not keepdims:
        raise UnsupportedOperationError(
            f"a rule called xp.{function} with axis={axis!r} and without keepdims=True: give keepdims=True, so that the result "
            "broadcasts with the parameter"
        )
    dims = _all_dims(builder, index)
    axes = tuple(range(len(dims))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(operator.index(a) for a in axes)
    if wrong := [a for a in axes if not -len(dims) <= a < len(dims)]:
        raise UnsupportedOperationError(
            f"a rule called xp.{function} along axis {wrong[0]} of an array of {len(dims)} axes, which it does not have: "
            "ask p.ndim first, as in `if p.ndim >= 2`"
        )
    reduced = tuple(sorted({a % len(dims) for a in axes}))
    kept = tuple(-1 if k in reduced else dim for k, dim in enumerate(dims))
    along = Kind.MASK if kind is Kind.TRUTH else Kind.ARRAY
    return ArraySymbol(builder, builder.record(name, along, index, label=reduced, dims=_shortened(builder, kept)))


def _matmul(a: Any, b: Any) -> ArraySymbol:
    left, right = (_array("matmul", x) for x in (a, b))
    builder = left._builder  # noqa: SLF001  # of this module
    indices = [x._index for x in (left, right)]  # noqa: SLF001  # of this module
    first, second = (_all_dims(builder, i) for i in indices)
    if any(builder.ops[i].kind is Kind.MASK for i in indices):
        raise UnsupportedOperationError("a rule gave @ a mask, the result of a comparison: use xp.where(mask, a, b)")
    if min(len(first), len(second)) < 2:
        raise UnsupportedOperationError(
            f"a rule used @ on arrays of {len(first)} and {len(second)} axes, but it takes matrices, of two axes or more: ask "
            "p.ndim first, as in `if p.ndim >= 2`; the product of two vectors is xp.sum(a * b)"
        )
    facts = builder.facts
    if first[-1] != second[-2] and _length(facts, first[-1]) != _length(facts, second[-2]):
        raise UnsupportedOperationError(
            f"a rule used @ on arrays of shapes {left.shape} and {right.shape}: the last axis of the first must be as long as "
            "the last but one of the second"
        )
    shapes = [first[:-2], second[:-2]]
    batch: list[Dim] = []
    for position in range(-max(map(len, shapes)), 0):
        lengths = [dims[position] for dims in shapes if len(dims) >= -position]
        long = next((dim for dim in lengths if dim != -1), -1)
        if any(dim not in (-1, long) and _length(facts, dim) != _length(facts, long) for dim in lengths):
            raise UnsupportedOperationError(
                f"a rule used @ on arrays of shapes {left.shape} and {right.shape}, whose leading axes do not broadcast"
            )
        batch.append(long)
    dims = _shortened(builder, (*batch, first[-2], second[-1]))
    return ArraySymbol(builder, builder.record("matmul", Kind.ARRAY, *indices, dims=dims))


def _permuted(x: Any, axes: Sequence[int]) -> ArraySymbol:
    x = _array("permute_dims", x)
    builder, index = x._builder, x._index  # noqa: SLF001  # of this module
    dims, order = _all_dims(builder, index), tuple(operator.index(a) for a in axes)
    if sorted(order) != list(range(len(dims))):
        raise UnsupportedOperationError(
            f"a rule called xp.permute_dims with the axes {order} on an array of {len(dims)} axes: each must be given once"
        )
    permuted = _shortened(builder, tuple(dims[a] for a in order))
    return ArraySymbol(builder, builder.record("transpose", builder.ops[index].kind, index, label=order, dims=permuted))


def _matrix_transpose(x: Any) -> ArraySymbol:
    ndim = _array("matrix_transpose", x).ndim
    if ndim < 2:
        raise UnsupportedOperationError(
            f"a rule used .mT on an array of {ndim} axes, but only matrices, of two axes or more, have it: ask p.ndim first"
        )
    return _permuted(x, (*range(ndim - 2), ndim - 1, ndim - 2))


def _reshaped(x: Any, shape: Any) -> ArraySymbol:
    x = _array("reshape", x)
    builder, index = x._builder, x._index  # noqa: SLF001  # of this module
    lengths = [operator.index(n) for n in (shape if isinstance(shape, tuple | list) else (shape,))]
    known = math.prod(n for n in lengths if n != -1)
    if lengths.count(-1) == 1 and known and x.size % known == 0:
        lengths[lengths.index(-1)] = x.size // known
    if math.prod(lengths) != x.size or min(lengths, default=0) < 0:
        raise UnsupportedOperationError(
            f"a rule called xp.reshape with the shape {shape!r} on an array of shape {x.shape}: the number of elements must stay"
        )
    if tuple(lengths) == builder.facts.shape:
        dims: tuple[Dim, ...] | None = None
        label: tuple[Dim, ...] = tuple(range(len(lengths)))
    else:
        dims = label = tuple(str(n) if n != 1 else -1 for n in lengths)
    return ArraySymbol(builder, builder.record("reshape", builder.ops[index].kind, index, label=label, dims=dims))


def _power(base: Any, exponent: Any) -> ArraySymbol:
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    if isinstance(exponent, float | Scalar) and isinstance(base, ArraySymbol):
        return _record("power", base, exponent)
    if not isinstance(exponent, int) or isinstance(exponent, bool) or exponent < 1:
        raise UnsupportedOperationError(
            f"a rule raised an array to the power {exponent!r}: allowed are positive integers, as repeated products, and real "
            "numbers that are no integers; use a division for a negative integer power"
        )
    result = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return result  # type: ignore[return-value]  # exponent >= 1, so the loop sets it


class SymbolicNamespace:
    """The part of the array API that a rule may use; each function records an operation."""

    add = staticmethod(lambda a, b: _record("add", a, b))
    subtract = staticmethod(lambda a, b: _record("subtract", a, b))
    multiply = staticmethod(lambda a, b: _record("multiply", a, b))
    divide = staticmethod(lambda a, b: _record("divide", a, b))
    negative = staticmethod(lambda a: _record("negative", a))
    positive = staticmethod(lambda a: a)
    abs = staticmethod(lambda a: _record("absolute", a))
    sqrt = staticmethod(lambda a: _record("sqrt", a))
    square = staticmethod(lambda a: _record("multiply", a, a))
    pow = staticmethod(_power)
    sign = staticmethod(lambda a: _record("sign", a))
    maximum = staticmethod(lambda a, b: _record("maximum", a, b))
    minimum = staticmethod(lambda a, b: _record("minimum", a, b))
    less = staticmethod(lambda a, b: _record("less", a, b, kind=Kind.MASK))
    less_equal = staticmethod(lambda a, b: _record("less_equal", a, b, kind=Kind.MASK))
    greater = staticmethod(lambda a, b: _record("less", b, a, kind=Kind.MASK))
    greater_equal = staticmethod(lambda a, b: _record("less_equal", b, a, kind=Kind.MASK))
    equal = staticmethod(lambda a, b: _record("equal", a, b, kind=Kind.MASK))
    not_equal = staticmethod(
        lambda a, b: _record("logical_not", _record("equal", a, b, kind=Kind.MASK), kind=Kind.MASK)
    )
    logical_and = staticmethod(lambda a, b: _record("logical_and", a, b, kind=Kind.MASK))
    logical_or = staticmethod(lambda a, b: _record("logical_or", a, b, kind=Kind.MASK))
    logical_not = staticmethod(lambda a: _record("logical_not", a, kind=Kind.MASK))
    isnan = staticmethod(lambda a: ~(a == a))
    where = staticmethod(lambda condition, a, b: _record("where", condition, a, b))
    exp = staticmethod(lambda a: _record("exp", a))
    log = staticmethod(lambda a: _record("log", a))
    tanh = staticmethod(lambda a: _record("tanh", a))
    cbrt = staticmethod(lambda a: _record("cbrt", a))
    atan2 = staticmethod(lambda a, b: _record("atan2", a, b))
    matmul = staticmethod(_matmul)
    matrix_transpose = staticmethod(_matrix_transpose)
    permute_dims = staticmethod(_permuted)
    reshape = staticmethod(_reshaped)

    def __init__(self, builder: Recorder) -> None:
        self._builder = builder

    @staticmethod
    def sum(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return _reduced("sum", "sum", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def mean(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return _reduced("mean", "mean", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def max(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return _reduced("max", "max", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def min(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return _reduced("min", "min", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def any(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return _reduced("any", "any", x, axis, keepdims, Kind.TRUTH)

    @staticmethod
    def all(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return _reduced("all", "all", x, axis, keepdims, Kind.TRUTH)

    @staticmethod
    def count_nonzero(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        x = _array("count_nonzero", x)
        is_mask = x._builder.ops[x._index].kind is Kind.MASK  # noqa: SLF001  # of this module
        return _reduced("count_nonzero", "count", x if is_mask else x != 0.0, axis, keepdims, Kind.INTEGER)

    @property
    def linalg(self) -> _LinearAlgebra:
        """The array API's functions of linear algebra that programs can hold."""
        return _LinearAlgebra()

    @staticmethod
    def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
        if min is not None:
            x = _record("maximum", x, min)
        return x if max is None else _record("minimum", x, max)

    def _constant(self, value: float) -> ArraySymbol:
        return ArraySymbol(self._builder, _operand(self._builder, value))

    def zeros_like(self, x: Any) -> ArraySymbol:
        return self.full_like(x, 0.0)

    def ones_like(self, x: Any) -> ArraySymbol:
        return self.full_like(x, 1.0)

    def full_like(self, x: Any, fill_value: Any) -> ArraySymbol:
        value = ArraySymbol(self._builder, _operand(self._builder, fill_value))
        has_shape = isinstance(x, ArraySymbol) and self._builder.ops[x._index].dims is not None  # noqa: SLF001  # of this module
        return _record("where", x == x, value, value) if has_shape else value

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperationError(
            f"a rule used xp.{name}, which programs cannot hold; supported are xp.{', xp.'.join(SUPPORTED)}, and the operators "
            "+ - * / ** @ abs() comparisons & | ~"
        )


class _LinearAlgebra:
    """The part of the array API's linear algebra that a rule may use."""

    matmul = staticmethod(_matmul)
    matrix_transpose = staticmethod(_matrix_transpose)

    @staticmethod
    def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return _reduced("linalg.vector_norm", "norm", x, axis, keepdims, Kind.FLOAT)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperationError(
            f"a rule used xp.linalg.{name}, which programs cannot hold: decompositions and solutions of equations differ between "
            "libraries; supported are xp.linalg.vector_norm, matmul and matrix_transpose, and what products make, such as "
            "coupled Newton iterations for inverse roots"
        )


SUPPORTED: tuple[str, ...] = (
    *sorted(n for n in vars(SymbolicNamespace) if not n.startswith("_") and n != "linalg"),
    "linalg.vector_norm",
)
"""Names of the array API functions that a rule may use."""


def trace(
    optimizer: TracedRule,
    active: frozenset[str],
    facts: Facts,
    slots: Callable[[Facts], Mapping[str, tuple[Dim, ...] | None]],
) -> Program:
    """Run the rule's `coefficients` and `update` on symbols and return the canonical program of one step.

    Args:
        optimizer: the rule.
        active: the hyperparameters that are inputs of the program, the others keep the Python value they have; and the further
            inputs that the step is given.
        facts: what is known of the parameter; it remembers what was asked for.
        slots: returns the shape that `update` sees of each slot that the parameter has, by name.
    """
    builder = Recorder(facts)

    def scalar_input(name: str, kind: Kind = Kind.FLOAT, *, structural: bool = False) -> Scalar:
        return Scalar(Node(builder.record("input", kind, label=name)), builder, structural=structural)

    def load(name: str, dims: tuple[Dim, ...] | None = None) -> Any:
        symbol = ArraySymbol(builder, builder.record("load", Kind.ARRAY, label=name, dims=dims))
        if dims != ():
            return symbol
        return Scalar(Node(builder.record("widen", Kind.FLOAT, symbol._index)), builder)  # noqa: SLF001  # of this module

    symbolic = copy.copy(optimizer)
    for name in optimizer.numeric_hyperparameters():
        if name in active:
            object.__setattr__(symbolic, name, scalar_input(name, structural=optimizer.is_optional(name)))
    namespace = SymbolicNamespace(builder)
    parameter, gradient = load("p"), load("g")
    gradient = _clipped(builder, symbolic, namespace, gradient, active)
    kept = slots(facts)
    symbols = Slots(**{name: load(name, dims) for name, dims in kept.items()})
    inputs = {name: load(name) if name in active else None for name in optimizer.inputs}
    state_scalars = {name: scalar_input(name) for name in optimizer.scalar_slots}
    t = scalar_input("t", Kind.INTEGER)

    totals: dict[str, Scalar] = {}
    if symbolic.totals is not None:
        known = Coefficients(t=t, **state_scalars)
        totals = _totals(optimizer, builder, symbolic.totals(namespace, parameter, gradient, symbols, known, **inputs))
    coefficients = _coefficients(optimizer, symbolic.coefficients(t, **state_scalars, **totals))
    outputs = {name: coefficients.pop(name, state_scalars[name]) for name in state_scalars}
    result = symbolic.update(namespace, parameter, gradient, symbols, Coefficients(**coefficients), **inputs)
    updated, new_slots = _returned(optimizer, result, tuple(kept))
    results = {"p": updated, **{n: new_slots[n] for n in kept}}
    array_outputs = {name: _array_output(builder, name, value, kept.get(name)) for name, value in results.items()}
    scalar_outputs = {name: builder.scalar(_plain(value)) for name, value in outputs.items()}
    return canonicalize(Program(type(optimizer).__name__, tuple(builder.ops), array_outputs, scalar_outputs))


_TOTALS = {"sum": "total_sum", "max": "total_max", "norm": "total_norm"}


def _totals(optimizer: TracedRule, builder: Builder, returned: Any) -> dict[str, Scalar]:
    owner = f"{type(optimizer).__name__}.totals"
    if not isinstance(returned, Mapping):
        raise TypeError(
            f'{owner} must return what is reduced over all parameters by name, as in `return {{"total": xp.sum(p * g)}}`, but it '
            f"returned {_described(returned)}"
        )
    totals = {}
    for name, value in returned.items():
        op = builder.ops[value.value.index] if isinstance(value, Scalar) and isinstance(value.value, Node) else None
        if op is None or op.name not in _TOTALS or op.label is not None:
            raise TypeError(
                f"{owner} returned {name!r} as {_described(value)}, but a total is the result of xp.sum, xp.max or "
                "xp.linalg.vector_norm of a whole array: its value over all parameters is an argument of coefficients, where "
                "more can be computed from it"
            )
        if builder.ops[op.args[0]].kind is Kind.MASK or name in optimizer.scalar_slots or name in ("t", GRADIENT_NORM):
            raise TypeError(f"{owner} returned a total under the name {name!r}, which is taken: give it another")
        totals[name] = Scalar(Node(builder.record(_TOTALS[op.name], Kind.FLOAT, op.args[0], label=name)), builder)
    return totals


def _clipped(builder: Recorder, rule: Any, xp: Any, gradient: ArraySymbol, active: frozenset[str]) -> ArraySymbol:
    if "clipnorm" in active:
        total = builder.record("total_norm", Kind.FLOAT, _operand(builder, gradient), label=GRADIENT_NORM)
        norm = Scalar(Node(total), builder)
        # A NaN norm compares false and leaves the gradient as it is; an infinite one gives the factor zero.
        gradient = gradient * where(norm >= rule.clipnorm, rule.clipnorm / norm, 1.0)
    if "clipvalue" in active:
        gradient = xp.clip(gradient, -rule.clipvalue, rule.clipvalue)
    return gradient


def _coefficients(optimizer: TracedRule, returned: Any) -> dict[str, Any]:
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"{type(optimizer).__name__}.coefficients must return the scalars of a step by name, as in "
            f'`return {{"lr": self.learning_rate_at(t)}}`, but it returned {_described(returned)}'
        )
    return dict(returned)


def _returned(optimizer: TracedRule, result: Any, kept: tuple[str, ...]) -> tuple[Any, Mapping[str, Any]]:
    """Return what `update` returned, after checking that it is a new parameter and a new value for each slot."""
    owner = f"{type(optimizer).__name__}.update"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        slots = ", ".join(f'"{name}": new_{name}' for name in kept)
        raise TypeError(
            f"{owner} must return the new parameter and a dict with the new value of each slot, `return new_p, {{{slots}}}`, "
            f"but it returned {_described(result)}"
        )
    new_slots = result[1]
    missing = [name for name in kept if name not in new_slots]
    unknown = [name for name in new_slots if name not in kept]
    if missing or unknown:
        raise ValueError(
            f"{owner} must return a new value for each of its slots {list(map(str, kept))}: "
            f"missing {missing}, unknown {unknown}"
        )
    return result[0], new_slots


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, ArraySymbol):
        return "one array"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(_described, value)) or 'nothing'}"
    return f"an object of type {type(value).__name__}"
