"""What of a framework's optimizer corresponds to what of a rule: derived from the counterparts that rules state."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from portopt.counterparts import Counterpart
from portopt.hyperparameters import Alias, Hyperparameter
from portopt.optimizer import Optimizer

STEP = "step"
"""What the number of finished steps is called among the slots of a correspondence."""


@dataclass(frozen=True)
class Vocabulary:
    """What the optimizers in one namespace of a framework have in common.

    Attributes:
        namespace: how users write it, such as `"torch.optim"`.
        dialect: the rules' dialect with their formulas.
        step: the last part of the name of the number of steps in their state.
        names: hyperparameter to argument, where they differ; `"betas.0"` is the first of several values.
        lacks: hyperparameters that are no arguments.
        ignored: arguments that do not change what is computed.
        package: the module to import, where it is not the first part of the namespace.
        translated: whether an optimizer says what its hyperparameters are; otherwise rules are only compared with it.
    """

    namespace: str
    dialect: str
    step: str = STEP
    names: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    package: str = ""
    translated: bool = True

    def find(self, name: str) -> Any:
        """Return what has a name in the namespace, such as `"adam"`, or in a part of it, `"contrib.prodigy"`."""
        first, *rest = self.namespace.split(".")
        found: Any = importlib.import_module(self.package or first)
        for part in (*rest, *name.split(".")):
            found = getattr(found, part)
        return found

    def call(self, correspondence: Correspondence, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what constructs an optimizer, and its arguments.

        `"betas.0"` and `"betas.1"` are one, and `"init_step.distance"` is a pair of the name and the value, the last that is not
        None.
        """
        called = dict(correspondence.counterpart.given)
        for name, value in arguments.items():
            whole, _, position = name.partition(".")
            if not position:
                called[whole] = value
            elif position.isdecimal():
                called[whole] = (*called.get(whole, ()), value)
            elif value is not None:
                called[whole] = position, value
        return self.find(correspondence.name), called

    def correspondences(self, rule: type[Optimizer]) -> list[Correspondence]:
        """Return what corresponds to a rule. A subclass computes something else, so it states its own counterparts."""
        stated: Iterable[Counterpart] = vars(rule).get("counterparts", ())
        return [self._correspondence(rule, c) for c in stated if c.name.startswith(f"{self.namespace}.")]

    def _correspondence(self, rule: type[Optimizer], counterpart: Counterpart) -> Correspondence:
        dialect = self.dialect if self.dialect in rule.dialects() else None
        without = {"dialect", *self.lacks, *counterpart.lacks, *counterpart.fixed, *counterpart.inner}
        names = {**self.names, **_aliases(rule, dialect), **counterpart.names}
        own = [n for n in rule.defaults(dialect) if n not in without]
        hyperparameters = {names.get(n, n): n for n in (*own, *(n for n in counterpart.names if "." in n))}
        slots = {STEP: self.step, **counterpart.slots} if counterpart.counts else counterpart.slots
        return Correspondence(
            rule=rule,
            name=counterpart.name.removeprefix(f"{self.namespace}."),
            hyperparameters=hyperparameters,
            slots=slots,
            fixed=counterpart.fixed,
            ignored=self.ignored.union(counterpart.ignored, counterpart.given),
            dialect=dialect,
            translated=self.translated
            and counterpart.exact
            and counterpart.translated
            and (dialect is not None or not rule.dialects()),
            counterpart=counterpart,
        )


def _aliases(rule: type[Optimizer], dialect: str | None) -> dict[str, str]:
    """Return the names that a dialect has for hyperparameters, of which the rule says that they are another name."""
    others = {name: a for name in dir(rule) if isinstance(a := getattr(rule, name), Alias)}
    return {a.targets[0]: n for n, a in others.items() if dialect and a.dialect == dialect and len(a.targets) == 1}


