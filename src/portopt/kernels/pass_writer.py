"""The lines of a pass's kernel that languages share: names, places of elements, what operations are computed from.

A name that ends with `_of` is the source's own. What a kernel may know of a parameter is a list of *definitions*, names and the
statements that make them known, of which a kernel has those that it uses.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from portopt.kernels.key import KernelKey
from portopt.kernels.norm_dependence import NormDependence
from portopt.kernels.passes import Pass, passes_of
from portopt.kernels.stages import Space
from portopt.kernels.writer import Language, Writer
from portopt.program import DRAWS, Kind, Program

Definition = tuple[str, str]


class PassWriter(ABC):
    """Writes what kernels compute for an element, in one language.

    Args:
        language: the table of the language.
        program: what the kernels do.
        key: of the kernels.
        split: of the program: which of its scalars are computed on the device.

    Attributes:
        zero: the index of the only element of an array of no lengths.
        split: the program, and which of its scalars need the norm of the gradients.
        passes: the kernels.
        program: the program of `split`.
        writer: of the program's operations.
        names: of their results.
        real: the compute dtype.
        places: of scalars of the parameter in memory.
    """

    zero: str

    def __init__(self, language: Language, program: Program, key: KernelKey, split: NormDependence) -> None:
        self.split = split
        self.passes = passes_of(program)
        self.stages = self.passes.stages
        self.program = self.split.program
        self.key = key
        self.writer = Writer(language, self.program, key)
        self.names = self.writer.names
        self.real = key.compute_dtype
        self.places = self.passes.scalar_places

    @abstractmethod
    def integer(self, name: str, value: str) -> str:
        """Return the statement that gives an integer a name."""

    @abstractmethod
    def quotient(self, a: str, b: str) -> str:
        """Return a quotient of integers that are not negative, rounded down."""

    @abstractmethod
    def element(self, array: str, place: str) -> str:
        """Return an element of an array in memory."""

    @abstractmethod
    def kept_scalar(self, place: int, kind: Kind) -> str:
        """Return a scalar of the parameter that was stored."""

    @abstractmethod
    def drawn(self, i: int, place: str) -> str:
        """Return the random number of an operation for an element."""

    # Definitions

    def used(self, body: Sequence[str], known: Iterable[Definition]) -> list[str]:
        """Return those of the statements, in order, whose names a body or further ones of them use."""
        text, found = "\n".join(body), []
        for name, statement in reversed(list(known)):
            if re.search(rf"\b{name}\b", text):
                found.append(statement)
                text += "\n" + statement.partition(" = ")[2]
        return found[::-1]

    def spaces(self) -> list[Space]:
        """Return the spaces of all arrays."""
        return sorted({self.stages.space, *(space for space in self.stages.spaces if space is not None), ()})

    # Places

    def along_lengths(self, space: Space, index: str) -> list[Definition]:
        """Return definitions of the place along each length of an element of a space, given its index."""
        found = []
        rest = index
        for k in reversed(space[1:]):
            further = f"rest_{k}_of"
            found.append((further, self.integer(further, self.quotient(rest, length(k)))))
            found.append((along(k), self.integer(along(k), f"{rest} - {further} * {length(k)}")))
            rest = further
        if space:
            found.append((along(space[0]), self.integer(along(space[0]), rest)))
        return found

    def index(self, space: Space, whole: Space, index: str | None) -> str:
        """Return the index in an array of a space of what belongs to an element of the whole, which may have an index itself."""
        if not space:
            return self.zero
        if space == whole and index is not None:
            return index
        text = along(space[0])
        for k in space[1:]:
            text = f"({text}) * {length(k)} + {along(k)}"
        return text

    # Elements

    def computed(self, step: Pass, whole: Space, index: str | None) -> list[str]:
        """Return the statements that compute the operations of a pass for one element, loads first."""
        ops = self.program.ops
        order = sorted({*step.operations, *step.external}, key=lambda i: (ops[i].reads is None, i))
        return [self.writer.assigned(i, self._expression(i, step, whole, index)) for i in order]

    def _expression(self, i: int, step: Pass, whole: Space, index: str | None) -> str:
        op = self.program.ops[i]
        place = self.index(self.stages.spaces[i] or (), whole, index)
        if i in step.external:
            element = self.element(stored(i), place)
            return f"{element} != 0" if op.kind is Kind.MASK else element
        if op.reads is not None:
            return self.writer.array_expression(i, self.element("{0}", place))
        return self.drawn(i, place) if op.name in DRAWS else self.writer.array_expression(i)

    # Scalars of the parameter

    def read(self, scalars: Iterable[int], known: set[int]) -> list[str]:
        """Return the statements that take scalars of the parameter from where they were stored; adds them to those known."""
        lines = []
        for i in scalars:
            if i not in known:
                known.add(i)
                lines.append(self.writer.assigned(i, self.kept_scalar(self.places[i], self.program.ops[i].kind)))
        return lines

    def rounded(self, step: Pass) -> list[str]:
        """Return the statements that round the scalars of the parameter which operations of a pass need."""
        ops = self.program.ops
        outputs = [self.program.array_outputs[name] for name in step.outputs]
        needed = [*outputs, *(j for i in (*step.operations, *step.reductions) for j in ops[i].args)]
        known: set[int] = set()
        lines = []
        for i in sorted(set(needed)):
            if ops[i].name == "round" and ops[i].args[0] in self.places:
                lines += self.read(ops[i].args, known)
                lines.append(self.writer.assigned(i, self.writer.rounded(ops[i].args[0])))
        return lines


def length(k: int) -> str:
    """Return the name of a length."""
    return f"length_{k}_of"


def along(k: int) -> str:
    """Return the name of the place along a length."""
    return f"along_{k}_of"


def size(space: Space) -> str:
    """Return the name of the number of elements of a space."""
    return f"size_{'_'.join(map(str, space))}_of" if space else "size_of"


def parts(i: int) -> str:
    """Return the name of where the parts of a reduction are."""
    return f"parts_{i}_of"


def stored(i: int) -> str:
    """Return the name of where the results of an operation are kept between kernels."""
    return f"stored_{i}_of"


def own(i: int) -> str:
    """Return the name of what a thread, or a block, has of a reduction."""
    return f"own_{i}_of"


def together(i: int) -> str:
    """Return the name of what is combined of a reduction."""
    return f"together_{i}_of"
