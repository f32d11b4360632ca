"""The reference: a program run operation by operation, scalars on any arithmetic, arrays on any primitives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from portopt.arithmetic import HOST, Arithmetic
from portopt.program.draws import Place, draw
from portopt.program.ir import DRAWS, GIVEN, PRODUCTS, REDUCTIONS, Dim, Op, Program
from portopt.program.primitives import Primitives
from portopt.program.products import SlicedOperands, Unscaled
from portopt.program.reductions import Reductions
from portopt.program.segments import Segment, fused_schedule, plain_schedule


class StepScalars(Sequence[Any]):
    """The value of each scalar operation of a program, by its index; None stands for array operations.

    Values are computed when the first one is asked for: a kernel that computes scalars itself only takes the inputs.

    Attributes:
        program: whose scalars they are.
        inputs: the program's scalar inputs by name, values of the arithmetic.
        arithmetic: what computes the values.
    """

    def __init__(self, program: Program, arithmetic: Arithmetic, inputs: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.arithmetic = arithmetic
        self.program = program
        self._values: list[Any] | None = None
        self._provided: Mapping[str, Any] = {}

    def of(self, program: Program) -> StepScalars:
        """Return the scalars of another program of the same step."""
        return StepScalars(program, self.arithmetic, self.inputs)

    def provide(self, outputs: Mapping[str, Any]) -> None:
        """Take the new scalars of the state from a kernel that computed them."""
        self._provided = outputs

    def outputs(self) -> dict[str, Any]:
        """Return the new value of each scalar of the state."""
        return {
            n: self._provided[n] if n in self._provided else self[i] for n, i in self.program.scalar_outputs.items()
        }

    def __getitem__(self, index: Any) -> Any:
        if self._values is None:
            self._values = self._evaluate()
        return self._values[index]

    def __len__(self) -> int:
        return len(self.program.ops)

    def _evaluate(self) -> list[Any]:
        values: list[Any] = []
        arithmetic = self.arithmetic
        of_parameter = self.program.parameter_scalars
        for i, op in enumerate(self.program.ops):
            if not op.kind.is_scalar or i in of_parameter:
                values.append(None)
            elif op.name in GIVEN:
                value = self.inputs[str(op.label)]
                values.append(value if op.label == "t" else arithmetic.to_float(value))
            elif op.name == "constant":
                values.append(op.label)
            else:
                values.append(getattr(arithmetic, op.name)(*(values[j] for j in op.args)))
        return values


def evaluate_scalars(program: Program, arithmetic: Arithmetic, inputs: Mapping[str, Any]) -> StepScalars:
    """Return the value of each scalar operation of `program`, in place; None stands for the array operations."""
    return StepScalars(program, arithmetic, inputs)


def interpret(
    program: Program,
    primitives: Primitives,
    arrays: Mapping[str, Any],
    rounded: Mapping[int, Any],
    parameter: ParameterScalars | None = None,
) -> dict[str, Any]:
    """Run the array operations of `program` on one parameter.

    Args:
        program: what to run.
        primitives: the array operations.
        arrays: parameter `"p"`, gradient `"g"`, slots and further inputs by name.
        rounded: the result of each `round` operation of a scalar of the step, a 0-d array in the compute dtype, by index.
        parameter: computes the scalars of the parameter; only programs that are not elementwise need it.

    Returns:
        New parameter and slots by name, in the compute dtype, each of the shape of the array that it replaces, or a number for
        all its elements.
    """
    values: list[Any] = [None] * len(program.ops)
    last_use = _last_uses(program)
    for i, value in rounded.items():
        values[i] = value
    if program.is_elementwise or parameter is None:
        for i, op in program.array_ops():
            loaded = (values[j] for j in op.args) if op.reads is None else (arrays[op.reads],)
            values[i] = getattr(primitives, op.name)(*loaded)
            for j in last_use.get(i, ()):
                values[j] = None
        return {name: values[i] for name, i in program.array_outputs.items()}
    shape = tuple(arrays["p"].shape)
    of_parameter = program.parameter_scalars
    sliced = SlicedOperands(program)
    schedule = plain_schedule(program) if primitives.fused is None else fused_schedule(program)
    for step, done in zip(schedule.steps, schedule.done, strict=True):
        if isinstance(step, Segment):
            given = [arrays[j] if isinstance(j, str) else values[j] for j in step.arrays]
            numbers = [primitives.number(_operand(program, j, values, parameter)) for j in step.scalars]
            for j, value in zip(step.outputs, _run(step, primitives, sliced, given, numbers), strict=True):
                values[j] = value
            for j in done:
                values[j] = None
            continue
        i, op = step, program.ops[step]
        if i in of_parameter:
            operands = [_operand(program, j, values, parameter) for j in op.args]
            dims = program.ops[op.args[0]].dims
            if op.name in REDUCTIONS:
                operands = [_with_shape(primitives.xp, operands[0], dims, shape)]
            values[i] = parameter.value(op, operands, dims)
        elif op.kind.is_scalar or i in rounded:
            continue
        elif op.name == "round":
            values[i] = parameter.rounded(values[op.args[0]])
        elif op.name in DRAWS:
            values[i] = parameter.drawn(op, primitives, arrays["p"])
        elif op.reads is not None:
            values[i] = getattr(primitives, op.name)(_with_axes(primitives.xp, arrays[op.reads], op.dims, shape))
        elif op.name in REDUCTIONS:
            dims = program.ops[op.args[0]].dims
            whole = _with_shape(primitives.xp, values[op.args[0]], dims, shape)
            values[i] = getattr(parameter.reductions.of(dims), op.name)(whole, op.label)
        else:
            operands = [values[j] for j in op.args]
            if op.name == "eye":
                values[i] = primitives.eye(shape_of(op.dims, shape)[-1], values[op.args[0]], arrays["p"])
            elif op.name in PRODUCTS:
                whole = [
                    _with_shape(primitives.xp, x, program.ops[j].dims, shape)
                    for x, j in zip(operands, op.args, strict=True)
                ]
                if op.name == "matmul":
                    with parameter.float64():
                        unscaled = i in schedule.unscaled and primitives.joined is not None
                        values[i] = sliced.matmul(primitives, parameter.wide, i, *whole, unscaled=unscaled)
                elif op.name == "transpose":
                    values[i] = primitives.xp.permute_dims(whole[0], op.label)
                else:
                    values[i] = primitives.xp.reshape(whole[0], shape_of(op.dims, shape))
            else:
                values[i] = getattr(primitives, op.name)(*operands)
        for j in done:
            values[j] = None
    return {
        name: _without_axes(primitives.xp, values[i], program.ops[i].dims, arrays, name)
        for name, i in program.array_outputs.items()
    }


def _run(
    segment: Segment, primitives: Primitives, sliced: SlicedOperands, given: Sequence[Any], numbers: Sequence[Any]
) -> Sequence[Any]:
    """Return the results of a segment; keep what slices of them are found at the same time."""
    is_unscaled = any(isinstance(array, Unscaled) for array in given)
    if segment.only_scales and not is_unscaled:
        return given
    if primitives.joined is not None and (is_unscaled or any(segment.sliced)):
        found = primitives.joined(segment, given, numbers)
        if found is not None:
            for j, (_, slices) in zip(segment.outputs, found, strict=True):
                sliced.offer(j, slices)
            return [array for array, _ in found]
    given = [array.scaled() if isinstance(array, Unscaled) else array for array in given]
    assert primitives.fused is not None  # or there would be no segments
    return given if segment.only_scales else primitives.fused(segment.program, given, numbers)


class ParameterScalars:
    """Computes what a program has of scalars of one parameter, and the random numbers that depend on its place.

    Args:
        scalars: those of the step, by index.
        reductions: of the arrays' library, in the compute dtype.
        wide: the library's operations in float64.
        rounded: returns a float64 scalar, rounded to the compute dtype, as a 0-d array.
        arithmetic_of: returns the arithmetic for scalars that are computed from one.
        float64: returns a context in which the library has float64.
        place: of the parameter; only programs that draw need it.
    """

    def __init__(
        self,
        scalars: Sequence[Any],
        reductions: Reductions,
        wide: Primitives,
        rounded: Callable[[Any], Any],
        arithmetic_of: Callable[[Any], Arithmetic],
        float64: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        place: Place | None = None,
    ) -> None:
        self.float64 = float64
        self.reductions = reductions
        self.wide = wide
        self.arithmetic_of = arithmetic_of
        self.rounded = rounded
        self.scalars = scalars
        self._place = place
        self._arithmetic: Arithmetic | None = None

    def value(self, op: Op, operands: Sequence[Any], dims: tuple[Dim, ...] | None) -> Any:
        """Return the value of an operation that gives a scalar of the parameter; `dims` are those of its first operand."""
        if op.name == "widen":
            return self.reductions.max(operands[0], None)
        if op.name in REDUCTIONS:
            return getattr(self.reductions.of(dims), op.name)(operands[0], None)
        return getattr(self._arithmetic_of(operands), op.name)(*operands)

    def drawn(self, op: Op, primitives: Primitives, like: Any) -> Any:
        """Return the random numbers of an operation that draws, for a parameter of the library and device of `like`."""
        place = Place.of(0, like.shape) if self._place is None else self._place
        with primitives.float64():
            # A key is a whole number, but a float64 among the scalars of the state.
            key, step, stream = (_whole(primitives.xp, self.scalars[j]) for j in op.args)
        return draw(primitives, op.name.removeprefix("draw_"), key, step, stream, place, like)

    def _arithmetic_of(self, operands: Sequence[Any]) -> Arithmetic:
        witness = next((x for x in operands if not isinstance(x, int | float)), None)
        if witness is None:
            return HOST
        if self._arithmetic is None:
            self._arithmetic = self.arithmetic_of(witness)
        return self._arithmetic


def _whole(xp: Any, value: Any) -> Any:
    return int(value) if isinstance(value, int | float) else xp.astype(value, xp.int64)


def _operand(program: Program, j: int, values: list[Any], parameter: ParameterScalars) -> Any:
    op = program.ops[j]
    if op.kind.is_scalar:
        return values[j] if j in program.parameter_scalars else parameter.scalars[j]
    return values[j]


def shape_of(dims: tuple[Dim, ...] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an operation's result, given the parameter's."""
    if dims is None:
        return shape
    return tuple(int(d) if isinstance(d, str) else 1 if d == -1 else shape[d] for d in dims)


def _with_axes(xp: Any, array: Any, dims: tuple[Dim, ...] | None, shape: tuple[int, ...]) -> Any:
    """Return a slot with an axis of length one for each that it lacks."""
    return array if dims is None or -1 not in dims else xp.reshape(array, shape_of(dims, shape))


def _without_axes(xp: Any, value: Any, dims: tuple[Dim, ...] | None, arrays: Mapping[str, Any], name: str) -> Any:
    """Return a result in the shape of the array that it replaces; a number for all elements, and the array of a total, stay."""
    if dims is None or -1 not in dims or not value.shape or name not in arrays:
        return value
    shape = arrays[name].shape
    # The array of a total may have the name of a slot.
    return xp.reshape(value, shape) if math.prod(value.shape) == math.prod(shape) else value


def _with_shape(xp: Any, value: Any, dims: tuple[Dim, ...] | None, shape: tuple[int, ...]) -> Any:
    """Return a value that was computed from numbers alone with all its elements."""
    whole = shape_of(dims, shape)
    return value if tuple(value.shape) == whole else xp.broadcast_to(value, whole)


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
