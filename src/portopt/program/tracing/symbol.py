"""What stands for arrays while a rule is traced: an operation that was recorded, and where."""

from __future__ import annotations

from typing import Any

from portopt.program.builder import Builder, UnsupportedOperationError
from portopt.program.facts import Facts
from portopt.program.ir import Kind
from portopt.scalars import Scalar


class Recorder(Builder):
    """The operations recorded so far, and what is known of the parameter.

    Args:
        facts: what is known of the parameter.

    Attributes:
        namespace: the array API namespace that the rule is given.
        functions: the names of what it may use of that, for messages.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.namespace: Any = None
        self.functions: tuple[str, ...] = ()


class Symbol:
    """Stands for an array; `recorder_of` and `index_of` tell what it is, so that a rule sees no attributes of this kind."""

    __slots__ = ("_index", "_recorder")

    def __init__(self, recorder: Recorder, index: int) -> None:
        self._recorder = recorder
        self._index = index


def recorder_of(symbol: Symbol) -> Recorder:
    """Return what recorded an array."""
    return symbol._recorder  # noqa: SLF001  # of this module


def index_of(symbol: Symbol) -> int:
    """Return the index of the operation that an array is the result of."""
    return symbol._index  # noqa: SLF001  # of this module


def is_mask(symbol: Symbol) -> bool:
    """Tell whether an array is the result of a comparison."""
    return recorder_of(symbol).ops[index_of(symbol)].kind is Kind.MASK


def array_argument(function: str, x: Any) -> Any:
    """Return an argument of a function of arrays; raise an error if it is none."""
    if not isinstance(x, Symbol):
        what = "a scalar" if isinstance(x, Scalar) else f"{x!r:.80} of type {type(x).__name__}"
        raise UnsupportedOperationError(
            f"a rule gave xp.{function} {what}, but it takes an array: the parameter, its gradient, a slot, or what is computed "
            "from them for each element"
        )
    return x
