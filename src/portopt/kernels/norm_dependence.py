"""A program's scalars, split by whether they need what is known on the GPU only.

That is the norm of the gradients, and to ask for it would make the host wait. In a step that a graph repeats it is also the
number of the step and the scalars of the state. What needs none of this is computed on the host, as always; what does, the GPU
computes: few scalars.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from portopt.arithmetic import HOST
from portopt.program import DRAWS, GIVEN, TOTALS, Op, Program
from portopt.program.bins import NO_SQUARES, Bins, combined, root_of
from portopt.program.expansion import expand_elementary
from portopt.program.interpreter import StepScalars
from portopt.program.ir import pruned

WORDS_OF_PART = 5
"""What a block leaves of a sum, in words of 64 bits."""


STEP = "t"
"""The name of the scalar input that is the number of the step."""


class GradientNorm:
    """The norm of all gradients, on their devices: `float` of it waits for one of them, the fused step does not.

    Args:
        words: by device, memory with what blocks of all devices have found: five integers each, the exponent of the bins, the
            sums in them, and which numbers that are not finite there are.
        count: of blocks.
        read: waits for the device, and returns the words.
    """

    def __init__(self, words: Mapping[int, Any], count: int, read: Callable[[], Sequence[int]]) -> None:
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
    """Which scalars of a program need what is known on the device only: the norm of the gradients, and inputs that lie there.

    Indices are those of `program`.

    Attributes:
        program: the program, its elementary functions written out.
        on_device: names of the scalar inputs that lie on the device.
        dependent: the scalar operations of the step that need the norm or such an input, in order, without these themselves.
        given: the scalars that the device takes from the host, constants apart.
        rounded_on_host: each `round` of a scalar of the host, and that scalar.
        rounded_on_device: each `round` of a scalar of the device, and that scalar.
        unrounded: the scalars of the host, constants apart, of which scalars of a parameter, and random numbers, are made.
        unrounded_on_device: those of the device.
    """

    program: Program
    on_device: frozenset[str]
    dependent: tuple[int, ...]
    given: tuple[int, ...]
    rounded_on_host: tuple[tuple[int, int], ...]
    rounded_on_device: tuple[tuple[int, int], ...]
    unrounded: tuple[int, ...]
    unrounded_on_device: tuple[int, ...]

    @property
    def numbers_on_device(self) -> tuple[str, ...]:
        """Names of the inputs that lie on the device, in the order in which kernels are told where; without that of the step."""
        return tuple(sorted(self.on_device.intersection(self.program.scalar_inputs) - {STEP}))

    @property
    def state_outputs(self) -> Mapping[str, int]:
        """Name and operation of each new scalar of the state that the device writes, in that order."""
        outputs = self.program.scalar_outputs.items() if self.on_device else ()
        return {name: i for name, i in outputs if i not in self.program.parameter_scalars}

    def norm(self, inputs: Mapping[str, Any]) -> Any:
        """Return the norm among the program's scalar inputs by name; None if it needs none."""
        return next((inputs[name] for name, op in self.program.totals.items() if _is_norm(op)), None)

    def needs_norm(self, i: int) -> bool:
        """Tell whether scalar `i` needs the norm, or an input that lies on the device."""
        op = self.program.ops[i]
        return i in self.dependent or _is_norm(op) or _is_on_device(op, self.on_device)

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
def norm_dependence(program: Program, on_device: frozenset[str] = frozenset()) -> NormDependence:
    """Return which scalars of a program need the norm of the gradients, or scalar inputs of these names."""
    program = expand_elementary(program)
    ops = program.ops
    reached = {i for i, op in enumerate(ops) if _is_norm(op) or _is_on_device(op, on_device)}
    dependent: list[int] = []
    for i, op in enumerate(ops):
        if op.kind.is_scalar and i not in program.parameter_scalars and reached.intersection(op.args):
            reached.add(i)
            dependent.append(i)
    unrounded = _unrounded(program)
    # What lies on the device between steps is written there, also if the host could say what it is.
    results = {*program.scalar_outputs.values()} - program.parameter_scalars if on_device else ()
    arguments = sorted({*(j for i in dependent for j in ops[i].args), *results})
    return NormDependence(
        program=program,
        on_device=on_device,
        dependent=tuple(dependent),
        given=tuple(j for j in arguments if j not in reached and ops[j].name != "constant"),
        rounded_on_host=tuple((i, j) for i, j in program.rounded_scalars if j not in reached),
        rounded_on_device=tuple((i, j) for i, j in program.rounded_scalars if j in reached),
        unrounded=tuple(j for j in unrounded if j not in reached),
        unrounded_on_device=tuple(j for j in unrounded if j in reached),
    )


@functools.lru_cache(maxsize=512)
def all_on_device(program: Program) -> NormDependence:
    """Return the split of a program of which all that is given lies on the device, which computes all scalars."""
    split = norm_dependence(with_given_totals(program), frozenset(program.scalar_inputs))
    return replace(
        split,
        given=(),
        rounded_on_host=(),
        rounded_on_device=split.program.rounded_scalars,
        unrounded=(),
        unrounded_on_device=tuple(sorted({*split.unrounded, *split.unrounded_on_device})),
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


def _is_on_device(op: Op, names: frozenset[str]) -> bool:
    return op.name in GIVEN and not op.args and op.label in names
