"""Repeated steps in place: what was checked in the last step is not checked again.

A training loop calls `apply_` with the same parameter and slot arrays and new gradients each time. A plan holds what the full
check found out about them: the tables of addresses, sizes and the kernels. The next step only makes sure that the arrays are
the same objects with the same memory and that the gradients fit (`watch.py`), and calls the kernels; if anything is not as it
was, the plan steps aside and the full check says what is wrong, or makes a new plan.

A plan does not keep arrays alive: it dies with the first of them.
"""

from __future__ import annotations

import functools
import math
import weakref
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from portopt.backend import Backend, is_interpreted
from portopt.host import threads
from portopt.host.kernel import HostKernel, get_kernel
from portopt.host.norm import GradientTable, gradient_norm
from portopt.host.watch import ArrayReader, Group, Watch
from portopt.schedules import is_schedule

if TYPE_CHECKING:
    from portopt.optimizer import Optimizer, OptimizerState
    from portopt.program import Program

Trees = tuple[Any, Any, "OptimizerState"]
"""Parameters, gradients and the state, as a step was given them."""


class Plan:
    """One optimizer's step in place on one set of arrays.

    Args:
        backend: of the arrays.
        program: what the kernels do.
        trees: the step's arguments.
        arrays: name to array, of each parameter.
        watch: knows the arrays.
        kernels: the kernels.
        groups: each kernel's parameters.
        outputs: where kernels put the new scalars of the state.
        note_written: given all written arrays, notes that they were written; None if nobody needs to know.
    """

    def __init__(
        self,
        backend: Backend,
        program: Program,
        trees: Trees,
        arrays: Sequence[Mapping[str, Any]],
        watch: Watch,
        kernels: Sequence[HostKernel],
        groups: Sequence[Group],
        outputs: array[float],
        note_written: Callable[[list[Any]], None] | None,
    ) -> None:
        self.program = program
        self._backend = backend
        self._watch = watch
        self._groups = groups
        self._kernels = kernels
        self._outputs = outputs
        self._state_type: type[OptimizerState] = type(trees[2])
        self._gradients = [
            GradientTable(dict(kernel.key.dtypes)["g"], group.table, group.columns.index("g"), group.sizes)
            for kernel, group in zip(kernels, groups, strict=True)
        ]
        self._runs_at_once = threads.is_small(sum(int(group.sizes.sum()) for group in groups))
        self._runs = [
            kernel.prepare(group.table, group.sizes, outputs) for kernel, group in zip(kernels, groups, strict=True)
        ]
        self._inputs: array[float] | None = None
        self._given: dict[str, Any] = {}
        self._note_written = note_written
        self._alive = True
        # It holds the function itself: at the interpreter's exit, arrays may die after the names of modules.
        forget = functools.partial(_call, weakref.WeakMethod(self._forget))
        written = [a[name] for a in arrays for name in a if name != "g"]
        self._written = [weakref.ref(a, forget) for a in written]

    def _forget(self) -> None:
        self._alive = False

    def __bool__(self) -> bool:
        return self._alive

    def step(
        self, optimizer: Optimizer, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> OptimizerState | None:
        """Do a step and return the new state; None, with nothing done, if anything is not as it was."""
        if not self._alive or type(state) is not self._state_type or type(state.step) is not int or state.step < 0:
            return None
        if is_interpreted():
            return None
        slots, finished = state.slots, state.step + 1
        inputs = self._inputs
        looked = False
        if inputs is None or not _same_numbers(overrides, self._given):
            checked = optimizer.check_overrides(overrides)
            if optimizer.program(checked) is not self.program:
                return None
            norm = None
            if self.program.uses_gradient_norm and "gradient_norm" not in checked:
                if not self._watch(params, grads, slots):
                    return None
                looked = True
                norm = gradient_norm(self._gradients)
            inputs = self._new_inputs(optimizer, state, checked, norm)
            if inputs is None:
                return None
            self._keep(inputs, optimizer, overrides, checked)
        address = inputs.buffer_info()[0]
        if self._runs_at_once and not looked:
            if not self._watch(params, grads, slots, address, finished):
                return None
        elif not looked and not self._watch(params, grads, slots):
            return None
        else:
            for run in self._runs:
                run(address, finished)
        if self._note_written is not None:
            self._note_written([reference() for reference in self._written])
        names = self.program.scalar_outputs
        if names:
            slots = {**slots, **dict(zip(names, self._outputs, strict=True))}
        new_state: OptimizerState = self._state_type(finished, slots)
        return new_state

    def _new_inputs(
        self, optimizer: Optimizer, state: Any, overrides: Mapping[str, Any], norm: float | None
    ) -> array[float] | None:
        scalars = optimizer.step_scalars(self._backend, self.program, state, overrides, lambda: norm)[0]
        values = [scalars.inputs[name] for name in self._kernels[0].inputs]
        return array("d", values) if all(type(v) in (int, float) for v in values) else None

    def _keep(
        self, inputs: array[float], optimizer: Optimizer, overrides: dict[str, Any], checked: Mapping[str, Any]
    ) -> None:
        """Keep the inputs for the next step if only the given numbers decide about them."""
        rate = checked.get("learning_rate", optimizer.learning_rate)
        self._inputs = None
        if not self.program.uses_gradient_norm and not self.program.scalar_outputs and not is_schedule(rate):
            self._inputs, self._given = inputs, overrides


def _same_numbers(overrides: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Tell whether the same hyperparameters have the same values, all of them Python numbers."""
    if len(overrides) != len(others):
        return False
    return all(
        type(v) in (int, float) and name in others and type(others[name]) is type(v) and repr(v) == repr(others[name])
        for name, v in overrides.items()
    )


def make_plan(
    backend: Backend,
    program: Program,
    trees: Trees,
    arrays: Sequence[Mapping[str, Any]],
    dtypes: Sequence[Mapping[str, str]],
    reader: ArrayReader,
    note_written: Callable[[list[Any]], None] | None = None,
) -> Plan | None:
    """Return a plan for steps on C-contiguous arrays in host memory; None if it cannot watch them.

    Args:
        backend: of the arrays.
        program: what the steps run.
        trees: a step's parameters, gradients and state.
        arrays: name to array, of each parameter, in the order of the tree.
        dtypes: name to dtype name, of each parameter.
        reader: how arrays are read.
        note_written: given all written arrays after a step, notes that they were written.
    """
    params, grads, state = trees
    if not arrays or type(state.slots) is not dict:
        return None
    members: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, names in enumerate(dtypes):
        members.setdefault(tuple(names.items()), []).append(i)
    kernels, groups = [], []
    for kind, numbers in members.items():
        kernel = get_kernel(program, dict(kind), in_place=True)
        table = np.array([[reader.address(arrays[i][name]) for name in kernel.columns] for i in numbers], np.int64)
        sizes = np.array([math.prod(arrays[i]["p"].shape) for i in numbers], np.int64)
        kernels.append(kernel)
        groups.append(Group(kernel.address, numbers, kernel.columns, table, sizes))
    outputs = array("d", bytes(8 * max(len(program.scalar_outputs), 1)))
    scalar_slots = [name for name in state.slots if name not in program.array_outputs]
    watch = Watch(reader, (params, grads, state.slots), scalar_slots, arrays, groups, outputs.buffer_info()[0])
    if not watch.is_possible:
        return None
    return Plan(backend, program, trees, arrays, watch, kernels, groups, outputs, note_written)


def _call(method: weakref.WeakMethod[Callable[[], None]], _: object) -> None:
    alive = method()
    if alive is not None:
        alive()
