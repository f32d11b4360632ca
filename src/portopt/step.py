"""The step: its arguments are checked, its scalars computed, its program run, and the next one planned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import COMPUTE_DTYPE, round_scalar
from portopt.backend import Backend, DeviceNumber, DeviceScalars, Graphs, Leaf, PlannedStep, Work
from portopt.backend.totals import Totals, total
from portopt.leaves import (
    Leaves,
    SlotShapes,
    check_gradients,
    check_slot_dtype,
    check_slots,
    gradients_of,
    leaves_like,
    leaves_of,
    slot_shapes,
    slots_of,
)
from portopt.nested import rates_of, value_of
from portopt.program import Op, Program
from portopt.program.draws import Place
from portopt.program.facts import Facts
from portopt.program.interpreter import StepScalars, evaluate_scalars
from portopt.program.reductions import GRADIENT_NORM
from portopt.protocols import Rule
from portopt.scalars import Scalar
from portopt.schedules import is_schedule, rate_at
from portopt.slot import owner_of, slot_dims, slot_start
from portopt.state import OptimizerState, finished_steps
from portopt.step_cache import StepCache
from portopt.trees import Tree


class Group(NamedTuple):
    """The parameters of a step that one program is for.

    Attributes:
        program: the program.
        members: their numbers among the parameters that have gradients.
        parameters: their arrays.
    """

    program: Program
    members: Sequence[int]
    parameters: Sequence[Leaf]


class _Arguments(NamedTuple):
    """A step's arguments after checks; `moving` are the places of the parameters that have gradients."""

    found: Leaves
    slots: dict[str, list[Any]]
    overrides: dict[str, Any]
    moving: list[int]
    parameters: list[Leaf]


def first_state(
    rule: Rule,
    params: object,
    slot_dtype: str | None,
    places: Sequence[Place] | None = None,
    *,
    capturable: bool = False,
) -> OptimizerState:
    """Return the state before the first step; see `Optimizer.init`."""
    found = leaves_of(params)
    backend = found.backend
    if slot_dtype is not None:
        check_slot_dtype(found, params, slot_dtype)
    dtypes = [None if info is None else slot_dtype or COMPUTE_DTYPE[info.dtype] for info in found.infos]
    shapes = slot_shapes(rule, found, places)

    def first(name: str) -> Any:
        start = slot_start(rule, name)
        of_slot = shapes[name] or [None if info is None else info.shape for info in found.infos]
        new = [
            None
            if dtype is None or shape is None
            else first_array(rule, backend, name, start, p, dtype, shape, is_part=places is not None)
            for p, dtype, shape in zip(found.arrays, dtypes, of_slot, strict=True)
        ]
        return backend.trees.unflatten(found.definition, new)

    scalars = {name: backend.stored_scalar(value) for name, value in rule.scalar_slots.items()}
    state = OptimizerState(0, {**scalars, **{str(name): first(name) for name in shapes}})
    return to_capturable(rule, params, state) if capturable else state


def to_capturable(rule: Rule, params: object, state: OptimizerState) -> OptimizerState:
    """Return a state whose step number and scalars are on the device of the parameters; see `Optimizer.to_capturable`."""
    found = leaves_of(params)
    backend, graphs = found.backend, found.backend.graphs
    if graphs is None:
        raise ValueError(
            "a capturable state is for arrays on a CUDA device, whose graphs repeat steps, but arrays of "
            f"{backend.name} were given; these take a state on the host, capturable=False"
        )
    if graphs.has_step(state.step):
        return state
    like = next(array for array, info in zip(found.arrays, found.infos, strict=True) if info is not None)
    scalars = {name: graphs.put(float(backend.scalar(state.slots[name])), like) for name in rule.scalar_slots}
    return OptimizerState(graphs.put(finished_steps(state.step), like), {**state.slots, **scalars})


