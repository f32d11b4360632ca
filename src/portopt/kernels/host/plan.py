"""Repeated steps: what was found out in the last step is not found out again.

A plan holds what the full check of a step found out: structure, shapes and dtypes, sizes and the kernels. The next step only
makes sure that its arrays are like those (`watch.py`), and calls the kernels; if anything is not as it was, the plan steps aside
and the full check says what is wrong, or makes a new plan. So any number of models of one structure share a plan.

A training loop calls `apply_` with the same parameter and slot arrays and new gradients each time. A plan for that knows
the arrays: they are the same objects with the same memory, of which it was found out that no two share any.

A plan does not keep arrays alive, and has no weak references to them either: NumPy would not let them be resized any more. Should
other arrays take the place of dead ones in memory, they are found to be as the plan says, or they are not.

What a step needs besides, it has to itself, so that any number of threads may use a plan at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.backend import Backend, Leaf
from portopt.kernels.groups import grouped, positions
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import default_flush
from portopt.kernels.host.given import Schedules, changing
from portopt.kernels.host.kernel import Inputs, Work, can_run, draws, host_kernel, make_works, places_of, shared_last
from portopt.kernels.host.norm import GradientTable
from portopt.kernels.host.norm_stages import MOST_ELEMENTS
from portopt.kernels.host.planned_totals import PlannedNorm, PlannedTotal
from portopt.kernels.host.readers import ArrayReader
from portopt.kernels.host.repeated_step import UNKNOWN_CONTAINERS, RepeatedStep, Shape, Trees, parts_of
from portopt.kernels.host.results import Results
from portopt.kernels.host.scalar_script import ScalarScript
from portopt.kernels.host.step_inputs import HEAD, StepInputs
from portopt.kernels.host.totals import can_be_reduced
from portopt.kernels.host.watch import Call, Watch
from portopt.kernels.totals import reducing
from portopt.program import Op, Program
from portopt.protocols import Rule
from portopt.state import OptimizerState


class Computed(NamedTuple):
    """What a step's call computes of the inputs.

    Attributes:
        rates: a script for the learning rates that are schedules, if any are.
        totals: those over all arrays, by the name of the input.
        is_all: whether that is all that changes from step to step: no schedule is a user's.
    """

    rates: ScalarScript | None
    totals: Mapping[str, PlannedNorm | PlannedTotal]
    is_all: bool


class Plan(RepeatedStep):
    """One optimizer's step on one set of arrays, or on all that are like one.

    Args:
        backend: of the arrays.
        programs: what the kernels do, each with the shape of a parameter that it is for.
        watch: knows the arrays.
        work: kernels and their parameters.
        inputs: where the kernels' inputs and outputs are.
        totals: what computes those over all arrays, by name, each after those that it needs.
        further: names of further inputs.
        calls_back: whether a function is told of the written arrays.
        results: of steps that make new arrays; None for steps in place.
        team: returns threads that should do a large step.
    """

    def __init__(
        self,
        backend: Backend,
        programs: Mapping[Program, Shape],
        watch: Watch,
        work: Sequence[Work],
        inputs: Inputs,
        totals: Mapping[str, PlannedNorm | PlannedTotal],
        further: tuple[str, ...],
        *,
        calls_back: bool,
        results: Results | None,
        team: Callable[[], threads.Team | None],
    ) -> None:
        super().__init__(backend, programs, further, results)
        self._watch = watch
        self._work = work
        self._inputs = inputs
        self._totals = totals
        self._total = sum(part.total for part in work)
        self._runs_at_once = threads.is_small(self._total)
        self._team = team
        self._needs_call = calls_back or not self._runs_at_once
        self._schedules = Schedules(programs, inputs.length)

    def step(
        self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> tuple[Any, OptimizerState] | None:
        """Do a step and return parameters and the new state; None, with nothing done, if anything is not as it was.

        A step in place that has begun to write is finished, whatever is raised meanwhile.
        """
        if not self.is_for(state):
            return None
        if self.inputs:
            split = self.split(grads, overrides)
            if split is None:
                return None
            grads, overrides = split
        slots, finished = state.slots, state.step + 1
        found, call = self.inputs_from_last(slots, overrides), None
        if found is not None:
            given, inputs = found
        else:
            try:
                checked = self.checked(rule, overrides)
                if not self.does(rule, checked):
                    return None
                computed = self._computed(rule, checked)
                if not computed.is_all:
                    # No schedule of a user's is called for a step that another plan does.
                    call = self._looked((params, grads, slots), 0, 0, self._watch.begin())
                    if call is None:
                        return None
                new_inputs = self._new_inputs(rule, state, checked, computed, overrides)
            except Exception:
                # Of several things that are wrong, the full check has an order of its own.
                if self._watch.look(params, grads, slots):
                    raise
                return None
            if new_inputs is None:
                return None
            given, inputs = new_inputs, new_inputs.first()
            self.kept = (given, overrides) if computed.is_all else None
        address = inputs.buffer_info()[0] + HEAD
        results, trees = self.results, (params, grads, slots)
        if self._needs_call:
            call = call or self._watch.begin()
            if not self._runs_at_once:
                # No memory is asked for before it is known that the step will fill it.
                if results is not None and self._looked(trees, 0, 0, call) is None:
                    return None
                self._watch.share(call, address, finished, self._team, given.before)
        new = None if results is None else results.new()
        if not self._watch.look(params, grads, slots, address, finished, call, new) and (
            self._looked(trees, address, finished, call, new) is None
        ):
            return None
        self.was_used = True
        if call is not None:
            self._watch.end(call)
        if results is not None and new is not None:
            params, slots = results.trees(new, params, slots)
        names = self.program.scalar_outputs
        if names:
            slots = {**slots, **given.outputs(inputs)}
        return params, OptimizerState(finished, slots)

    def _looked(
        self, trees: tuple[Any, Any, Any], inputs: int, step: int, call: Call | None, new: list[Any] | None = None
    ) -> Call | None:
        """Look, with copies of gradients that kernels cannot read as they lie; return the call if all is as it was."""
        if call is not None and self._watch.look(*trees, inputs, step, call, new):
            return call
        call = self._watch.mend(call, *trees)
        return call if call is not None and self._watch.look(*trees, inputs, step, call, new) else None

    def _computed(self, rule: Rule, overrides: Mapping[str, Any]) -> Computed:
        """Return what the step's call computes of the inputs."""
        totals = {name: total for name, total in self._totals.items() if name not in overrides}
        scheduled = self._schedules.of(rule, overrides)
        return Computed(scheduled.script, totals, scheduled.is_all)

    def fits(self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]) -> bool:
        """Tell whether the plan would do a step, doing nothing."""
        if not self.is_for(state) or (split := self.split(grads, overrides)) is None:
            return False
        grads, overrides = split
        if not self.would_do(rule, overrides):
            return False
        trees = params, grads, state.slots
        return self._watch.look(*trees) or self._looked(trees, 0, 0, None) is not None

    def _new_inputs(
        self,
        rule: Rule,
        state: Any,
        overrides: Mapping[str, Any],
        computed: Computed,
        named: Mapping[str, Any],
    ) -> StepInputs | None:
        scalars, _ = rule.step_scalars(self.backend, list(self.programs), state, overrides, lambda *_: 1.0)
        values = self._inputs.values([of.inputs for of in scalars])
        if not all(type(v) in (int, float) for v in values):
            return None
        return StepInputs(
            self._inputs,
            values,
            computed.rates,
            computed.totals,
            outputs=tuple(self.program.scalar_outputs),
            state=tuple(rule.scalar_slots),
            given=changing(rule, named) if computed.is_all else {},
        )


