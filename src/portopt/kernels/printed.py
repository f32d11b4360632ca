"""What GPUs run for a program that multiplies matrices, in order, as text: kernels, and lines for what is the library's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.groups import array_order, kernel_key
from portopt.kernels.key import KernelKey
from portopt.kernels.names import COLUMNS_SLICED, RESCALED, ROWS_SLICED, SUM_SQUARES
from portopt.program import DRAWS, REDUCTIONS, Op, Program
from portopt.program.products import SLICES, operands_of
from portopt.program.segments import Segment, fused_schedule

_PRODUCTS = {1: "a product", 3: "6 products"}
"""How many products of float64 matrices one is, by the number of slices."""


def printed(
    program: Program,
    dtype: str,
    of_elements: Callable[[Program, KernelKey], str],
    of_products: Callable[[str], str],
) -> str:
    """Return the kernels of a step on one parameter, each source where it is run first, what sources share only once.

    Args:
        program: of the step; it multiplies matrices.
        dtype: of parameter and gradient; slots are in the compute dtype.
        of_elements: returns the source of the kernels of an elementwise program.
        of_products: returns the source of the kernels that slice and scale back, for a compute dtype.
    """
    return "\n".join(_Printer(program, dtype, of_elements, of_products).lines()) + "\n"


@dataclass
class _Printer:
    """What was printed of a step so far; arguments as those of `printed`."""

    program: Program
    dtype: str
    of_elements: Callable[[Program, KernelKey], str]
    of_products: Callable[[str], str]
    _sources: dict[str, int] = field(default_factory=dict)
    """The number of each source that was printed."""
    _paragraphs: set[str] = field(default_factory=set)
    _sliced: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._real = COMPUTE_DTYPE[self.dtype]
        self._names = self.program.names()

    def lines(self) -> Iterator[str]:
        name = self.program.name
        yield f"// {name} on {self.dtype}, computed in {self._real}: what is run for a parameter, in order."
        yield "// Of a source, what stands above already is left out."
        for step in fused_schedule(self.program).steps:
            if isinstance(step, Segment):
                yield from self._segment(step)
                continue
            op = self.program.ops[step]
            if op.name == "matmul":
                yield from self._product(step)
            elif op.reads is None and op.name not in ("constant", "input", "round") and self._is_run(step):
                yield f"// {self._line(step, op)}"

    def _is_run(self, i: int) -> bool:
        """Tell whether an operation is one of a parameter, rather than of the step."""
        return not self.program.ops[i].kind.is_scalar or i in self.program.parameter_scalars

    def _line(self, i: int, op: Op) -> str:
        names = self._names
        operands = [names[j] for j in op.args]
        if isinstance(op.label, tuple):
            operands.append(
                f"{'axes' if op.name in (*REDUCTIONS, 'transpose') else 'shape'}={op.label}".replace("'", "")
            )
        text = f"{names[i]} = {op.name}({', '.join(operands)})"
        if op.name in ("transpose", "reshape"):
            return f"{text}: the same memory"
        if op.kind.is_scalar and op.name not in REDUCTIONS:
            return f"{text}: on the host"
        if op.name == "norm" and op.kind.is_scalar:
            return f"{text}: kernel {SUM_SQUARES}, as for the norm of gradients"
        what = "draws" if op.name in DRAWS else "reduces" if op.name in REDUCTIONS else "computes"
        return f"{text}: the library {what}, operation by operation"

    def _segment(self, segment: Segment) -> Iterator[str]:
        names = self._names
        given = [array if isinstance(array, str) else names[array] for array in segment.arrays]
        results = ", ".join(names[i] for i in segment.outputs)
        places = [f"x{k} is {name}" for k, name in enumerate(given)]
        places += [f"s{k} is {names[i]}" for k, i in enumerate(segment.scalars)]
        dtypes = dict.fromkeys(array_order(segment.program), self._real)
        dtypes |= {f"x{k}": self.dtype for k, array in enumerate(segment.arrays) if array in ("p", "g")}
        source = self.of_elements(segment.program, kernel_key(segment.program, dtypes, in_place=False, flush="where"))
        yield from self._run(f"{results}: kernel update, {', '.join(places)}", source)

    def _product(self, i: int) -> Iterator[str]:
        names, op = self._names, self.program.ops[i]
        source = self.of_products(self._real)
        left, right = operands_of(self.program)[i]
        for operand in (left, right):
            if (operand.source, operand.axis) in self._sliced:
                continue
            self._sliced.add((operand.source, operand.axis))
            kernel = ROWS_SLICED if operand.axis == -1 else COLUMNS_SLICED
            yield from self._run(f"slices of {names[operand.source]}: kernel {kernel}", source)
        count = _PRODUCTS[SLICES[self._real]]
        what = " @ ".join(names[j] for j in op.args)
        yield f"// {names[i]} = {what}: the library multiplies, {count} of float64 matrices"
        yield from self._run(f"{names[i]}: kernel {RESCALED}", source)

    def _run(self, what: str, source: str) -> Iterator[str]:
        """Yield what is run, with its source if it is new."""
        known = self._sources.get(source)
        if known is not None:
            yield f"// {what}, of source {known}"
            return
        number = self._sources[source] = len(self._sources) + 1
        yield f"\n// {what}, of source {number}:\n"
        for paragraph in source.strip("\n").split("\n\n"):
            if paragraph not in self._paragraphs:
                self._paragraphs.add(paragraph)
                yield f"{paragraph}\n"