def from_capturable(rule: Rule, state: OptimizerState) -> OptimizerState:
    """Return a state whose step number and scalars are on the host; see `Optimizer.from_capturable`."""
    scalars = {name: float(x) for name in rule.scalar_slots if getattr(x := state.slots[name], "shape", None) == ()}
    finished = int(state.step) if getattr(state.step, "shape", None) == () else state.step
    return OptimizerState(finished, {**state.slots, **scalars})


def _is_capturable(backend: Backend, state: OptimizerState) -> bool:
    return type(state.step) is not int and backend.graphs is not None and backend.graphs.has_step(state.step)


def first_array(
    rule: Rule,
    backend: Backend,
    name: str,
    start: float | str,
    parameter: Any,
    dtype: str,
    shape: tuple[int, ...],
    *,
    is_part: bool = False,
) -> Any:
    """Return what a slot of a parameter, or of a part of one, is at first."""
    if start == "p":
        if shape != tuple(parameter.shape):
            raise ValueError(
                f"the slot {name!r} of {type(rule).__name__} starts as a copy of the parameter, so it must have its shape"
            )
        return backend.copied(parameter, dtype)
    # Rounded to the compute dtype first, as every scalar is that meets arrays.
    value = round_scalar(first_number(rule, name, start), "float64" if dtype == "float64" else "float32")
    whole = tuple(parameter.shape)
    if shape == whole:
        return backend.full(parameter, value, dtype)
    dims = None if is_part else slot_dims(rule, name, Facts(type(rule).__name__, whole))
    if dims is None:
        return backend.full(parameter, value, dtype, shape)
    return backend.full_along(
        parameter, value, dtype, shape, [None if isinstance(d, str) else d for d in dims if d != -1]
    )


def first_number(rule: Rule, name: str, start: float | str) -> float:
    """Return the number that a slot's elements are at first."""
    if not isinstance(start, str):
        return float(start)
    value = getattr(owner_of(rule, name)[0], start, None)
    if is_schedule(value):
        value = rate_at(value, Scalar(0, HOST))
    if isinstance(value, Scalar):
        value = value.value
    if not isinstance(value, int | float):
        raise TypeError(
            f"the slot {name!r} of {type(rule).__name__} starts at {start!r}, which is {value!r}: allowed are a number, 'p', "
            "and the name of a hyperparameter that is a number"
        )
    return float(value)


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
    given = overrides
    arguments = _check_arguments(rule, params, grads, state, given, in_place=in_place, places=cache.places)
    found, _, overrides, _, parameters = arguments
    backend = found.backend
    groups = grouped_by_program(rule, overrides, parameters, found)
    if _is_capturable(backend, state):
        reason = _why_not_on_device(rule, backend, groups, state, overrides)
        if reason is None:
            return _step_on_device(rule, cache, (params, grads, state), arguments, groups, given, in_place=in_place)
        _graphs(backend).refuse_capture([state.step, *(leaf["p"] for leaf in parameters)], reason)
        return _step_from_host(rule, cache, params, grads, state, given, in_place=in_place)
    _refuse_capture(backend, parameters)
    further = {name: tree for name in rule.inputs if (tree := given.get(name)) is not None}
    plan_next = functools.partial(
        _plan_next_step, cache, backend, groups, (params, grads, state), further, parameters, in_place=in_place
    )
    plan = None if in_place else plan_next()
    if plan is not None and plan.does_first:
        named = {name: value for name, value in given.items() if name not in rule.inputs or value is not None}
        done = plan.step(rule, params, grads, state, named)
        if done is not None:
            cache.add(plan)
            return done
    scalars, step = step_scalars(
        rule,
        backend,
        [group.program for group in groups],
        state,
        overrides,
        lambda name, scalars_of: total(backend, name, [(g.program, g.parameters, scalars_of) for g in groups]),
    )
    # Before this step, which must not fail once it is done.
    plan = plan_next() if in_place else plan
    if plan is not None:
        cache.add(plan)
    works = [Work(of.program, of, group.parameters) for of, group in zip(scalars, groups, strict=True)]
    results = backend.update(works, in_place=in_place)
    new_scalars = {name: backend.stored_scalar(value) for name, value in scalars[0].outputs().items()}
    return _finished(params, state, arguments, groups, results, step, new_scalars, in_place=in_place)


