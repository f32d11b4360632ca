"""Runs that begin in one framework and go on in another: `from_native` and `to_native`.

What corresponds to what is in `portopt.interchange.matching`; here it is applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from portopt.backend import find_backend
from portopt.interchange.configuration import deserialize
from portopt.interchange.correspondence import STEP, Correspondence, split_sign
from portopt.interchange.frameworks import Translator, find_framework, frameworks, get_framework
from portopt.interchange.matching import corresponding, matched
from portopt.interchange.native import NativeOptimizer
from portopt.interchange.states import OwnSlots, is_called, merged
from portopt.optimizer import Optimizer
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
    correspondence, arguments = matched(translator.vocabulary, framework, opt)
    return translator.release(correspondence, arguments, opt, opt.from_capturable(state), params)


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
        is_default = value is None and unset.get(argument, ...) is None
        is_rate = target is not None and target.rpartition(".")[2] == "learning_rate"
        if is_rate and (value is None or callable(value) or isinstance(value, Mapping)):
            if not is_default and not _gives_rate(hyperparameters):
                raise ValueError(
                    f"portopt has no counterpart of {argument}={value!r:.80} of {name}: give learning_rate, a number or one of "
                    "portopt's schedules"
                )
        elif target is not None:
            ours |= correspondence.own(argument, value, unset.get(argument))
        elif argument not in correspondence.ignored and value != unset.get(argument):
            raise ValueError(f"portopt has no counterpart of {argument}={value!r} of {name}")
    opt = correspondence.optimizer(ours).replace(**hyperparameters)
    return opt, _state(translator, correspondence, opt, native, params)


def _state(
    translator: Translator, correspondence: Correspondence, opt: Optimizer, native: OptimizerState, params: Any
) -> OptimizerState:
    trees = translator.trees
    slots: dict[str, Any] = {}
    if not native.slots and (opt.slots or opt.scalar_slots):
        if params is None:
            raise ValueError("the optimizer has no state yet, so the parameters are needed: give params")
        slots = dict(opt.init(params).slots)
    step, there = native.step, correspondence.counterpart
    shapes = None if params is None else [getattr(leaf, "shape", None) for leaf in trees.flatten(params)[0]]
    own = OwnSlots(correspondence, opt, None if shapes is None else [s if s is None else tuple(s) for s in shapes])

    def found(last: str) -> list[Any]:
        return [slot for name, slot in native.slots.items() if is_called(name, last)]

    if there.begins and (truths := found(there.begins)):
        step = int(not _one(trees, truths, there.begins, bool))
    if STEP in correspondence.slots and (numbers := found(correspondence.slots[STEP])):
        step = _one(trees, numbers, "the numbers of steps", int)
    if there.next_step and (numbers := found(there.next_step)):
        step = _one(trees, numbers, "the numbers of steps", int) - 1
    for name, target in correspondence.slots.items():
        last, negated = split_sign(target)
        if name == STEP or not (held := found(last)):
            continue
        if name in opt.scalar_slots:
            slots[name] = _one(trees, held, f"the values of {last}", float)
        elif name in opt.slots:
            flat = [trees.flatten(slot) for slot in held]
            leaves = merged([of for of, _ in flat])
            missing = own.missing(name, leaves)
            if missing and step:
                raise ValueError(
                    f"{correspondence.name} has no {last} for parameter {missing[0]}, which has made no step yet, but others "
                    "have: portopt counts one number of steps"
                )
            of_rule = own.of(name, leaves, negated=negated)
            if own.is_held(name) and not missing:
                slots[name] = trees.unflatten(flat[0][1], of_rule)
    if unread := [name for name in there.unread if name in opt.slots and name not in slots]:
        if params is None:
            raise ValueError(
                f"{correspondence.name} does not keep {', '.join(unread)}, which no step reads, so the parameters are needed: "
                "give params"
            )
        first = opt.init(params).slots
        slots |= {name: first[name] for name in unread if name in first}
    needed = [*opt.scalar_slots, *(name for name in opt.slots if own.is_held(name))]
    absent = [name for name in needed if name not in slots]
    if absent:
        raise ValueError(f"the state of {correspondence.name} has nothing that corresponds to {', '.join(absent)}")
    if opt.scalar_slots:
        arrays = (slots[name] for name in needed if name not in opt.scalar_slots)
        array = next(leaf for slot in arrays for leaf in trees.flatten(slot)[0] if leaf is not None)
        backend = find_backend(array)
        for name in opt.scalar_slots:
            slots[name] = slots[name] if backend is None else backend.stored_scalar(slots[name])
    return OptimizerState(step, {str(name): slots[name] for name in needed})


def _one(trees: Any, slots: list[Any], what: str, kind: type) -> Any:
    values = {kind(leaf) for slot in slots for leaf in trees.flatten(slot)[0] if leaf is not None}
    if len(values) > 1:
        raise ValueError(
            f"{what} differ between the parameters ({', '.join(map(str, sorted(values)))}), but portopt has one for all"
        )
    return values.pop() if values else kind()
