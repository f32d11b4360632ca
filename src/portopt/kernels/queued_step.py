"""What plans of steps on devices have in common: the look at a step's arrays, which calls what queues it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from portopt.backend import Backend
from portopt.kernels.cuda import driver
from portopt.kernels.device_queue import IS_CAPTURING, NEEDS_BLOCK, Queue
from portopt.kernels.host.look import NOT_BEGUN
from portopt.kernels.host.repeated_step import RepeatedStep
from portopt.kernels.host.results import Results
from portopt.kernels.host.watch import Call, Watch
from portopt.program import Program

StepTrees = tuple[Any, Any, Any]
"""Parameters, gradients, or a tuple of these and further inputs, and slots."""


class QueuedStep(RepeatedStep):
    """One optimizer's step on arrays on devices.

    Args:
        backend: of the arrays.
        programs: what the kernels do, each with the shape of a parameter that it is for.
        watch: knows the arrays.
        further: names of further inputs.
        note_written: is told of all written arrays after a step.
        results: of steps that make new arrays; None for steps in place.

    Attributes:
        watch: as it was given.
        lock: is held while the arrays are looked at.
    """

    def __init__(
        self,
        backend: Backend,
        programs: Mapping[Program, tuple[int, ...]],
        watch: Watch,
        further: tuple[str, ...],
        note_written: Callable[[list[Any]], object] | None,
        results: Results | None,
    ) -> None:
        super().__init__(backend, programs, further, results)
        self.watch = watch
        # What ends while it is held may be an array whose end does a step.
        self.lock = threading.RLock()
        self._driver = driver.driver()
        self._note_written = note_written if watch.calls_back else None

    def looked(self, trees: StepTrees) -> Call | None:
        """Return a call with the arrays, gradients copied that kernels cannot read as they lie; None if they do not fit."""
        call = self.watch.begin()
        if self.watch.look(*trees, call=call):
            return call
        mended = self.watch.mend(call, *trees)
        return mended if mended is not None and self.watch.look(*trees, call=mended) else None

    def would_queue(self, trees: StepTrees) -> bool:
        """Tell whether arrays are what they were, or such as they are once gradients are copied."""
        return self.watch.look(*trees) or self.looked(trees) is not None

    def begun(self, call: Call | None) -> Call | None:
        """Return the call of a step that may have one already; None if it needs none."""
        return self.watch.begin() if call is None and self._note_written is not None else call

    def queued(
        self, queue: Queue, trees: StepTrees, at: int, step: int, call: Call | None, new: list[Any] | None = None
    ) -> tuple[bool, Call | None]:
        """Queue a step; return whether all was as it was, else nothing was queued, and the call.

        Args:
            queue: queues it.
            trees: of the step.
            at: the address of what it is given.
            step: its number.
            call: that of the step, if it has one.
            new: the arrays that the step fills, where it makes new ones.
        """
        while not self.watch.look(*trees, at, step, call, new, queue.address):
            outcome = queue.outcome
            if outcome == NEEDS_BLOCK:
                queue.add_block()
            elif outcome == NOT_BEGUN:
                call = self.watch.mend(call, *trees)
                if call is None:
                    return False, None
            elif outcome == IS_CAPTURING:
                return False, call
            else:
                self._driver.check(outcome)
        return True, call

    def note(self, call: Call | None) -> None:
        """Note what a step has written, given its call."""
        if self._note_written is not None and call is not None:
            self._note_written(call.written)

    def done(self) -> None:
        """End a step, while the lock is not held any more: arrays that only the step had in the end may do something then."""
        if self.watch.late:
            self.watch.late.clear()
        self.was_used = True
