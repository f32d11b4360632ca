"""The optimizer of a framework that is nearest to one of portopt's: with what it is compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from portopt.interchange.correspondence import Correspondence
from portopt.interchange.frameworks import Construction, NativeFramework, frameworks
from portopt.interchange.matching import given, matched, renamed
from portopt.optimizer import Optimizer


def counterpart_of(framework: NativeFramework, opt: Optimizer) -> Construction | None:
    """Return what constructs the optimizer of a framework that is nearest to `opt`, clipping and `decay` of the rate apart.

    It has the formula of `opt` if `opt` is in the framework's dialect, or has no dialect. It is also returned for the rule's
    default dialect, then with the arguments that both dialects have.

    Raises:
        ValueError: `opt` is in the framework's dialect, but something has no counterpart.
    """
    vocabulary, dialect = framework.vocabulary, getattr(opt, "dialect", None)
    possible = [c for c in vocabulary.correspondences(type(opt)) if c.counterpart.compared]
    # Whoever does the steps gives each its rate, in which schedule and `decay` are.
    apart = dict.fromkeys(("clipnorm", "clipvalue")) | ({"decay": 0.0} if getattr(opt, "decay", None) else {})
    plain = opt.replace(learning_rate=float(opt.learning_rate_at(1)), **apart)
    plain = plain.replace(**_inner_in_dialects(plain, possible))
    if any(c.translated and c.dialect == dialect for c in possible):
        correspondence, arguments = matched(vocabulary, framework.name, plain)
    elif dialect in (None, *type(opt).dialects()[:1]):
        near = [(c, _nearest(c, plain)) for c in possible]
        found = next(((c, values) for c, values in near if c.fits({**c.rule.defaults(c.dialect), **values})), None)
        if found is None:
            return None
        correspondence, arguments = found[0], renamed(found[0], found[1])
    else:
        return None
    rates = (theirs for theirs, ours in correspondence.hyperparameters.items() if ours.endswith("learning_rate"))
    call = vocabulary.call(correspondence, arguments)
    difference = _difference(correspondence, plain, opt)
    return Construction(correspondence.counterpart.name, *call, next(rates), difference)


def _inner_in_dialects(opt: Optimizer, possible: Iterable[Correspondence]) -> dict[str, Optimizer]:
    """Return the rules that an optimizer is made of, those in their default dialect in that of the framework's like ones."""
    found = dict(opt.nested)
    for head, inner in opt.nested.items():
        likes = [c.counterpart.inner[head] for c in possible if type(c.counterpart.inner.get(head)) is type(inner)]
        dialects = [getattr(like, "dialect", None) for like in likes]
        dialect = getattr(inner, "dialect", None)
        if dialects and dialect not in dialects and dialect in type(inner).dialects()[:1]:
            found[head] = inner.replace(dialect=dialects[-1])
    return found


def _difference(correspondence: Correspondence, opt: Optimizer, given_one: Optimizer) -> str:
    """Return how a formula differs from that of an optimizer in another dialect, as far as the counterparts of its rule say.

    Args:
        correspondence: the framework's optimizer.
        opt: portopt's, its inner rules in the framework's dialect.
        given_one: as it was given.
    """
    there, dialect = correspondence.counterpart, getattr(opt, "dialect", None)
    has = {*correspondence.rule.defaults(correspondence.dialect), "decay"}
    own_values = {name: value for name, value in given(opt).items() if "." not in name}
    on = [name for name, value in own_values.items() if value not in (False, opt.hyperparameter_named(name).off)]
    differences = [f"it has no {name}" for name in on if name not in has]
    for head, inner in given_one.nested.items():
        before, after = (getattr(rule, "dialect", None) for rule in (inner, opt.nested[head]))
        if before != after:
            differences.append(
                f"its {head} rule is {type(inner).__name__} in the dialect {after!r}, and portopt's in {before!r}"
            )
    vocabularies = [f.translator.vocabulary for f in frameworks().values() if f.translator is not None]
    own = [c for v in vocabularies if v.dialect == dialect for c in v.correspondences(type(opt))]
    here = next((c.counterpart.epsilon for c in own if c.counterpart.exact and c.fits(given(opt))), "")
    if "" not in (here, there.epsilon) and here != there.epsilon:
        differences.append(f"it has epsilon {there.epsilon}, and portopt's {dialect} {here}")
    return "; ".join(differences)


def _nearest(correspondence: Correspondence, opt: Optimizer) -> dict[str, Any]:
    """Return the hyperparameters of the rule in the framework's dialect that are nearest to `opt`."""
    has = correspondence.rule.defaults(correspondence.dialect)
    values = {n: v for n, v in given(opt).items() if n in has and n != "decay"}
    needs = correspondence.counterpart.needs
    meant = {n: v for n, v in values.items() if n not in needs or values[needs[n]]}
    return {**meant, **correspondence.counterpart.near}
