"""Eager steps as calls of one jitted function each.

What the full check of a step found out, structure, shapes and dtypes, is what JAX keeps a compiled function for. So a further
step flattens its trees once, makes sure that the leaves are JAX's arrays, and calls the function; if anything else is not as it
was, JAX traces the function again, which notices. Scalars are an argument: their values compile nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_leaves, tree_unflatten

from portopt.arithmetic import HOST
from portopt.backend import ArrayInfo, Leaf, is_interpreted, is_set_aside
from portopt.backend.totals import total
from portopt.nested import rates_of
from portopt.program import Program
from portopt.program.draws import Place
from portopt.program.interpreter import StepScalars, evaluate_scalars
from portopt.protocols import Rule
from portopt.scalars import MOST_STEPS
from portopt.schedules import is_schedule
from portopt.state import OptimizerState
from portopt_jax import _kernel
from portopt_jax._scalars import JaxArithmetic, from_words, step_number

_Array: Any = type(jnp.zeros(()))


class _Misfit(Exception):
    """The arguments of a step are not like those that it was planned for."""


class _Parameter(NamedTuple):
    """What is known of a parameter that has a gradient: its number in the tree, its place, its program's number, its arrays."""

    number: int
    place: Place
    program: int
    infos: tuple[tuple[str, ArrayInfo], ...]


