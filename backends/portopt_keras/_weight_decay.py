"""Which variables are excluded from weight decay, and the rule for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import portopt


@dataclass(frozen=True)
class Exclusions:
    """What was excluded, by variable and by name.

    Attributes:
        keys: Keras' keys of the variables that were given, which only this process knows.
        names: regular expressions that are looked for in names and paths.
        places: variables that a config describes, by place, name and shape, until there are variables.
    """

    keys: frozenset[Any] = frozenset()
    names: tuple[str, ...] = ()
    places: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, variables: Any, names: Any, key: Callable[[Any], Any]) -> Self:
        """Return what `exclude_from_weight_decay` was given."""
        names = names or ()
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"exclude_from_weight_decay takes var_names as a list of strings, but {names!r} was given: give ['bias'], say"
            )
        return cls(frozenset(map(key, variables or ())), tuple(names))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return what `get_config` described."""
        return cls(names=tuple(config["names"]), places=tuple(config["places"]))

    def __bool__(self) -> bool:
        return bool(self.keys or self.names or self.places)

    def get_config(self, variables: Sequence[Any] | None, key: Callable[[Any], Any]) -> dict[str, Any]:
        """Return what a file can hold, given the variables of an optimizer that is built."""
        if variables is None and self.keys:
            raise ValueError(
                "variables were excluded from weight decay one by one, which a config can say only once the optimizer is built: "
                "call build with all variables before, or give exclude_from_weight_decay var_names"
            )
        places = [_place(i, v) for i, v in enumerate(variables or ()) if key(v) in self.keys]
        return {"names": list(self.names), "places": [*self.places, *places]}

    def with_variables(self, variables: Sequence[Any], key: Callable[[Any], Any]) -> Self:
        """Return the same for the variables of an optimizer that is being built."""
        for place in self.places:
            i = place["index"]
            if i >= len(variables) or _place(i, variables[i]) != place:
                raise ValueError(
                    f"the optimizer's config excludes variable {i}, {place['name']!r} of shape {place['shape']}, from weight "
                    "decay, but the optimizer is built with others: call exclude_from_weight_decay anew"
                )
        return replace(self, keys=self.keys | {key(variables[place["index"]]) for place in self.places}, places=())

    def among(self, variables: Sequence[Any], key: Callable[[Any], Any]) -> frozenset[Any]:
        """Return the keys of those of the variables that are excluded."""
        return frozenset(k for v in variables if (k := key(v)) in self.keys or self._is_named(v))

    def _is_named(self, variable: Any) -> bool:
        names = {variable.name, getattr(variable, "path", variable.name)}  # a variable of TensorFlow has no path
        return any(re.search(pattern, name) for pattern in self.names for name in names)


def has_weight_decay(rule: portopt.Optimizer) -> bool:
    """Tell whether a rule decays weights itself."""
    return bool(getattr(rule, "weight_decay", None))


def without_weight_decay(rule: portopt.Optimizer) -> portopt.Optimizer:
    """Return a rule like the given one that does not decay.

    Raises:
        ValueError: the rule does not allow a weight decay of 0, or has other slots without.
    """
    without = rule.replace(weight_decay=0.0)
    if set(without.slots) != set(rule.slots):
        raise ValueError(
            f"variables cannot be excluded from the weight decay of {type(rule).__name__}, whose slots are "
            f"{', '.join(rule.slots)} with it and {', '.join(without.slots) or 'none'} without"
        )
    return without


def _place(index: int, variable: Any) -> dict[str, Any]:
    return {"index": index, "name": variable.name, "shape": list(variable.shape)}
