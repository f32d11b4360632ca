"""`rule`: a hyperparameter whose value is an optimizer, of which the rule that declares it is made.

In a state, in values for one step and in programs, what belongs to the inner rule has the name under which it is declared before
its own, with a dot: `"inner.m"`, `"inner.learning_rate"`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from portopt.hyperparameters import Alias, Hyperparameter
from portopt.slot import renamed

_CLIPPING = ("clipnorm", "clipvalue")

_find_class: Callable[[Mapping[str, Any]], Any] | None = None


@dataclass(frozen=True)
class NestedRule(Hyperparameter):
    """A hyperparameter whose value is an optimizer."""

    def check(self, owner: str, name: str, value: object) -> Any:
        """Return the optimizer, or raise an error."""
        if isinstance(value, type) or not all(hasattr(value, n) for n in ("update", "coefficients", "fixed_program")):
            raise TypeError(
                f"{owner} {name} must be an optimizer, such as portopt.Adam(), but {value!r:.80} of type "
                f"{type(value).__name__} was given"
            )
        for clipping in _CLIPPING:
            if getattr(value, clipping) is not None:
                raise ValueError(
                    f"{owner} {name} is {value!r}, which clips gradients; clipping comes before all rules, so give {clipping} to "
                    f"{owner} itself"
                )
        return value


def rule(*, default: Any, kw_only: bool = True) -> Any:
    """Declare a hyperparameter whose value is an optimizer, in the body of an `Optimizer` subclass: a rule made of rules.

    What the inner rule has is part of the outer one: its slots (`"inner.m"` in the state, `slots.inner.m` in `update`), scalars
    of the state, totals, further inputs and random numbers, its hyperparameters and its config. `update` calls
    `self.inner.update(xp, p, g, slots.inner, c.inner)`, whose coefficients `c.inner` come by themselves, and returns the inner
    rule's new slots under its name. The inner rule's totals are computed from the parameters and gradients of the step.

    If the class declares no `learning_rate` of its own and one inner rule, `learning_rate` and `lr` are another name for that of
    the inner rule. Clipping is the outer rule's.

    Args:
        default: the optimizer when the constructor is given none.
        kw_only: whether the constructor takes it by name only.

    Example:
        >>> import numpy as np, portopt
        >>> class Halved(portopt.Optimizer):
        ...     '''Does half of the step of another rule.'''
        ...
        ...     inner: portopt.Optimizer = portopt.rule(default=portopt.Adam(), kw_only=False)
        ...
        ...     def update(self, xp, p, g, slots, c):
        ...         whole, inner = self.inner.update(xp, p, g, slots.inner, c.inner)
        ...         return p + 0.5 * (whole - p), {"inner": inner}
        >>> opt, w = Halved(portopt.SGD(momentum=0.5)), np.asarray([1.0])
        >>> w, state = opt.apply(w, np.asarray([1.0]), opt.init(w), learning_rate=0.5)
        >>> w, state.slots
        (array([0.75]), {'inner.moment': array([-0.5])})
    """
    return NestedRule(default, None, kw_only)


class Assembled:
    """A class attribute of a rule made of rules that holds what the class declares and what its inner rules have."""

    def __init__(self, name: str, declared: Any) -> None:
        self.name = name
        self.declared = declared

    def __get__(self, instance: Any, owner: type) -> Any:
        own = self.own(instance, owner)
        return own if instance is None else _ASSEMBLED[self.name](own, instance.nested)

    def own(self, instance: Any, owner: type | None = None) -> Any:
        """Return what the class declares."""
        return self.declared.__get__(instance, owner) if hasattr(self.declared, "__get__") else self.declared


def _named(own: Iterable[str], nested: Mapping[str, Any], of: str) -> tuple[str, ...]:
    return (*own, *(f"{head}.{name}" for head, inner in nested.items() for name in getattr(inner, of)))


def _slots(own: Iterable[str], nested: Mapping[str, Any]) -> tuple[str, ...]:
    return (*own, *(renamed(name, f"{head}.{name}") for head, inner in nested.items() for name in inner.slots))


def _scalar_slots(own: Mapping[str, float], nested: Mapping[str, Any]) -> dict[str, float]:
    return {**own, **{f"{h}.{n}": first for h, inner in nested.items() for n, first in inner.scalar_slots.items()}}


def _inputs(own: Iterable[str], nested: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*own, *(name for inner in nested.values() for name in inner.inputs))))


def _draws(own: Mapping[str, str], nested: Mapping[str, Any]) -> dict[str, str]:
    return {**own, **{f"{h}.{n}": kind for h, inner in nested.items() for n, kind in inner.draws.items()}}


_ASSEMBLED: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "slots": _slots,
    "scalar_slots": _scalar_slots,
    "inputs": _inputs,
    "draws": _draws,
    "rates": functools.partial(_named, of="rates"),
}


def assemble(owner: Any) -> None:
    """Let a class that declares inner rules, or inherits some, have what they have."""
    names = [n for base in owner.__mro__ for n, value in vars(base).items() if isinstance(value, NestedRule)]
    if not names:
        return
    for name in _ASSEMBLED:
        declared = next(vars(base)[name] for base in owner.__mro__ if name in vars(base))
        if not isinstance(declared, Assembled):
            setattr(owner, name, Assembled(name, declared))
    own = [n for n, value in vars(owner).items() if isinstance(value, NestedRule)]
    if len(names) == len(own) == 1 and "learning_rate" not in vars(owner):
        owner.learning_rate = Alias((f"{own[0]}.learning_rate",))
    rate = vars(owner).get("learning_rate")
    if isinstance(rate, Alias) and "lr" not in vars(owner):
        owner.lr = rate


def with_values(inner: Any, changes: Mapping[str, Any]) -> Any:
    """Return an inner rule with other values of some hyperparameters."""
    return inner.replace(**changes) if changes else inner


def split(
    overrides: Iterable[tuple[str, str, Any]], nested: Iterable[str], owner: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of a step that are the rule's own, and those of each inner rule by its name.

    Args:
        overrides: for each value, the name that was given, the hyperparameter's own name, and the value.
        nested: the names of the inner rules.
        owner: what an error says was given them.
    """
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {name: {} for name in nested}
    for given, name, value in overrides:
        head, _, rest = name.partition(".")
        if head not in inner:
            own[given] = value
            continue
        if not rest and not isinstance(value, Mapping):
            raise TypeError(
                f"{owner} was given {head}={value!r:.80}: an inner rule is fixed at construction, and for one step its "
                f'hyperparameters are given by name, as in {head}={{"learning_rate": 0.1}}'
            )
        for hyperparameter, of_step in {rest: value}.items() if rest else value.items():
            if hyperparameter in inner[head]:
                raise TypeError(
                    f"{owner} was given {hyperparameter!r} of {head} under two names at once; give only one of them"
                )
            if hyperparameter in (*_CLIPPING, "gradient_norm"):
                raise TypeError(
                    f"{owner} was given {hyperparameter!r} for {head}; clipping comes before all rules: give it to the "
                    "outer one"
                )
            inner[head][hyperparameter] = of_step
    return own, inner


def is_of_inner(name: str) -> bool:
    """Tell whether a hyperparameter may be given for an inner rule, rather than only for the outermost."""
    return name not in _CLIPPING


def value_of(rule: Any, name: str) -> Any:
    """Return a hyperparameter of a rule, or of one that it is made of."""
    return operator.attrgetter(name)(rule)


def find_classes_by(find_class: Callable[[Mapping[str, Any]], Any]) -> None:
    """Let configs of inner rules be read: `find_class` returns the class that a config names."""
    global _find_class
    _find_class = find_class


def from_configuration(value: Any) -> Any:
    """Return the inner rule that a config describes; what is no config is returned as it is."""
    if not isinstance(value, Mapping) or _find_class is None:
        return value
    return _find_class(value).from_config(value["config"])


def configuration(inner: Any) -> dict[str, Any]:
    """Return the config of an inner rule, as `portopt.serialize` does."""
    return {"class_name": type(inner).__name__, "config": inner.get_config()}


def rates_of(rule: Any, overrides: Mapping[str, Any]) -> list[Any]:
    """Return the learning rates of a step, of which each may be a schedule."""
    return [overrides[name] if name in overrides else value_of(rule, name) for name in rule.rates]