class Steps(NamedTuple):
    """What one compiled function does: steps on arrays of some structure, shapes and dtypes.

    Attributes:
        programs: what they run.
        parameters: those that have gradients.
        inputs: names of further inputs, whose trees come with the gradients.
        structure: of parameters, gradients, and slots by name.
        kinds: shape and dtype of each array in it.
        by_kernel: whether host kernels may do them.
    """

    programs: tuple[Program, ...]
    parameters: tuple[_Parameter, ...]
    inputs: tuple[str, ...]
    structure: Any
    kinds: tuple[tuple[tuple[int, ...], Any], ...]
    by_kernel: bool

    def array_slots(self, slots: Mapping[str, Any]) -> dict[str, Any]:
        """Return the trees of the slots that are no scalars of the state."""
        scalars = {n for program in self.programs for n in (*program.scalar_inputs, *program.scalar_outputs)}
        return {name: tree for name, tree in slots.items() if name not in scalars}

    def scalar_names(self, slots: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the scalars that a step is given, in order."""
        known = {"t", *slots, *(name for program in self.programs for name in program.totals)}
        names = dict.fromkeys(name for program in self.programs for name in program.scalar_inputs)
        return tuple(name for name in names if name not in known)


@functools.lru_cache(maxsize=512)
def compiled(backend: Any, steps: Steps) -> Any:
    """Return a function of scalars, float64 or words, of the step's number, and of the leaves of `steps.structure`.

    It returns the leaves of new parameters and slots, those of parameters without a gradient left out.
    """

    def run(numbers: Any, t: Any, leaves: Sequence[Any]) -> list[Any]:
        if _kinds(leaves) != steps.kinds:
            raise _Misfit
        params, grads, slots = tree_unflatten(steps.structure, leaves)
        names = steps.scalar_names(slots)
        with jax.enable_x64(True):
            values = from_words(numbers) if numbers.dtype == "uint32" else numbers
            t = step_number(jnp.asarray(t))
            known: dict[str, Any] = {name: values[i] for i, name in enumerate(names)}
        held = steps.array_slots(slots)
        known |= {name: from_words(slots[name]) for name in slots if name not in held} | {"t": t}
        trees = {"p": params, **dict(zip(("g", *steps.inputs), grads, strict=True)), **held}
        columns = {name: backend.trees.flatten(tree)[0] for name, tree in trees.items()}
        groups: list[list[Leaf]] = [[] for _ in steps.programs]
        for of in steps.parameters:
            arrays = {name: columns[name][of.number] for name, _ in of.infos}
            groups[of.program].append(Leaf(arrays, of.infos, of.number, of.place))
        arithmetic = JaxArithmetic(t)
        pairs = list(zip(steps.programs, groups, strict=True))
        for name in dict.fromkeys(name for program in steps.programs for name in program.totals):
            scalars_of = functools.partial(evaluate_scalars, arithmetic=arithmetic, inputs=known.copy())
            value = total(backend, name, [(program, parameters, scalars_of) for program, parameters in pairs])
            known[name] = backend.scalar(value)
        new = {name: [None] * len(column) for name, column in columns.items() if name == "p" or name in held}
        outputs: dict[str, Any] = {}
        for program, parameters in pairs:
            own = StepScalars(program.after_totals, arithmetic, known)
            results, found = backend.update_apart(own, parameters)
            outputs = outputs or found
            for parameter, result in zip(parameters, results, strict=True):
                for name, array in result.items():
                    new[name][parameter.number] = array
        definition = backend.trees.flatten(params)[1]
        made = {name: backend.trees.unflatten(definition, column) for name, column in new.items()}
        made_params = made.pop("p")
        return tree_leaves((made_params, made | {n: backend.stored_scalar(value) for n, value in outputs.items()}))

    return jax.jit(run)


def _kinds(leaves: Sequence[Any]) -> tuple[tuple[tuple[int, ...], Any], ...]:
    return tuple([(leaf.shape, leaf.dtype) for leaf in leaves])


class Plan:
    """Further steps on arrays like those of one step.

    Args:
        backend: of JAX.
        steps: what they are.
        devices_of: returns the names of an array's devices.
    """

    in_place = False
    does_first = True
    remarks: tuple[str, ...] = ()

    def __init__(self, backend: Any, steps: Steps, devices_of: Callable[[Any], str | None]) -> None:
        self.backend = backend
        self.program = steps.programs[0]
        self.inputs = steps.inputs
        self._steps = steps
        self._structure = steps.structure
        self._functions = {k: compiled(backend, steps._replace(by_kernel=k)) for k in (False, True)}
        shapes = {of.program: of.place.whole for of in reversed(steps.parameters)}
        self._shapes = [(program, shapes[i]) for i, program in enumerate(steps.programs)]
        self._types = [_Array] * len(steps.kinds)
        self._results, self._places = _results(backend, steps)
        self._sorted = list(tree_unflatten(steps.structure, steps.kinds)[2])
        self._devices_of = devices_of
        # Where there is one device, all arrays are on it.
        several = sum(len(of.local_devices()) for of in jax.extend.backend.backends().values()) > 1
        self._looks_at_arrays = self._looks_at_devices = several
        self.was_used = False
        self._numbers: Any = None
        """Scalars of steps for which no hyperparameters are given, if they are the same in all: an array of JAX."""

    def step(
        self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> tuple[Any, OptimizerState] | None:
        """Do a step and return parameters and the new state; None, with nothing done, if anything is not as it was."""
        matched = self._matched(params, grads, state, overrides)
        if matched is None:
            return None
        leaves, overrides = matched
        slots = state.slots
        if self._looks_at_arrays and not self._fits(leaves):
            return None
        numbers, finished = self._numbers, state.step + 1
        if overrides or numbers is None:
            numbers = self._scalars(rule, state, overrides, leaves)
            if numbers is None:
                return None
        try:
            # As an argument, a Python number is the fastest of all to pass on.
            results = self._functions[_kernel.enabled()](numbers, finished, leaves)
        except _Misfit:
            # From now on it is found out sooner.
            self._looks_at_arrays = True
            return None
        if self._places is not None:
            remaining = iter(results)
            results = [next(remaining) if place is None else leaves[place] for place in self._places]
        self.was_used = True
        new, new_slots = self._results.unflatten(results)
        if list(slots) != self._sorted:
            # JAX sorts what dicts hold.
            new_slots = {name: new_slots[name] for name in slots}
        return new, OptimizerState(finished, new_slots)

    def fits(self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]) -> bool:
        """Tell whether the plan would do a step, doing nothing."""
        matched = self._matched(params, grads, state, overrides)
        if matched is None or not self._fits(matched[0]):
            return False
        try:
            checked = rule.check_overrides(matched[1]) | dict.fromkeys(self.inputs, True)
        except Exception:
            # The full check says so in its order.
            return False
        if any(name in checked for program, _ in self._shapes for name in program.totals):
            return False
        return all(rule.program(checked, shape) is program for program, shape in self._shapes)

    def _matched(
        self, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]] | None:
        """Return the leaves of a step, and the hyperparameters but further inputs; None if the trees are not as they were."""
        if type(state) is not OptimizerState or type(state.step) is not int or not 0 <= state.step < MOST_STEPS:
            return None
        if self.inputs:
            if any(overrides.get(name) is None for name in self.inputs):
                return None
            grads = (grads, *[overrides[name] for name in self.inputs])
            overrides = {name: value for name, value in overrides.items() if name not in self.inputs}
        else:
            grads = (grads,)
        leaves, structure = tree_flatten((params, grads, state.slots))
        if structure != self._structure or list(map(type, leaves)) != self._types:
            return None
        if is_interpreted() or is_set_aside(self.backend):
            return None
        return leaves, overrides

    def _fits(self, leaves: Sequence[Any]) -> bool:
        if _kinds(leaves) != self._steps.kinds:
            return False
        return not self._looks_at_devices or len(set(map(self._devices_of, leaves))) == 1

    def _scalars(
        self, rule: Rule, state: OptimizerState, overrides: Mapping[str, Any], leaves: Sequence[Any]
    ) -> Any | None:
        """Return the scalars of a step; None if it is another step."""
        try:
            checked = rule.check_overrides(overrides)
            if any(name in checked for program, _ in self._shapes for name in program.totals):
                return None
            if self.inputs:
                checked |= dict.fromkeys(self.inputs, True)
            if any(rule.program(checked, shape) is not program for program, shape in self._shapes):
                return None
            scheduled = any(map(is_schedule, rates_of(rule, checked)))
            # No schedule of a user's is called for a step that another plan does.
            if scheduled and not self._fits(leaves):
                return None
            # Those of the state stay where they are.
            unknown = state._replace(slots=dict.fromkeys(state.slots, 1.0))
            programs = [program for program, _ in self._shapes]
            scalars, _ = rule.step_scalars(self.backend, programs, unknown, checked, lambda *_: 1.0)
        except Exception:
            # Of several things that are wrong, the full check has an order of its own.
            if self._fits(leaves):
                raise
            return None
        values = [scalars[0].inputs[name] for name in self._steps.scalar_names(state.slots)]
        if scalars[0].arithmetic is not HOST or not all(isinstance(value, int | float) for value in values):
            return None
        numbers = np.array(values, np.float64)
        if not overrides and not scheduled and not self._looks_at_devices:
            with jax.enable_x64(True):
                kept = jnp.asarray(numbers)
            if type(kept) is _Array:  # no part of a computation that somebody traces
                self._numbers = kept
                return kept
        return numbers.view(np.uint32).reshape(-1, 2)


def make_plan(
    backend: Any,
    programs: Sequence[Program],
    trees: tuple[Any, Any, OptimizerState],
    parameters: Sequence[Leaf],
    devices_of: Callable[[Any], str | None],
) -> Plan | None:
    """Return a plan for steps like one; None if its arrays are not all known, or its state is not as such steps leave it.

    Args:
        backend: of JAX.
        programs: what the step runs on each parameter.
        trees: parameters, gradients, or a tuple of these and further inputs, and state of the step.
        parameters: those that have gradients.
        devices_of: returns the names of an array's devices.
    """
    params, grads, state = trees
    if not parameters or is_interpreted() or type(state) is not OptimizerState or type(state.slots) is not dict:
        return None
    further = tuple(name for name in parameters[0] if name not in ("p", "g") and name not in state.slots)
    leaves, structure = tree_flatten((params, grads if further else (grads,), state.slots))
    if set(map(type, leaves)) != {_Array}:
        return None
    of = list(dict.fromkeys(programs))
    known = tuple(
        _Parameter(leaf.number, leaf.place, of.index(program), tuple(leaf.infos.items()))
        for leaf, program in zip(parameters, programs, strict=True)
    )
    return Plan(backend, Steps(tuple(of), known, further, structure, _kinds(leaves), True), devices_of)


def _results(backend: Any, steps: Steps) -> tuple[Any, list[int | None] | None]:
    """Return the structure of parameters and slots, and of each of their leaves that stays as it is its place among all leaves.

    None stands for one that is replaced, and for the list if all are.
    """
    params, _, slots = tree_unflatten(steps.structure, range(len(steps.kinds)))
    leaves, structure = tree_flatten((params, slots))
    numbers = {of.number for of in steps.parameters}
    columns = [backend.trees.flatten(tree)[0] for tree in (params, *steps.array_slots(slots).values())]
    still = {place for column in columns for number, place in enumerate(column) if number not in numbers}
    return structure, [place if place in still else None for place in leaves] if still - {None} else None
