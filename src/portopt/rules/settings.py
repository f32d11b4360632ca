"""Arguments worth testing a rule with, from what its class declares: tests and the conformance suite walk them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from portopt.hyperparameters import Hyperparameter
from portopt.nested import NestedRule
from portopt.optimizer import Optimizer

RATE = 0.05
"""The learning rate of the settings, which is so large that what an option does shows after few steps."""

_OF_ALL_RULES = ("dialect", "learning_rate", "clipnorm", "clipvalue")


def settings(rule: type[Optimizer], dialect: str | None = None) -> list[dict[str, Any]]:
    """Return arguments worth testing a rule with in a dialect, None being the default one; the dialect is not among them.

    First none; then another value of each hyperparameter that is always in use; then with it each feature by itself, as far as
    that can be; then as many as go together, from the first and from the last; then those of the class's `worth_testing`.
    """
    fields = rule.hyperparameters(dialect)
    values = other_values(rule, dialect)
    in_use = {n: v for n, v in values.items() if fields[n].is_numeric and not fields[n].is_optional}
    changed = {"learning_rate": RATE, **in_use}
    features = [{name: value} for name, value in values.items() if name not in in_use]
    last_first = dict(reversed(values.items()))
    found: list[dict[str, Any]] = [{}, changed, *({**changed, **feature} for feature in features)]
    found += [{"learning_rate": RATE, **together(rule, dialect, every)} for every in (values, last_first)]
    for given in rule.worth_testing:
        if given.get("dialect", default_dialect(rule)) == (dialect or default_dialect(rule)):
            found.append({name: value for name, value in given.items() if name != "dialect"})
    unique: list[dict[str, Any]] = []
    for arguments in found:
        if arguments not in unique and _is_allowed(rule, dialect, arguments):
            unique.append(arguments)
    return unique


def default_dialect(rule: type[Optimizer]) -> str | None:
    """Return the dialect that a rule has if none is named; None if it has none."""
    return next(iter(rule.dialects()), None)


def other_values(rule: type[Optimizer], dialect: str | None = None) -> dict[str, Any]:
    """Return another value than its default for each hyperparameter that a rule has of its own in a dialect.

    With it the hyperparameter does something, and no two have the same number, so that two that are confused show.
    """
    found: dict[str, Any] = {}
    for name, field in rule.hyperparameters(dialect).items():
        if name in _OF_ALL_RULES or isinstance(field, NestedRule):
            continue
        if field.range is None:
            found[name] = next(choice for choice in field.choices or (True, False) if choice != field.default)
            continue
        allowed = [value for value in _candidates(field) if value in field.range and value != field.default]
        if allowed:
            found[name] = next((value for value in allowed if value not in found.values()), allowed[0])
    return found


def _candidates(field: Hyperparameter) -> Iterator[float]:
    default, allowed = field.default, field.range
    if default is None or 0 < default < 1e-4:
        yield 1e-3  # an epsilon, which does nothing if it is much smaller
    if allowed is not None and 1 in (allowed.at_most, allowed.below):
        yield from (0.5, 0.75, 0.625)
    if default:
        yield from (default / 2, default * 2)
    yield from (0.1, 0.25, 1.5, -0.5)
    if allowed is not None:
        low, high = (allowed.at_least, allowed.above), (allowed.at_most, allowed.below)
        yield from (bound + 2.0**-k for bound in low if bound is not None for k in range(-4, 40))
        yield from (bound - 2.0**-k for bound in high if bound is not None for k in range(-4, 40))


def together(rule: type[Optimizer], dialect: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some arguments that a rule takes at once: one that does not go with earlier ones is left out."""
    taken: dict[str, Any] = {}
    waiting = dict(arguments)
    while allowed := [name for name, value in waiting.items() if _is_allowed(rule, dialect, {**taken, name: value})]:
        taken[allowed[0]] = waiting.pop(allowed[0])
    return taken


def _is_allowed(rule: type[Optimizer], dialect: str | None, arguments: Mapping[str, Any]) -> bool:
    try:
        rule(**({"dialect": dialect} if dialect else {}), **arguments)
    except ValueError:  # what check_combination raises
        return False
    return True
