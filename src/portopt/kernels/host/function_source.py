"""Functions of a kernel's source, and the names of variables that they share."""

from __future__ import annotations

from collections.abc import Sequence

from portopt.kernels.stages import Space


class Function:
    """The lines of a function, and what they use of the kernel's variables."""

    def __init__(self, name: str, description: str, own: Sequence[str] = ()) -> None:
        self.name = name
        self.own = tuple(own)
        self.lines: list[str] = []
        self.arguments: dict[str, None] = {}
        self._description = description

    def use(self, name: str) -> str:
        """Note that a variable of the kernel is used."""
        self.arguments[name] = None
        return name

    def text(self) -> list[str]:
        """Return the definition."""
        return [
            "",
            "",
            f"def {self.name}({', '.join([*self.own, *self.arguments])}):",
            f'    """{self._description}"""',
            *(f"    {line}" for line in self.lines),
        ]

    def calling(self, other: Function, *own: str) -> list[str]:
        """Return the lines with which this function calls another one, given the other's own arguments."""
        self.arguments.update(other.arguments)
        return other.call(*own)

    def call(self, *own: str) -> list[str]:
        """Return the lines that call it."""
        arguments = [*own, *self.arguments]
        return [f"{self.name}(", *(f"    {argument}," for argument in arguments), ")"]


def use_size(function: Function, space: Space | None) -> str:
    """Return the number of elements of a space in a function."""
    return function.use(size_name(space))


def length_name(k: int) -> str:
    """Return what the length of an axis is called."""
    return f"length_{k}_of"


def size_name(space: Space | None) -> str:
    """Return what the number of elements of a space is called."""
    return f"size_{'_'.join(map(str, space))}_of" if space else "one"


def range_name(k: int) -> str:
    """Return what is called that which a loop in vectors leaves of itself."""
    return f"range_{k}_of"


def at_name(space: Space) -> str:
    """Return what the place of a line in an array of a space is called."""
    return f"at_{'_'.join(map(str, space))}_of"
