"""Between `torch.optim` and `TorchOptimizer`: groups, states, state_dicts and schedulers of the one as the other has them."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from portopt import Optimizer
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.hyperparameters import Fixed
from portopt.interchange.configuration import known_rules
from portopt.interchange.correspondence import STEP, Correspondence, split_sign
from portopt.interchange.matching import exact_correspondences
from portopt.interchange.states import native_leaf
from portopt.schedules import is_schedule
from portopt.slot import slot_shape, slots_of_shape
from portopt_torch._backend import backend
from portopt_torch._capturable import is_count
from portopt_torch._groups import GroupHyperparameters, hyperparameter_names
from portopt_torch._saved_state import finished_steps
from portopt_torch._translation import VOCABULARY


def to_torch(
    optimizer: torch.optim.Optimizer, rule: Optimizer, reader: GroupHyperparameters, schedulers: Iterable[Any] | None
) -> torch.optim.Optimizer:
    """Return the optimizer of `torch.optim` that goes on where a `TorchOptimizer` is; see `TorchOptimizer.to_torch`.

    Args:
        optimizer: the `TorchOptimizer`.
        rule: its rule.
        reader: reads its groups.
        schedulers: those that set its values.
    """
    resolved = [reader.resolved(i, group) for i, group in enumerate(optimizer.param_groups)]
    possible = exact_correspondences(VOCABULARY, VOCABULARY.namespace, rule)
    fitting = (c for c in possible if all(c.fits({n: getattr(one.rule, n) for n in c.fixed}) for one in resolved))
    correspondence = next(fitting, possible[-1])
    name = correspondence.name
    if is_schedule(rule.learning_rate):
        raise ValueError(
            f"torch.optim.{name} has no counterpart of the schedule {rule.learning_rate!r}: give the optimizer a number, and use "
            "a scheduler of torch.optim.lr_scheduler"
        )
    attached = schedulers_of(schedulers or (), optimizer)
    groups = []
    for i, (group, one) in enumerate(zip(optimizer.param_groups, resolved, strict=True)):
        for clipping in ("clipnorm", "clipvalue"):
            if group[clipping] is not None:
                raise ValueError(
                    f"torch.optim.{name} has no counterpart of {clipping}={group[clipping]!r} in param_groups[{i}]: set it to "
                    "None, and clip with torch.nn.utils.clip_grad_norm_ or clip_grad_value_"
                )
        labels = {n: v for n, v in group.items() if n not in hyperparameter_names() and n != "params"}
        values = _arguments(correspondence, lambda n, group=group, one=one: reader.value(group, one.rule, n))  # type: ignore[misc]  # binds both
        if reader.capturable and "capturable" in _defaults(name)[0]:
            values["capturable"] = True
        if isinstance(values["lr"], torch.Tensor):
            values["lr"] = values["lr"].detach().clone()
        groups.append({"params": list(group["params"]), **values, **labels})
    defaults = _arguments(correspondence, lambda n: getattr(rule, n))
    native: torch.optim.Optimizer = VOCABULARY.find(name)(groups, **defaults)
    for p, entry in optimizer.state.items():
        if entry["step"]:
            native.state[p] = _native_state(correspondence, entry, p)
    attach(attached, optimizer, native)
    return native


def is_native(state_dict: Mapping[str, Any]) -> bool:
    """Tell whether a state_dict is one of `torch.optim`."""
    correspondences = [c for rule in known_rules() for c in VOCABULARY.correspondences(rule)]
    theirs = {split_sign(name)[0] for c in correspondences for ours, name in c.slots.items() if ours != STEP}
    own = {name for c in correspondences for name in c.slots if name != STEP}
    return any(not VOCABULARY.ignored.isdisjoint(group) for group in state_dict["param_groups"]) or any(
        isinstance(entry, Mapping) and not theirs.isdisjoint(entry) and own.isdisjoint(entry)
        for entry in state_dict["state"].values()
    )


def own_state_dict(
    rule: Optimizer,
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    slot_dtype: str | None,
    *,
    capturable: bool = False,
) -> dict[str, Any]:
    """Return a state_dict of the class of `torch.optim` that corresponds to a rule as one of `TorchOptimizer`.

    Args:
        rule: the rule.
        state_dict: of `torch.optim`.
        groups: those that it is loaded into.
        slot_dtype: dtype of the slots.
        capturable: whether CUDA graphs can repeat the steps of the one that it is loaded into.

    Raises:
        ValueError: it is one of another class, or the rule is in another dialect.
    """
    try:
        possible = exact_correspondences(VOCABULARY, VOCABULARY.namespace, rule)
    except ValueError as error:
        raise ValueError(
            f"this is a state_dict of torch.optim, but {error}; see also portopt_torch.from_torch"
        ) from None
    # The state of all of them is the same; a group says the rest.
    correspondence = min(possible, key=lambda c: len(c.fixed))
    parameters = {
        k: p
        for own, saved in zip(groups, state_dict["param_groups"], strict=False)
        for k, p in zip(saved["params"], own["params"], strict=False)
    }
    # Earlier versions of torch had neither.
    needed = {name.partition(".")[0] for name in correspondence.hyperparameters} - {
        "maximize",
        "decoupled_weight_decay",
    }
    for i, saved in enumerate(state_dict["param_groups"]):
        if missing := sorted(needed - set(saved)):
            raise ValueError(
                f"param_groups[{i}] of the state_dict lacks {', '.join(missing)}, which those of torch.optim."
                f"{correspondence.name} have: it is one of another class than {type(rule).__name__} goes on from"
            )
    state = {
        k: own_state(correspondence, entry, parameters[k], slot_dtype, f"state[{k!r}] of the state_dict")
        if k in parameters
        else entry
        for k, entry in state_dict["state"].items()
        if entry
    }
    saved_groups = [own_group(correspondence, saved, capturable=capturable) for saved in state_dict["param_groups"]]
    return {**state_dict, "state": state, "param_groups": saved_groups}


def own_group(correspondence: Correspondence, group: Mapping[str, Any], *, capturable: bool = False) -> dict[str, Any]:
    """Return a group of `torch.optim` under the rule's names, without what says how, rather than what, torch computes."""
    if group.get("differentiable"):
        raise ValueError(
            f"portopt has no counterpart of differentiable=True of {correspondence.name}: a step is not differentiated. Where "
            "that is not needed, set group['differentiable'] = False in each of param_groups"
        )
    if group.get("capturable") and not capturable:
        raise ValueError(
            f"a group of {correspondence.name} has capturable=True: load it into a TorchOptimizer with capturable=True, or, "
            "where no graph is to repeat its steps, set group['capturable'] = False in each of param_groups"
        )
    names, (defaults, arguments) = correspondence.hyperparameters, _defaults(correspondence.name)
    own: dict[str, Any] = {}
    for key, value in group.items():
        implied = inspect.getattr_static(correspondence.rule, key, None)
        if isinstance(implied, Fixed):
            if value != implied.value:
                raise ValueError(
                    f"a group of {correspondence.name} has {key}={value!r}, but in {correspondence.rule.__name__} it is always "
                    f"{implied.value!r}: go on with the rule that has it as a hyperparameter"
                )
        elif f"{key}.0" in names:
            for i, part in enumerate(value):
                own |= correspondence.own(f"{key}.{i}", part, None)
        elif key in names:
            own |= correspondence.own(key, value, defaults.get(key))
        elif key in correspondence.ignored:
            continue
        elif key not in defaults:
            own[key] = value
        elif key in arguments and value != defaults[key]:
            raise ValueError(f"portopt has no counterpart of {key}={value!r} of {correspondence.name}")
    return own


