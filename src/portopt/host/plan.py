"""Repeated steps in place: what was checked in the last step is not checked again.

A training loop calls `apply_` with the same parameter and slot arrays and new gradients each time. A plan holds what the full
check found out about them: the table of addresses, sizes and the kernel. The next step only makes sure that the arrays are the
same objects with the same memory and that the gradients fit, and calls the kernel; if anything is not as it was, the plan
steps aside and the full check says what is wrong, or makes a new plan.

A plan does not keep arrays alive: it dies with the first of them.
"""

from __future__ import annotations

import array
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from portopt.backend import is_interpreted
from portopt.host.kernel import HostKernel, get_kernel
from portopt.scalars import HOST, Scalar
from portopt.schedules import is_schedule
from portopt.trees import STANDARD_TREES

if TYPE_CHECKING:
    from portopt.optimizer import Optimizer
    from portopt.program import Program


class Prober(Protocol):
    """Looks at the arrays of one library between two steps."""

    def fits(self, gradients: list[Any]) -> bool:
        """Tell whether parameters and slots have the memory and shapes that the table says, and the gradients fit them.

        The gradients' addresses are then in the table, and no gradient lies in memory that the step writes.
        """

    def written(self) -> None:
        """Note that parameters and slots were written."""


class Plan:
    """One optimizer's step in place on one set of arrays.

    Args:
        program: what the kernel does.
        kernel: the kernel, of the dtypes that all arrays have.
        leaves: the parameters, in the order of the tree.
        slots: all arrays of the state, in the order of `optree.tree_leaves(state.slots)`.
        table: addresses, one row a parameter.
        sizes: number of elements of each parameter.
        make_prober: given `table`, returns what looks at the arrays.
    """

    def __init__(
        self,
        program: Program,
        kernel: HostKernel,
        leaves: Sequence[Any],
        slots: Sequence[Any],
        table: Any,
        sizes: Any,
        make_prober: Callable[[Any], Prober],
    ) -> None:
        self.program = program
        self._kernel = kernel
        self._leaf_ids = list(map(id, leaves))
        self._slot_ids = list(map(id, slots))
        self._scalar_slots = frozenset(program.scalar_outputs)
        self._slot_count = len(program.array_outputs) - 1 + len(program.scalar_outputs)
        self._table = table
        self._sizes = sizes
        self._prober = make_prober(table)
        self._alive = True
        self._fixed_inputs: array.array[float] | None = None
        self._inputs_are_fixed = not program.uses_gradient_norm and not program.scalar_outputs
        self._run = kernel.prepare(table, sizes)
        forget = weakref.WeakMethod(self._forget)
        self._references = [weakref.ref(leaf, lambda _: _call(forget)) for leaf in (*leaves, *slots)]

    def _forget(self) -> None:
        self._alive = False

    def step(
        self, optimizer: Optimizer, params: Any, grads: Any, state: Any, overrides: Mapping[str, Any]
    ) -> tuple[int, Mapping[str, float]] | None:
        """Do a step and return the number of finished steps and the new scalars of the state; None if anything is new."""
        if not self._alive or type(state.step) is not int or is_interpreted():
            return None
        program = self.program
        if optimizer.program(overrides) is not program:
            return None
        leaves, definition = STANDARD_TREES.flatten(params)
        gradients, gradient_definition = STANDARD_TREES.flatten(grads)
        if list(map(id, leaves)) != self._leaf_ids or gradient_definition != definition:
            return None
        slots = STANDARD_TREES.flatten({n: state.slots[n] for n in optimizer.slots if n in state.slots})[0]
        if list(map(id, slots)) != self._slot_ids or len(state.slots) != len(optimizer.slots) + len(
            optimizer.scalar_slots
        ):
            return None
        if not self._prober.fits(gradients):
            return None
        inputs = self._fixed_inputs
        if inputs is None or overrides:
            inputs = self._inputs(optimizer, state, overrides, gradients)
            if inputs is None:
                return None
            if self._inputs_are_fixed and not overrides:
                self._fixed_inputs = inputs
        finished = state.step + 1
        outputs = self._run(inputs, finished)
        self._prober.written()
        return finished, outputs

    def _inputs(
        self, optimizer: Optimizer, state: Any, overrides: Mapping[str, Any], gradients: list[Any]
    ) -> array.array[float] | None:
        values = array.array("d")
        for name in self._kernel.inputs:
            if name in overrides:
                value: Any = overrides[name]
            elif name == "gradient_norm":
                value = self._gradient_norm(gradients)
            elif name in optimizer.scalar_slots:
                value = state.slots[name]
            else:
                value = getattr(optimizer, name)
            if name == "learning_rate" and is_schedule(value):
                self._inputs_are_fixed = False
                value = value(Scalar(state.step, HOST))
                value = value.value if isinstance(value, Scalar) else value
                if type(value) not in (int, float) or not 0.0 <= value < float("inf"):
                    return None
            if type(value) is not float and type(value) is not int:
                return None
            values.append(value)
        return values

    def _gradient_norm(self, gradients: list[Any]) -> Any:
        from portopt.backend import find_backend

        backend = find_backend(gradients[0])
        return None if backend is None else backend.gradient_norm(gradients)


def make_plan(
    program: Program,
    parameters: Sequence[Mapping[str, Any]],
    slots: Sequence[Any],
    dtypes: Sequence[Mapping[str, str]],
    address: Callable[[Any], int],
    prober: Callable[[Sequence[Mapping[str, Any]], Sequence[str], Any], Prober],
) -> Plan | None:
    """Return a plan for arrays in host memory that are C-contiguous; None if they are of several kinds of dtypes.

    Args:
        program: what the steps run.
        parameters: name to array, of each parameter.
        slots: all arrays of the state, in the order of its tree.
        dtypes: name to dtype name, of each parameter.
        address: returns the address of an array's memory.
        prober: given `parameters`, the names of the columns and the table, returns what looks at the arrays.
    """
    if not parameters or any(names != dtypes[0] for names in dtypes):
        return None
    kernel = get_kernel(program, dtypes[0], in_place=True)
    table = np.array([[address(arrays[name]) for name in kernel.columns] for arrays in parameters], np.int64)
    sizes = np.array([math.prod(arrays["p"].shape) for arrays in parameters], np.int64)
    leaves = [arrays["p"] for arrays in parameters]
    return Plan(program, kernel, leaves, slots, table, sizes, lambda table: prober(parameters, kernel.columns, table))


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    alive = method()
    if alive is not None:
        alive()


def merged_ranges(ranges: Sequence[tuple[int, int]]) -> tuple[array.array[int], array.array[int]]:
    """Return starts and ends, increasing, of the memory covered by ranges given as start and size in bytes."""
    starts, ends = array.array("q"), array.array("q")
    for start, size in sorted(r for r in ranges if r[1]):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], start + size)
        else:
            starts.append(start)
            ends.append(start + size)
    return starts, ends