def can_plan(programs: Iterable[Program]) -> bool:
    """Tell whether kernels can run all of a step's programs, as a plan needs."""
    return all(can_run(program.after_totals) for program in set(programs))


def make_plan(
    backend: Backend,
    programs: Sequence[Program],
    trees: Trees,
    arrays: Sequence[Leaf],
    reader: ArrayReader,
    note_written: Callable[[list[Any]], object] | None = None,
    *,
    in_place: bool,
    same_arrays: bool,
) -> Plan | str:
    """Return a plan for steps on C-contiguous arrays in host memory, or why there is none.

    Args:
        backend: of the arrays.
        programs: what the steps run on each parameter.
        trees: a step's parameters, gradients and state; where there are further inputs, a tuple of gradients and these.
        arrays: of each parameter that has a gradient, in the order of the tree.
        reader: how arrays are read.
        note_written: a function written in C that, given a list of all written arrays after a step, notes that they were written.
        in_place: whether the steps are.
        same_arrays: whether they are on the same parameters and slots, or on any that are like them.
    """
    if arrays and not can_plan(programs):
        return "no kernel holds all of the program"
    parts = parts_of(backend, programs, trees, arrays, reader, "in host memory")
    if isinstance(parts, str):
        return parts
    arrays = parts.arrays
    members = positions(programs)
    work: list[Work] = []
    dtypes = [leaf.dtypes for leaf in arrays]
    for number, (program, chosen) in enumerate(members.items()):
        after, drawing = program.after_totals, places_of([arrays[i] for i in chosen]) if draws(program) else []
        if drawing is None:
            return "no kernel draws random numbers for parameters of which other processes hold parts"
        for key, _, places in grouped(after, [dtypes[i] for i in chosen], in_place=in_place, flush=default_flush()):
            kernel, those = host_kernel(after, key), [chosen[place] for place in places]
            own = [drawing[place] for place in places] if drawing else ()
            # Other arrays have others, and new ones have none yet.
            addresses = [[reader.address(arrays[i][n]) if same_arrays else 0 for n in kernel.columns] for i in those]
            shapes_of_those = [tuple(arrays[i]["p"].shape) for i in those]
            work += make_works(kernel, number, those, addresses, shapes_of_those, own)
    work = shared_last(work)
    of_totals = _works_of_totals(members, dtypes, [tuple(leaf["p"].shape) for leaf in arrays])
    if of_totals is None:
        return "no kernel computes a total over all parameters"
    inputs = Inputs([*work, *itertools.chain.from_iterable(of_totals.values())])
    results = None if in_place else parts.results(backend, reader, programs)
    params, grads, state = trees
    watch = Watch(
        reader, (params, grads, state.slots), parts.scalar_slots, arrays, parts.still, work, inputs, same_arrays=same_arrays,
        new=None if results is None else results.places, note_written=note_written if in_place else None, further=parts.further,
    )  # fmt: skip
    if not watch.is_possible:
        return UNKNOWN_CONTAINERS
    totals = _planned_totals(members, of_totals, work, watch.offsets, inputs)
    if isinstance(totals, str):
        return totals
    shapes = {program: tuple(arrays[chosen[0]]["p"].shape) for program, chosen in members.items()}
    return Plan(
        backend,
        shapes,
        watch,
        work,
        inputs,
        totals,
        parts.further,
        calls_back=watch.calls_back,
        results=results,
        team=reader.team,
    )


