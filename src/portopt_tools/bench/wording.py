"""How parts of a report are worded, wherever they stand: on the console, in Markdown, in a chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

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
    """Return a shape set's name and size, what steps make, and what was done before each."""
    tensors = f"{group['tensors']:,} tensor" + "s" * (group["tensors"] != 1)
    before = ", each step after a backward pass" if group.get("backward") else ""
    pure = ", portopt makes new arrays" if group.get("pure") else ""
    return f"{group['shapes']}: {tensors}, {group['parameters']:,} parameters{pure}{before}"


def environment_line(report: Report) -> str | None:
    """Return a line on what was set in the environment that no user needs to set; None if nothing was."""
    found = report["machine"].get("environment", {})
    return f"with {', '.join(f'{name}={value}' for name, value in found.items())}" if found else None


def not_run_lines(report: Report) -> list[str]:
    """Return a line for each thing that was not measured, with the command that would change it."""
    return [
        f"not run: {entry['name']}: {entry['reason']}"
        + (f"\n    {entry['install_command']}" if entry["install_command"] else "")
        for entry in report["not_run"]
    ]


def bandwidth(groups: list[Report]) -> str:
    """Return the medians of the memory's rates over the rules of a set, in words."""
    copy, update = (statistics.median(g[f"{what}_bytes_per_second"] for g in groups) for what in ("copy", "update"))
    return f"copying memory: {copy / 1e9:.1f} GB/s, changing it in place: {update / 1e9:.1f} GB/s"
