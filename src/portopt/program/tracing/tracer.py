"""`trace`: a rule's methods are called once with symbols, and what they did is a program."""

from __future__ import annotations

import copy
import functools
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
from portopt.program.tracing.results import array_output, plain, returned, with_shapes
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

    def load(name: str, dims: tuple[Dim, ...] | None = None) -> Any:
        symbol = ArraySymbol(builder, builder.record("load", Kind.ARRAY, label=name, dims=dims))
        if dims != ():
            return symbol
        return Scalar(Node(builder.record("widen", Kind.FLOAT, index_of(symbol))), builder)

    rule = _TracedPart(builder, optimizer, "", active)
    namespace = builder.namespace = SymbolicNamespace(builder)
    builder.functions = SUPPORTED
    parameter, gradient = load("p"), load("g")
    gradient = _clipped(builder, rule.symbolic, namespace, gradient, active)
    kept = slots(facts)
    symbols = rule.slots_among({name: load(name, dims) for name, dims in kept.items()})
    inputs = {name: load(name) if name in active else None for name in optimizer.inputs}
    rule.take_scalars()
    t = Scalar(Node(builder.record("input", Kind.INTEGER, label="t")), builder)
    rule.take_arguments(inputs, t)
    rule.take_totals(namespace, parameter, gradient, symbols, t)
    coefficients, outputs = rule.coefficients(t)
    result = rule.symbolic.update(namespace, parameter, gradient, symbols, coefficients, **rule.arguments)
    updated, new_slots = returned(optimizer, result, tuple(kept))
    results = {"p": updated, **{n: new_slots[n] for n in kept}}
    array_outputs = {name: array_output(builder, name, value, kept.get(name)) for name, value in results.items()}
    scalar_outputs = {name: builder.scalar(plain(value)) for name, value in outputs.items()}
    program = canonicalize(Program(type(optimizer).__name__, tuple(builder.ops), array_outputs, scalar_outputs))
    return with_shapes(program, kept, facts)


class _TracedPart:
    """A rule whose numbers are symbols, and so those of the rules that it is made of.

    Args:
        builder: records what the rule does.
        optimizer: the rule.
        prefix: what the names of all that it has begin with in the program.
        active: the hyperparameters that are inputs of the program.

    Attributes:
        symbolic: a copy of the rule, whose numbers are symbols.
        arguments: what `update` takes by name.
    """

    def __init__(self, builder: Recorder, optimizer: TracedRule, prefix: str, active: frozenset[str]) -> None:
        self.symbolic: Any = copy.copy(optimizer)
        self.arguments: dict[str, Any] = {}
        self._builder = builder
        self._optimizer = optimizer
        self._prefix = prefix
        self._scalars: dict[str, Scalar] = {}
        self._totals: dict[str, Scalar] = {}
        for name in optimizer.numeric_hyperparameters():
            if "." not in name and prefix + name in active:
                object.__setattr__(self.symbolic, name, self._input(name, structural=optimizer.is_optional(name)))
        self._inner = {n: _TracedPart(builder, r, f"{prefix}{n}.", active) for n, r in optimizer.nested.items()}
        for name, part in self._inner.items():
            object.__setattr__(self.symbolic, name, part.symbolic)

    def _input(self, name: str, *, structural: bool = False) -> Scalar:
        node = Node(self._builder.record("input", Kind.FLOAT, label=self._prefix + name))
        return Scalar(node, self._builder, structural=structural)

    def slots_among(self, kept: Mapping[str, Any]) -> Slots:
        """Return the slots of the rule, given all that the parameter has; those of an inner rule are under its name."""
        own = {n.removeprefix(self._prefix): symbol for n, symbol in kept.items() if n.startswith(self._prefix)}
        inner = {name: part.slots_among(kept) for name, part in self._inner.items()}
        return Slots(**{name: symbol for name, symbol in own.items() if "." not in name}, **inner)

    def take_scalars(self) -> None:
        """Make the scalars of the state inputs."""
        self._scalars = {name: self._input(name) for name in self._optimizer.scalar_slots if "." not in name}
        for part in self._inner.values():
            part.take_scalars()

    def take_arguments(self, inputs: Mapping[str, Any], t: Scalar) -> None:
        """Find what `update` takes by name: further inputs and random numbers. An inner rule's has them without being given."""
        self.arguments = {name: inputs[name] for name in self._optimizer.own("inputs")}
        draws = self._optimizer.own("draws")
        if draws:
            for name, distribution in draws.items():
                self.arguments[name] = self._drawn(name, distribution, t)
        for part in self._inner.values():
            part.take_arguments(inputs, t)
            if part.arguments:
                bound = functools.partial(part.symbolic.update, **part.arguments)
                object.__setattr__(part.symbolic, "update", bound)

    def _drawn(self, name: str, distribution: str, t: Scalar) -> ArraySymbol:
        builder = self._builder
        # Each draw has a number of its own, also where two rules have equal seeds.
        stream = sum(op.name.startswith("draw_") for op in builder.ops)
        args = map(builder.scalar, (self._scalars[KEY].value, t.value, stream))
        return ArraySymbol(
            builder, builder.record(f"draw_{distribution}", Kind.ARRAY, *args, label=self._prefix + name)
        )

    def take_totals(self, xp: Any, p: Any, g: Any, slots: Any, t: Scalar) -> None:
        """Record what is reduced over all parameters."""
        if self.symbolic.totals is not None:
            known = Coefficients(t=t, **self._scalars_of_rule)
            value = self.symbolic.totals(xp, p, g, slots, known, **self.arguments)
            self._totals = totals_of(self._optimizer, self._builder, value, self._prefix)
        for name, part in self._inner.items():
            part.take_totals(xp, p, g, getattr(slots, name), t)

    def coefficients(self, t: Scalar) -> tuple[Coefficients, dict[str, Any]]:
        """Return the coefficients, those of an inner rule under its name, and the new scalars of the state."""
        returned = self.symbolic.coefficients(t, **self._scalars_of_rule, **self._totals)
        own = coefficients_of(self._optimizer, returned)
        outputs = {self._prefix + name: own.pop(name, scalar) for name, scalar in self._scalars.items()}
        for name, part in self._inner.items():
            own[name], of_inner = part.coefficients(t)
            outputs |= of_inner
        return Coefficients(self._totals, **own), outputs

    @property
    def _scalars_of_rule(self) -> dict[str, Scalar]:
        # The key of random numbers is the same in all steps, and no concern of the rule.
        hidden = {KEY} if self._optimizer.own("draws") else set()
        return {name: scalar for name, scalar in self._scalars.items() if name not in hidden}


def _clipped(builder: Recorder, rule: Any, xp: Any, gradient: ArraySymbol, active: frozenset[str]) -> ArraySymbol:
    if "clipnorm" in active:
        total = builder.record("total_norm", Kind.FLOAT, operand(builder, gradient), label=GRADIENT_NORM)
        norm = Scalar(Node(total), builder)
        # A NaN norm compares false and leaves the gradient as it is; an infinite one gives the factor zero.
        gradient = gradient * where(norm >= rule.clipnorm, rule.clipnorm / norm, 1.0)
    if "clipvalue" in active:
        gradient = xp.clip(gradient, -rule.clipvalue, rule.clipvalue)
    return gradient
