"""What a rule's methods return, checked, and recorded as the results of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from portopt.program.builder import Builder, Node, UnsupportedOperationError
from portopt.program.facts import Facts
from portopt.program.ir import Dim, Kind, Op, Program, pruned
from portopt.program.reductions import GRADIENT_NORM
from portopt.program.tracing.elementwise import operand
from portopt.program.tracing.rule import TracedRule
from portopt.program.tracing.shapes import length, shape_text
from portopt.program.tracing.symbol import Recorder, Symbol
from portopt.scalars import Scalar

_TOTALS = {"sum": "total_sum", "max": "total_max", "norm": "total_norm"}


def totals(optimizer: TracedRule, builder: Builder, returned: Any, prefix: str) -> dict[str, Scalar]:
    """Return what `totals` returned as reductions over all parameters, after checking that it can be.

    Args:
        optimizer: whose method it is.
        builder: records them.
        returned: what the method returned.
        prefix: what their names begin with in the program.
    """
    owner = f"{type(optimizer).__name__}.totals"
    if not isinstance(returned, Mapping):
        raise TypeError(
            f'{owner} must return what is reduced over all parameters by name, as in `return {{"total": xp.sum(p * g)}}`, but it '
            f"returned {_described(returned)}"
        )
    found = {}
    for name, value in returned.items():
        op = builder.ops[value.value.index] if isinstance(value, Scalar) and isinstance(value.value, Node) else None
        if op is None or op.name not in _TOTALS or op.label is not None:
            raise TypeError(
                f"{owner} returned {name!r} as {_described(value)}, but a total is the result of xp.sum, xp.max or "
                "xp.linalg.vector_norm of a whole array: its value over all parameters is an argument of coefficients, where "
                "more can be computed from it"
            )
        if builder.ops[op.args[0]].kind is Kind.MASK or name in optimizer.scalar_slots or name in ("t", GRADIENT_NORM):
            raise TypeError(f"{owner} returned a total under the name {name!r}, which is taken: give it another")
        found[name] = Scalar(
            Node(builder.record(_TOTALS[op.name], Kind.FLOAT, op.args[0], label=prefix + name)), builder
        )
    return found


def coefficients(optimizer: TracedRule, returned: Any) -> dict[str, Any]:
    """Return what `coefficients` returned, after checking that it has names."""
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"{type(optimizer).__name__}.coefficients must return the scalars of a step by name, as in "
            f'`return {{"lr": self.learning_rate_at(t)}}`, but it returned {_described(returned)}'
        )
    return dict(returned)


def returned(optimizer: TracedRule, result: Any, kept: tuple[str, ...]) -> tuple[Any, Mapping[str, Any]]:
    """Return what `update` returned, after checking that it is a new parameter and a new value for each slot."""
    owner = f"{type(optimizer).__name__}.update"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        slots = ", ".join(f'"{name}": new_{name}' for name in kept)
        raise TypeError(
            f"{owner} must return the new parameter and a dict with the new value of each slot, `return new_p, {{{slots}}}`, "
            f"but it returned {_described(result)}"
        )
    new_slots = _flat(result[1], optimizer.nested)
    missing = [name for name in kept if name not in new_slots]
    unknown = [name for name in new_slots if name not in kept]
    if missing or unknown:
        raise ValueError(
            f"{owner} must return a new value for each of its slots {list(map(str, kept))}: "
            f"missing {missing}, unknown {unknown}"
        )
    return result[0], new_slots


def _flat(new_slots: Mapping[str, Any], nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return slots by the names that a state has for them, given those of inner rules under the names of the rules."""
    flat: dict[str, Any] = {}
    for name, value in new_slots.items():
        if name in nested and isinstance(value, Mapping):
            flat |= {f"{name}.{n}": slot for n, slot in _flat(value, nested[name].nested).items()}
        else:
            flat[name] = value
    return flat


def array_output(builder: Recorder, name: str, value: Any, dims: tuple[Dim, ...] | None) -> int:
    """Return the index of a new parameter or slot, after checking that it has the kind and shape of the old one."""
    if dims == () and isinstance(value, Scalar | int | float):
        return builder.record("round", Kind.ARRAY, builder.scalar(plain(value)), dims=())
    try:
        index = operand(builder, value)
    except UnsupportedOperationError:
        what = "parameter" if name == "p" else f"value of the slot {name!r}"
        raise UnsupportedOperationError(
            f"a rule returned {value!r:.80} of type {type(value).__name__} as its new {what}: return an array or a number"
        ) from None
    if builder.ops[index].kind is Kind.MASK:
        raise UnsupportedOperationError(
            f"a rule returned a mask, the result of a comparison, as its new {name}: use xp.where(mask, a, b)"
        )
    if builder.ops[index].name != "round" and not _is_of_shape(builder, builder.ops[index].dims, dims):
        if "shape" in builder.facts.asked and _lengths(builder, builder.ops[index].dims) == _lengths(builder, dims):
            # A shape that a rule has given in numbers may be that of the parameter and that of a slot, if an axis has length one.
            label = tuple(range(builder.facts.ndim)) if dims is None else dims
            return builder.record("reshape", Kind.ARRAY, index, label=label, dims=dims)
        wanted = "one number, a scalar" if dims == () else f"the shape {shape_text(builder, dims)}"
        raise UnsupportedOperationError(
            f"a rule returned an array of shape {shape_text(builder, builder.ops[index].dims)} as its new {name}, which has "
            f"{wanted}"
        )
    return index


def _is_of_shape(builder: Recorder, dims: tuple[Dim, ...] | None, wanted: tuple[Dim, ...] | None) -> bool:
    """Tell whether a shape is another; one that a rule has computed may be that of products, which is told by axes."""
    if dims == wanted:
        return True
    if str not in map(type, (*(dims or ()), *(wanted or ()))):
        return False
    return _lengths(builder, dims) == _lengths(builder, wanted)


def _lengths(builder: Recorder, dims: tuple[Dim, ...] | None) -> list[Any]:
    own = tuple(range(builder.facts.ndim)) if dims is None else dims
    return [length(builder.facts, dim) for dim in own]


def with_shapes(program: Program, wanted: Mapping[str, tuple[Dim, ...] | None], facts: Facts) -> Program:
    """Return a program whose results have the shapes of what they replace, told by the same axes.

    Of what is read, the shape is known; of what is not, it would be taken for that of the value: a number has none, and of a
    product of square matrices no axis is the parameter's by itself.

    Args:
        program: what a rule does.
        wanted: the shape of each slot, by name.
        facts: what is known of the parameter.
    """
    read, ops, outputs = set(program.array_inputs), list(program.ops), dict(program.array_outputs)
    for name, i in program.array_outputs.items():
        op, dims = program.ops[i], wanted.get(name)
        if name in read or op.dims == dims:
            continue
        outputs[name] = len(ops)
        if op.name == "round":
            ops.append(replace(op, dims=dims))
        else:
            ops.append(
                Op("reshape", op.kind, (i,), label=tuple(range(facts.ndim)) if dims is None else dims, dims=dims)
            )
    return program if len(ops) == len(program.ops) else pruned(program.name, ops, outputs, program.scalar_outputs)


def plain(value: Any) -> Any:
    """Return the value of a scalar, or a number as it is."""
    return value.value if isinstance(value, Scalar) else value


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Symbol):
        return "one array"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(_described, value)) or 'nothing'}"
    return f"an object of type {type(value).__name__}"