def _finished(
    params: Tree,
    state: OptimizerState,
    arguments: _Arguments,
    groups: Sequence[Group],
    results: Sequence[Mapping[str, Any]],
    step: Any,
    new_slots: dict[str, Any],
    *,
    in_place: bool,
) -> tuple[Tree, OptimizerState]:
    """Return parameters and state after a step, given what it made of each parameter, and the new scalars of the state."""
    found, slots, _, moving, _ = arguments
    backend, definition, leaves, _ = found
    places = [moving[member] for group in groups for member in group.members]
    for i, result in zip(places, results, strict=True):
        leaves[i] = result["p"]
        for name in result:
            if name != "p":
                slots[name][i] = result[name]
    for name, arrays in slots.items():
        new_slots[name] = state.slots[name] if in_place else backend.trees.unflatten(definition, arrays)
    new_params = params if in_place else backend.trees.unflatten(definition, leaves)
    # In the order of the given state, as a planned step leaves it.
    return new_params, OptimizerState(step, {name: new_slots[name] for name in state.slots})


# Steps that a graph repeats -----------------------------------------------------------------------------------------


def _step_on_device(
    rule: Rule,
    cache: StepCache,
    trees: tuple[Tree, object, OptimizerState],
    arguments: _Arguments,
    groups: Sequence[Group],
    given: Mapping[str, Any],
    *,
    in_place: bool,
) -> tuple[Tree, OptimizerState]:
    """Do a step of which kernels compute the scalars, so that a graph can repeat it."""
    params, _, state = trees
    backend, graphs = arguments.found.backend, _graphs(arguments.found.backend)
    before = {"t": state.step, **{name: state.slots[name] for name in rule.scalar_slots}}
    after = before if in_place else {name: graphs.empty(number) for name, number in before.items()}
    with graphs.kept(after["t"]):
        scalars, _ = step_scalars(
            rule,
            backend,
            [group.program for group in groups],
            state,
            arguments.overrides,
            lambda name, scalars_of: total(backend, name, [(g.program, g.parameters, scalars_of) for g in groups]),
            {name: graphs.place(number) for name, number in after.items()},
        )
        # A plan that never did a step is one of many that would not.
        if in_place and all(plan.was_used for plan in cache.plans):
            further = {name: tree for name in rule.inputs if (tree := given.get(name)) is not None}
            make = _planned_on_device(rule, backend, groups, arguments, given)
            plan = _plan_next_step(
                cache, backend, groups, trees, further, arguments.parameters, in_place=True, on_device=make
            )
            if plan is not None:
                cache.add(plan)
        works = [Work(of.program, of, group.parameters) for of, group in zip(scalars, groups, strict=True)]
        results = backend.update(works, in_place=in_place)
    step = after.pop("t")
    return _finished(params, state, arguments, groups, results, step, after, in_place=in_place)


def _planned_on_device(
    rule: Rule, backend: Backend, groups: Sequence[Group], arguments: _Arguments, given: Mapping[str, Any]
) -> Callable[[Sequence[Program], Trees, Sequence[Leaf]], PlannedStep | str]:
    """Return what plans a step in place whose number is on a device."""
    graphs = _graphs(backend)

    def plan(programs: Sequence[Program], trees: Trees, parameters: Sequence[Leaf]) -> PlannedStep | str:
        state = trees[2]

        def scalars_of(
            totals: Totals, of_programs: Sequence[tuple[Program, Sequence[Leaf]]]
        ) -> Sequence[DeviceScalars]:
            def total_of(name: str, scalars_of_part: Any) -> Any:
                return total(totals, name, [(program, leaves, scalars_of_part) for program, leaves in of_programs])

            written = {"t": state.step, **{name: state.slots[name] for name in rule.scalar_slots}}
            places = {name: graphs.place(number) for name, number in written.items()}
            of_step = [program for program, _ in of_programs]
            found, _ = step_scalars(rule, backend, of_step, state, arguments.overrides, total_of, places)
            return [scalars for scalars in found if isinstance(scalars, DeviceScalars)]

        overrides = {name: value for name, value in given.items() if name not in rule.inputs}
        made: PlannedStep | str = graphs.plan(programs, trees, parameters, overrides, scalars_of)
        return made

    return plan


