"""Hyperparameters of a parameter group: under torch's names in the group, under portopt's in a step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from portopt import Optimizer
from portopt.hyperparameters import Range
from portopt.scalars import HOST, Scalar
from portopt.schedules import is_schedule

TORCH_NAMES = {
    *("alpha", "betas", "dampening", "eps", "etas", "initial_accumulator_value", "lambd", "lr_decay", "momentum"),
    *("momentum_decay", "rho", "step_sizes", "t0", "weight_decay"),
    *("amsgrad", "centered", "maximize", "nesterov"),
}
"""Hyperparameters of `torch.optim`: in a group they are meant as such, where any other unknown entry is a label."""

_PORTOPT_NAMES = {"eps": "epsilon", "alpha": "rho", "lr_decay": "decay"}


class GroupHyperparameters:
    """Reads the hyperparameters of one rule from parameter groups.

    A group has `lr`, `betas` where the rule has `beta_1`, and the others under their own names. Where the rule's learning
    rate is a schedule, `lr` is a factor on it, 1.0 at first.
    """

    def __init__(self, rule: Optimizer) -> None:
        numeric = rule.numeric_hyperparameters()
        self._rule = rule
        self._owner = type(rule).__name__
        self._scheduled = is_schedule(rule.learning_rate)
        self._betas = tuple(name for name in numeric if re.fullmatch(r"beta_\d+", name))
        self._others = tuple(name for name in numeric if name != "learning_rate" and name not in self._betas)
        self._last: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def defaults(self) -> dict[str, Any]:
        """Return what a group has that gives no values of its own."""
        rule = self._rule
        betas = {"betas": tuple(getattr(rule, name) for name in self._betas)} if self._betas else {}
        others = {name: getattr(rule, name) for name in self._others}
        return {"lr": 1.0 if self._scheduled else rule.learning_rate, **betas, **others}

    def renamed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return a group that a user gave with torch's names for what has two.

        Raises:
            ValueError: a value is outside its range.
            TypeError: the group has an entry that the rule cannot honour, or one hyperparameter under two names.
        """
        renamed = dict(group)
        self._rename(renamed, "lr", ("learning_rate",))
        if self._betas and any(name in group for name in self._betas):
            self._rename(renamed, "betas", self._betas)
        self.check_names(renamed)
        self._checked({**self.defaults(), **renamed})
        return renamed

    def _rename(self, group: dict[str, Any], torch_name: str, names: tuple[str, ...]) -> None:
        given = [name for name in names if name in group]
        if not given:
            return
        if torch_name in group:
            raise TypeError(
                f"a parameter group was given {torch_name} and {' and '.join(given)} at once, which are one thing; give only one"
            )
        values = tuple(group.pop(name, getattr(self._rule, name)) for name in names)
        group[torch_name] = values if torch_name == "betas" else values[0]

    def check_names(self, group: Mapping[str, Any]) -> None:
        """Raise `TypeError` if a group has a hyperparameter that would be ignored."""
        for name in ("learning_rate", *self._betas):
            if name in group:
                held = "lr" if name == "learning_rate" else "betas"
                raise TypeError(f"a parameter group holds {name!r} as {held!r}: set group[{held!r}] instead")
        for name in sorted(TORCH_NAMES.intersection(group)):
            if name in self._others or (name == "betas" and self._betas):
                continue
            if getattr(self._rule, name, None) is None:
                known = _PORTOPT_NAMES.get(name)
                hint = f"its name here is {known!r}; " if known in self._others else ""
                raise TypeError(
                    f"a parameter group has {name!r}, which is no hyperparameter of {self._owner}; {hint}"
                    f"allowed are {', '.join(self.defaults())}"
                )
            if getattr(self._rule, name) != group[name]:
                raise TypeError(
                    f"a parameter group has {name}={group[name]!r}, but {name!r} is fixed when {self._owner} is constructed, "
                    f"here as {getattr(self._rule, name)!r}; use one TorchOptimizer for each value"
                )

    def overrides(self, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values for a step that differ from the rule's own, by portopt's names; `lr` as it is.

        Raises:
            ValueError: a value is outside its range.
            TypeError: a value is of a wrong type, or stands under a name that is not read.
        """
        betas = group["betas"] if self._betas else ()
        betas = tuple(map(number, betas)) if isinstance(betas, list | tuple) else betas
        values = (number(group["lr"]), betas, *(number(group[name]) for name in self._others), len(group))
        last = self._last.get(index)
        if last is None or last[0] != values:
            self.check_names(group)
            last = self._last[index] = (values, self._checked(group))
        return last[1]

    def _checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        rate = number(group["lr"])
        given = {name: number(group[name]) for name in self._others}
        if self._betas:
            given |= zip(self._betas, self._beta_values(group["betas"]), strict=True)
        if is_schedule(rate):
            raise TypeError(
                f"a parameter group was given the schedule {rate!r} as lr: give the schedule to the optimizer, as "
                f"{self._owner}(learning_rate=...), and the group a number"
            )
        if self._scheduled:
            rate = Range(at_least=0).check("a parameter group's", "lr, a factor on the schedule,", rate)
        else:
            given["learning_rate"] = rate
        changed = {name: value for name, value in given.items() if value != getattr(self._rule, name)}
        if changed:
            checked = self._rule.replace(**changed)
            lacking = [name for name in checked.slots if name not in self._rule.slots]
            if lacking:
                features = {name: value for name, value in changed.items() if self._rule.is_optional(name)}
                values = ", ".join(f"{name}={value!r}" for name, value in features.items())
                raise ValueError(
                    f"a parameter group has {values}, for which {self._owner} needs the slot {' and '.join(lacking)}, but it was "
                    "constructed without: give the optimizer such a value, which groups can then change (a scheduler that sets "
                    "momentum takes cycle_momentum=False)"
                )
            changed = {name: getattr(checked, name) for name in changed}
        return changed if not self._scheduled or rate == 1.0 else {**changed, "learning_rate": ScaledSchedule(rate)}

    def _beta_values(self, betas: Any) -> tuple[Any, ...]:
        values = tuple(map(number, betas)) if isinstance(betas, list | tuple) else ()
        if len(values) != len(self._betas):
            raise ValueError(
                f"betas of a parameter group must be {len(self._betas)} numbers, ({', '.join(self._betas)}), but "
                f"{betas!r} was given"
            )
        return values

    def at_step(self, overrides: Mapping[str, Any], finished: int) -> Mapping[str, Any]:
        """Return the values for a step after `finished` ones, as numbers."""
        factor = overrides.get("learning_rate")
        if not isinstance(factor, ScaledSchedule):
            return overrides
        rate = self._rule.learning_rate(Scalar(finished, HOST))
        return {**overrides, "learning_rate": factor * (rate.value if isinstance(rate, Scalar) else rate)}


class ScaledSchedule(float):
    """The factor of a group on the rule's schedule."""


def number(value: Any) -> Any:
    """Return a hyperparameter's value; torch's schedulers also take 0-d tensors, and fill them in place."""
    return value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
