"""Which rule corresponds to an optimizer of a framework, and which optimizer of a framework to one of portopt's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.interchange.configuration import known_rules
from portopt.interchange.correspondence import Correspondence, Vocabulary, most_specific
from portopt.optimizer import Optimizer
from portopt.schedules import is_schedule


def rules_with_counterpart(vocabulary: Vocabulary) -> list[type[Optimizer]]:
    """Return the rules that state a counterpart in a namespace."""
    return [rule for rule in known_rules() if vocabulary.correspondences(rule)]


def translations(vocabulary: Vocabulary) -> dict[str, Correspondence]:
    """Return what each optimizer in a namespace is translated to, by its name."""
    possible = [c for rule in known_rules() for c in vocabulary.correspondences(rule) if c.translated]
    return {
        name: most_specific(c for c in possible if c.name == name) for name in dict.fromkeys(c.name for c in possible)
    }


def corresponding(vocabulary: Vocabulary, name: str, described: str = "") -> Correspondence:
    """Return what the optimizer of that name in a namespace is translated to; raise `ValueError` if it is not."""
    known = translations(vocabulary)
    if name not in known:
        raise ValueError(f"portopt has no counterpart of {described or name}; translated are {', '.join(known)}")
    return known[name]


def exact_correspondences(vocabulary: Vocabulary, framework: str, opt: Optimizer) -> list[Correspondence]:
    """Return what has the formula of an optimizer; raise `ValueError` if nothing has."""
    dialect, rule = getattr(opt, "dialect", None), type(opt).__name__
    possible = [c for c in vocabulary.correspondences(type(opt)) if c.translated]
    if not possible:
        known = ", ".join(known_rule.__name__ for known_rule in rules_with_counterpart(vocabulary))
        raise ValueError(f"{framework} has no counterpart of {rule}; translated are {known}")
    if dialect != possible[0].dialect:
        raise ValueError(
            f"{framework} has no counterpart of {rule} in the dialect {dialect!r}, which is another formula; in the dialect "
            f"{possible[0].dialect!r} it has"
        )
    return possible


def matched(vocabulary: Vocabulary, framework: str, opt: Optimizer) -> tuple[Correspondence, dict[str, Any]]:
    """Return what is to be made of an optimizer, and the arguments; raise `ValueError` if something has no counterpart.

    Args:
        vocabulary: of the optimizers that it can be.
        framework: how messages call them.
        opt: portopt's.
    """
    possible = exact_correspondences(vocabulary, framework, opt)
    if is_schedule(opt.learning_rate):
        raise ValueError(f"{framework} has no counterpart of the schedule {opt.learning_rate!r}: give a number")
    ours = given(opt)
    correspondence = next((c for c in possible if c.fits(ours)), possible[-1])
    arguments = renamed(correspondence, ours)
    defaults = opt.defaults(correspondence.dialect)
    for name, value in ours.items():
        taken = name in correspondence.fixed or name in correspondence.hyperparameters.values()
        if not taken and value != defaults.get(name):
            raise ValueError(f"{correspondence.name} has no counterpart of {name}={value!r} of {type(opt).__name__}")
    return correspondence, arguments


def given(opt: Optimizer) -> dict[str, Any]:
    """Return the hyperparameters that an optimizer has, but for the dialect."""
    return {name: value for name, value in opt.get_config().items() if value is not None and name != "dialect"}


def renamed(correspondence: Correspondence, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the framework's optimizer has for hyperparameters; of several in one, all if one is given."""
    names, fields = correspondence.hyperparameters, correspondence.rule.hyperparameters(correspondence.dialect)
    switched_off = [n for n in correspondence.counterpart.none if n in values and values[n] == fields[n].off]
    values = {**values, **dict.fromkeys(switched_off)}
    given = {there.partition(".")[0] for there, ours in names.items() if ours in values}
    return {
        there: values.get(ours)
        for there, ours in names.items()
        if ours in values or ("." in there and there.partition(".")[0] in given)
    }
