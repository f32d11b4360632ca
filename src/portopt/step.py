"""The step: its arguments are checked, its scalars computed, its program run, and the next one planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import COMPUTE_DTYPE, round_scalar
from portopt.backend import Backend, Leaf
from portopt.backend.totals import total
from portopt.leaves import Leaves, check_gradients, check_slot_dtype, check_slots, gradients_of, leaves_of, slots_of
from portopt.program import Op, Program
from portopt.program.interpreter import StepScalars, evaluate_scalars
from portopt.protocols import Rule
from portopt.scalars import Scalar
from portopt.schedules import is_schedule, rate_at
from portopt.state import OptimizerState, finished_steps
from portopt.step_cache import StepCache
from portopt.trees import Tree


class _Arguments(NamedTuple):
    """A step's arguments after checks; `moving` are the places of the parameters that have gradients."""

    found: Leaves
    slots: dict[str, list[Any]]
    overrides: dict[str, Any]
    moving: list[int]
    parameters: list[Leaf]


def first_state(rule: Rule, params: object, slot_dtype: str | None) -> OptimizerState:
    """Return the state before the first step; see `Optimizer.init`."""
    found = leaves_of(params)
    backend = found.backend
    if slot_dtype is not None:
        check_slot_dtype(found, params, slot_dtype)
    dtypes = [None if info is None else slot_dtype or COMPUTE_DTYPE[info.dtype] for info in found.infos]

    def filled(value: float) -> Any:
        # Rounded to the compute dtype first, as every scalar is that meets arrays.
        rounded = {d: round_scalar(value, "float64" if d == "float64" else "float32") for d in dtypes if d}
        new = [None if d is None else backend.full(p, rounded[d], d) for p, d in zip(found.arrays, dtypes, strict=True)]
        return backend.trees.unflatten(found.definition, new)

    first = rule.first_values
    scalars = {name: backend.stored_scalar(value) for name, value in rule.scalar_slots.items()}
    return OptimizerState(0, {**scalars, **{name: filled(first.get(name, 0.0)) for name in rule.slots}})


def do_step(
    rule: Rule,
    cache: StepCache,
    params: Tree,
    grads: object,
    state: OptimizerState,
    overrides: Mapping[str, Any],
    *,
    in_place: bool,
) -> tuple[Tree, OptimizerState]:
    """Do one step; see `Optimizer.apply` and `Optimizer.apply_`."""
    found, slots, overrides, moving, parameters = _check_arguments(
        rule, params, grads, state, overrides, in_place=in_place
    )
    backend, definition, leaves, _ = found
    program = rule.program(overrides)
    scalars, step = step_scalars(
        rule, backend, program, state, overrides, lambda op: total(backend, program, op, parameters)
    )
    if in_place and len(moving) == len(leaves):
        # Before this step, which must not fail once it is done.
        _plan_next_step(cache, backend, program, (params, grads, state), parameters)
    results = backend.update(program, scalars, parameters, in_place=in_place)

    new_slots: dict[str, Any] = {name: backend.stored_scalar(value) for name, value in scalars.outputs().items()}
    for i, result in zip(moving, results, strict=True):
        leaves[i] = result["p"]
        for name, arrays in slots.items():
            arrays[i] = result[name]
    for name, arrays in slots.items():
        new_slots[name] = state.slots[name] if in_place else backend.trees.unflatten(definition, arrays)
    new_params = params if in_place else backend.trees.unflatten(definition, leaves)
    # In the order of the given state, as a planned step leaves it.
    return new_params, OptimizerState(step, {name: new_slots[name] for name in state.slots})


def check_step(
    rule: Rule, cache: StepCache, params: object, grads: object, state: OptimizerState, overrides: Mapping[str, Any]
) -> None:
    """Raise what a step in place would raise; change nothing."""
    plan = next((p for p in cache.plans if p.fits(params, grads, state)), None)
    if plan is None:
        checked = _check_arguments(rule, params, grads, state, overrides, in_place=True)
        backend, overrides = checked.found.backend, checked.overrides
    else:
        backend, overrides = plan.backend, rule.check_overrides(overrides)
    finished_steps(state.step, further=1)
    if is_schedule(overrides.get("learning_rate", rule.learning_rate)):
        step_scalars(rule, backend, rule.program(overrides), state, overrides, lambda _: 1.0)


