"""What `portopt bench` prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Report = Mapping[str, Any]


def duration(seconds: float) -> str:
    """Return a time with its unit, to three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:,.0f} {unit}"
    raise AssertionError("unreachable")


def size(count: int) -> str:
    """Return a number of bytes with its unit."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def libraries(report: Report) -> list[str]:
    """Return the other libraries that took part, in order."""
    found = (c["library"] for group in report["groups"] for c in group["contenders"] if c["library"] != "portopt")
    return list(dict.fromkeys(found))


def shape_sets(report: Report) -> dict[str, list[Report]]:
    """Return the groups by the name of their shape set."""
    sets: dict[str, list[Report]] = {}
    for group in report["groups"]:
        sets.setdefault(group["shapes"], []).append(group)
    return sets


def rule_name(group: Report) -> str:
    """Return the name of a group's rule with the options that are not its defaults."""
    options = ", ".join(f"{name} {value}" for name, value in group["options"].items())
    return f"{group['rule']} ({options})" if options else str(group["rule"])


def set_title(group: Report) -> str:
    """Return a shape set's name and size."""
    tensors = f"{group['tensors']:,} tensor" + "s" * (group["tensors"] != 1)
    return f"{group['shapes']}: {tensors}, {group['parameters']:,} parameters"


def not_run_lines(report: Report) -> list[str]:
    """Return a line for each thing that was not measured, with the command that would change it."""
    return [
        f"not run: {entry['name']}: {entry['reason']}"
        + (f"\n    {entry['install_command']}" if entry["install_command"] else "")
        for entry in report["not_run"]
    ]


def print_report(console: Console, report: Report) -> None:
    """Print a table for each shape set, the first steps, and what was not run."""
    others = libraries(report)
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


def bandwidth(groups: list[Report]) -> str:
    """Return the medians of the memory's rates over the rules of a set, in words."""
    copy, update = (statistics.median(g[f"{what}_bytes_per_second"] for g in groups) for what in ("copy", "update"))
    return f"copying memory: {copy / 1e9:.1f} GB/s, changing it in place: {update / 1e9:.1f} GB/s"


def _print_set(console: Console, groups: list[Report], others: list[str]) -> None:
    title = f"{set_title(groups[0])}; {bandwidth(groups)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("optimizer", overflow="fold")
    for column in ("step", "per\ntensor", "GB/s", "of\ncopy", *others, "extra\nmemory"):
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
                f"{c['share_of_copy']:.0%}",
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
