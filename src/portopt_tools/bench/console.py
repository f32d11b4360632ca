"""What `portopt bench` prints."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from portopt_tools.bench.wording import (
    Report,
    bandwidth,
    duration,
    environment_line,
    libraries,
    not_run_lines,
    rule_name,
    set_title,
    shape_sets,
    size,
)


def print_report(console: Console, report: Report) -> None:
    """Print a table for each shape set, the first steps, and what was not run."""
    others = libraries(report)
    if (line := environment_line(report)) is not None:
        console.print(Text(line), soft_wrap=True)
    for groups in shape_sets(report).values():
        _print_set(console, groups, others)
    if others:
        console.print("× is how many times as long the best optimizer of the other library takes.")
    if report["first_steps"]:
        _print_first_steps(console, report)
    for line in not_run_lines(report):
        console.print(Text(line), soft_wrap=True)
    if report["partial"]:
        console.print(Text("These results are partial: the measurement was stopped.", style="bold red"))


def _print_set(console: Console, groups: list[Report], others: list[str]) -> None:
    title = f"{set_title(groups[0])}; {bandwidth(groups)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("optimizer", overflow="fold")
    for column in ("step", "per\ntensor", "GB/s", "of the\nmemory", *others, "extra\nmemory"):
        table.add_column(column, justify="right", no_wrap=True)
    for group in groups:
        for position, c in enumerate(group["contenders"]):
            ratios = c.get("times_as_fast_as", {})
            table.add_row(
                Text(rule_name(group) if position == 0 else ""),
                Text(c["name"], style="bold" if c["library"] == "portopt" else ""),
                duration(c["seconds_per_step"]),
                f"{c['microseconds_per_tensor']:.3g} µs" if group["tensors"] > 1 else "",
                f"{c['bytes_per_second'] / 1e9:.1f}",
                f"{c['share_of_update']:.0%}",
                *(f"{ratios[name]:.2f}×" if name in ratios else "" for name in others),
                size(c["extra_memory_bytes"]),
                end_section=position == len(group["contenders"]) - 1,
            )
    console.print(table)


def _print_first_steps(console: Console, report: Report) -> None:
    table = Table(
        title="First step of a process", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in ("rule", "optimizer"):
        table.add_column(column, no_wrap=True)
    for column in ("cold", "from the\ndisk cache"):
        table.add_column(column, justify="right", no_wrap=True)
    for first in report["first_steps"]:
        cached = first["seconds_cached"]
        table.add_row(
            first["rule"],
            f"portopt {first['backend']} {first['mode']}",
            duration(first["seconds_cold"]),
            "keeps nothing" if cached is None else duration(cached),
        )
    console.print(table)
