"""`trace`: a rule's methods are called once with symbols, and what they did is a program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from portopt.program.builder import Node
from portopt.program.canonical import canonicalize
from portopt.program.draws import KEY
from portopt.program.facts import Facts
from portopt.program.ir import Dim, Kind, Program
from portopt.program.named_values import Coefficients, Slots
from portopt.program.reductions import GRADIENT_NORM
from portopt.program.tracing.arrays import ArraySymbol
from portopt.program.tracing.elementwise import operand
from portopt.program.tracing.namespace import SUPPORTED, SymbolicNamespace
from portopt.program.tracing.results import array_output, plain, returned
from portopt.program.tracing.results import coefficients as coefficients_of
from portopt.program.tracing.results import totals as totals_of
from portopt.program.tracing.rule import TracedRule
from portopt.program.tracing.symbol import Recorder, index_of
from portopt.scalars import Scalar, where


def trace(
    optimizer: TracedRule,
    active: frozenset[str],
    facts: Facts,
    slots: Callable[[Facts], Mapping[str, tuple[Dim, ...] | None]],
) -> Program:
    """Run the rule's `coefficients` and `update` on symbols and return the canonical program of one step.

    Args:
        optimizer: the rule.
        active: the hyperparameters that are inputs of the program, the others keep the Python value they have; and the further
            inputs that the step is given.
        facts: what is known of the parameter; it remembers what was asked for.
        slots: returns the shape that `update` sees of each slot that the parameter has, by name.
    """
    builder = Recorder(facts)

    def scalar_input(name: str, kind: Kind = Kind.FLOAT, *, structural: bool = False) -> Scalar:
        return Scalar(Node(builder.record("input", kind, label=name)), builder, structural=structural)

    def load(name: str, dims: tuple[Dim, ...] | None = None) -> Any:
        symbol = ArraySymbol(builder, builder.record("load", Kind.ARRAY, label=name, dims=dims))
        if dims != ():
            return symbol
        return Scalar(Node(builder.record("widen", Kind.FLOAT, index_of(symbol))), builder)

    symbolic = copy.copy(optimizer)
    for name in optimizer.numeric_hyperparameters():
        if name in active:
            object.__setattr__(symbolic, name, scalar_input(name, structural=optimizer.is_optional(name)))
    namespace = builder.namespace = SymbolicNamespace(builder)
    builder.functions = SUPPORTED
    parameter, gradient = load("p"), load("g")
    gradient = _clipped(builder, symbolic, namespace, gradient, active)
    kept = slots(facts)
    symbols = Slots(**{name: load(name, dims) for name, dims in kept.items()})
    inputs = {name: load(name) if name in active else None for name in optimizer.inputs}
    state_scalars = {name: scalar_input(name) for name in optimizer.scalar_slots}
    t = scalar_input("t", Kind.INTEGER)
    kept_scalars = dict(state_scalars)
    if optimizer.draws:
        # The key is the same in all steps, and no concern of the rule.
        inputs |= _drawn(builder, optimizer.draws, state_scalars.pop(KEY), t)

    totals: dict[str, Scalar] = {}
    if symbolic.totals is not None:
        known = Coefficients(t=t, **state_scalars)
        totals = totals_of(
            optimizer, builder, symbolic.totals(namespace, parameter, gradient, symbols, known, **inputs)
        )
    coefficients = coefficients_of(optimizer, symbolic.coefficients(t, **state_scalars, **totals))
    outputs = {name: coefficients.pop(name, scalar) for name, scalar in kept_scalars.items()}
    result = symbolic.update(namespace, parameter, gradient, symbols, Coefficients(**coefficients), **inputs)
    updated, new_slots = returned(optimizer, result, tuple(kept))
    results = {"p": updated, **{n: new_slots[n] for n in kept}}
    array_outputs = {name: array_output(builder, name, value, kept.get(name)) for name, value in results.items()}
    scalar_outputs = {name: builder.scalar(plain(value)) for name, value in outputs.items()}
    return canonicalize(Program(type(optimizer).__name__, tuple(builder.ops), array_outputs, scalar_outputs))


def _drawn(builder: Recorder, draws: Mapping[str, str], key: Scalar, t: Scalar) -> dict[str, ArraySymbol]:
    found = {}
    for stream, (name, distribution) in enumerate(draws.items()):
        args = map(builder.scalar, (key.value, t.value, stream))
        found[name] = ArraySymbol(builder, builder.record(f"draw_{distribution}", Kind.ARRAY, *args, label=name))
    return found


def _clipped(builder: Recorder, rule: Any, xp: Any, gradient: ArraySymbol, active: frozenset[str]) -> ArraySymbol:
    if "clipnorm" in active:
        total = builder.record("total_norm", Kind.FLOAT, operand(builder, gradient), label=GRADIENT_NORM)
        norm = Scalar(Node(total), builder)
        # A NaN norm compares false and leaves the gradient as it is; an infinite one gives the factor zero.
        gradient = gradient * where(norm >= rule.clipnorm, rule.clipnorm / norm, 1.0)
    if "clipvalue" in active:
        gradient = xp.clip(gradient, -rule.clipvalue, rule.clipvalue)
    return gradient