def _step_from_host(
    rule: Rule,
    cache: StepCache,
    params: Tree,
    grads: object,
    state: OptimizerState,
    overrides: Mapping[str, Any],
    *,
    in_place: bool,
) -> tuple[Tree, OptimizerState]:
    """Do a step of which the host computes the scalars, which are brought to the host for it, and back."""
    before = from_capturable(rule, state)
    params, after = do_step(rule, cache, params, grads, before, overrides, in_place=in_place)
    if not in_place:
        return params, to_capturable(rule, params, after)
    graphs = _graphs(leaves_of(params).backend)
    graphs.assign(state.step, after.step)
    for name in rule.scalar_slots:
        graphs.assign(state.slots[name], after.slots[name])
    return params, state


def _graphs(backend: Backend) -> Graphs:
    assert backend.graphs is not None  # or no state would be on a device
    return backend.graphs


def _refuse_capture(backend: Backend, parameters: Sequence[Leaf]) -> None:
    if backend.graphs is not None:
        backend.graphs.refuse_capture([leaf["p"] for leaf in parameters])


def _why_not_on_device(
    rule: Rule, backend: Backend, groups: Sequence[Group], state: OptimizerState, overrides: Mapping[str, Any]
) -> str | None:
    """Return why kernels cannot do a step whose number is on a device; None if they can."""
    graphs = _graphs(backend)
    for name in rule.scalar_slots:
        if not graphs.has_number(state.slots[name]):
            return f"state.slots[{name!r}] is not on the device of state.step; see opt.to_capturable"
    schedules = [rate for rate in rates_of(rule, overrides) if is_schedule(rate)]
    given, totals = _scalars_given(rule, [group.program for group in groups], state, overrides)
    given |= {"state.step": state.step, **{name: overrides[name] for name in totals if name in overrides}}
    numbers = {name: value for name, value in given.items() if graphs.has_number(value)}
    return graphs.why_not([(group.program, group.parameters) for group in groups], schedules, numbers)


def grouped_by_program(
    rule: Rule, overrides: Mapping[str, Any], parameters: Sequence[Leaf], found: Leaves
) -> list[Group]:
    """Return the parameters of a step by the program that is for them; one group at least, which may be empty.

    Args:
        rule: the optimizer.
        overrides: what `check_overrides` returned.
        parameters: those that have gradients.
        found: all parameters.
    """
    lacking = _lacking_inputs(rule, overrides, parameters) if rule.inputs else None
    program = None if lacking else rule.fixed_program(overrides)
    if program is not None:
        return [Group(program, range(len(parameters)), parameters)]
    members: dict[Program, list[int]] = {}
    for i, leaf in enumerate(parameters):
        given = {n: v for n, v in overrides.items() if n not in lacking[i]} if lacking else overrides
        members.setdefault(rule.program(given, leaf.place.whole), []).append(i)
    if not members:
        # The step still counts, and every program has the scalars of the state.
        members[rule.program(overrides, next(info.shape for info in found.infos if info is not None))] = []
    return [Group(program, which, [parameters[i] for i in which]) for program, which in members.items()]


def _lacking_inputs(
    rule: Rule, overrides: Mapping[str, Any], parameters: Sequence[Leaf]
) -> list[frozenset[str]] | None:
    """Return the further inputs that a step has and each parameter lacks; None if none lacks any."""
    given = frozenset(rule.inputs).intersection(overrides)
    lacking = [given.difference(leaf) for leaf in parameters]
    return lacking if any(lacking) else None


