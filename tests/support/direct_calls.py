"""A rule's two functions called directly, also those of a rule that is made of others."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import portopt


def coefficients_of(
    optimizer: portopt.Optimizer, t: Any, scalars: Mapping[str, Any], totals: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the coefficients of a rule and of those that it is made of, and the new scalars of the state."""
    own = {name: value for name, value in scalars.items() if "." not in name}
    found = dict(optimizer.coefficients(t, **own, **totals))
    new = {name: found[name] for name in own}
    for head, inner in optimizer.nested.items():
        start = f"{head}."
        of_inner = {n.removeprefix(start): value for n, value in scalars.items() if n.startswith(start)}
        found[head], after = coefficients_of(inner, t, of_inner, {})
        new |= {start + name: value for name, value in after.items()}
    return SimpleNamespace(**found), new


def by_rule(slots: Mapping[str, Any]) -> Any:
    """Return slots as attributes, those of inner rules under the name of the rule."""
    heads = {name.partition(".")[0] for name in slots if "." in name}
    inner = {h: by_rule({n.removeprefix(f"{h}."): v for n, v in slots.items() if n.startswith(f"{h}.")}) for h in heads}
    return SimpleNamespace(**{name: value for name, value in slots.items() if "." not in name}, **inner)


def by_full_name(slots: Mapping[str, Any]) -> dict[str, Any]:
    """Return slots by the names that they have in a state."""
    inner = {n: value for n, value in slots.items() if isinstance(value, Mapping)}
    own = {name: value for name, value in slots.items() if name not in inner}
    return own | {f"{head}.{n}": v for head, of_rule in inner.items() for n, v in by_full_name(of_rule).items()}