@functools.cache
def _defaults(name: str) -> tuple[Mapping[str, Any], frozenset[str]]:
    """Return what groups of a class of `torch.optim` have by default, and the names that its constructor takes."""
    cls = VOCABULARY.find(name)
    return cls([torch.zeros(1, 1)]).defaults, frozenset(inspect.signature(cls).parameters)


def own_state(
    correspondence: Correspondence, entry: Mapping[str, Any], parameter: Any, slot_dtype: str | None, where: str
) -> dict[str, Any]:
    """Return the state that `torch.optim` keeps of a parameter under portopt's names, copied."""
    unknown = sorted(set(entry) - {split_sign(theirs)[0] for theirs in correspondence.slots.values()})
    if unknown:
        raise ValueError(
            f"{where} has {', '.join(map(str, unknown))}, which no state of torch.optim.{correspondence.name} has: load it into "
            "the class that it was saved from"
        )
    dtype = backend.dtype(slot_dtype or COMPUTE_DTYPE[backend.dtype_name(parameter)])
    rule = correspondence.optimizer({})
    held = slots_of_shape(rule, tuple(parameter.shape))
    own: dict[str, Any] = {}
    for ours, target in correspondence.slots.items():
        theirs, negated = split_sign(target)
        value = entry.get(theirs)
        if value is None:
            continue
        if ours == STEP:
            own[ours] = finished_steps(where, value)
        elif ours in rule.scalar_slots:
            own[ours] = float(value)
        else:
            if correspondence.counterpart.keeps_axes and ours in held:
                value = value.reshape(slot_shape(rule, ours, tuple(parameter.shape)))
            copied = value.detach().to(dtype, copy=True)
            own[ours] = -copied if negated else copied
    # SGD does not count; a buffer says that it has begun.
    return {STEP: 1 if own else 0, **own} if STEP not in correspondence.slots else own


