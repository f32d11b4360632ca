"""One case of the suite and its outcome."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from portopt_conformance.comparison import Difference


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        passed: whether every bit was right and every property held.
        elements: number of elements that were compared with expected bits.
        difference: how the results differ, if they do.
        text: what is wrong; empty if nothing is.
        seconds: how long it took.
    """

    passed: bool
    elements: int = 0
    difference: Difference | None = None
    text: str = ""
    seconds: float = 0.0

    @property
    def bits(self) -> int:
        """Number of bits that differ; 0 too where a case failed without giving results."""
        return 0 if self.difference is None else self.difference.bits


@dataclass(frozen=True)
class Case:
    """One thing that must hold, on one backend and device.

    Attributes:
        layer: 0 backend contract, 1 operations, 2 one step, 3 many steps, 4 purity, 5 compiled modes.
        subject: a rule's name, or what else is tested.
        variant: configuration or property.
        dtype: the parameters' dtype; None if it does not matter.
        mode: the mode and setting.
        name: what is done, such as `raw` or `ten`.
        check: does it; raises nothing but what a defect raises.
    """

    layer: int
    subject: str
    variant: str
    dtype: str | None
    mode: str
    name: str
    check: Callable[[], Outcome]

    @property
    def id(self) -> str:
        """The case's identifier: `layer/subject/variant/dtype/mode/name`."""
        return "/".join([str(self.layer), self.subject, self.variant, self.dtype or "any", self.mode, self.name])

    def run(self) -> Outcome:
        """Return the outcome; an exception is a failure, with its traceback as text."""
        start = time.perf_counter()
        try:
            outcome = self.check()
        except Exception:
            outcome = Outcome(False, text=traceback.format_exc())
        seconds = time.perf_counter() - start
        return Outcome(outcome.passed, outcome.elements, outcome.difference, outcome.text, seconds)
