"""The optimizer of a framework that is nearest to one of portopt's: with what it is compared."""

from __future__ import annotations

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
    rate = next(theirs for theirs, ours in correspondence.hyperparameters.items() if ours == "learning_rate")
    call = vocabulary.call(correspondence, arguments)
    return Construction(correspondence.counterpart.name, *call, rate, _difference(correspondence, plain))


def _difference(correspondence: Correspondence, opt: Optimizer) -> str:
    """Return how a formula differs from that of an optimizer in another dialect, as far as the counterparts of its rule say."""
    there, dialect = correspondence.counterpart, getattr(opt, "dialect", None)
    has = {*correspondence.rule.defaults(correspondence.dialect), "decay"}
    on = [name for name, value in given(opt).items() if value not in (False, opt.hyperparameter_named(name).off)]
    differences = [f"it has no {name}" for name in on if name not in has]
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
