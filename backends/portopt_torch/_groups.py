"""Hyperparameters of a parameter group: under torch's names in the group, under portopt's in a step."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from portopt import RULES, Optimizer
from portopt.arithmetic import HOST
from portopt.hyperparameters import Alias, Range
from portopt.nested import value_of
from portopt.scalars import Scalar
from portopt.schedules import Schedule, is_schedule
from portopt_torch._backend import backend


class Resolved(NamedTuple):
    """What a group asks for in a step.

    Attributes:
        rule: the optimizer with the options of the group, and its features on or off as there.
        overrides: the values for the step that differ from those of `rule`, by portopt's names.
    """

    rule: Optimizer
    overrides: dict[str, Any]


class _Last(NamedTuple):
    """What was found out about a group at the last step.

    Attributes:
        names: of all that it held.
        objects: all that it held.
        values: then, of its hyperparameters; None if these can only change with the objects.
        resolved: what it asked for.
    """

    names: tuple[str, ...]
    objects: tuple[Any, ...]
    values: tuple[Any, ...] | None
    resolved: Resolved


class GroupHyperparameters:
    """Reads the hyperparameters of one rule from parameter groups.

    A group has `lr`, `betas` where the rule has `beta_1`, and what else is several in one there (`eps` of Adafactor); and the
    others under the names that torch has for them in the dialect `torch`, otherwise under their own. Where the rule's learning
    rate is a schedule, `lr` is a factor on it, 1.0 at first. Options, which change the program, are in a group only if they were
    given.
    """

    def __init__(self, rule: Optimizer, *, capturable: bool = False) -> None:
        self.capturable = capturable
        names = tuple(rule.defaults(getattr(rule, "dialect", None)))
        numeric = rule.numeric_hyperparameters()
        others = {name: value for name in dir(type(rule)) if isinstance(value := getattr(type(rule), name), Alias)}
        here = {name: a for name, a in others.items() if a.dialect in (None, getattr(rule, "dialect", None))}
        betas = tuple(name for name in numeric if re.fullmatch(r"beta_\d+", name))
        several = {n: a.targets for n, a in here.items() if len(a.targets) > 1 and set(a.targets) <= set(numeric)}
        self._several = several if "betas" in several or not betas else {"betas": betas, **several}
        self._rule = rule
        self._owner = type(rule).__name__
        self._scheduled = is_schedule(rule.learning_rate)
        # An inner rule's, where that is what the rule's own name stands for.
        rates = {"learning_rate", *(here["learning_rate"].targets if "learning_rate" in here else ())}
        self._held: dict[str, tuple[str, ...]] = {"lr": ("learning_rate",), **self._several}
        together = {name for names in self._several.values() for name in names}
        for name in numeric:
            if name not in rates and name not in together:
                held = next((n for n, a in here.items() if a.targets == (name,)), name)
                self._held[held] = (name,)
        self._options = tuple(name for name in names if name not in numeric)
        self._at_init = tuple(name for name in self._options if getattr(type(rule), name).at_init)
        self._optional = {n: rule.hyperparameter_named(n).off for n in numeric if rule.is_optional(n)}
        self._known = hyperparameter_names() | set(inspect.signature(type(rule)).parameters)
        self._watched = (*self._held, *self._options)
        self._ranges = {n: rule.hyperparameter_named(n).range for n in numeric}
        # Whether any values may go together that are in their ranges.
        self._is_free = type(rule).check_combination is Optimizer.check_combination
        self._last: dict[int, _Last] = {}

    def defaults(self) -> dict[str, Any]:
        """Return what a group has that gives no values of its own."""
        values = {held: tuple(value_of(self._rule, n) for n in names) for held, names in self._held.items()}
        plain = {held: value if held in self._several else value[0] for held, value in values.items()}
        return {**plain, "lr": 1.0} if self._scheduled else plain

    def value(self, group: Mapping[str, Any], rule: Optimizer, name: str) -> Any:
        """Return the value that a group, whose rule is given, has for a hyperparameter of the rule."""
        held = self.held_name(name)
        if held not in self._several:
            return group[held] if held in group else value_of(rule, name)
        return group[held][self._held[held].index(name)]

    def held_name(self, name: str) -> str:
        """Return under which name a group has a hyperparameter of the rule."""
        return next((held for held, names in self._held.items() if name in names), name)

    def renamed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return a group that was given with either name of what has two.

        Raises:
            ValueError: a value is outside its range.
            TypeError: the group has an entry that the rule cannot honour, or one hyperparameter under two names.
        """
        renamed = dict(group)
        for held, names in self._held.items():
            given = [name for name in names if name in group and name != held]
            if not given:
                continue
            if held in group:
                raise TypeError(
                    f"a parameter group was given {held} and {' and '.join(given)} at once, which are one thing; give only one"
                )
            values = tuple(renamed.pop(name, value_of(self._rule, name)) for name in names)
            renamed[held] = values if held in self._several else values[0]
        self.check_names(renamed)
        self.rule_of(renamed)
        return renamed

    def rule_of(self, group: Mapping[str, Any]) -> Optimizer:
        """Return the rule of a group that may lack values, after checks."""
        return self._resolve({**self.defaults(), **group}, None).rule

    def check_names(self, group: Mapping[str, Any]) -> None:
        """Raise `TypeError` if a group has a hyperparameter that would be ignored."""
        for name in sorted(self._known.intersection(group)):
            if name in self._held or name in self._options:
                continue
            for held, names in self._held.items():
                if name in names:
                    raise TypeError(f"a parameter group holds {name!r} as {held!r}: set group[{held!r}] instead")
            if group[name] is None or group[name] is False:
                # What the rule has not is off.
                continue
            own = _own_names().get(name)
            hint = f"its name here is {own!r}; " if own in self._held else ""
            allowed = ", ".join([*self._held, *(n for n in self._options if n != "dialect")])
            raise TypeError(
                f"a parameter group has {name!r}, which is no hyperparameter of {self._owner}; {hint}allowed are {allowed}"
            )

    def resolved(self, index: int, group: Mapping[str, Any]) -> Resolved:
        """Return the rule of a group and the values for a step.

        Raises:
            ValueError: a value is outside its range, or does not go together with another.
            TypeError: a value is of a wrong type, or stands under a name that is not read.
        """
        last, names, before = self._last.get(index), tuple(group), None
        if last is not None:
            if last.names == names:
                changed = self._changes(group, last)
                if not changed:
                    return last.resolved
                overrides = self._with_numbers(last.resolved, changed)
                if overrides is not None:
                    read = self._watched if last.values is not None else [name for name, _ in changed]
                    return self._remembered(index, group, Resolved(last.resolved.rule, overrides), read)
            if any(x is group["params"] for x in last.objects):
                before = last.resolved.rule
        self.check_names(group)
        return self._remembered(index, group, self._resolve(group, before), self._watched)

    def _changes(self, group: Mapping[str, Any], last: _Last) -> list[tuple[str, Any]]:
        """Return the values that may be others than at the last step, by name, given a group of the same names."""
        if last.values is not None:
            found = zip(self._watched, self._values(group), last.values, strict=True)
            return [(name, x) for name, x, y in found if x != y]
        if all(map(operator.is_, group.values(), last.objects)):
            return []
        objects = zip(group.items(), last.objects, strict=True)
        return [(name, x) for (name, x), y in objects if x is not y and name in self._watched]

    def _values(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*(self._read(n, group[n]) for n in self._held), *map(group.get, self._options))

    def _remembered(self, index: int, group: Mapping[str, Any], resolved: Resolved, read: Sequence[str]) -> Resolved:
        """Remember a group for the next step, and return what it asks for; all values but those of `read` are constants."""
        values = None if all(map(_is_constant, map(group.get, read))) else self._values(group)
        self._last[index] = _Last(tuple(group), tuple(group.values()), values, resolved)
        return resolved

    def _with_numbers(self, resolved: Resolved, changed: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
        """Return a step's values if only numbers changed, as by a scheduler; None if more may have, or one is not allowed."""
        if self._scheduled or self._rule.nested:
            return None
        rule, overrides = resolved.rule, resolved.overrides.copy()
        for held, value in changed:
            names, now = self._held.get(held, ()), self._read(held, value)
            parts = now if type(now) is tuple else (now,)
            if len(parts) != len(names) or (held in self._several) != (type(now) is tuple):
                return None
            for name, part in zip(names, parts, strict=True):
                own = value_of(rule, name)
                is_switched = name in self._optional and self._optional[name] in (own, part)
                if type(part) is not float or is_switched or part not in self._ranges[name]:
                    return None
                overrides[name] = part
                if part == own:
                    del overrides[name]
        return overrides if self._is_free or _go_together(rule, overrides) else None

    def _read(self, name: str, value: Any) -> Any:
        """Return a value of a group as a number; a learning rate on the device, which is read there, as where it is."""
        if self.capturable and isinstance(value, torch.Tensor) and backend.graphs.has_number(value.reshape(-1)[0]):
            if name == "lr":
                return OnDevice(name, value)
            backend.graphs.refuse_capture([value], f"{name} of a group is a tensor on the device, which only lr may be")
        return number(name, value)

    def _resolve(self, group: Mapping[str, Any], before: Optimizer | None) -> Resolved:
        """Return what a group asks for, with the rule of the step before if it serves."""
        given: dict[str, Any] = {}
        for held, names in self._held.items():
            given |= zip(names, self._parts(held, self._read(held, group[held])), strict=True)
        rate = given["learning_rate"]
        if isinstance(rate, OnDevice):
            return self._with_rate_on_device(group, before, rate)
        if is_schedule(rate):
            raise TypeError(
                f"a parameter group was given the schedule {rate!r} as lr: give the schedule to the optimizer, as "
                f"{self._owner}(learning_rate=...), and the group a number"
            )
        if self._scheduled:
            rate = Range(at_least=0).check("a parameter group's", "lr, a factor on the schedule,", rate)
            del given["learning_rate"]
        options = {name: group[name] for name in self._options if name in group}
        dialect = getattr(self._rule, "dialect", None)
        if options.get("dialect", dialect) != dialect:
            raise TypeError(
                f"a parameter group has dialect={options['dialect']!r}, but 'dialect' is fixed when {self._owner} is "
                f"constructed, here as {dialect!r}; use one TorchOptimizer for each value"
            )
        rule = self._changed(self._rule, {**given, **options})
        if self.capturable and self._scheduled and rate != 1.0:
            # A factor on what kernels compute.
            return Resolved(rule.replace(learning_rate=_Scaled(rule.learning_rate, rate)), {})
        if before is not None:
            for name in self._at_init:
                if value_of(rule, name) != value_of(before, name):
                    raise TypeError(
                        f"a parameter group has {name}={group.get(name)!r}, but {name!r} is read only when the state begins, "
                        f"here as {value_of(before, name)!r}; change the state, or give it to a new optimizer"
                    )
            if self._program_of(rule) == self._program_of(before):
                values = {name: value_of(rule, name) for name in given}
                overrides = {name: value for name, value in values.items() if value != value_of(before, name)}
                return Resolved(before, self._with_factor(overrides, rate))
        return Resolved(rule, self._with_factor({}, rate))

    def _with_rate_on_device(self, group: Mapping[str, Any], before: Optimizer | None, rate: OnDevice) -> Resolved:
        if self._scheduled:
            raise ValueError(
                "a parameter group has a tensor on the device as lr, but the optimizer has a schedule, on which lr is a factor: "
                "give the factor as a number"
            )
        resolved = self._resolve({**group, "lr": value_of(self._rule, "learning_rate")}, before)
        return resolved._replace(overrides={**resolved.overrides, "learning_rate": rate.tensor})

    def _changed(self, rule: Optimizer, values: Mapping[str, Any]) -> Optimizer:
        changes = {name: value for name, value in values.items() if value is not value_of(rule, name)}
        return rule.replace(**changes) if changes else rule

    def _program_of(self, rule: Optimizer) -> tuple[Any, ...]:
        """Return what of the values decides which program runs."""
        features = (value_of(rule, name) == off for name, off in self._optional.items())
        return (*(value_of(rule, name) for name in self._options), *features)

    def _with_factor(self, overrides: dict[str, Any], rate: float) -> dict[str, Any]:
        return overrides if not self._scheduled or rate == 1.0 else {**overrides, "learning_rate": ScaledSchedule(rate)}

    def _parts(self, held: str, value: Any) -> tuple[Any, ...]:
        if held not in self._several:
            return (value,)
        names = self._held[held]
        if not isinstance(value, tuple) or len(value) != len(names):
            raise ValueError(
                f"{held} of a parameter group must be {len(names)} numbers, ({', '.join(names)}), but {value!r} was given"
            )
        return value

    def features(self, rule: Optimizer) -> str:
        """Return the options and features of a group's rule that the optimizer's own has not, as arguments."""
        names = [*self._options, *self._optional]
        changed = {n: v for n in names if (v := value_of(rule, n)) != value_of(self._rule, n)}
        return ", ".join(f"{name}={value!r}" for name, value in changed.items()) or "its values"

    def at_step(self, resolved: Resolved, finished: int) -> Mapping[str, Any]:
        """Return the values for a step after `finished` ones, as numbers."""
        factor = resolved.overrides.get("learning_rate")
        if not isinstance(factor, ScaledSchedule):
            return resolved.overrides
        schedule: Any = resolved.rule.learning_rate
        rate = schedule(Scalar(finished, HOST))
        return {**resolved.overrides, "learning_rate": factor * (rate.value if isinstance(rate, Scalar) else rate)}


class OnDevice:
    """A learning rate on the device, equal to another one if that is the same tensor."""

    def __init__(self, name: str, value: torch.Tensor) -> None:
        self._value = value
        self.tensor = _of_no_axes(name, value).detach()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnDevice) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


