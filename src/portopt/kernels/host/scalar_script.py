"""Programs of scalars as a script, which one compiled function runs: a new program needs no compilation.

The script has five words an operation: what it is, and where its result and its operands are among float64 numbers in memory.
Conditions are 1 or 0 there, and integers, which are small, are float64 too.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import NamedTuple

from portopt.kernels.host.source import LANGUAGES
from portopt.program import Kind, Op, Program

_LARGEST = 2**31
"""Integers of a script are sums and differences of few that are at most so large: the number of a step is one of them."""
_INTEGERS = frozenset({"input", "constant", "add", "subtract", "where"})

_SCALARS = LANGUAGES["where"].scalars
_CODES = {name: code for code, name in enumerate(sorted(_SCALARS.keys() - {"floor_divide"}))}


def _written(name: str) -> str:
    """Return an operation as an expression of `x`, `y` and `z`."""
    operands = {"where": ("x != 0.0", "y", "z"), "integer_power": ("x", "numpy_int64(y)")}.get(name, ("x", "y", "z"))
    expression = _SCALARS[name].format(*operands)
    return f"1.0 if {expression} else 0.0" if name in ("less", "less_equal", "equal") else expression


def _branches() -> str:
    lines = []
    for name, code in _CODES.items():
        lines.append(f"        {'if' if code == 0 else 'elif'} code == {code}:\n")
        lines.append(f"            value = {_written(name)}\n")
    return "".join(lines)


RUN_SCRIPT = f'''def run_script(script, count, numbers):
    """Run the operations of a script on numbers."""
    for i in range(count):
        code = script[5 * i]
        x = numbers[script[5 * i + 2]]
        y = numbers[script[5 * i + 3]]
        z = numbers[script[5 * i + 4]]
        value = x
{_branches()}        numbers[script[5 * i + 1]] = value
'''
"""Source of the function that runs a script."""


class ScalarScript(NamedTuple):
    """A program of scalars as compiled code runs it.

    Attributes:
        words: five an operation.
        constants: numbers that must be in memory before, from the first number of the program on; zeros where results come.
        places: the number of each input and output by its name.
    """

    words: array[int]
    constants: array[float]
    places: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.words) // 5


def scalar_script(program: Program, first: int) -> ScalarScript | None:
    """Return a program of scalars, its elementary functions written out, as a script; None if there can be none.

    Args:
        program: without arrays.
        first: the number from which on the program has numbers of its own.
    """
    if not all(map(_can_be_scripted, program.ops)):
        return None
    words, constants = array("q"), array("d", bytes(8 * len(program.ops)))
    places = {name: first + i for name, i in program.scalar_outputs.items()}
    for i, op in enumerate(program.ops):
        if op.name == "constant":
            constants[i] = float(op.label)  # type: ignore[arg-type]  # a number
        elif op.name == "input":
            places[str(op.label)] = first + i
        else:
            operands = [first + j for j in op.args]
            words.extend((_CODES[op.name], first + i, *operands, *[first] * (3 - len(operands))))
    return ScalarScript(words, constants, places)


def _can_be_scripted(op: Op) -> bool:
    if op.name == "constant" and isinstance(op.label, int):
        return abs(op.label) <= _LARGEST
    if op.kind is Kind.INTEGER:
        return op.name in _INTEGERS
    return op.name in ("input", "constant") or op.name in _CODES
