"""What `portopt compare` prints."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from portopt_tools.compare.comparison import Comparison, Run, Verdict

SHORT_DIGEST = 8
_COLORS = {
    Verdict.REFERENCE: "green",
    Verdict.IDENTICAL: "green",
    Verdict.DIFFERENT: "bold red",
    Verdict.FAILED: "bold red",
    Verdict.OTHER_FORMULA: "dim",
}


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the runs, what was not run, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("backend", no_wrap=True)
    # The texts of unknown length give way where the terminal is narrow, so that no number is cut.
    table.add_column("device", overflow="fold", min_width=6)
    table.add_column("mode", no_wrap=True)
    for column in ("steps/s", "final loss", "test accuracy"):
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("SHA-256", no_wrap=True)
    table.add_column("verdict", min_width=9)
    for run in comparison.runs:
        found = run.measurements
        numbers = ("", "", "", "")
        if found is not None:
            rate = f"{1 / found.seconds_per_step:,.0f}"
            accuracy = f"{found.accuracies[-1]:.4f}"
            numbers = (rate, f"{found.losses[-1]:.4f}", accuracy, found.sha256[:SHORT_DIGEST])
        verdict = Text(short_verdict(run), style=_COLORS[run.verdict])
        table.add_row(run.runner.backend, run.runner.device, run.runner.mode, *numbers, verdict)
    console.print(table)
    for left_out in comparison.not_run:
        console.print(Text(f"not run: {left_out.backend}: {left_out.reason}"), soft_wrap=True)
    for line in verdict_lines(comparison):
        console.print(Text(line), soft_wrap=True)
    print_conclusion(console, comparison)


def print_conclusion(console: Console, comparison: Comparison) -> None:
    """Print the last line."""
    style = "bold green" if comparison.identical else "bold red"
    console.print(Text(conclusion(comparison), style=style), soft_wrap=True)


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
