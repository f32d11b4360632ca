"""Which variables are excluded from weight decay, and the rule for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import portopt


@dataclass(frozen=True)
class Exclusions:
    """What was excluded, by variable and by name.

    Attributes:
        keys: Keras' keys of the variables that were given, which only this process knows.
        paths: their paths, for a config.
        names: regular expressions that are looked for in names and paths.
    """

    keys: Sequence[Any] = ()
    paths: Sequence[str] = ()
    names: Sequence[str] = ()

    @classmethod
    def of(cls, variables: Any, names: Any, key: Callable[[Any], Any]) -> Self:
        """Return what `exclude_from_weight_decay` was given."""
        variables, names = list(variables or ()), names or ()
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"exclude_from_weight_decay takes var_names as a list of strings, but {names!r} was given: give ['bias'], say"
            )
        return cls([key(v) for v in variables], [_path(v) for v in variables], list(names))

    def __bool__(self) -> bool:
        return bool(self.paths or self.names)

    def get_config(self) -> dict[str, Any]:
        """Return what a file can hold; a variable is found again by its path."""
        return {"paths": list(self.paths), "names": list(self.names)}

    def among(self, variables: Sequence[Any], key: Callable[[Any], Any]) -> frozenset[Any]:
        """Return the keys of those of the variables that are excluded."""
        keys = frozenset(self.keys)
        # Without keys they come from a config, and count by path.
        paths = frozenset() if keys else frozenset(self.paths)

        def is_excluded(variable: Any) -> bool:
            names = (variable.name, _path(variable))
            return (
                key(variable) in keys
                or _path(variable) in paths
                or any(re.search(pattern, name) for pattern in self.names for name in names)
            )

        return frozenset(key(v) for v in variables if is_excluded(v))


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
            f"{', '.join(rule.slots)} with it and {', '.join(without.slots)} without"
        )
    return without


def _path(variable: Any) -> str:
    return getattr(variable, "path", variable.name)  # a variable of TensorFlow has only a name