def _native_state(correspondence: Correspondence, entry: Mapping[str, Any], parameter: Any) -> dict[str, Any]:
    native: dict[str, Any] = {}
    for ours, target in correspondence.slots.items():
        theirs, negated = split_sign(target)
        if ours not in entry:
            continue
        value = entry[ours]
        if is_count(value) and ours in (STEP, *correspondence.optimizer({}).scalar_slots):
            native[theirs] = value.to(torch.get_default_dtype(), copy=True)
        elif isinstance(value, torch.Tensor):
            value = native_leaf(correspondence, correspondence.optimizer({}), ours, value, parameter)
            copied = value.detach().to(parameter.dtype, copy=True)
            native[theirs] = -copied if negated else copied
        else:
            native[theirs] = torch.tensor(float(value), dtype=torch.get_default_dtype())
    return native


def _arguments(correspondence: Correspondence, value: Callable[[str], Any]) -> dict[str, Any]:
    """Return the arguments of a class of `torch.optim` with the values that a function gives for the rule's hyperparameters."""
    values = {theirs: value(ours) for theirs, ours in correspondence.hyperparameters.items()}
    cls, arguments = VOCABULARY.call(correspondence, values)
    # Earlier versions of torch have fewer.
    return {name: argument for name, argument in arguments.items() if name in inspect.signature(cls).parameters}


def schedulers_of(schedulers: Iterable[Any], optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return schedulers and those that they are made of, after checking that they are of an optimizer."""
    found: list[Any] = []
    for scheduler in schedulers:
        if getattr(scheduler, "optimizer", None) is not optimizer:
            raise ValueError(
                f"schedulers must be schedulers of the {type(optimizer).__name__} that is converted, but {scheduler!r:.80} is not"
            )
        found += [scheduler, *schedulers_of(getattr(scheduler, "_schedulers", ()), optimizer)]
    return found


def attach(schedulers: Sequence[Any], before: Any, optimizer: Any) -> None:
    """Let schedulers set the values of another optimizer, as if they had been made for it."""
    if not schedulers:
        return
    for scheduler in schedulers:
        scheduler.optimizer = optimizer
    # Schedulers warn if the optimizer made no step before their first.
    optimizer._opt_called = getattr(before, "_opt_called", False)
    reference = weakref.ref(optimizer)
    unbound = type(optimizer).step

    @functools.wraps(unbound)
    def step(*args: Any, **kwargs: Any) -> Any:
        own: Any = reference()
        own._opt_called = True
        return unbound(own, *args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # what schedulers look for
    optimizer.step = step