class Correspondence(NamedTuple):
    """What of a framework's optimizer corresponds to what of a rule.

    Attributes:
        rule: portopt's.
        name: of the optimizer, in its namespace.
        hyperparameters: argument of the framework to the rule's hyperparameter; `"betas.0"` is the first of several values, and
            `"inner.beta_2"` is of a rule that the rule is made of.
        slots: the rule's slot, or `"step"`, to the last part of the name of the framework's; `"-trace"` for one of other sign.
        fixed: hyperparameters of the rule that the optimizer implies.
        ignored: arguments that do not change what is computed.
        dialect: the rule's dialect in which they correspond; None for a rule without one.
        translated: whether one can become the other, since both have one formula.
        counterpart: what the rule's class states.
    """

    rule: type[Optimizer]
    name: str
    hyperparameters: Mapping[str, str]
    slots: Mapping[str, str]
    fixed: Mapping[str, Any]
    ignored: frozenset[str]
    dialect: str | None
    translated: bool
    counterpart: Counterpart

    def optimizer(self, hyperparameters: Mapping[str, Any]) -> Optimizer:
        """Return the rule with these hyperparameters and those that the optimizer implies."""
        dialect = {} if self.dialect is None else {"dialect": self.dialect}
        own = {name: value for name, value in hyperparameters.items() if "." not in name}
        inner = {
            head: like.replace(
                **{n.removeprefix(f"{head}."): v for n, v in hyperparameters.items() if n.startswith(f"{head}.")}
            )
            for head, like in self.counterpart.inner.items()
        }
        return self.rule(**dialect, **{**self.fixed, **own, **inner})

    def field(self, name: str) -> Hyperparameter:
        """Return a hyperparameter of the rule, or of one that it is made of, as declared."""
        head, _, rest = name.partition(".")
        if not rest:
            return self.rule.hyperparameters(self.dialect)[name]
        like: Optimizer = self.counterpart.inner[head]
        return like.hyperparameters(getattr(like, "dialect", None))[rest]

    def inner_arguments(self, head: str) -> list[str]:
        """Return the hyperparameters that are arguments of a rule that the rule is made of, by their names in that."""
        return [n.removeprefix(f"{head}.") for n in self.hyperparameters.values() if n.startswith(f"{head}.")]

    def is_around(self, opt: Optimizer) -> bool:
        """Tell whether the rules that an optimizer is made of are like those of the framework's, up to its arguments."""
        likes = self.counterpart.inner
        return likes.keys() == opt.nested.keys() and all(
            _are_alike(opt.nested[head], like, self.inner_arguments(head)) for head, like in likes.items()
        )

    def own(self, argument: str, value: Any, unset: Any) -> dict[str, Any]:
        """Return the hyperparameter of the rule that an argument is, if None does not leave it at its default.

        Args:
            argument: one of `hyperparameters`.
            value: what was given.
            unset: the argument's default.

        Raises:
            ValueError: None is given, and means what the rule cannot do.
        """
        name = self.hyperparameters[argument]
        if value is not None:
            return {name: value}
        field = self.field(name)
        if field.is_optional:
            return {name: field.off}
        if unset is None:
            return {}
        raise ValueError(f"portopt has no counterpart of {argument}=None of {self.name}")

    def fits(self, hyperparameters: Mapping[str, Any]) -> bool:
        """Tell whether hyperparameters of the rule are those that the optimizer implies."""
        return all(hyperparameters.get(name) == value for name, value in self.fixed.items())


def _are_alike(opt: Optimizer, like: Optimizer, names: Iterable[str]) -> bool:
    """Tell whether optimizers are equal but for some hyperparameters."""
    same = type(opt) is type(like) and getattr(opt, "dialect", None) == getattr(like, "dialect", None)
    return same and opt.replace(**{name: getattr(like, name) for name in names}) == like


def split_sign(slot: str) -> tuple[str, bool]:
    """Return the name of a slot, and whether it is meant with the other sign."""
    return slot.removeprefix("-"), slot.startswith("-")


def most_specific(correspondences: Iterable[Correspondence]) -> Correspondence:
    """Return what one optimizer of a framework is translated to.

    Where several rules have it as their counterpart, as Adam with `decoupled_weight_decay=True` and AdamW may have AdamW, it is
    the rule of that name, and otherwise the one of which it fixes least.
    """
    return min(correspondences, key=lambda c: (c.rule.__name__.lower() != c.name.lower(), len(c.fixed)))
