"""Running cases and collecting what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from portopt_conformance.case import Case, Outcome
from portopt_conformance.known_failures import KnownFailure


@dataclass(frozen=True)
class Result:
    """A case, its outcome, and the known failure it matches, if any."""

    case: Case
    outcome: Outcome
    known: KnownFailure | None = None

    @property
    def status(self) -> str:
        """`passed`, `failed`, or `known failure`; a known failure that passes has failed."""
        if self.known is None:
            return "passed" if self.outcome.passed else "failed"
        return "failed" if self.outcome.passed else "known failure"

    @property
    def text(self) -> str:
        """What is wrong."""
        if self.known is not None and self.outcome.passed:
            return f"passes, but is listed as a known failure ({self.known.reason}): remove `{self.known.pattern}`"
        return self.outcome.text


@dataclass
class Report:
    """The results of a run.

    Attributes:
        results: one for each case.
        errors: what is wrong with the run itself, each counted as a failure.
        not_run: what was not tested, and why.
        interrupt: what ended the run before its last case; None if nothing did.
    """

    results: list[Result] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    interrupt: KeyboardInterrupt | None = None

    @property
    def passed(self) -> int:
        return sum(result.status == "passed" for result in self.results)

    @property
    def failed(self) -> int:
        return len(self.failures) + len(self.errors)

    @property
    def known(self) -> int:
        return sum(result.status == "known failure" for result in self.results)

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.results if result.status == "failed"]


def run(
    cases: Iterable[Case], known: Sequence[KnownFailure] = (), watch: Callable[[Result], None] | None = None
) -> Report:
    """Run cases one after the other; an interrupt ends the run, and what was found by then is returned.

    Args:
        cases: what to run.
        known: the known failures.
        watch: called after each case.
    """
    report = Report()
    try:
        for case in cases:
            line = next((line for line in known if line.matches(case.id)), None)
            result = Result(case, case.run(), line)
            report.results.append(result)
            if watch is not None:
                watch(result)
    except KeyboardInterrupt as interrupt:
        report.interrupt = interrupt
    if not report.results:
        report.errors.append("no case was run")
    return report
