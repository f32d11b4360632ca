"""The parameters of a group, in batches of which each takes its step in one call of `apply_`."""

from __future__ import annotations

import copy
import operator
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from portopt import Optimizer, OptimizerState
from portopt.arithmetic.dtypes import slot_dtypes
from portopt.kernels.host.readers import OWN_GRADIENTS
from portopt.slot import are_plain, slots_of_shape
from portopt.step import Part
from portopt_torch._backend import backend
from portopt_torch._capturable import count, is_count
from portopt_torch._repeated import put
from portopt_torch._saved_state import tensor_of
from portopt_torch._sharded import input_part, is_sharded, local_part, place_of

Totals = Mapping[str, Any] | None
"""The totals over all parameters, by name, where a batch cannot compute them itself."""


class Batch:
    """Parameters of equal step count and dtype, all on the host or all on GPUs; on one GPU if their states count there.

    Attributes:
        parameters: the parameters.
        states: the state of each, as `torch.optim.Optimizer.state` holds it.
        versions: of the states, as `RepeatedStep` knows them.
        counted: names of what each state holds and a step changes: the number of finished steps, and the rule's scalars.
        slots: by name, of all parameters: the tensors in this process, None for a parameter that has none.

    Args:
        rule: an optimizer of this batch's own, for it keeps what it found out about the arrays of the last step.
        parameters: the parameters.
        states: the state of each.
        indices: the places of the parameters among those of the group that move.
        numbers: of the parameters among all of the optimizer.
        everything: whether these are all of them.
        capturable: whether the states may count on the device.
    """

    def __init__(
        self,
        rule: Optimizer,
        parameters: Sequence[Any],
        states: list[dict[str, Any]],
        indices: Sequence[int],
        numbers: Sequence[int],
        *,
        everything: bool,
        capturable: bool = False,
    ) -> None:
        self._rule = rule
        self.counted = ["step", *rule.scalar_slots]
        if rule.draws or any(map(is_sharded, parameters)):
            rule.place_parameters(list(map(place_of, numbers, parameters)))
        self.parameters = parameters
        self.states = states
        self.versions = array("q", bytes(8 * len(states)))
        self._indices = None if everything else indices
        self._having, self._held, self.slots = {}, {}, dict[str, list[Any]]()
        held = [slots_of(rule, p) for p in parameters]
        for name in rule.slots:
            having = [state for state, names in zip(states, held, strict=True) if name in names]
            if having:
                self._having[name] = having
                self._held[name] = [state[name] for state in having]
                self.slots[name] = [
                    local_part(state[name]) if name in names else None
                    for state, names in zip(states, held, strict=True)
                ]
        self._scalars = {name: count(name, states[0][name], capturable=capturable) for name in rule.scalar_slots}
        self._leaves = list(map(local_part, parameters))
        self.finished = count("step", states[0]["step"], capturable=capturable)
        self.is_sharded = any(map(is_sharded, parameters))

    def arrays(self) -> list[dict[str, Any]]:
        """Return what a step writes, for each parameter."""
        columns = {"p": self._leaves, **self.slots}
        rows = zip(*columns.values(), strict=True)
        return [{n: x for n, x in zip(columns, row, strict=True) if x is not None} for row in rows]

    def is_current(self) -> bool:
        """Tell whether the states are as the last step left them."""
        try:
            return (
                all(same(map(operator.itemgetter(n), self._having[n]), held) for n, held in self._held.items())
                and set(map(operator.itemgetter("step"), self.states)) == {self.finished}
                and all(set(map(operator.itemgetter(n), self.states)) == {x} for n, x in self._scalars.items())
            )
        except KeyError:
            return False

    def gradients(self, gradients: Sequence[Any]) -> Sequence[Any]:
        """Return the gradients of this batch, given those of the group's moving parameters."""
        if self._indices is not None:
            gradients = [gradients[i] for i in self._indices]
        if self.is_sharded:
            gradients = list(map(local_part, gradients))
            self._leaves = list(map(_current_part, self.parameters, self._leaves))
        return gradients

    def inputs(self, inputs: Mapping[str, Mapping[Any, Any]]) -> dict[str, list[Any]]:
        """Return the inputs that the batch has, by name: one for each parameter or None, given those by parameter."""
        found = {name: [of.get(p) for p in self.parameters] for name, of in inputs.items()}
        if self.is_sharded:
            placed = {n: zip(self.parameters, given, strict=True) for n, given in found.items()}
            found = {n: [None if x is None else input_part(n, x, p) for p, x in of] for n, of in placed.items()}
        return {name: given for name, given in found.items() if any(x is not None for x in given)}

    def local_arrays(self, gradients: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Return what a step reads in this process, each array with the parameter that it is a part of, or of the shape of."""
        columns = (self._leaves, gradients, *self.slots.values())
        pairs = (pair for column in columns for pair in zip(self.parameters, column, strict=True))
        return [(parameter, array) for parameter, array in pairs if array is not None]

    def part(self, gradients: Sequence[Any], overrides: Mapping[str, Any]) -> Part:
        """Return the batch's step as a part of that of the whole optimizer."""
        return self._rule.part_of_step(self._leaves, gradients, self._state(), overrides)

    def check(self, gradients: Sequence[Any], overrides: Mapping[str, Any], totals: Totals) -> None:
        """Raise what a step would raise; change nothing."""
        self._rule.check_step(self._leaves, gradients, self._state(), **_given(overrides, totals))

    def _state(self) -> OptimizerState:
        return OptimizerState(self.finished, {**self.slots, **self._scalars})

    def version(self) -> int:
        """Return a number that a step changes as it writes, whether or not it returns."""
        return int(self._leaves[0]._version)

    def own_gradients(self) -> list[Any]:
        """Return the gradients that torch keeps."""
        return [p.grad for p in self.parameters]

    def would_repeat(self, overrides: Mapping[str, Any]) -> bool:
        """Tell whether `step` does one on `OWN_GRADIENTS`."""
        return self._rule.would_repeat(self._leaves, OWN_GRADIENTS, self._state(), overrides)

    def step(self, gradients: Any, overrides: Mapping[str, Any], totals: Totals) -> bool:
        """Do one step with the batch's gradients; return whether it was done: always, but for `OWN_GRADIENTS`."""
        if gradients is not OWN_GRADIENTS:
            state = self._rule.apply_(self._leaves, gradients, self._state(), **_given(overrides, totals))
        elif (done := self._rule.repeat_(self._leaves, gradients, self._state(), overrides)) is None:
            return False
        else:
            state = done
        self._note(state.step, state.slots)
        return True

    def finish(self, finished: int, overrides: Mapping[str, Any], totals: Totals) -> None:
        """Count a step, after so many, that has written its arrays but was interrupted before it was counted."""
        if is_count(finished):
            return  # the kernels that wrote have counted
        if self.finished == finished:
            rule = self._rule
            given = {name: True for name in rule.inputs if name in overrides}
            numbers = {name: value for name, value in overrides.items() if name not in given}
            checked = rule.check_overrides({**numbers, "totals": totals}) | given
            # The scalars of the state are the same for all parameters.
            program = rule.program(checked, tuple(self.parameters[0].shape))
            # Of no norm that was not given does a scalar of the state depend.
            (scalars, *_), step = rule.step_scalars(backend, [program], self._state(), checked, lambda *_: 1.0)
            self._note(step, scalars.outputs())
        else:
            self._note(self.finished, self._scalars)

    def counts(self) -> list[Any]:
        """Return what all states hold under the `counted` names."""
        return [self.finished, *self._scalars.values()]

    def _note(self, finished: int, slots: Mapping[str, Any]) -> None:
        self._scalars, self.finished = {name: slots[name] for name in self._scalars}, finished
        put(self.states, self.counted, self.counts(), self.versions)


def _given(overrides: Mapping[str, Any], totals: Totals) -> Mapping[str, Any]:
    # A planned step keeps what numbers make of it, and None is no number.
    return overrides if totals is None else {**overrides, "totals": totals}


class Batches:
    """The batches of one group, for as long as the same parameters move.

    Args:
        rule: the optimizer.
        copies: copies of it from earlier batches of the group, which have traced its programs.
        parameters: the parameters that move.
        states: the state of each.
        numbers: of the parameters among all of the optimizer.
        capturable: whether the states may count on the device.
    """

    def __init__(
        self,
        rule: Optimizer,
        copies: list[Optimizer],
        parameters: Sequence[Any],
        states: Sequence[dict[str, Any]],
        numbers: Sequence[int],
        *,
        capturable: bool = False,
    ) -> None:
        parts: dict[Any, list[int]] = {}
        for i, (p, state) in enumerate(zip(parameters, states, strict=True)):
            scalars = (count(name, state[name], capturable=capturable) for name in rule.scalar_slots)
            dtypes = (tensor_of("the state", name, state[name]).dtype for name in slots_of(rule, p))
            finished = count("step", state["step"], capturable=capturable)
            place = p.device if is_count(finished) else p.device.type
            parts.setdefault((finished, *scalars, p.dtype, place, *dtypes), []).append(i)
        copies += [copy.copy(rule) for _ in range(len(parts) - len(copies))]
        self.rule, self.copies = rule, copies
        self._parameters = list(parameters)
        self.batches = [
            Batch(
                own,
                [parameters[i] for i in part],
                [states[i] for i in part],
                part,
                [numbers[i] for i in part],
                everything=len(parts) == 1,
                capturable=capturable,
            )
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
    if is_count(step := state.get("step")) or step != 0:
        return True
    slots = (slot for slot in state.values() if backend.owns(slot))
    allowed = slot_dtypes(backend.dtype_name(parameter))
    return not lacking(rule, parameter, state) and all(
        s.device == parameter.device and backend.dtype_name(s) in allowed for s in slots
    )


def lacking(rule: Optimizer, parameter: Any, state: Mapping[str, Any]) -> list[str]:
    """Return what a rule needs and a parameter's state has not."""
    return [name for name in ("step", *rule.scalar_slots, *slots_of(rule, parameter)) if name not in state]


def slots_of(rule: Optimizer, parameter: Any) -> tuple[str, ...]:
    """Return the names of the slots that a parameter has."""
    return tuple(map(str, rule.slots)) if are_plain(rule) else slots_of_shape(rule, tuple(parameter.shape))


def _current_part(parameter: Any, before: Any) -> Any:
    """Return the local part of a parameter: `before` if that still is it, for a step on the same objects is cheaper."""
    part = local_part(parameter)
    same_memory = part.data_ptr() == before.data_ptr() and part.shape == before.shape and part.dtype is before.dtype
    return before if same_memory else part
