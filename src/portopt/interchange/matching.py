"""Which rule corresponds to an optimizer of a framework, and which optimizer of a framework to one of portopt's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from portopt.interchange.configuration import known_rules
from portopt.interchange.correspondence import Correspondence, Vocabulary, most_specific
from portopt.optimizer import Optimizer
from portopt.schedules import is_schedule


def compared_rules(vocabulary: Vocabulary) -> list[type[Optimizer]]:
    """Return the rules that are compared with a counterpart in a namespace."""
    return [rule for rule in known_rules() if any(c.counterpart.compared for c in vocabulary.correspondences(rule))]


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
        stated = (c for rule in known_rules() for c in vocabulary.correspondences(rule) if c.name == name)
        raise ValueError(
            f"portopt has no counterpart of {described or name}{_why_not(stated)}; translated are {', '.join(known)}"
        )
    return known[name]


def exact_correspondences(vocabulary: Vocabulary, framework: str, opt: Optimizer) -> list[Correspondence]:
    """Return what has the formula of an optimizer; raise `ValueError` if nothing has."""
    dialect, rule = getattr(opt, "dialect", None), type(opt).__name__
    stated = vocabulary.correspondences(type(opt))
    possible = [c for c in stated if c.translated]
    if not possible:
        known = (r.__name__ for r in known_rules() if any(c.translated for c in vocabulary.correspondences(r)))
        raise ValueError(
            f"{framework} has no counterpart of {rule}{_why_not(stated)}; translated are {', '.join(known)}"
        )
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
    around = [c for c in possible if c.is_around(opt)]
    if not around:
        raise ValueError(_around_others(framework, opt, possible))
    possible, ours = around, given(opt)
    correspondence = next((c for c in possible if c.fits(ours)), possible[-1])
    arguments = renamed(correspondence, ours)
    defaults = opt.defaults(correspondence.dialect)
    for name, value in ours.items():
        taken = "." in name or name in correspondence.fixed or name in correspondence.hyperparameters.values()
        if not taken and value != defaults.get(name):
            raise ValueError(f"{correspondence.name} has no counterpart of {name}={value!r} of {type(opt).__name__}")
    return correspondence, arguments


def given(opt: Optimizer) -> dict[str, Any]:
    """Return the hyperparameters that an optimizer has, and as `"inner.beta_2"` those that it is made of, but for the dialect."""
    names = {"dialect", *opt.nested}
    own = {name: value for name, value in opt.get_config().items() if value is not None and name not in names}
    return own | {f"{head}.{name}": value for head, inner in opt.nested.items() for name, value in given(inner).items()}


def renamed(correspondence: Correspondence, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the framework's optimizer has for hyperparameters; of several in one, all if one is given."""
    names, none = correspondence.hyperparameters, correspondence.counterpart.none
    switched_off = [n for n in none if n in values and values[n] == correspondence.field(n).off]
    values = {**values, **dict.fromkeys(switched_off)}
    given = {there.partition(".")[0] for there, ours in names.items() if ours in values}
    return {
        there: values.get(ours)
        for there, ours in names.items()
        if ours in values or ("." in there and there.partition(".")[0] in given)
    }


def _why_not(stated: Iterable[Correspondence]) -> str:
    """Return why optimizers that are stated as counterparts have another formula, if that is stated too."""
    return next((f", since {c.counterpart.differs}" for c in stated if c.counterpart.differs), "")


def _around_others(framework: str, opt: Optimizer, possible: Iterable[Correspondence]) -> str:
    """Return the message that a framework has none of the counterparts of a rule around the rules that this one is made of."""
    mine = ", ".join(f"{head}={inner!r}" for head, inner in opt.nested.items())
    theirs = "; ".join(
        f"{c.name} with {head}={like!r}, of which {', '.join(c.inner_arguments(head))} may differ"
        for c in possible
        for head, like in c.counterpart.inner.items()
    )
    return f"{framework} has no counterpart of {type(opt).__name__} with {mine}; it has {theirs}"
