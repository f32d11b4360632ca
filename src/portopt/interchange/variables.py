"""Native optimizers that keep their state in variables of their own: a step loads it into them, and reads it afterwards."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from portopt.interchange.correspondence import Correspondence
from portopt.interchange.exchange import Native, Tree
from portopt.interchange.frameworks import Translator
from portopt.interchange.states import filled
from portopt.optimizer import Optimizer
from portopt.state import OptimizerState

Values = list[tuple[Any, Any]]
"""Variables and what they are to hold."""


class Bound(NamedTuple):
    """A copy of an optimizer with variables of its own.

    Attributes:
        optimizer: the copy.
        parameters: the variables that it updates.
        per_parameter: its slots: for each name, a variable for each parameter, or None.
        scalars: the variables that are one for all parameters.
    """

    optimizer: Any
    parameters: list[Any]
    per_parameter: dict[str, list[Any]]
    scalars: dict[str, Any]


def by_parameter(count: int, matches: Iterable[tuple[Any, re.Match[str] | None]]) -> dict[str, list[Any]]:
    """Return slots from variables and the matches of their names, whose groups `slot` and `index` say whose they are."""
    named: dict[str, list[Any]] = {}
    for variable, match in matches:
        if match is not None:
            named.setdefault(match["slot"], [None] * count)[int(match["index"])] = variable
    return named


class VariablesNative(Native):
    """One optimizer; each step loads its arguments into variables of a copy, and reads them afterwards."""

    def __init__(self) -> None:
        self._bound: dict[Any, Bound] = {}

    @abstractmethod
    def bind(self, leaves: list[Any], hyperparameters: Mapping[str, Any], *, fresh: bool = False) -> Bound:
        """Return a copy of the optimizer for such parameters, the same one again unless `fresh`."""

    def step_values(self, bound: Bound, hyperparameters: Mapping[str, Any]) -> Values:
        """Return what else is to be loaded for a step with these values of hyperparameters."""
        return []

    @abstractmethod
    def run(self, bound: Bound, values: Values, gradients: Values) -> Callable[[Any], Any]:
        """Do a step with these values of variables; return a function that reads a variable.

        Args:
            bound: the optimizer.
            values: what is loaded before.
            gradients: variables that have a gradient, and the gradient.
        """

    def read(self, variable: Any) -> Any:
        """Return a copy of what a variable holds."""
        return self.arrays.copy(variable)

    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        return self._slots(tree, leaves, self.bind(leaves, {}, fresh=True), self.read)

    def apply(
        self,
        tree: Tree,
        leaves: list[Any],
        gradients: list[Any],
        slots: Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
        *,
        in_place: bool,
    ) -> tuple[list[Any], dict[str, Any]]:
        bound = self.bind(leaves, hyperparameters)
        self.check_slots(slots, [*bound.scalars, *bound.per_parameter])
        values = list(zip(bound.parameters, (leaf for leaf in leaves if leaf is not None), strict=True))
        values += [(variable, slots[name]) for name, variable in bound.scalars.items()]
        for name, variables in bound.per_parameter.items():
            slot = [v for v, leaf in zip(tree.flatten(slots[name], name), leaves, strict=True) if leaf is not None]
            values += [(v, value) for v, value in zip(variables, slot, strict=True) if v is not None]
        values += self.step_values(bound, hyperparameters)
        own = iter(bound.parameters)
        updated = [None if leaf is None else next(own) for leaf in leaves]
        read = self.run(bound, values, [(v, g) for v, g in zip(updated, gradients, strict=True) if g is not None])
        return [None if v is None else read(v) for v in updated], self._slots(tree, leaves, bound, read)

    def _slots(self, tree: Tree, leaves: list[Any], bound: Bound, read: Callable[[Any], Any]) -> dict[str, Any]:
        slots = {name: read(variable) for name, variable in bound.scalars.items()}
        for name, variables in bound.per_parameter.items():
            own = iter(None if v is None else read(v) for v in variables)
            slots[name] = tree.unflatten([None if leaf is None else next(own) for leaf in leaves])
        return slots


class VariablesTranslator(Translator):
    """Translates optimizers whose state is in variables."""

    def load(
        self,
        bound: Bound,
        correspondence: Correspondence,
        optimizer: Optimizer,
        state: OptimizerState,
        definition: Any,
    ) -> None:
        """Write a state of portopt into an optimizer's variables.

        Raises:
            ValueError: the state has other slots than the variables.
        """
        values = self.native_slots(correspondence, optimizer, state, bound.parameters, definition)
        for name, variable in bound.scalars.items():
            variable.assign(values[name])
        for name, variables in bound.per_parameter.items():
            leaves = values.get(name, [None] * len(variables))
            for variable, value in zip(variables, filled(correspondence, name, leaves, variables), strict=True):
                if value is not variable:
                    variable.assign(value)