def check_step(
    rule: Rule, cache: StepCache, params: object, grads: object, state: OptimizerState, overrides: Mapping[str, Any]
) -> None:
    """Raise what a step in place would raise; change nothing."""
    plan = None
    if overrides.keys().isdisjoint(rule.inputs):
        plan = next((p for p in cache.plans if p.fits(rule, params, grads, state, dict(overrides))), None)
    if plan is None:
        checked = _check_arguments(rule, params, grads, state, overrides, in_place=True, places=cache.places)
        backend, overrides = checked.found.backend, checked.overrides
        if not _is_capturable(backend, state):
            finished_steps(state.step, further=1)
        programs = [group.program for group in grouped_by_program(rule, overrides, checked.parameters, checked.found)]
    else:
        backend, programs = plan.backend, [plan.program]
        overrides = rule.check_overrides(overrides) if overrides else {}
    if any(map(is_schedule, rates_of(rule, overrides))):
        step_scalars(rule, backend, programs, state, overrides, lambda *_: 1.0)


def would_repeat(
    rule: Rule, cache: StepCache, params: object, grads: object, state: OptimizerState, overrides: Mapping[str, Any]
) -> bool:
    """Tell whether a plan is sure to do a step in place: a schedule may refuse the step, or be one that Python has to call."""
    if not any(plan.fits(rule, params, grads, state, dict(overrides)) for plan in cache.plans):
        return False
    return not any(map(is_schedule, rates_of(rule, rule.check_overrides(overrides) if overrides else {})))


class Part(NamedTuple):
    """A part of a step: what one optimizer does, with hyperparameters of its own."""

    rule: Rule
    cache: StepCache
    params: object
    grads: object
    state: OptimizerState
    overrides: Mapping[str, Any]


