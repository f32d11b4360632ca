"""Runs that begin in one framework and go on in another: `from_native` and `to_native`.

What corresponds to what is in `portopt.interchange.correspondence`; here it is applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from portopt.backend import find_backend
from portopt.interchange.configuration import deserialize, known_rules
from portopt.interchange.correspondence import STEP, Correspondence, Vocabulary, most_specific, split_sign
from portopt.interchange.frameworks import (
    Construction,
    NativeFramework,
    Translator,
    find_framework,
    frameworks,
    get_framework,
)
from portopt.interchange.native import NativeOptimizer
from portopt.optimizer import Optimizer
from portopt.schedules import is_schedule
from portopt.state import OptimizerState


def from_native(
    native: Any, state: Any = None, *, params: Any = None, **hyperparameters: Any
) -> tuple[Optimizer, OptimizerState]:
    """Return the portopt optimizer with the formula of a framework's optimizer, and its state.

    Args:
        native: a `torch.optim` or Keras optimizer that has its parameters, or a `NativeOptimizer`, whose state follows. An optax
            transformation does not know its hyperparameters: give `NativeOptimizer(optax.adam, learning_rate=0.1)` instead.
            Or a config of Keras 2, `{"class_name": ..., "config": ...}`, which the optimizer's weights follow.
        state: the state that goes with a `NativeOptimizer`, its own or that of optax; the list that `get_weights` of Keras 2
            gave.
        params: the tree that the slots shall be like, whose leaves are the very parameters of a `torch.optim` or Keras
            optimizer; by default a list of them in the optimizer's order. Otherwise the parameters.
        **hyperparameters: portopt's, in place of those of `native`.

    Raises:
        ValueError: something of the optimizer has no counterpart; it is named. Parameter groups of a `torch.optim` optimizer that
            differ among it: `portopt_torch.from_torch` keeps them.
        TypeError: `native` is none of the above.

    Warns:
        UserWarning: a scheduler of torch sets the learning rate, and no other was given: the present one becomes a constant.
            `portopt_torch.from_torch` keeps schedulers.

    Example:
        >>> import portopt, torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> native = torch.optim.Adam([w], lr=0.1)
        >>> w.grad = torch.ones(2)
        >>> native.step()
        >>> opt, state = portopt.from_native(native, params={"w": w})
        >>> opt.dialect, opt.learning_rate, state.step, state.slots["m"]
        ('torch', 0.1, 1, {'w': tensor([0.1000, 0.1000])})
    """
    if isinstance(native, Mapping):
        opt = deserialize(native).replace(**hyperparameters)
        return opt, opt.set_weights(opt.init(params), state)
    if isinstance(native, NativeOptimizer):
        framework = get_framework(native.framework)
        translator = _translator(framework.name)
        name, arguments = translator.arguments(native.native)
        if not isinstance(state, OptimizerState):
            state = translator.own_state(native.native, state, params)
        return _translated(translator, name, arguments, state, params, hyperparameters)
    found = find_framework(native)
    if found is not None:
        translator = _translator(found.name)
        name, arguments, state, params = translator.capture(native, params)
        why_not_constant = translator.why_not_constant(native)
        if why_not_constant is not None and not _gives_rate(hyperparameters):
            warnings.warn(
                f"{why_not_constant}, but the optimizer that from_native returns has its present value in all steps: give "
                "learning_rate, a number or one of portopt's schedules",
                UserWarning,
                stacklevel=2,
            )
        return _translated(translator, name, arguments, state, params, hyperparameters)
    raise TypeError(
        "from_native takes a torch.optim or Keras optimizer, or a NativeOptimizer and its state, such as "
        f"NativeOptimizer(optax.adam, learning_rate=0.1) and optax's state, but {type(native).__module__}."
        f"{type(native).__qualname__} was given"
    )


def to_native(opt: Optimizer, state: OptimizerState, framework: str, params: Any) -> Any:
    """Return the framework's optimizer that goes on where `opt` and `state` are.

    Args:
        opt: an optimizer in the framework's dialect.
        state: its state, on the framework's arrays.
        framework: `"torch"`, `"optax"`, `"keras"`, or `"tensorflow"` for the optimizers of Keras 2 in `tf_keras`.
        params: what the optimizer shall update, a tree like the slots: tensors for torch, Keras variables for Keras.

    Returns:
        An optimizer of `torch.optim`, `keras.optimizers` or `tf_keras.optimizers.legacy`, or an optax transformation and its
        state.

    Raises:
        ValueError: `opt` is in another dialect, or something has no counterpart; it is named.

    Example:
        >>> import portopt, torch
        >>> opt, w = portopt.Adam(0.1, dialect="torch"), torch.nn.Parameter(torch.ones(2))
        >>> native = portopt.to_native(opt, opt.init(w), "torch", w)
        >>> type(native).__name__, native.param_groups[0]["lr"]
        ('Adam', 0.1)
    """
    translator = _translator(framework)
    correspondence, arguments = _correspondence(translator.vocabulary, framework, opt)
    return translator.release(correspondence, arguments, opt, state, params)


def rules_with_counterpart(vocabulary: Vocabulary) -> list[type[Optimizer]]:
    """Return the rules that state a counterpart in a namespace."""
    return [rule for rule in known_rules() if vocabulary.correspondences(rule)]


def counterpart_of(framework: NativeFramework, opt: Optimizer) -> Construction | None:
    """Return what constructs the optimizer of a framework that is nearest to `opt`, clipping and `decay` of the rate apart.

    It has the formula of `opt` if `opt` is in the framework's dialect, or has no dialect. It is also returned for the rule's
    default dialect, then with the arguments that both dialects have.

    Raises:
        ValueError: `opt` is in the framework's dialect, but something has no counterpart.
    """
    vocabulary, dialect = framework.vocabulary, getattr(opt, "dialect", None)
    possible = vocabulary.correspondences(type(opt))
    # Whoever does the steps gives each its rate, in which schedule and `decay` are.
    apart = dict.fromkeys(("clipnorm", "clipvalue")) | ({"decay": 0.0} if getattr(opt, "decay", None) else {})
    plain = opt.replace(learning_rate=float(opt.learning_rate_at(1)), **apart)
    if any(c.translated and c.dialect == dialect for c in possible):
        correspondence, arguments = _correspondence(vocabulary, framework.name, plain)
    elif dialect in (None, *type(opt).dialects()[:1]):
        near = [(c, _nearest(c, plain)) for c in possible]
        found = next(((c, values) for c, values in near if c.fits({**c.rule.defaults(c.dialect), **values})), None)
        if found is None:
            return None
        correspondence, arguments = found[0], _renamed(found[0], found[1])
    else:
        return None
    rate = next(theirs for theirs, ours in correspondence.hyperparameters.items() if ours == "learning_rate")
    call = vocabulary.call(correspondence, arguments)
    return Construction(correspondence.counterpart.name, *call, rate, _difference(correspondence, plain))


def _difference(correspondence: Correspondence, opt: Optimizer) -> str:
    """Return how a formula differs from that of an optimizer in another dialect, as far as the counterparts of its rule say."""
    there, dialect = correspondence.counterpart, getattr(opt, "dialect", None)
    has = {*correspondence.rule.defaults(correspondence.dialect), "decay"}
    on = [name for name, value in _given(opt).items() if value not in (False, getattr(type(opt), name).off)]
    differences = [f"it has no {name}" for name in on if name not in has]
    vocabularies = [f.translator.vocabulary for f in frameworks().values() if f.translator is not None]
    own = [c for v in vocabularies if v.dialect == dialect for c in v.correspondences(type(opt))]
    here = next((c.counterpart.epsilon for c in own if c.translated and c.fits(_given(opt))), "")
    if "" not in (here, there.epsilon) and here != there.epsilon:
        differences.append(f"it has epsilon {there.epsilon}, and portopt's {dialect} {here}")
    return "; ".join(differences)


def _nearest(correspondence: Correspondence, opt: Optimizer) -> dict[str, Any]:
    """Return the hyperparameters of the rule in the framework's dialect that are nearest to `opt`."""
    has = correspondence.rule.defaults(correspondence.dialect)
    values = {n: v for n, v in _given(opt).items() if n in has and n != "decay"}
    needs = correspondence.counterpart.needs
    meant = {n: v for n, v in values.items() if n not in needs or values[needs[n]]}
    return {**meant, **correspondence.counterpart.near}


