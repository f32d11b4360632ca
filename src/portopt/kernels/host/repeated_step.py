"""What plans have in common, on the host and on devices: which steps they are for, and how a step's arguments are taken apart."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.backend import Backend, Leaf, is_interpreted, is_set_aside
from portopt.kernels.host.given import same_numbers
from portopt.kernels.host.readers import ArrayReader
from portopt.kernels.host.results import Results
from portopt.kernels.host.step_inputs import StepInputs
from portopt.kernels.host.watch import Still
from portopt.program import Program
from portopt.protocols import Rule
from portopt.scalars import MOST_STEPS
from portopt.state import OptimizerState
from portopt.trees import TreeDefinition

Trees = tuple[Any, Any, OptimizerState]
"""Parameters, gradients and the state, as a step has them; where there are further inputs, a tuple of gradients and these."""
Shape = tuple[int, ...]


class RepeatedStep:
    """One optimizer's step on one set of arrays, or on all that are like one.

    Args:
        backend: of the arrays.
        programs: what the kernels do, each with the shape of a parameter that it is for.
        further: names of further inputs.
        results: of steps that make new arrays; None for steps in place.

    Attributes:
        kept: the inputs of the last step and the hyperparameters that were given for it; None if another step needs others.
    """

    does_first = False
    remarks: tuple[str, ...] = ()

    def __init__(
        self, backend: Backend, programs: Mapping[Program, Shape], further: tuple[str, ...], results: Results | None
    ) -> None:
        self.program = next(iter(programs))
        self.backend = backend
        self.inputs = further
        self.in_place = results is None
        self.was_used = False
        self.programs = programs
        self.results = results
        self.kept: tuple[StepInputs, dict[str, Any]] | None = None

    def is_for(self, state: Any) -> bool:
        """Tell whether steps after a state can be done, and by kernels."""
        if type(state) is not OptimizerState or type(state.step) is not int or not 0 <= state.step < MOST_STEPS:
            return False
        return not (is_interpreted() or is_set_aside(self.backend))

    def split(self, grads: Any, overrides: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Return gradients with further inputs, and the other hyperparameters; None if an input is missing."""
        if not self.inputs:
            return grads, overrides
        if any(overrides.get(name) is None for name in self.inputs):
            return None
        others = {name: value for name, value in overrides.items() if name not in self.inputs}
        return (grads, *[overrides[name] for name in self.inputs]), others

    def checked(self, rule: Rule, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return hyperparameters that were given for a step, checked; further inputs are among them."""
        checked = rule.check_overrides(overrides)
        return checked | dict.fromkeys(self.inputs, True) if self.inputs else checked

    def does(self, rule: Rule, checked: Mapping[str, Any]) -> bool:
        """Tell whether a step with these hyperparameters does what the kernels do."""
        return all(rule.program(checked, shape) is program for program, shape in self.programs.items())

    def would_do(self, rule: Rule, overrides: dict[str, Any]) -> bool:
        """Tell whether a step that is given these hyperparameters does what the kernels do; False if one is wrong."""
        if self.kept is not None and same_numbers(overrides, self.kept[1]):
            return True
        try:
            return self.does(rule, self.checked(rule, overrides))
        except Exception:
            # The full check says so in its order.
            return False

    def inputs_from_last(
        self, slots: Mapping[str, Any], overrides: dict[str, Any]
    ) -> tuple[StepInputs, array[float]] | None:
        """Return the inputs that were kept, and those of this step; None if they must be found anew."""
        if self.kept is None:
            return None
        given, known = self.kept
        inputs = None
        if overrides and overrides.keys() == given.given.keys():
            inputs = given.of_step(slots, overrides)
        elif (not overrides and not known) or same_numbers(overrides, known):
            inputs = given.constant or given.of_step(slots)
        return None if inputs is None else (given, inputs)


class Parts(NamedTuple):
    """A step's arguments, taken apart.

    Attributes:
        arrays: of each parameter that has a gradient; what is read is such as kernels read.
        still: all others.
        scalar_slots: names of slots that are numbers.
        further: names of further inputs.
        slots: names of slots that are trees.
        definition: the structure of the parameters.
        leaves: how many leaves that has.
    """

    arrays: list[Leaf]
    still: list[Still]
    scalar_slots: list[str]
    further: tuple[str, ...]
    slots: tuple[str, ...]
    definition: TreeDefinition
    leaves: int

    def results(self, backend: Backend, reader: ArrayReader, programs: Sequence[Program]) -> Results:
        """Return what makes the new arrays of steps that leave their arguments as they are."""
        outputs = [
            (name, leaf)
            for name in ("p", *self.slots)
            for leaf, program in zip(self.arrays, programs, strict=True)
            if name in program.array_outputs
        ]
        return Results(reader, backend.trees, self.definition, self.leaves, self.slots, outputs)


def parts_of(
    backend: Backend, programs: Sequence[Program], trees: Trees, arrays: Sequence[Leaf], reader: ArrayReader, where: str
) -> Parts | str:
    """Return a step's arguments taken apart, or why no plan can be made of them.

    Args:
        backend: of the arrays.
        programs: what the step runs on each parameter.
        trees: the arguments.
        arrays: of each parameter that has a gradient, in the order of the tree.
        reader: how arrays are read.
        where: they have to be, in words.
    """
    params, _, state = trees
    if not arrays:
        return "no parameter has a gradient"
    if type(state) is not OptimizerState or type(state.slots) is not dict:
        return "the state is no OptimizerState with a dict of slots"
    further = tuple(name for name in arrays[0] if name not in ("p", "g") and name not in state.slots)
    read = ("g", *further)
    arrays = [leaf.like({n: reader.dense(a) if n in read else a for n, a in leaf.items()}) for leaf in arrays]
    scalar_slots = [name for name in state.slots if name in programs[0].scalar_outputs]
    leaves, definition = backend.trees.flatten(params)
    kept = {n: backend.trees.flatten(tree)[0] for n, tree in state.slots.items() if n not in scalar_slots}
    moving = {leaf.number for leaf in arrays}
    still = [
        Still(name, number, array)
        for name, of in {"p": leaves, **kept}.items()
        for number, array in enumerate(of)
        if number not in moving
    ]
    given = [(name, leaf.number, array) for leaf in arrays for name, array in leaf.items()]
    for name, number, held in (*given, *still):
        if held is not None and not reader.is_plain(held):
            return _not_plain(backend, params, name, number, held, read, where)
    return Parts(list(arrays), still, scalar_slots, further, tuple(kept), definition, len(leaves))


def _not_plain(backend: Backend, params: Any, name: str, number: int, a: Any, read: Collection[str], where: str) -> str:
    tree = "params" if name == "p" else "grads" if name == "g" else name if name in read else f"state.slots[{name!r}]"
    return (
        f"{tree}{backend.trees.paths(params)[number]}, of type {type(a).__name__}, is no C-contiguous array of {backend.name} "
        f"itself {where}"
    )


UNKNOWN_CONTAINERS = (
    "there are containers other than dict, OrderedDict, list, tuple and NamedTuple, or too deep ones, which the compiled "
    "function does not know"
)
"""Why there is no plan for trees of which `Watch.is_possible` is false."""