def totals_of(parts: Sequence[Part], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the totals, by name, over all parameters of a step whose parts are done one by one, given those known already."""
    checked = [
        _check_arguments(of.rule, of.params, of.grads, of.state, of.overrides, in_place=False, places=of.cache.places)
        for of in parts
    ]
    groups = [
        grouped_by_program(part.rule, of.overrides, of.parameters, of.found)
        for part, of in zip(parts, checked, strict=True)
    ]
    backend, known = checked[0].found.backend, dict(known or {})
    names = {name for of in groups for group in of for name in group.program.totals} - set(known)
    # Others are of the clipped gradients.
    for name in sorted(names, key=lambda name: (name != GRADIENT_NORM, name)):
        programs = []
        for part, of, own in zip(parts, checked, groups, strict=True):
            scalars_of = dict[str, Callable[[Program], StepScalars]]()

            def note(total: str, of_part: Any, noted: dict[str, Any] = scalars_of) -> float:
                noted[total] = of_part
                return 1.0

            step_scalars(part.rule, backend, [g.program for g in own], part.state, {**of.overrides, **known}, note)
            programs += [(g.program, g.parameters, scalars_of[name]) for g in own if name in scalars_of]
        if name == GRADIENT_NORM:
            # Those of parameters that are not clipped count as well.
            known[name] = backend.gradient_norm([arrays["g"] for of in checked for arrays in of.parameters])
        else:
            known[name] = total(backend, name, programs)
    return known


def check_state(rule: Rule, params: object, state: OptimizerState) -> tuple[Backend, int]:
    """Return the backend of parameters and the finished steps of their state, after checking that the two fit together."""
    found = leaves_of(params)
    slots, shapes = _slots(rule, found, params, state)
    check_slots(found, params, slots, shapes)
    return found.backend, finished_steps(state.step)


Trees = tuple[Any, Any, OptimizerState]
"""Parameters, gradients, or a tuple of these and further inputs, and the state."""
TotalOf = Callable[[str, Callable[[Program], StepScalars]], Any]
"""Returns a total, given its name and what returns the scalars of a part of a program."""


def step_scalars(
    rule: Rule,
    backend: Backend,
    programs: Sequence[Program],
    state: OptimizerState,
    overrides: Mapping[str, Any],
    total_of: TotalOf,
    written: Mapping[str, DeviceNumber] | None = None,
) -> tuple[list[StepScalars], Any]:
    """Return the scalars of a step for each of its programs, checked, and the number of finished steps afterwards.

    The programs are returned as they are when the totals are known, `StepScalars.program`. Those of a step whose number is on a
    device are `DeviceScalars`.

    Args:
        rule: the optimizer.
        backend: of the arrays.
        programs: what the step runs.
        state: before the step.
        overrides: what `check_overrides` returned.
        total_of: returns the value of a total that is not among `overrides`.
        written: where kernels put the new step number, `"t"`, and the new scalars of a state that is on a device.
    """
    given, totals = _scalars_given(rule, programs, state, overrides)
    schedules = {}
    for name in rule.rates:
        if name in given and is_schedule(given[name]):
            schedules[name] = given[name]
    if _is_capturable(backend, state):
        found = _scalars_on_device(rule, backend, programs, state, overrides, total_of, (given, schedules, totals))
        for of in found:
            of.written = written or {}
        return [*found], state.step
    values = [state.step, *(v for n, v in given.items() if n not in schedules)]
    values += [overrides[name] for name in totals if name in overrides]
    arithmetic = backend.arithmetic(values)
    step = backend.scalar(state.step) if arithmetic is not HOST else finished_steps(state.step, further=1)
    owners = {name: f"{type(rule).__name__}.apply" for name in overrides if name not in totals}
    for name, schedule in schedules.items():
        owner = owners[name] = f"the schedule {schedule!r} of {type(rule).__name__}:"
        rate = given[name] = rule.check_value(owner, name, rate_at(schedule, Scalar(step, arithmetic)))
        if arithmetic is HOST:  # the schedule may have brought a value of its own that is not known yet
            arithmetic = backend.arithmetic([rate])
    inputs = {name: backend.scalar(value) for name, value in given.items()}
    for name, owner in owners.items():
        if isinstance(inputs.get(name), int | float):
            rule.check_value(owner, name, inputs[name])
    inputs["t"] = finished = arithmetic.add(step, 1)
    for name in totals:
        known = inputs.copy()
        value = (
            overrides[name]
            if name in overrides
            else total_of(name, functools.partial(evaluate_scalars, arithmetic=arithmetic, inputs=known))
        )
        inputs[name] = backend.scalar(value)
        if arithmetic is HOST:
            arithmetic = backend.arithmetic([value])
            inputs["t"] = finished = arithmetic.add(step, 1)
    if totals:
        programs = [program.after_totals for program in programs]
    return [StepScalars(program, arithmetic, inputs) for program in programs], finished


def _scalars_given(
    rule: Rule, programs: Iterable[Program], state: OptimizerState, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Op]]:
    """Return the scalar inputs of programs but for the step, of which rates may be schedules, and their totals."""
    given: dict[str, Any] = {name: state.slots[name] for name in rule.scalar_slots}
    totals: dict[str, Op] = {}
    for program in programs:
        totals |= program.totals
        for name in program.scalar_inputs:
            if name not in given and name != "t" and name not in totals:
                given[name] = (
                    overrides[name]
                    if name in overrides
                    else getattr(rule, name)
                    if "." not in name
                    else value_of(rule, name)
                )
    return given, totals


def _scalars_on_device(
    rule: Rule,
    backend: Backend,
    programs: Sequence[Program],
    state: OptimizerState,
    overrides: Mapping[str, Any],
    total_of: TotalOf,
    named: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Op]],
) -> list[DeviceScalars]:
    """Return the scalars of a step whose number is on a device, given its scalar inputs, those with schedules, and totals."""
    given, schedules, totals = named
    graphs = _graphs(backend)
    places, inputs = {"t": graphs.place(state.step)}, dict[str, Any]()

    def take(name: str, value: Any) -> None:
        if isinstance(value, DeviceNumber):
            places[name] = value
        elif graphs.has_number(value):
            places[name] = graphs.place(value)
        else:
            inputs[name] = value = backend.scalar(value)
            if name in overrides and name not in totals and isinstance(value, int | float):
                rule.check_value(f"{type(rule).__name__}.apply", name, value)

    for name, value in given.items():
        if name not in schedules:
            take(name, value)
    for name in totals:
        known = DeviceScalars(programs[0], inputs.copy(), places.copy(), schedules, {})
        take(name, overrides[name] if name in overrides else total_of(name, known.of))
    return [
        DeviceScalars(program.after_totals if totals else program, inputs, places, schedules, {})
        for program in programs
    ]


def _check_arguments(
    rule: Rule,
    params: object,
    grads: object,
    state: OptimizerState,
    overrides: Mapping[str, Any],
    *,
    in_place: bool,
    places: Sequence[Place] | None = None,
) -> _Arguments:
    found = leaves_of(params)
    gradients = gradients_of(found, params, grads)
    overrides = dict(overrides)
    further: dict[str, Any] = {}
    for name in rule.inputs:
        if (tree := overrides.pop(name, None)) is not None:
            further[name] = tree
    slots, shapes = _slots(rule, found, params, state, places)
    trees, infos = (
        {"p": found.arrays, "g": gradients},
        {"p": found.infos, "g": check_gradients(found, params, gradients)},
    )
    for name, tree in further.items():
        trees[name] = leaves_like(found.backend.trees, found.definition, params, tree, name)
        infos[name] = check_gradients(found, params, trees[name], name)
    trees |= slots
    infos |= check_slots(found, params, slots, shapes)
    overrides = rule.check_overrides(overrides) | dict.fromkeys(further, True)
    moving = [i for i, g in enumerate(gradients) if g is not None]
    parameters = []
    rows = zip(zip(*trees.values(), strict=True), zip(*infos.values(), strict=True), strict=True)
    for number, (arrays, described) in enumerate(rows):
        if arrays[1] is None:  # the gradient
            continue
        place = None if places is None else places[number]
        if None in described:
            held = {name: (a, info) for name, a, info in zip(trees, arrays, described, strict=True) if info is not None}
            known = ((n, i) for n, (_, i) in held.items())
            parameters.append(Leaf(((n, a) for n, (a, _) in held.items()), known, number, place))
        else:
            all_known = zip(trees, described, strict=True)
            parameters.append(Leaf(zip(trees, arrays, strict=True), all_known, number, place))
    if in_place:
        backend = found.backend
        written = parameters
        if further:
            written = [Leaf(((n, a) for n, a in p.items() if n not in further), p.infos) for p in parameters]
        backend.check_in_place(written, lambda i: backend.trees.paths(params)[moving[i]])
    return _Arguments(found, slots, overrides, moving, parameters)


def _slots(
    rule: Rule, found: Leaves, params: object, state: OptimizerState, places: Sequence[Place] | None = None
) -> tuple[dict[str, list[Any]], SlotShapes]:
    """Return each slot of each parameter, and the shapes that they have to have."""
    shapes = slot_shapes(rule, found, places)
    return slots_of(found, params, state, tuple(shapes), tuple(rule.scalar_slots), type(rule).__name__), shapes


def _plan_next_step(
    cache: StepCache,
    backend: Backend,
    groups: Sequence[Group],
    trees: tuple[object, object, OptimizerState],
    further: Mapping[str, object],
    parameters: list[Leaf],
    *,
    in_place: bool,
    on_device: Callable[[Sequence[Program], Trees, Sequence[Leaf]], PlannedStep | str] | None = None,
) -> PlannedStep | None:
    """Let the backend prepare the next step like this one; return the plan, if one was made.

    A step in place is prepared once a second one on the same arrays shows that there is a loop, or if all are on other arrays.
    """
    same_arrays = False
    if in_place:
        arrays = [tuple(map(id, named.values())) for named in parameters]
        # Behind the parameter come the gradient and further inputs.
        first = 2 + len(further)
        looping = hash((*(group.program for group in groups), *((*ids[:1], *ids[first:]) for ids in arrays)))
        same_arrays = cache.has_seen(looping)
        if not same_arrays and (on_device is not None or not cache.sees_only_new_arrays):
            return None
    elif not cache.expects_repetition():
        return None
    plan = _plan(
        backend, groups, trees, further, parameters, in_place=in_place, same_arrays=same_arrays, on_device=on_device
    )
    return None if isinstance(plan, str) else plan


def _plan(
    backend: Backend,
    groups: Sequence[Group],
    trees: tuple[object, object, OptimizerState],
    further: Mapping[str, object],
    parameters: list[Leaf],
    *,
    in_place: bool,
    same_arrays: bool,
    on_device: Callable[[Sequence[Program], Trees, Sequence[Leaf]], PlannedStep | str] | None = None,
) -> PlannedStep | str:
    """Return a plan for further steps, or why there is none."""
    if not _plans_its_steps(type(backend)):
        return f"the backend {backend.name} has steps of its own, and plans those of the backend that it is made of"
    programs = [groups[0].program] * len(parameters)
    for program, members, _ in groups[1:]:
        for i in members:
            programs[i] = program
    if further:
        if any(name not in leaf for leaf in parameters for name in further):
            return "some parameters lack a further input"
        trees = trees[0], (trees[1], *further.values()), trees[2]
    if on_device is not None:
        return on_device(programs, trees, parameters)
    return backend.plan(programs, trees, parameters, in_place=in_place, same_arrays=same_arrays)


@functools.cache
def _plans_its_steps(kind: type) -> bool:
    """Tell whether the plans of a class of backends are of its own steps: not if it inherits them, but has another `update`."""

    def owner(name: str) -> type:
        return next((base for base in kind.__mro__ if name in vars(base)), object)

    return all(issubclass(owner("plan"), owner(name)) for name in ("update", "gradient_norm", "total"))


class Way(NamedTuple):
    """How a step would be done.

    Attributes:
        operations: why kernels do not do all of it; empty if they do.
        plan: the plan that would do it; why none can; or None if there is none yet.
    """

    operations: tuple[str, ...]
    plan: PlannedStep | str | None


def way_of(part: Part, *, in_place: bool) -> Way:
    """Return how a step would be done; raise what it would raise; do nothing."""
    rule, cache, params, grads, state, overrides = part
    checked = _check_arguments(rule, params, grads, state, overrides, in_place=in_place, places=cache.places)
    backend = checked.found.backend
    groups = grouped_by_program(rule, checked.overrides, checked.parameters, checked.found)
    reasons = [backend.why_not_fused(group.program.after_totals, group.parameters) for group in groups]
    found = tuple(dict.fromkeys(reason for reason in reasons if reason is not None))
    for plan in cache.plans if in_place else cache.pure_plans:
        if plan.fits(rule, params, grads, state, dict(overrides)):
            return Way(found, plan)
    further = {name: tree for name in rule.inputs if (tree := overrides.get(name)) is not None}
    trees, on_device = (params, grads, state), None
    if _is_capturable(backend, state):
        reason = _why_not_on_device(rule, backend, groups, state, checked.overrides)
        if reason is not None or not in_place:
            return Way(found, reason or "of steps of a capturable state only those in place are planned")
        on_device = _planned_on_device(rule, backend, groups, checked, overrides)
    possible = _plan(
        backend,
        groups,
        trees,
        further,
        checked.parameters,
        in_place=in_place,
        same_arrays=in_place,
        on_device=on_device,
    )
    return Way(found, possible if isinstance(possible, str) else None)
