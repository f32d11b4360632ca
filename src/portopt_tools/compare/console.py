"""What `portopt compare` prints."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from portopt_tools.compare.comparison import Comparison, Verdict
from portopt_tools.compare.wording import conclusion, short_verdict, verdict_lines

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
