"""What an optimizer remembers between steps: the programs that it traced and the plans of the arrays that it steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from portopt.backend import PlannedStep
from portopt.program import Program
from portopt.program.draws import Place
from portopt.program.facts import Facts

_MOST_PLANS = 16
"""How many sets of arrays an optimizer may be stepping in turns before it forgets about the first."""


@functools.lru_cache(maxsize=512)
def shared(program: Program) -> Program:
    """Return the program that all equal ones share: caches of kernels then find it without comparing operations at each step."""
    return program


class Variants:
    """The programs of a rule that depend on what it asks about a parameter.

    Attributes:
        by_shape: the program for parameters of a shape.
    """

    __slots__ = ("_known", "by_shape")

    def __init__(self) -> None:
        self.by_shape: dict[tuple[int, ...], Program] = {}
        self._known: list[tuple[Facts, Program]] = []

    def find(self, shape: tuple[int, ...]) -> Program | None:
        """Return the program for parameters of a shape, if one was traced that holds for it."""
        program = self.by_shape.get(shape)
        if program is None:
            program = next((known for facts, known in self._known if facts.hold_for(shape)), None)
            if program is not None:
                self.by_shape[shape] = program
        return program

    def add(self, facts: Facts, program: Program) -> None:
        """Remember a program, and the facts that it holds for."""
        self._known = [*self._known, (facts, program)]


class StepCache:
    """One optimizer's programs and plans; no part of its value.

    Several threads may use it at once. It is made with the optimizer, whose own attributes so never change: a copy that one
    thread makes while another does the first step finds what it expects.

    Attributes:
        programs: traced programs by the hyperparameters that are on; under None, that of a step without values of its own.
            `Variants` where the rule asked about the parameter.
        plans: the plans for steps in place to try, that of the last step first.
        pure_plans: those for steps that make new arrays.
        places: where the parameters of the steps are in a whole of which they are part; None: they are a whole.
    """

    __slots__ = ("_seen", "_unplanned", "_unseen", "places", "plans", "programs", "pure_plans")

    def __init__(self) -> None:
        self.programs: dict[frozenset[str] | None, Program | Variants] = {}
        self.plans: tuple[PlannedStep, ...] = ()
        self.pure_plans: tuple[PlannedStep, ...] = ()
        self.places: Sequence[Place] | None = None
        self._seen: tuple[int, ...] = ()
        self._unseen = self._unplanned = 0

    def has_seen(self, arrays: int) -> bool:
        """Tell whether there was a step on these arrays, given the hash of their identities, and remember that there was."""
        seen = self._seen
        if arrays in seen:
            self._unseen = 0
            return True
        self._seen = (arrays, *seen[: _MOST_PLANS - 1])
        self._unseen += 1
        return False

    @property
    def sees_only_new_arrays(self) -> bool:
        """Whether the last steps that no plan did were each on arrays of its own; after so many as are remembered, and again."""
        return self._unseen > _MOST_PLANS and self._unseen % _MOST_PLANS == 1

    def expects_repetition(self) -> bool:
        """Tell whether to plan steps that make new arrays: rarely, if none of many plans did any step."""
        if len(self.pure_plans) < _MOST_PLANS or any(plan.was_used for plan in self.pure_plans):
            return True
        self._unplanned += 1
        return self._unplanned % _MOST_PLANS == 0

    def forget_plans(self) -> None:
        """Try no plan any more."""
        self.plans = self.pure_plans = ()

    def add(self, plan: PlannedStep) -> None:
        """Try this plan first from now on; what one of two threads loses that do so at once is only planned once more."""
        plans = self.plans if plan.in_place else self.pure_plans
        plans = (plan, *[other for other in plans if other is not plan][: _MOST_PLANS - 1])
        if plan.in_place:
            self.plans = plans
        else:
            self.pure_plans = plans
