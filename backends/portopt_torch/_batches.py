"""The parameters of a group, in batches of which each takes its step in one call of `apply_`."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from portopt import Optimizer, OptimizerState
from portopt.arithmetic.dtypes import slot_dtypes
from portopt_torch._backend import backend
from portopt_torch._saved_state import finished_steps, number_of, slots_of, tensor_of
from portopt_torch._sharded import is_sharded, local_part


class Batch:
    """Parameters of equal step count, dtype and device.

    Args:
        rule: an optimizer of this batch's own, for it keeps what it found out about the arrays of the last step.
        parameters: the parameters.
        states: the state of each, as `torch.optim.Optimizer.state` holds it.
        indices: the places of the parameters among those of the group that move.
        everything: whether these are all of them.
    """

    def __init__(
        self,
        rule: Optimizer,
        parameters: Sequence[Any],
        states: Sequence[dict[str, Any]],
        indices: Sequence[int],
        *,
        everything: bool,
    ) -> None:
        self._rule = rule
        self._parameters = parameters
        self._states = states
        self._indices = None if everything else indices
        own = [slots_of(rule, parameter) for parameter in parameters]
        self._held = {
            name: [state[name] if name in names else None for state, names in zip(states, own, strict=True)]
            for name in rule.slots
            if any(name in names for names in own)
        }
        self._slots = {name: list(map(local_part, tensors)) for name, tensors in self._held.items()}
        self._readers = {name: operator.methodcaller("get", name) for name in self._held}
        self._scalars = {name: number_of("the state", name, states[0][name]) for name in rule.scalar_slots}
        self._leaves = list(map(local_part, parameters))
        self.finished = finished_steps("the state", states[0]["step"])
        self.is_sharded = any(map(is_sharded, parameters))

    def arrays(self) -> list[dict[str, Any]]:
        """Return what a step writes, for each parameter."""
        columns = {"p": self._leaves, **self._slots}
        rows = zip(*columns.values(), strict=True)
        return [{name: array for name, array in zip(columns, row, strict=True) if array is not None} for row in rows]

    def is_current(self) -> bool:
        """Tell whether the states are as the last step left them."""
        try:
            return (
                all(same(map(self._readers[n], self._states), held) for n, held in self._held.items())
                and set(map(operator.itemgetter("step"), self._states)) == {self.finished}
                and all(set(map(operator.itemgetter(n), self._states)) == {x} for n, x in self._scalars.items())
            )
        except KeyError:
            return False

    @property
    def is_elementwise(self) -> bool:
        """Whether each element is updated from that element of the arrays alone."""
        return all(self._rule.program(shape=tuple(leaf.shape)).is_elementwise for leaf in self._leaves)

    def gradients(self, gradients: Sequence[Any]) -> Sequence[Any]:
        """Return the gradients of this batch, given those of the group's moving parameters."""
        if self._indices is not None:
            gradients = [gradients[i] for i in self._indices]
        if self.is_sharded:
            gradients = list(map(local_part, gradients))
            self._leaves = list(map(_current_part, self._parameters, self._leaves))
        return gradients

    def check(self, gradients: Sequence[Any], overrides: Mapping[str, Any], norm: Any) -> None:
        """Raise what a step would raise; change nothing."""
        self._rule.check_step(self._leaves, gradients, self._state(), gradient_norm=norm, **overrides)

    def _state(self) -> OptimizerState:
        return OptimizerState(self.finished, {**self._slots, **self._scalars})

    def version(self) -> int:
        """Return a number that a step changes as it writes, whether or not it returns."""
        return int(self._leaves[0]._version)

    def step(self, gradients: Sequence[Any], overrides: Mapping[str, Any], norm: Any) -> None:
        """Do one step with the batch's gradients."""
        state = self._rule.apply_(self._leaves, gradients, self._state(), gradient_norm=norm, **overrides)
        self._note(state.step, state.slots)

    def finish(self, finished: int, overrides: Mapping[str, Any]) -> None:
        """Count a step, after so many, that has written its arrays but was interrupted before it was counted."""
        if self.finished == finished:
            rule, checked = self._rule, self._rule.check_overrides(overrides)
            program = rule.program(checked, tuple(self._leaves[0].shape))
            (scalars, *_), step = rule.step_scalars(backend, [program], self._state(), checked, lambda *_: 1.0)
            # Totals of arrays that have been overwritten cannot be had again.
            self._note(step, self._scalars if rule.totals is not None else scalars.outputs())
        else:
            self._note(self.finished, self._scalars)

    def _note(self, finished: int, slots: Mapping[str, Any]) -> None:
        self._scalars, self.finished = {name: slots[name] for name in self._scalars}, finished
        for entry in self._states:
            entry["step"] = self.finished
            entry.update(self._scalars)


class Batches:
    """The batches of one group, for as long as the same parameters move.

    Args:
        rule: the optimizer.
        copies: copies of it from earlier batches of the group, which have traced its programs.
        parameters: the parameters that move.
        states: the state of each.
    """

    def __init__(
        self,
        rule: Optimizer,
        copies: list[Optimizer],
        parameters: Sequence[Any],
        states: Sequence[dict[str, Any]],
    ) -> None:
        parts: dict[Any, list[int]] = {}
        for i, (p, state) in enumerate(zip(parameters, states, strict=True)):
            scalars = (number_of("the state", name, state[name]) for name in rule.scalar_slots)
            dtypes = ((n, tensor_of("the state", n, state[n]).dtype) for n in slots_of(rule, p))
            finished = finished_steps("the state", state["step"])
            parts.setdefault((finished, *scalars, p.dtype, p.device, frozenset(dtypes)), []).append(i)
        copies += [copy.copy(rule) for _ in range(len(parts) - len(copies))]
        self.rule, self.copies = rule, copies
        self._parameters = list(parameters)
        self.batches = [
            Batch(own, [parameters[i] for i in part], [states[i] for i in part], part, everything=len(parts) == 1)
            for own, part in zip(copies, parts.values(), strict=False)
        ]

    def fit(self, rule: Optimizer, parameters: Sequence[Any]) -> bool:
        """Tell whether these parameters move by this rule, and their states are as the last step left them."""
        is_same = rule is self.rule and same(parameters, self._parameters)
        return is_same and all(batch.is_current() for batch in self.batches)


def same(first: Iterable[Any], second: Sequence[Any]) -> bool:
    """Tell whether two sequences hold the same objects."""
    first = list(first)
    return len(first) == len(second) and all(map(operator.is_, first, second))


def is_usable(rule: Optimizer, parameter: Any, state: Mapping[str, Any] | None) -> bool:
    """Tell whether a parameter has a state, and need not begin anew as it, or its group, was changed before its first step."""
    if not state:
        return False
    if state.get("step") != 0:
        return True
    slots = (slot for slot in state.values() if backend.owns(slot))
    allowed = slot_dtypes(backend.dtype_name(parameter))
    return not lacking(rule, parameter, state) and all(
        s.device == parameter.device and backend.dtype_name(s) in allowed for s in slots
    )


def lacking(rule: Optimizer, parameter: Any, state: Mapping[str, Any]) -> list[str]:
    """Return what a rule needs and a parameter's state has not."""
    return [name for name in ("step", *rule.scalar_slots, *slots_of(rule, parameter)) if name not in state]


def _current_part(parameter: Any, before: Any) -> Any:
    """Return the local part of a parameter: `before` if that still is it, for a step on the same objects is cheaper."""
    part = local_part(parameter)
    same_memory = part.data_ptr() == before.data_ptr() and part.shape == before.shape and part.dtype is before.dtype
    return before if same_memory else part
