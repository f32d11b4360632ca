"""What is said of runs, wherever it stands: on the console and in the reports."""

from __future__ import annotations

from portopt_tools.compare.comparison import Comparison, Run, Verdict


def short_verdict(run: Run) -> str:
    """Return the verdict as it stands in a table."""
    if run.verdict is Verdict.DIFFERENT and run.measurements and run.measurements.difference:
        return f"differs from step {run.measurements.difference.step} on"
    return run.verdict.value


def verdict_lines(comparison: Comparison) -> list[str]:
    """Return a line for each run whose verdict needs an explanation."""
    reference = comparison.reference
    lines = []
    for run in comparison.runs:
        difference = run.measurements.difference if run.measurements else None
        if run.verdict is Verdict.FAILED:
            lines.append(f"{run.name} failed: {run.error}")
        elif run.verdict is Verdict.DIFFERENT and reference is not None:
            lines.append(f"{run.name} differs from {reference.name} first at {difference}")
        elif run.verdict is Verdict.OTHER_FORMULA:
            why = f"; {run.runner.difference}" if run.runner.difference else ""
            lines.append(
                f"{run.name} computes a different formula, so it is no part of the verdict{_distance(run, reference)}{why}"
            )
    return lines


def _distance(run: Run, reference: Run | None) -> str:
    if reference is None or run.measurements is None or not run.measurements.distances:
        return ""
    return f"; its parameters end up to {run.measurements.distances[-1]:.2g} away from those of {reference.name}"


def conclusion(comparison: Comparison) -> str:
    """Return the verdict on all runs as a sentence."""
    runs = comparison.portopt_runs
    differing = sum(run.verdict is Verdict.DIFFERENT for run in runs)
    failed = sum(run.verdict is Verdict.FAILED for run in runs)
    if comparison.agreeing:
        found = f"{len(runs)} runs have the same bits after each of {comparison.problem.steps} steps."
        if comparison.interrupt is None:
            return f"All {found}"
        return f"{_partial(comparison)}{f'; those {found}' if len(runs) > 1 else '.'}"
    failures = f"{failed} of {len(runs)} runs failed" if failed else ""
    differences = (
        f"{differing} of {len(runs)} runs differ from {comparison.reference.name}"
        if differing and comparison.reference
        else ""
    )
    found = " and ".join(filter(None, (differences, failures))) + "."
    return found if comparison.interrupt is None else f"{_partial(comparison)}; {found}"


def _partial(comparison: Comparison) -> str:
    count = len(comparison.runs)
    return f"Partial, {comparison.interrupt} after {count} run" + "s" * (count != 1)