def _given(opt: Optimizer) -> dict[str, Any]:
    return {name: value for name, value in opt.get_config().items() if value is not None and name != "dialect"}


def _renamed(correspondence: Correspondence, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the optimizer of the framework has for hyperparameters."""
    return {there: values[ours] for there, ours in correspondence.hyperparameters.items() if ours in values}


def _correspondence(vocabulary: Vocabulary, framework: str, opt: Optimizer) -> tuple[Correspondence, dict[str, Any]]:
    """Return what is to be made of an optimizer, and the arguments."""
    possible = exact_correspondences(vocabulary, framework, opt)
    if is_schedule(opt.learning_rate):
        raise ValueError(f"{framework} has no counterpart of the schedule {opt.learning_rate!r}: give a number")
    ours = _given(opt)
    correspondence = next((c for c in possible if c.fits(ours)), possible[-1])
    arguments = _renamed(correspondence, ours)
    defaults = opt.defaults(correspondence.dialect)
    for name, value in ours.items():
        taken = name in correspondence.fixed or name in correspondence.hyperparameters.values()
        if not taken and value != defaults.get(name):
            raise ValueError(f"{correspondence.name} has no counterpart of {name}={value!r} of {type(opt).__name__}")
    return correspondence, arguments


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


def _gives_rate(hyperparameters: Mapping[str, Any]) -> bool:
    return not {"learning_rate", "lr"}.isdisjoint(hyperparameters)


def _translator(name: str) -> Translator:
    translator = get_framework(name).translator
    if translator is None:
        able = [n for n, framework in frameworks().items() if framework.translator is not None]
        raise ValueError(f"optimizers of {name!r} are not translated; those of {', '.join(able)} are")
    return translator


def _translated(
    translator: Translator,
    name: str,
    arguments: Mapping[str, Any],
    native: OptimizerState,
    params: Any,
    hyperparameters: Mapping[str, Any],
) -> tuple[Optimizer, OptimizerState]:
    correspondence = corresponding(translator.vocabulary, name)
    ours: dict[str, Any] = {}
    unset = translator.defaults(correspondence)
    for argument, value in arguments.items():
        target = correspondence.hyperparameters.get(argument)
        if target == "learning_rate" and (value is None or callable(value) or isinstance(value, Mapping)):
            if not _gives_rate(hyperparameters):
                raise ValueError(
                    f"portopt has no counterpart of {argument}={value!r:.80} of {name}: give learning_rate, a number or one of "
                    "portopt's schedules"
                )
        elif target is not None:
            if value is not None:
                ours[target] = value
        elif argument not in correspondence.ignored and value != unset.get(argument):
            raise ValueError(f"portopt has no counterpart of {argument}={value!r} of {name}")
    opt = correspondence.optimizer(ours).replace(**hyperparameters)
    return opt, _state(translator, correspondence, opt, native, params)


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


def _state(
    translator: Translator, correspondence: Correspondence, opt: Optimizer, native: OptimizerState, params: Any
) -> OptimizerState:
    trees = translator.trees
    slots: dict[str, Any] = {}
    if not native.slots and (opt.slots or opt.scalar_slots):
        if params is None:
            raise ValueError("the optimizer has no state yet, so the parameters are needed: give params")
        slots = dict(opt.init(params).slots)
    step = native.step
    for name, slot in native.slots.items():
        target, negated = split_sign(correspondence.slots.get(name.rpartition(".")[2], ""))
        if target == STEP:
            step = _one(trees, slot, "the numbers of steps", int)
        elif target in opt.scalar_slots:
            slots[target] = _one(trees, slot, f"the values of {name}", float)
        elif target in opt.slots:
            leaves, definition = trees.flatten(slot)
            missing = [i for i, leaf in enumerate(leaves) if leaf is None]
            if missing and step:
                raise ValueError(
                    f"{correspondence.name} has no {name} for parameter {missing[0]}, which has made no step yet, but others "
                    "have: portopt counts one number of steps"
                )
            if not missing:
                slots[target] = trees.unflatten(definition, [-leaf for leaf in leaves] if negated else leaves)
    absent = [name for name in (*opt.scalar_slots, *opt.slots) if name not in slots]
    if absent:
        raise ValueError(f"the state of {correspondence.name} has nothing that corresponds to {', '.join(absent)}")
    if opt.scalar_slots:
        first = next(leaf for name in opt.slots for leaf in trees.flatten(slots[name])[0] if leaf is not None)
        backend = find_backend(first)
        for name in opt.scalar_slots:
            slots[name] = slots[name] if backend is None else backend.stored_scalar(slots[name])
    return OptimizerState(step, {name: slots[name] for name in (*opt.scalar_slots, *opt.slots)})


def _one(trees: Any, slot: Any, what: str, kind: type) -> Any:
    values = {kind(leaf) for leaf in trees.flatten(slot)[0] if leaf is not None}
    if len(values) > 1:
        raise ValueError(
            f"{what} differ between the parameters ({', '.join(map(str, sorted(values)))}), but portopt has one for all"
        )
    return values.pop() if values else kind()
