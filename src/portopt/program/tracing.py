"""From a rule to a `Program`: the rule's own code runs once on symbols that record what is asked of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from portopt.program.builder import Builder, Node, UnsupportedOperationError
from portopt.program.canonical import canonicalize
from portopt.program.ir import Kind, Program
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

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, /) -> tuple[Any, Mapping[str, Any]]:
        """Return the new parameter, and the new value of each slot by name."""


class ArraySymbol:
    """Stands for a parameter, gradient, slot or intermediate array while a rule is traced."""

    __slots__ = ("_builder", "_index")

    def __init__(self, builder: Builder, index: int) -> None:
        self._builder = builder
        self._index = index

    def __array_namespace__(self, *, api_version: str | None = None) -> SymbolicNamespace:
        return SymbolicNamespace(self._builder)

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

    def __matmul__(self, other: object) -> NoReturn:
        _refuse("@")

    def __rmatmul__(self, other: object) -> NoReturn:
        _refuse("@")

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
            f"a rule used the array attribute .{name}, which programs cannot hold: a rule sees one parameter of any shape; "
            f"{_supported()}"
        )


def _supported() -> str:
    return f"supported are the operators + - * / ** (integer power) abs() comparisons & | ~ and xp.{', xp.'.join(SUPPORTED)}"


def _refuse(operation: str) -> NoReturn:
    raise UnsupportedOperationError(f"a rule used {operation} on an array, which programs cannot hold; {_supported()}")


def _checked(builder: Builder, value: Any) -> Any:
    """Return what may be combined with an array, or raise an error."""
    _operand(builder, value)
    return value


def _array_output(builder: Builder, name: str, value: Any) -> int:
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
    return index


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
    return ArraySymbol(builder, builder.record(name, kind, *operands))


def _power(base: Any, exponent: Any) -> ArraySymbol:
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    if not isinstance(exponent, int) or isinstance(exponent, bool) or exponent < 1:
        raise UnsupportedOperationError(
            f"a rule raised an array to the power {exponent!r}: allowed are positive integers, as repeated products; "
            "use xp.sqrt for a root and a division for a negative power"
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

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    @staticmethod
    def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
        if min is not None:
            x = _record("maximum", x, min)
        return x if max is None else _record("minimum", x, max)

    def _constant(self, value: float) -> ArraySymbol:
        return ArraySymbol(self._builder, _operand(self._builder, value))

    def zeros_like(self, x: Any) -> ArraySymbol:
        return self._constant(0.0)

    def ones_like(self, x: Any) -> ArraySymbol:
        return self._constant(1.0)

    def full_like(self, x: Any, fill_value: Any) -> ArraySymbol:
        return ArraySymbol(self._builder, _operand(self._builder, fill_value))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperationError(
            f"a rule used xp.{name}, which programs cannot hold; supported are xp.{', xp.'.join(SUPPORTED)}, and the operators "
            "+ - * / ** (integer power) abs() comparisons & | ~"
        )


SUPPORTED: tuple[str, ...] = tuple(sorted(n for n in vars(SymbolicNamespace) if not n.startswith("_")))
"""Names of the array API functions that a rule may use."""


def trace(optimizer: TracedRule, active: frozenset[str]) -> Program:
    """Run the rule's `coefficients` and `update` on symbols and return the canonical program of one step.

    `active` names the hyperparameters that are inputs of the program; the others keep the Python value they have.
    """
    builder = Builder()

    def scalar_input(name: str, kind: Kind = Kind.FLOAT, *, structural: bool = False) -> Scalar:
        return Scalar(Node(builder.record("input", kind, label=name)), builder, structural=structural)

    def load(name: str) -> ArraySymbol:
        return ArraySymbol(builder, builder.record("load", Kind.ARRAY, label=name))

    symbolic = copy.copy(optimizer)
    for name in optimizer.numeric_hyperparameters():
        if name in active:
            object.__setattr__(symbolic, name, scalar_input(name, structural=optimizer.is_optional(name)))
    namespace = SymbolicNamespace(builder)
    parameter, gradient = load("p"), load("g")
    gradient = _clipped(builder, symbolic, namespace, gradient, active)
    slots = Slots(**{name: load(name) for name in optimizer.slots})
    state_scalars = {name: scalar_input(name) for name in optimizer.scalar_slots}

    coefficients = _coefficients(optimizer, symbolic.coefficients(scalar_input("t", Kind.INTEGER), **state_scalars))
    outputs = {name: coefficients.pop(name, state_scalars[name]) for name in state_scalars}
    result = symbolic.update(namespace, parameter, gradient, slots, Coefficients(**coefficients))
    updated, new_slots = _returned(optimizer, result)
    return canonicalize(
        Program(
            name=type(optimizer).__name__,
            ops=tuple(builder.ops),
            array_outputs={
                name: _array_output(builder, name, value)
                for name, value in {"p": updated, **{n: new_slots[n] for n in optimizer.slots}}.items()
            },
            scalar_outputs={n: builder.scalar(v.value if isinstance(v, Scalar) else v) for n, v in outputs.items()},
        )
    )


def _clipped(builder: Builder, rule: Any, xp: Any, gradient: ArraySymbol, active: frozenset[str]) -> ArraySymbol:
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


def _returned(optimizer: TracedRule, result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return what `update` returned, after checking that it is a new parameter and a new value for each slot."""
    owner = f"{type(optimizer).__name__}.update"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        slots = ", ".join(f'"{name}": new_{name}' for name in optimizer.slots)
        raise TypeError(
            f"{owner} must return the new parameter and a dict with the new value of each slot, `return new_p, {{{slots}}}`, "
            f"but it returned {_described(result)}"
        )
    new_slots = result[1]
    missing = [name for name in optimizer.slots if name not in new_slots]
    unknown = [name for name in new_slots if name not in optimizer.slots]
    if missing or unknown:
        raise ValueError(
            f"{owner} must return a new value for each of its slots {list(optimizer.slots)}: "
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
