"""What is known of a parameter while a rule is traced: its shape, as far as the rule asks for it."""

from __future__ import annotations

import math
from typing import Any

from portopt.program.builder import UnsupportedOperationError


class UnknownFactError(UnsupportedOperationError):
    """A rule asked about a parameter where none is at hand."""


class Facts:
    """A parameter's number of axes, shape and size, and which of them were asked for.

    Args:
        owner: the rule's name, for messages.
        shape: of the parameter; None if no parameter is at hand.

    Attributes:
        asked: the facts that were asked for, by name.
    """

    def __init__(self, owner: str, shape: tuple[int, ...] | None) -> None:
        self.asked: dict[str, Any] = {}
        self._owner = owner
        self._shape = shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        value: int = self._fact("ndim")
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        value: tuple[int, ...] = self._fact("shape")
        return value

    @property
    def size(self) -> int:
        """The number of elements."""
        value: int = self._fact("size")
        return value

    def hold_for(self, shape: tuple[int, ...]) -> bool:
        """Tell whether all that was asked for is the same for a parameter of another shape."""
        return all(fact_of(name, shape) == value for name, value in self.asked.items())

    def _fact(self, name: str) -> Any:
        if self._shape is None:
            raise UnknownFactError(
                f"the program of {self._owner} depends on the parameter's {name}, and no parameter is at hand: give its shape, "
                f"as in {self._owner}().program(shape=(3, 4))"
            )
        value = self.asked[name] = fact_of(name, self._shape)
        return value


def fact_of(name: str, shape: tuple[int, ...]) -> Any:
    """Return a fact of a parameter of a shape."""
    match name:
        case "ndim":
            return len(shape)
        case "size":
            return math.prod(shape)
        case _:
            return shape
