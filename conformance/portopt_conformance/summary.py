"""What a run prints and writes."""

from __future__ import annotations

import platform as machine
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from portopt import Backend
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt_conformance.runner import Report, Result
from portopt_conformance.suite import LAYERS

SHOWN_FAILURES = 20


def _cell(results: Iterable[Result]) -> Text:
    """Return the number of differing bits, as a lower bound where checksums alone were at hand."""
    results = list(results)
    if not results:
        return Text("–", style="dim")
    bits = sum(result.outcome.bits for result in results)
    crashed = sum(not result.outcome.passed and result.outcome.difference is None for result in results)
    exact = all(r.outcome.difference is None or r.outcome.difference.exact for r in results)
    text = str(bits) if exact else f"≥ {bits}"
    if crashed:
        text += f" + {crashed} failed"
    return Text(text, style="green" if text == "0" else "red")


def bits_table(report: Report) -> Table:
    """Return the table of differing bits: a row for each rule and mode, a column for each dtype."""
    table = Table(title="differing bits", title_justify="left")
    table.add_column("rule")
    table.add_column("mode")
    for dtype in COMPUTE_DTYPE:
        table.add_column(dtype, justify="right")
    table.add_column("elements compared", justify="right")
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in report.results:
        if result.case.layer not in (0, 4):
            groups.setdefault((result.case.subject, result.case.mode), []).append(result)
    previous = ""
    for (subject, mode), results in sorted(groups.items(), key=lambda item: _rank(item[0][0], groups)):
        if subject != previous and previous:
            table.add_section()
        cells = [_cell(r for r in results if r.case.dtype == dtype) for dtype in COMPUTE_DTYPE]
        elements = sum(result.outcome.elements for result in results)
        table.add_row(subject if subject != previous else "", mode, *cells, f"{elements:,}")
        previous = subject
    return table


def _rank(subject: str, groups: dict[tuple[str, str], list[Result]]) -> int:
    return list(dict.fromkeys(key[0] for key in groups)).index(subject)


def layers_table(report: Report) -> Table:
    """Return the table of layers: how many cases passed and failed, and how long they took."""
    table = Table(title="layers", title_justify="left")
    for name in ("layer", "passed", "failed", "known", "seconds"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for number, title in LAYERS.items():
        results = [result for result in report.results if result.case.layer == number]
        if results:
            counts = [sum(r.status == status for r in results) for status in ("passed", "failed", "known failure")]
            seconds = sum(r.outcome.seconds for r in results)
            table.add_row(f"{number} {title}", *map(str, counts), f"{seconds:.1f}")
    return table


def rendered(report: Report) -> RenderableType:
    """Return all that is printed after a run."""
    table = bits_table(report)
    parts: list[RenderableType] = [*([table] if table.row_count else []), layers_table(report)]
    for result in report.failures[:SHOWN_FAILURES]:
        parts.append(Text(f"FAILED {result.case.id}", style="bold red"))
        parts.append(Text(result.text))
    if len(report.failures) > SHOWN_FAILURES:
        parts.append(
            Text(f"... and {len(report.failures) - SHOWN_FAILURES} more failures; --json FILE writes all of them")
        )
    parts += [Text(f"FAILED {error}", style="bold red") for error in report.errors]
    parts += [Text(f"NOT RUN {reason}", style="yellow") for reason in report.not_run]
    known = f", {report.known} known failures" if report.known else ""
    parts.append(
        Text(
            f"{report.passed} passed, {report.failed} failed{known}",
            style="bold red" if report.failed else "bold green",
        )
    )
    return Group(*parts)


def printed(console: Console, report: Report) -> None:
    """Print the summary of a run; wide enough for the table where the output is no terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=120)
    console.print(rendered(report))


def as_json(report: Report, backend: Backend | None, name: str, device: str | None) -> dict[str, Any]:
    """Return a run as JSON values. `passed` and `failed` are numbers of cases; a run that was stopped is `partial`."""
    return {
        "partial": report.interrupt is not None,
        "passed": report.passed,
        "failed": report.failed,
        "known_failures": report.known,
        "backend": name,
        "device": device,
        "versions": _versions(backend),
        "seconds": round(sum(result.outcome.seconds for result in report.results), 3),
        "errors": report.errors,
        "not_run": report.not_run,
        "failures": [
            {"id": result.case.id, "text": result.text, "differing_bits": result.outcome.bits}
            for result in report.failures
        ],
        "cases": [
            {
                "id": result.case.id,
                "status": result.status,
                "elements": result.outcome.elements,
                "differing_bits": result.outcome.bits,
                "seconds": round(result.outcome.seconds, 3),
            }
            for result in report.results
        ],
    }


def _versions(backend: Backend | None) -> dict[str, str]:
    versions = {"python": sys.version.split()[0], "machine": machine.machine()}
    for distribution in ("portopt", "numpy", "ml_dtypes"):
        try:
            versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[distribution] = "not installed"
    if backend is not None:
        versions[backend.name] = backend.version()
    return versions