def check_state(rule: Rule, params: object, state: OptimizerState) -> tuple[Backend, int]:
    """Return the backend of parameters and the finished steps of their state, after checking that the two fit together."""
    found = leaves_of(params)
    check_slots(found, params, _slots(rule, found, params, state))
    return found.backend, finished_steps(state.step)


def step_scalars(
    rule: Rule,
    backend: Backend,
    program: Program,
    state: OptimizerState,
    overrides: Mapping[str, Any],
    total_of: Callable[[Op], Any],
) -> tuple[StepScalars, Any]:
    """Return the scalars of a step, checked, and the number of finished steps afterwards.

    Args:
        rule: the optimizer.
        backend: of the arrays.
        program: what the step runs.
        state: before the step.
        overrides: what `check_overrides` returned.
        total_of: returns the value of one of the program's totals that is not among `overrides`.
    """
    given: dict[str, Any] = {name: state.slots[name] for name in rule.scalar_slots}
    totals = program.totals
    for name, op in totals.items():
        given[name] = overrides[name] if name in overrides else total_of(op)
    for name in program.scalar_inputs:
        if name not in given and name != "t":
            given[name] = overrides[name] if name in overrides else getattr(rule, name)
    schedule = given.get("learning_rate")
    scheduled = is_schedule(schedule)
    values = [state.step, *(v for n, v in given.items() if n != "learning_rate" or not scheduled)]
    arithmetic = backend.arithmetic(values)
    step = backend.scalar(state.step) if arithmetic is not HOST else finished_steps(state.step, further=1)
    owners = {name: f"{type(rule).__name__}.apply" for name in overrides if name not in totals}
    if schedule is not None and scheduled:
        owner = owners["learning_rate"] = f"the schedule {schedule!r} of {type(rule).__name__}:"
        rate = rule.check_value(owner, "learning_rate", rate_at(schedule, Scalar(step, arithmetic)))
        given["learning_rate"] = rate
        if arithmetic is HOST:  # the schedule may have brought a value of its own that is not known yet
            arithmetic = backend.arithmetic([rate])
    inputs = {name: backend.scalar(value) for name, value in given.items()}
    for name, owner in owners.items():
        if isinstance(inputs.get(name), int | float):
            rule.check_value(owner, name, inputs[name])
    finished = arithmetic.add(step, 1)
    return evaluate_scalars(program, arithmetic, {**inputs, "t": finished}), finished


def _check_arguments(
    rule: Rule, params: object, grads: object, state: OptimizerState, overrides: Mapping[str, Any], *, in_place: bool
) -> _Arguments:
    found = leaves_of(params)
    gradients = gradients_of(found, params, grads)
    slots = _slots(rule, found, params, state)
    trees = {"p": found.arrays, "g": gradients, **slots}
    infos = {"p": found.infos, "g": check_gradients(found, params, gradients), **check_slots(found, params, slots)}
    overrides = rule.check_overrides(overrides)
    moving = [i for i, g in enumerate(gradients) if g is not None]
    parameters = []
    for arrays, described in zip(zip(*trees.values(), strict=True), zip(*infos.values(), strict=True), strict=True):
        if arrays[1] is not None:  # the gradient
            parameters.append(Leaf(zip(trees, arrays, strict=True), zip(trees, described, strict=True)))
    if in_place:
        backend = found.backend
        backend.check_in_place(parameters, lambda i: backend.trees.paths(params)[moving[i]])
    return _Arguments(found, slots, overrides, moving, parameters)


def _slots(rule: Rule, found: Leaves, params: object, state: OptimizerState) -> dict[str, list[Any]]:
    return slots_of(found, params, state, rule.slots, tuple(rule.scalar_slots), type(rule).__name__)


def _plan_next_step(
    cache: StepCache,
    backend: Backend,
    program: Program,
    trees: tuple[object, object, OptimizerState],
    parameters: list[Leaf],
) -> None:
    """Let the backend prepare the next step on the same arrays, once a second step on them shows that there is a loop."""
    arrays = [tuple(map(id, named.values())) for named in parameters]
    looping = hash((program, *((*ids[:1], *ids[2:]) for ids in arrays)))
    if not cache.has_seen(looping):
        return
    plan = backend.plan(program, trees, parameters)
    if plan is not None:
        cache.add(plan)