@dataclasses.dataclass(frozen=True)
class _Scaled(Schedule):
    """A schedule times a number."""

    schedule: Any
    factor: float

    def at(self, step: Scalar) -> Any:
        return self.schedule(step) * self.factor


def _go_together(rule: Optimizer, values: Mapping[str, Any]) -> bool:
    changed = object.__new__(type(rule))
    vars(changed).update(vars(rule), **values)
    try:
        changed.check_combination()
    except ValueError:
        return False
    return True


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or type(value) in (bool, int, float, str)


class ScaledSchedule(float):
    """The factor of a group on the rule's schedule."""


def number(name: str, value: Any) -> Any:
    """Return a hyperparameter's value; torch also takes tensors of one element, and its schedulers fill them in place."""
    if isinstance(value, tuple | list):
        return tuple(number(name, part) for part in value)
    return value if not isinstance(value, torch.Tensor) else _of_no_axes(name, value).item()


def _of_no_axes(name: str, value: torch.Tensor) -> torch.Tensor:
    if value.numel() != 1 or value.ndim > 1:
        raise ValueError(
            f"{name} of a parameter group must be a number or a tensor of one, of shape () or (1,), but a tensor of shape "
            f"{tuple(value.shape)} was given"
        )
    return value.reshape(())


@functools.cache
def hyperparameter_names() -> frozenset[str]:
    """Return the names of all hyperparameters of portopt's rules and of `torch.optim`.

    In a group they are meant as such, where any other entry is a label.
    """
    classes = [c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
    theirs = {name for c in classes if c is not torch.optim.Optimizer for name in inspect.signature(c).parameters}
    return frozenset(theirs - {"params"}) | {name for rule in RULES for name in inspect.signature(rule).parameters}


@functools.cache
def _own_names() -> Mapping[str, str]:
    """Return the rules' own names for what torch calls otherwise."""
    aliases = {n: a for rule in RULES for n in dir(rule) if isinstance(a := value_of(rule, n), Alias)}
    return {name: a.targets[0] for name, a in aliases.items() if len(a.targets) == 1}
