"""A report as Markdown, for the documentation: one line a rule, one column a library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from portopt_tools.bench.contenders import PEERS
from portopt_tools.bench.first_step import preferred_mode
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
)

_NEAREST = {peer.backend: peer.name for peer in PEERS.values()}
"""Backend to the library whose optimizers update the same arrays."""


def as_markdown(report: Report) -> str:
    """Return the tables of a report, with the command that made it."""
    lines = ["```sh", report["command"], "```", ""]
    if (line := environment_line(report)) is not None:
        lines += [line, ""]
    for groups in shape_sets(report).values():
        lines += [*_set(groups, libraries(report)), ""]
    if report["first_steps"]:
        lines += [*_first_steps(report), ""]
    lines += [f"- {' '.join(line.split())}" for line in not_run_lines(report)]
    return "\n".join(lines).rstrip("\n") + "\n"


def preferred(group: Report) -> Iterator[Any]:
    """Yield portopt's contender of each backend in the mode that a training loop would use."""
    by_backend: dict[str, list[Any]] = {}
    for c in group["contenders"]:
        if c["library"] == "portopt":
            by_backend.setdefault(c["backend"], []).append(c)
    for contenders in by_backend.values():
        mode = preferred_mode([c["mode"] for c in contenders])
        yield next(c for c in contenders if c["mode"] == mode)


def nearest_ratio(contender: Report) -> tuple[str, float] | None:
    """Return the library to compare with, the one on the same arrays if there is one, and the ratio of the times."""
    ratios = contender.get("times_as_fast_as") or {}
    name = _NEAREST.get(contender["backend"], "")
    if name not in ratios:
        name = next(iter(ratios), "")
    return (name, ratios[name]) if name else None


def _set(groups: list[Report], others: list[str]) -> Iterator[str]:
    names = list(dict.fromkeys(c["name"] for group in groups for c in preferred(group)))
    header = ["rule", *names, *others]
    yield f"**{set_title(groups[0])}**; {bandwidth(groups)}"
    yield ""
    yield _row(header)
    yield _row(["---", *["---:"] * (len(header) - 1)])
    for group in groups:
        found = {c["name"]: c for c in preferred(group)}
        cells = [_portopt_cell(found[name], group) if name in found else "" for name in names]
        yield _row([rule_name(group), *cells, *(_best(group, library) for library in others)])


def _portopt_cell(contender: Any, group: Report) -> str:
    ratio = nearest_ratio(contender)
    text = duration(contender["seconds_per_step"]) + (f", **{ratio[1]:.2f}×** {ratio[0]}" if ratio else "")
    # A share of the bandwidth says nothing where the arrays fit into the caches.
    large = group["bytes_per_step"] >= 2**27
    return f"{text}, {contender['share_of_update']:.0%} of the memory" if large else text


def _best(group: Report, library: str) -> str:
    times = {c["mode"]: c["seconds_per_step"] for c in group["contenders"] if c["library"] == library}
    if not times:
        return ""
    mode = min(times, key=times.__getitem__)
    return f"{duration(times[mode])} ({mode})"


def _first_steps(report: Report) -> Iterator[str]:
    yield "**First step of a process**, without the imports of the array library"
    yield ""
    yield _row(["rule", "backend", "cold", "from the disk cache"])
    yield _row(["---", "---", "---:", "---:"])
    for first in report["first_steps"]:
        cached = first["seconds_cached"]
        cold = duration(first["seconds_cold"])
        yield _row([first["rule"], first["backend"], cold, "keeps nothing" if cached is None else duration(cached)])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
