"""The reference: a program run operation by operation, scalars on any arithmetic, arrays on any primitives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from portopt.arithmetic import Arithmetic
from portopt.program.ir import GIVEN, Program
from portopt.program.primitives import Primitives


class StepScalars(Sequence[Any]):
    """The value of each scalar operation of a program, by its index; None stands for array operations.

    Values are computed when the first one is asked for: a kernel that computes scalars itself only takes the inputs.

    Attributes:
        inputs: the program's scalar inputs by name, values of the arithmetic.
        arithmetic: what computes the values.
    """

    def __init__(self, program: Program, arithmetic: Arithmetic, inputs: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.arithmetic = arithmetic
        self._program = program
        self._values: list[Any] | None = None
        self._provided: Mapping[str, Any] = {}

    def provide(self, outputs: Mapping[str, Any]) -> None:
        """Take the new scalars of the state from a kernel that computed them."""
        self._provided = outputs

    def outputs(self) -> dict[str, Any]:
        """Return the new value of each scalar of the state."""
        return {
            n: self._provided[n] if n in self._provided else self[i] for n, i in self._program.scalar_outputs.items()
        }

    def __getitem__(self, index: Any) -> Any:
        if self._values is None:
            self._values = self._evaluate()
        return self._values[index]

    def __len__(self) -> int:
        return len(self._program.ops)

    def _evaluate(self) -> list[Any]:
        values: list[Any] = []
        arithmetic = self.arithmetic
        for op in self._program.ops:
            if not op.kind.is_scalar:
                values.append(None)
            elif op.name in GIVEN:
                value = self.inputs[str(op.label)]
                values.append(value if op.label == "t" else arithmetic.to_float(value))
            elif op.name == "constant":
                values.append(op.label)
            else:
                values.append(getattr(arithmetic, op.name)(*(values[i] for i in op.args)))
        return values


def evaluate_scalars(program: Program, arithmetic: Arithmetic, inputs: Mapping[str, Any]) -> StepScalars:
    """Return the value of each scalar operation of `program`, in place; None stands for the array operations."""
    return StepScalars(program, arithmetic, inputs)


def interpret(
    program: Program, primitives: Primitives, arrays: Mapping[str, Any], rounded: Mapping[int, Any]
) -> dict[str, Any]:
    """Run the array operations of `program` on one parameter.

    Args:
        program: what to run.
        primitives: the array operations.
        arrays: parameter `"p"`, gradient `"g"` and slots by name, of one shape.
        rounded: each `round` operation's result, a 0-d array in the compute dtype, by index.

    Returns:
        New parameter and slots by name, in the compute dtype, of the parameter's shape.
    """
    values: list[Any] = [None] * len(program.ops)
    last_use = _last_uses(program)
    for i, value in rounded.items():
        values[i] = value
    for i, op in program.array_ops():
        operands = (values[j] for j in op.args) if op.reads is None else (arrays[op.reads],)
        values[i] = getattr(primitives, op.name)(*operands)
        for j in last_use.get(i, ()):
            values[j] = None
    return {name: values[i] for name, i in program.array_outputs.items()}


def _last_uses(program: Program) -> dict[int, list[int]]:
    """Map an operation to the operands that nothing after it needs, so that their memory can go."""
    needed = set(program.array_outputs.values())
    result: dict[int, list[int]] = {}
    for i, op in reversed(list(enumerate(program.ops))):
        done = [j for j in set(op.args) if j not in needed]
        needed.update(done)
        if done:
            result[i] = done
    return result
