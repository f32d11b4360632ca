"""`TorchOptimizer`: a portopt rule as a `torch.optim.Optimizer`."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._C._autograd import (
    _profiler_enabled,
    _record_function_with_args_enter,
    _record_function_with_args_exit,
)
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from portopt import Optimizer
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.interrupts import deferred
from portopt.kernels.host.readers import OWN_GRADIENTS
from portopt.program.facts import Facts
from portopt.program.reductions import GRADIENT_NORM
from portopt.slot import slot_dims
from portopt.step import totals_of
from portopt_torch._backend import backend
from portopt_torch._batches import Batch, Batches, Totals, is_usable, lacking, same, slots_of
from portopt_torch._capturable import put_on_device, separate
from portopt_torch._conversion import is_native, own_state_dict, to_torch
from portopt_torch._groups import GroupHyperparameters, Resolved
from portopt_torch._repeated import RepeatedStep, is_possible
from portopt_torch._saved_state import SealedState, checked_state
from portopt_torch._sharded import (
    gradient_norm,
    is_sharded,
    like_parameter,
    local_part,
    place_of,
    placed_like,
    totals_over,
)

_Work = tuple[Batch, Any, Mapping[str, Any]]
"""A batch, its gradients, in order or as `OWN_GRADIENTS`, and what is given for its step."""


class TorchOptimizer(torch.optim.Optimizer):
    """Any portopt optimizer as a `torch.optim.Optimizer`, with the bits of its `apply_`.

    Hyperparameters stand in the parameter groups, where schedulers and users change them: `lr` for `learning_rate`, `betas` for
    `beta_1` and `beta_2`, all others under their own names. If the learning rate is a schedule, `lr` is a factor on it, 1.0 at
    first. `clipnorm` compares the norm of all gradients, over all groups and all shards. Each parameter has its own step count,
    which stands still while its gradient is None.

    Args:
        params: what every optimizer of torch takes: tensors, (name, tensor) pairs, or dicts with "params" and values of their
            own for hyperparameters, under portopt's names or torch's. DTensors and parameters of `fully_shard` as well.
        optimizer: a portopt optimizer, one of the library's or of a user's class.
        lr: what groups have that give no `lr` of their own, by default the optimizer's learning rate: a number, or a tensor of
            one, which schedulers fill in place.
        slot_dtype: dtype of the slots, see `portopt.Optimizer.init`.
        capturable: whether a CUDA graph can repeat the steps: the states then count on the device, and `lr` may be a tensor
            there, which each repetition reads.

    Raises:
        ValueError: a hyperparameter of a group is outside its range, or what torch's own optimizers raise it for; or `capturable`
            is True and a parameter is not on a CUDA device.
        TypeError: a group has a hyperparameter that the rule has not, or `optimizer` is no portopt optimizer.

    Example:
        >>> import torch, portopt
        >>> from portopt_torch import TorchOptimizer
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = TorchOptimizer(layer.parameters(), portopt.Adam(learning_rate=0.1))
        >>> scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        >>> layer(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.step()
        >>> scheduler.step()

    Reference:
        https://docs.pytorch.org/docs/stable/optim.html
    """

    def __init__(
        self,
        params: Any,
        optimizer: Optimizer,
        *,
        lr: Any = None,
        slot_dtype: str | None = None,
        capturable: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "TorchOptimizer takes a portopt optimizer, such as portopt.Adam() or portopt.get('adam'), but "
                f"{optimizer!r:.80} of type {type(optimizer).__name__} was given"
            )
        self.rule = optimizer
        self._slot_dtype = slot_dtype
        self._capturable = capturable
        self._forget()
        defaults = self._hyperparameters.defaults()
        super().__init__(params, defaults if lr is None else {**defaults, "lr": lr})

    def _forget(self) -> None:
        """Drop all that was derived from parameters, groups and state."""
        self._hyperparameters = GroupHyperparameters(self.rule, capturable=self._capturable)
        self._batches: dict[int, Batches] = {}
        self._known_states: list[Any] = []
        self._is_unchecked = True
        self._repeated: RepeatedStep | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; their state begins at step 0."""
        group: Any = param_group
        if isinstance(group, dict):
            group = self._hyperparameters.renamed(group)
        super().add_param_group(group)
        try:
            added = self.param_groups[-1]
            rule = self._hyperparameters.resolved(len(self.param_groups) - 1, added).rule
            # Not at the first step: torch.distributed.checkpoint would do one to have the state, and it would count.
            self._create_state(rule, [p for p in added["params"] if p.requires_grad])
        except Exception:
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any] | None = None, **inputs: Any) -> Any:
        """Do one step on each parameter that has a gradient; return what the closure returned, if there is one.

        Args:
            closure: computes the loss and the gradients anew.
            **inputs: what the rule takes beside gradients, by name, such as `hessian`: a mapping from parameters to tensors, or a
                sequence with a tensor or None for each parameter, in the order of the groups. A parameter without one takes the
                step that the rule does without.

        Raises:
            TypeError: a gradient is sparse or of no supported dtype, a hyperparameter of a group is no number, or the rule has no
                such input.
            ValueError: a hyperparameter of a group is outside its range. Nothing is changed if one of these is raised.
            RuntimeError: the step is being captured in a CUDA graph, but the optimizer was made without `capturable=True`, or the
                step cannot be repeated there. Nothing is changed by that either.
        """
        if type(self).step is not TorchOptimizer.step:
            # Of a class derived from this one, whose own step torch has wrapped.
            return self._step(closure, inputs)
        if torch.compiler.is_compiling() or _profiler_enabled() or self._has_hooks():
            given = () if closure is None else (closure,)
            return _watched_step(self, *given, **inputs)
        # What torch does around a step where nobody watches it, in a fifth of the time.
        record = _record_function_with_args_enter(f"Optimizer.step#{type(self).__name__}.step")
        try:
            return self._step(closure, inputs)
        finally:
            _record_function_with_args_exit(record)

    # torch leaves the step alone then.
    step.hooked = True  # type: ignore[attr-defined]  # an attribute of the function

    def _has_hooks(self) -> bool:
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )

    def _step(self, closure: Callable[[], Any] | None, inputs: Mapping[str, Any]) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update({name: self._by_parameter(name, given) for name, given in inputs.items() if given is not None})
        return loss

    def _by_parameter(self, name: str, given: Any) -> Mapping[Any, Any]:
        """Return an input as a mapping from parameters to tensors."""
        rule = type(self.rule).__name__
        if name not in self.rule.inputs:
            allowed = ", ".join(("closure", *self.rule.inputs))
            raise TypeError(f"step of {rule} got an unknown argument {name!r}; allowed are {allowed}")
        parameters = [p for group in self.param_groups for p in group["params"]]
        if isinstance(given, Mapping):
            if any(p not in set(parameters) for p in given):
                raise ValueError(
                    f"{name} has a key that is none of the parameters of the optimizer: give these as its keys"
                )
            return given
        if not isinstance(given, list | tuple) or len(given) != len(parameters):
            what = (
                f"{len(given)} values"
                if isinstance(given, list | tuple)
                else f"an object of type {type(given).__name__}"
            )
            raise ValueError(
                f"{name} must be a mapping from parameters to tensors, or a list with one for each of the {len(parameters)} "
                f"parameters, None for those that have none, but {what} was given"
            )
        return {p: x for p, x in zip(parameters, given, strict=True) if x is not None}

    # torch.compile runs it as it is: kernels that work on addresses are nothing to trace.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # of torch
    def _update(self, inputs: Mapping[str, Mapping[Any, Any]]) -> None:
        repeated = None if inputs else self._repeated
        known = None if repeated is None else self._known_work()
        if repeated is not None and known is not None:
            if self._repeat(repeated, *known):
                return
            clips, batches = known
            gradients = repeated.gradients(self.param_groups, self.state)
            if gradients is not None:
                given = [(batch, own, at_step) for (batch, at_step), own in zip(batches, gradients, strict=True)]
                self._move(clips, gradients, given)
                return
        with torch.no_grad():
            self._move(*self._new_work(inputs))

    def _move(self, clips: bool, gradients: Sequence[Sequence[Any]], work: list[_Work]) -> None:
        """Do the steps of all batches, or none; whether gradients are clipped by their norm, and all of them, are given."""
        try:
            totals = None
            if self._capturable and (clips or self.rule.totals) and any(batch.is_sharded for batch, _, _ in work):
                backend.graphs.refuse_capture(
                    itertools.chain(*gradients), "a total is over parameters of which other processes hold parts"
                )
            if self._capturable and len({batch.parameters[0].device for batch, _, _ in work}) > 1:
                backend.graphs.refuse_capture(
                    itertools.chain(*gradients),
                    "the parameters are on several devices, of which a graph may hold one only: give each device an optimizer",
                )
            # What moves a scalar of the state is known beforehand, so that an interrupted step can be counted.
            if self.rule.totals or (clips and (len(work) > 1 or any(batch.is_sharded for batch, _, _ in work))):
                known = {GRADIENT_NORM: gradient_norm([*itertools.chain(*gradients)])} if clips else {}
                totals = self._totals(work, known) if self.rule.totals else known
            # None must fail after another moved. The first checks itself before it moves, so it is the largest.
            if len(work) > 1:
                work.sort(key=lambda entry: len(entry[1]), reverse=True)
            for batch, own, overrides in work[0 if self._is_unchecked else 1 :]:
                batch.check(own, overrides, totals)
            if self._is_unchecked:
                # Each batch checks itself, but not against others.
                written = [arrays for batch, _, _ in work for arrays in batch.arrays()]
                backend.check_in_place(written, lambda i: f"[{i}]")
                self._is_unchecked = False
            _step_all(work, totals)
        except Exception as error:
            for index, group in enumerate(self.param_groups):
                reason = _why_wrong_gradient(type(self.rule).__name__, index, group)
                if reason is not None:
                    raise TypeError(reason) from error
            raise

    def _new_work(self, inputs: Mapping[str, Mapping[Any, Any]]) -> tuple[bool, list[list[Any]], list[_Work]]:
        """Return whether gradients are clipped by their norm, all gradients, and what is done with each batch."""
        if not self._capturable:
            # Before a batch on another device has moved.
            backend.graphs.refuse_capture(p for group in self.param_groups for p in group["params"])
        states = list(self.state.values())
        if not same(states, self._known_states):
            self._batches.clear()
        before = self._of_groups()
        clips, all_gradients, work = False, list[list[Any]](), list[_Work]()
        for index, group in enumerate(self.param_groups):
            resolved = self._hyperparameters.resolved(index, group)
            clips = clips or _clips(resolved)
            parameters, gradients = self._moving(group)
            all_gradients.append(gradients)
            for batch in self._batches_of(index, resolved.rule, parameters):
                overrides = {**self._hyperparameters.at_step(resolved, batch.finished), **batch.inputs(inputs)}
                work.append((batch, batch.gradients(gradients), overrides))
        self._known_states = list(self.state.values())
        self._repeated = self._repetition(self._of_groups(), before)
        return clips, all_gradients, work

    def _of_groups(self) -> list[Batches | None]:
        """Return the batches of each group, as far as there were steps with them."""
        return [self._batches.get(index) for index in range(len(self.param_groups))]

    def _repetition(self, batches: list[Batches | None], before: list[Batches | None]) -> RepeatedStep | None:
        """Return what is known of a further step on the same batches, if this one is on those of the one before."""
        if not same(batches, before) or not is_possible():
            return None
        known = [batch for of in batches if of is not None for batch in of.batches]
        moving = {p for batch in known for p in batch.parameters}
        still = [p for group in self.param_groups for p in group["params"] if p not in moving]
        devices = {frozenset(p.device for p in batch.parameters) for batch in known}
        is_plain = all(type(p) in _PLAIN for p in (*moving, *still))
        if not is_plain or len(devices) != 1 or any(batch.is_sharded for batch in known):
            return None
        return RepeatedStep(self.param_groups, self.state, known, still)

    def _known_work(self) -> tuple[bool, list[tuple[Batch, Mapping[str, Any]]]] | None:
        """Return what `_new_work` does without gradients, of the batches of the last step; None if groups ask for others.

        They are on the same devices, so that the first of them refuses to be captured, before any has moved.
        """
        clips, known = False, []
        for index, group in enumerate(self.param_groups):
            batches, resolved = self._batches.get(index), self._hyperparameters.resolved(index, group)
            if batches is None or batches.rule is not resolved.rule:
                return None
            clips = clips or _clips(resolved)
            known += [(batch, self._hyperparameters.at_step(resolved, batch.finished)) for batch in batches.batches]
        return clips, known

    def _repeat(self, repeated: RepeatedStep, clips: bool, known: list[tuple[Batch, Mapping[str, Any]]]) -> bool:
        """Do the steps of all batches on the gradients as torch keeps them, with no objects of Python's; return whether it did.

        torch makes such an object of each gradient after each backward pass, if asked for it, in ten times the time that a step
        looks at one.
        """
        several = len(known) > 1
        if repeated.needs_gradients or self._is_unchecked or self.rule.totals or (clips and several):
            return False
        if not repeated.is_as_it_was(self.param_groups, self.state):
            return False
        # None must fail after another moved. The first looks itself before it moves, so it is the largest.
        if several:
            known = sorted(known, key=lambda entry: -len(entry[0].parameters))
        done = all(batch.would_repeat(given) for batch, given in known[1:])
        done = done and _step_all([(batch, OWN_GRADIENTS, given) for batch, given in known], None)
        repeated.note(done)
        return done

    def _totals(self, work: Sequence[_Work], known: Mapping[str, Any]) -> Totals:
        """Return the totals over all batches, in all processes, given those known already."""
        parts = [batch.part(own, overrides) for batch, own, overrides in work]
        if not any(batch.is_sharded for batch, _, _ in work):
            return totals_of(parts, known)
        arrays = [pair for batch, own, _ in work for pair in batch.local_arrays(own)]
        with totals_over(arrays):
            return totals_of(parts, known)

    def _moving(self, group: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        """Return the parameters of a group that have gradients, and these."""
        parameters, gradients = group["params"], [p.grad for p in group["params"]]
        if any(g is None for g in gradients):
            parameters = [p for p, g in zip(parameters, gradients, strict=True) if g is not None]
            gradients = [g for g in gradients if g is not None]
        if any(map(is_sharded, parameters[:1])):
            gradients = [placed_like(g, p) for p, g in zip(parameters, gradients, strict=True)]
        return parameters, gradients

    def _batches_of(self, index: int, rule: Optimizer, parameters: list[Any]) -> Sequence[Batch]:
        batches = self._batches.get(index)
        if batches is None or not batches.fit(rule, parameters):
            copies = batches.copies if batches is not None and batches.rule is rule else []
            fresh = [p for p in parameters if not is_usable(rule, p, self.state.get(p))]
            renewed = set(fresh)
            missing = next(
                (names for p in parameters if p not in renewed and (names := lacking(rule, p, self.state[p]))), []
            )
            if "step" in missing:
                raise ValueError(
                    f"the state of a parameter of param_groups[{index}] has no 'step': give it, or remove the state"
                )
            if missing:
                raise ValueError(
                    f"param_groups[{index}] has {self._hyperparameters.features(rule)}, for which {type(rule).__name__} needs "
                    f"the slot {' and '.join(missing)}, but the state began without: give the optimizer, or the group when it "
                    "is added, such a value (a scheduler that sets momentum takes cycle_momentum=False)"
                )
            self._create_state(rule, fresh)
            if self._capturable:
                self._separate(rule, parameters)
            self._is_unchecked = True
            known = {p: number for number, p in enumerate(p for group in self.param_groups for p in group["params"])}
            batches = self._batches[index] = Batches(
                rule,
                copies,
                parameters,
                [self.state[p] for p in parameters],
                [known[p] for p in parameters],
                capturable=self._capturable,
            )
        return batches.batches

    def _separate(self, rule: Optimizer, parameters: Sequence[Any]) -> None:
        """Let parameters count apart from those that do not move with them."""
        put_on_device(rule, [(p, self.state[p]) for p in parameters])
        moving, parts = set(parameters), dict[Any, list[dict[str, Any]]]()
        for p in parameters:
            dtypes = (self.state[p][name].dtype for name in slots_of(rule, p))
            parts.setdefault((id(self.state[p]["step"]), p.dtype, p.device, *dtypes), []).append(self.state[p])
        separate(rule, list(parts.values()), [state for p, state in self.state.items() if p not in moving])

    def _create_state(self, rule: Optimizer, parameters: Sequence[Any]) -> None:
        if not parameters:
            return
        placed = copy.copy(rule)
        placed.place_parameters(list(map(place_of, range(len(parameters)), parameters)))
        fresh = placed.init(list(map(local_part, parameters)), slot_dtype=self._slot_dtype)
        scalars = {name: fresh.slots[name] for name in rule.scalar_slots}
        for i, p in enumerate(parameters):
            facts = Facts(type(rule).__name__, tuple(p.shape))
            arrays = {
                name: like_parameter(fresh.slots[name][i], p, slot_dims(rule, name, facts))
                for name in slots_of(rule, p)
            }
            self.state[p] = {"step": fresh.step, **scalars, **arrays}
        if self._capturable:
            put_on_device(rule, [(p, self.state[p]) for p in parameters])

    def to_torch(self, *, schedulers: Iterable[Any] | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of `torch.optim` that goes on where this one is, with its groups, labels and a copy of its state.

        This one must not be stepped any more. `portopt_torch.from_torch` is the other direction.

        Args:
            schedulers: the schedulers of `torch.optim.lr_scheduler` that set values of this optimizer: they set those of the new
                one from now on, going on where they are.

        Raises:
            ValueError: the rule is in another dialect than `torch`, or something has no counterpart there; it is named.

        Example:
            >>> import torch, portopt
            >>> from portopt_torch import TorchOptimizer
            >>> w = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = TorchOptimizer([w], portopt.Adam(0.1, dialect="torch", decoupled_weight_decay=True))
            >>> type(optimizer.to_torch()).__name__
            'AdamW'
        """
        return to_torch(self, self.rule, self._hyperparameters, schedulers)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, exactly: slots keep their dtype. The tensors are copied.

        In the dialect `torch`, a state_dict of the class of `torch.optim` that the rule corresponds to is taken as well.

        Raises:
            ValueError: groups, names, shapes or step counts do not fit.
            TypeError: dtypes do not fit, or a group has a hyperparameter that the rule has not.
        """
        # The last hook sees what the user's own hooks made of it, before torch casts the slots to the parameters' dtype.
        handle = self.register_load_state_dict_pre_hook(_sealed)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        own = {"rule": self.rule, "_slot_dtype": self._slot_dtype, "_capturable": self._capturable}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch's load_state_dict comes here too, with state and groups only.
        super().__setstate__(state)
        for parameter, entry in list(self.state.items()):
            if isinstance(entry, SealedState):
                self.state[parameter] = entry.entry
        self._forget()
        if self._capturable:
            put_on_device(self.rule, self.state.items())
        for group in self.param_groups:
            for name, value in self._hyperparameters.defaults().items():
                group.setdefault(name, value)


def _watched(self: TorchOptimizer, closure: Callable[[], Any] | None = None, **inputs: Any) -> Any:
    return self._step(closure, inputs)


_watched_step = torch.optim.Optimizer.profile_hook_step(_watched)
"""A step with a range of the profiler around it, and hooks before and after it."""


def _clips(resolved: Resolved) -> bool:
    return resolved.overrides.get("clipnorm", resolved.rule.clipnorm) is not None


_PLAIN = torch.Tensor, torch.nn.Parameter
_GRADIENT_DTYPES = frozenset(getattr(torch, name) for name in COMPUTE_DTYPE)


def _step_all(work: Sequence[_Work], totals: Totals) -> bool:
    """Do the steps of all batches; once one has written, do the others although an interrupt came, and raise it afterwards.

    Returns whether they were done: if no plan does the first on the gradients that torch keeps, nothing is.
    """
    before = [(batch.version(), batch.finished) for batch, _, _ in work]
    try:
        for number, (batch, gradients, overrides) in enumerate(work):
            if not batch.step(gradients, overrides, totals):
                if number == 0:
                    return False
                batch.step(batch.own_gradients(), overrides, totals)
    except Exception:
        raise
    except BaseException:
        if any(batch.version() != version for (batch, _, _), (version, _) in zip(work, before, strict=True)):
            with deferred():
                for (batch, gradients, overrides), (version, finished) in zip(work, before, strict=True):
                    if batch.version() != version:
                        batch.finish(finished, overrides, totals)
                    elif not batch.step(gradients, overrides, totals):
                        batch.step(batch.own_gradients(), overrides, totals)
        raise
    return True


def _sealed(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(optimizer, TorchOptimizer)
    if is_native(state_dict):
        state_dict = own_state_dict(
            optimizer.rule,
            state_dict,
            optimizer.param_groups,
            optimizer._slot_dtype,  # noqa: SLF001  # of this module
            capturable=optimizer._capturable,  # noqa: SLF001  # of this module
        )
    saved_groups = [optimizer._hyperparameters.renamed(group) for group in state_dict["param_groups"]]  # noqa: SLF001  # of this module
    rules = map(optimizer._hyperparameters.rule_of, saved_groups)  # noqa: SLF001  # of this module
    owners = {
        k: (rule, p)
        for own, saved, rule in zip(optimizer.param_groups, saved_groups, rules, strict=False)
        for k, p in zip(saved["params"], own["params"], strict=False)
    }

    def sealed(k: Any, entry: Any) -> Any:
        if k not in owners:
            return entry
        rule, p = owners[k]
        return SealedState(checked_state(rule, entry, p, optimizer.state.get(p, {}), k))

    state = {k: sealed(k, entry) for k, entry in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": saved_groups}


def _why_wrong_gradient(rule: str, index: int, group: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the gradient of a parameter, under its name in the optimizer; None if nothing is."""
    for i, p in enumerate(group["params"]):
        if p.grad is None:
            continue
        which = f"param_groups[{index}]['params'][{i}]"
        which += f" ({group['param_names'][i]})" if "param_names" in group else ""
        if p.grad.layout is not torch.strided:
            return (
                f"the gradient of {which} is sparse, of layout {p.grad.layout}, but {rule} updates every element: make the layer "
                "with sparse=False, or set p.grad = p.grad.to_dense() before the step"
            )
        if p.grad.dtype not in _GRADIENT_DTYPES:
            return f"the gradient of {which} has dtype {p.grad.dtype}; allowed are {', '.join(COMPUTE_DTYPE)}"
    return None
