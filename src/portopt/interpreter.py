"""The reference: a program run operation by operation, scalars on any arithmetic, arrays on any primitives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.primitives import Primitives
from portopt.program import Program
from portopt.scalars import Arithmetic


def evaluate_scalars(program: Program, arithmetic: Arithmetic, inputs: Mapping[str, Any]) -> list[Any]:
    """Return the value of each scalar operation of `program`, in place; None stands for the array operations."""
    values: list[Any] = []
    for op in program.ops:
        if not op.kind.is_scalar:
            values.append(None)
        elif op.name == "input":
            value = inputs[str(op.label)]
            values.append(value if op.label == "t" else arithmetic.to_float(value))
        elif op.name == "constant":
            values.append(op.label)
        else:
            values.append(getattr(arithmetic, op.name)(*(values[i] for i in op.args)))
    return values


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
        if op.name == "load":
            values[i] = primitives.load(arrays[str(op.label)])
        else:
            values[i] = getattr(primitives, op.name)(*(values[j] for j in op.args))
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
