"""A program's scalars, split by whether they need the norm of the gradients.

The norm is known on the GPU only, and to ask for it would make the host wait. What does not need it is computed on the host,
as always; the few scalars that do are computed on the GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from portopt.arithmetic import HOST
from portopt.program import DRAWS, TOTALS, Op, Program
from portopt.program.bins import NO_SQUARES, Bins, combined, root_of
from portopt.program.expansion import expand_elementary
from portopt.program.interpreter import StepScalars
from portopt.program.ir import pruned

WORDS_OF_PART = 5
"""What a block leaves of a sum, in words of 64 bits."""


class GradientNorm:
    """The norm of all gradients, on the device: `float` of it waits for the device, the fused step does not.

    Args:
        words: what blocks have found, in memory of the device: five integers each, the exponent of the bins, the sums in them,
            and which numbers that are not finite there are.
        count: of blocks.
        read: waits for the device, and returns the words.
    """

    def __init__(self, words: Any, count: int, read: Callable[[], Sequence[int]]) -> None:
        self.words = words
        self.count = count
        self._read = read

    @functools.cached_property
    def squares(self) -> Bins:
        """The bins of the squares, for which the host waits."""
        words = np.asarray(self._read(), np.int64).reshape(self.count, WORDS_OF_PART)
        # Few parts differ from each other in more than their sums, which integers of the device hold together.
        kinds, of_parts = np.unique(words[:, [0, -1]], axis=0, return_inverse=True)
        parts = [NO_SQUARES]
        for k, (exponent, special) in enumerate(kinds.tolist()):
            first, second, third = words[of_parts.reshape(-1) == k, 1:4].sum(axis=0).tolist()
            parts.append(
                Bins(exponent, (first, second, third), math.nan if special & 1 else math.inf if special else 0.0)
            )
        return combined(parts)

    def __float__(self) -> float:
        return root_of(self.squares)


@dataclass(frozen=True)
class NormDependence:
    """Which scalars of a program need the norm of the gradients.

    Indices are those of `program`.

    Attributes:
        program: the program, its elementary functions written out.
        dependent: the scalar operations of the step that need the norm, in order, without the input itself.
        given: the scalars that those take from the host, constants apart.
        rounded_on_host: each `round` of a scalar of the host, and that scalar.
        rounded_on_device: each `round` of a scalar that needs the norm, and that scalar.
        unrounded: the scalars of the step, constants apart, of which scalars of a parameter, and random numbers, are made.
    """

    program: Program
    dependent: tuple[int, ...]
    given: tuple[int, ...]
    rounded_on_host: tuple[tuple[int, int], ...]
    rounded_on_device: tuple[tuple[int, int], ...]
    unrounded: tuple[int, ...]

    def norm(self, inputs: Mapping[str, Any]) -> Any:
        """Return the norm among the program's scalar inputs by name; None if it needs none."""
        return next((inputs[name] for name, op in self.program.totals.items() if _is_norm(op)), None)

    def needs_norm(self, i: int) -> bool:
        """Tell whether scalar `i` needs the norm."""
        return i in self.dependent or _is_norm(self.program.ops[i])

    def host_scalars(self, inputs: Mapping[str, Any]) -> dict[int, Any]:
        """Return the scalars that are computed on the host: those given to the device or rounded for it, by index.

        Args:
            inputs: the program's scalar inputs by name; the norm is not looked at.
        """
        program = host_program(self)
        values = StepScalars(program, HOST, {n: v for n, v in inputs.items() if n in program.scalar_inputs}).outputs()
        return {int(name): value for name, value in values.items() if name.isdigit()}

    def state_scalars(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the new scalars of the state, by name, if none of them needs the norm."""
        values = self.host_scalars(inputs)
        return {name: values[i] for name, i in self.program.scalar_outputs.items()}


@functools.lru_cache(maxsize=512)
def norm_dependence(program: Program) -> NormDependence:
    """Return which scalars of a program need the norm of the gradients."""
    program = expand_elementary(program)
    ops = program.ops
    reached = {i for i, op in enumerate(ops) if _is_norm(op)}
    dependent: list[int] = []
    for i, op in enumerate(ops):
        if op.kind.is_scalar and i not in program.parameter_scalars and reached.intersection(op.args):
            reached.add(i)
            dependent.append(i)
    arguments = sorted({j for i in dependent for j in ops[i].args})
    return NormDependence(
        program=program,
        dependent=tuple(dependent),
        given=tuple(j for j in arguments if j not in reached and ops[j].name != "constant"),
        rounded_on_host=tuple((i, j) for i, j in program.rounded_scalars if j not in reached),
        rounded_on_device=tuple((i, j) for i, j in program.rounded_scalars if j in reached),
        unrounded=_unrounded(program),
    )


@functools.lru_cache(maxsize=512)
def with_given_totals(program: Program) -> Program:
    """Return the program of a step to which all totals are given as numbers, the norm of the gradients too."""
    ops = [replace(op, args=()) if op.name in TOTALS else op for op in program.ops]
    return pruned(program.name, ops, program.array_outputs, program.scalar_outputs)


def _unrounded(program: Program) -> tuple[int, ...]:
    ops, of_parameter = program.ops, program.parameter_scalars
    users = [op for i, op in enumerate(ops) if i in of_parameter or op.name in DRAWS]
    found = {j for op in users for j in op.args if ops[j].kind.is_scalar and ops[j].name != "constant"}
    return tuple(sorted(found - of_parameter))


@functools.lru_cache(maxsize=512)
def host_program(split: NormDependence) -> Program:
    """Return the program of the scalars that `NormDependence.host_scalars` returns, each a scalar of the state by its index."""
    rounded = [j for _, j in split.rounded_on_host]
    wanted = [*split.given, *rounded, *split.unrounded, *split.program.scalar_outputs.values()]
    of_parameter = split.program.parameter_scalars
    outputs = {str(j): j for j in wanted if not split.needs_norm(j) and j not in of_parameter}
    return pruned(split.program.name, list(split.program.ops), {}, outputs)


def _is_norm(op: Op) -> bool:
    return op.name == "total_norm" and bool(op.args)