def _works_of_totals(
    members: Mapping[Program, Sequence[int]], dtypes: Sequence[Mapping[str, str]], shapes: Sequence[tuple[int, ...]]
) -> dict[str, list[Work]] | None:
    """Return by name the kernels of the totals that are not norms of arrays as they are; None if there is none for one of them.

    Args:
        members: of each program.
        dtypes: name to dtype name, of each parameter.
        shapes: of each parameter.
    """
    found: dict[str, list[Work]] = {}
    number = len(members)
    for total in _totals_of(members):
        if _is_norm(members, total):
            continue
        found[total] = []
        for program, chosen in members.items():
            op = program.totals[total]
            reduction, part = _reduction(op), program.part(op.args[0])
            if not can_be_reduced(part, reduction):
                return None
            reduced = reducing(part, reduction)
            for key, _, places in grouped(reduced, [dtypes[i] for i in chosen], in_place=True, flush=default_flush()):
                kernel, those = host_kernel(reduced, key), [chosen[place] for place in places]
                # The addresses come from the table of the step.
                unknown = [[0] * len(kernel.columns)] * len(those)
                found[total] += make_works(kernel, number, those, unknown, [shapes[i] for i in those])
            number += 1
    return found


def _planned_totals(
    members: Mapping[Program, Sequence[int]],
    of_totals: Mapping[str, Sequence[Work]],
    work: Sequence[Work],
    offsets: Sequence[int],
    inputs: Inputs,
) -> dict[str, PlannedNorm | PlannedTotal] | str:
    """Return what computes the totals, or why nothing does.

    Args:
        members: of each program.
        of_totals: the kernels of totals, by name.
        work: of the plan.
        offsets: of the table of each, in bytes, in the table of all.
        inputs: where the kernels' inputs are.
    """
    names, total = _totals_of(members), sum(item.total for item in work)
    if names and total >= MOST_ELEMENTS:
        return (
            f"of {MOST_ELEMENTS} elements and more, Python adds up the integers that make a total over all parameters"
        )
    cells = {
        (i, name): offset // 8 + row * item.kernel.width + column
        for item, offset in zip(work, offsets, strict=True)
        for row, i in enumerate(item.members)
        for column, name in enumerate(item.kernel.columns)
    }
    program, found = next(iter(members)), dict[str, PlannedNorm | PlannedTotal]()
    for name in names:
        op = program.totals[name]
        if name not in of_totals:
            read = str(program.ops[op.args[0]].reads)
            if any(read not in kernel.columns for kernel, *_ in work):
                return "no kernel reads an array of which a total over all parameters is"
            found[name] = PlannedNorm(_tables(work, offsets, read))
            continue
        if any((i, of) not in cells for item in of_totals[name] for of in item.kernel.columns for i in item.members):
            return "no kernel reads an array of which a total over all parameters is"
        found[name] = PlannedTotal(
            _reduction(op), of_totals[name], cells, inputs, in_passes=not threads.is_small(total)
        )
    return found


def _tables(work: Sequence[Work], offsets: Sequence[int], name: str) -> list[GradientTable]:
    """Return where the arrays of a name are in the table of all."""
    found = []
    for (kernel, _, table, sizes, *_), offset in zip(work, offsets, strict=True):
        if kernel.stages is not None:
            # Such kernels take a parameter without elements for one of one element.
            sizes = table[:, len(kernel.columns) :][:, : len(kernel.stages.space)].prod(axis=1)
        column = kernel.columns.index(name)
        found.append(GradientTable(dict(kernel.key.dtypes)[name], offset, kernel.width, column, sizes))
    return found


def _reduction(total: Op) -> str:
    return total.name.removeprefix("total_")


def _totals_of(programs: Iterable[Program]) -> list[str]:
    return list(dict.fromkeys(name for program in programs for name in program.totals))


def _is_norm(programs: Iterable[Program], total: str) -> bool:
    """Tell whether a total is the norm of arrays as they are read, of one name."""
    operations = [(program, program.totals[total]) for program in programs]
    return (
        all(program.is_given_or_gradient_norm(op) for program, op in operations)
        and len({program.ops[op.args[0]].reads for program, op in operations}) == 1
    )
