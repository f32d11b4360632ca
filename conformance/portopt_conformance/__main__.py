"""The command `python -m portopt_conformance`, which is also `portopt conform`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from portopt import Backend, Optimizer
from portopt_conformance import known_failures, summary
from portopt_conformance.case import Case
from portopt_conformance.find import UnavailableBackendError, find
from portopt_conformance.platform import Platform, UnusableDeviceError, choose_device
from portopt_conformance.runner import Report, Result, run
from portopt_conformance.suite import LAYERS, cases, cases_of, untested_dtypes
from portopt_tools import rule_argument, stopping
from portopt_tools.output import write_files
from portopt_tools.progress import Progress, progress

PASSED, FAILED, UNUSABLE = 0, 1, 2
"""Exit statuses; one that is stopped by a signal has 128 and the signal's number."""


def parser(prog: str = "python -m portopt_conformance") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=prog,
        description="Check that a backend gives the bits that the arithmetic contract promises.",
        epilog="Exit status: 0 if every case passed, 1 if one failed, 2 for unusable arguments or a backend that is not there, "
        "130 or 143 if it was stopped; what was run by then is printed and written.",
    )
    add_arguments(result)
    return result


def add_arguments(to: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    to.add_argument(
        "--backend",
        default="numpy",
        metavar="NAME",
        help="an installed backend, an array API module, or an object as package.module:attribute (default: numpy)",
    )
    to.add_argument("--device", metavar="D", help="device to run on (default: the backend's first usable one)")
    to.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    extent = to.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="fewer configurations and modes, no runs of 100 steps")
    extent.add_argument(
        "--full", action="store_true", help="every rule in every mode, where otherwise they take turns; may take hours"
    )
    to.add_argument(
        "--turn", type=int, default=0, metavar="N", help="whose turn it is where they take turns (default: 0)"
    )
    to.add_argument(
        "--layer",
        type=int,
        action="append",
        choices=sorted(LAYERS),
        metavar="N",
        help="run only this layer; may be repeated: " + "; ".join(f"{n} {title}" for n, title in LAYERS.items()),
    )
    to.add_argument(
        "--rule",
        type=rule_argument.as_argument_type(tested_rule),
        action="append",
        default=[],
        dest="rules",
        metavar="RULE",
        help=f"run only the cases of this rule; may be repeated: {rule_argument.CLASS_HELP}, which is compared with the "
        "interpreter on NumPy",
    )
    to.add_argument(
        "--if-available", action="store_true", help="where the library or device is missing, say NOT RUN and succeed"
    )
    to.add_argument(
        "--against", metavar="OTHER", help="compare with this backend's results in place of the committed vectors"
    )
    to.add_argument(
        "--known-failures",
        type=Path,
        metavar="FILE",
        help="cases that are expected to fail: lines of `PATTERN | REASON | LINK`",
    )
    to.add_argument("--quiet", action="store_true", help="print no progress, only the results")


def tested_rule(text: str) -> type[Optimizer]:
    """Return the rule that a command line names, if it can be made without arguments."""
    rule = rule_argument.rule_class(text)
    # The suite gives each rule the arguments that it knows, and none to begin with.
    rule_argument.optimizer(text)
    return rule


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m portopt_conformance") -> int:
    """Run the suite as the arguments say and return the exit status."""
    arguments = parser(prog).parse_args(argv)
    try:
        with stopping.stoppable():
            return _execute(arguments)
    except KeyboardInterrupt as interrupt:
        return stopping.as_stopped(interrupt).status


def _execute(arguments: argparse.Namespace) -> int:
    # Threads of OpenMP that wait by spinning slow small steps down many times where another process wants the processor. It is
    # read when the backend's library is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True)
    name = arguments.backend
    try:
        backend = find(name)
        device = choose_device(backend, arguments.device)
    except (UnavailableBackendError, UnusableDeviceError) as error:
        if not arguments.if_available:
            errors.print(f"cannot test {name}: {error}", markup=False)
            return UNUSABLE
        reason = f"{name}{f' on {arguments.device}' if arguments.device else ''}: {error}"
        console.print(f"NOT RUN {reason}", style="yellow", markup=False, soft_wrap=True)
        _write(arguments.json, summary.as_json(Report(not_run=[reason]), None, name, arguments.device))
        return PASSED
    except TypeError as error:
        errors.print(str(error), markup=False)
        return UNUSABLE
    try:
        against = None if arguments.against is None else _other(arguments.against)
        known = known_failures.load(arguments.known_failures, backend.name)
    except (UnavailableBackendError, UnusableDeviceError, TypeError, known_failures.BadLineError, OSError) as error:
        errors.print(str(error), markup=False)
        return UNUSABLE

    extent = "everything" if arguments.full else f"turn {arguments.turn}"
    console.print(f"{backend.name} {backend.version()} on {device}, {extent}", markup=False)
    with progress(quiet=arguments.quiet) as shown:
        report = _run(shown, backend, device, arguments, against, known)
    summary.printed(console, report)
    _write(arguments.json, summary.as_json(report, backend, name, device))
    if report.interrupt is not None:
        return stopping.as_stopped(report.interrupt).status
    return FAILED if report.failed else PASSED


def _other(name: str) -> Platform:
    backend = find(name)
    return Platform(backend, choose_device(backend, None), next(iter(backend.modes.values())))


def _run(
    shown: Progress,
    backend: Backend,
    device: str,
    arguments: argparse.Namespace,
    against: Platform | None,
    known: list[known_failures.KnownFailure],
) -> Report:
    chosen = _chosen(backend, device, arguments, against)
    advance = shown.part(f"{backend.name} {device}", len(chosen))

    def watch(result: Result) -> None:
        if result.status == "failed":
            shown.say(f"FAILED {result.case.id}")
        advance(result.case.id)

    report = run(chosen, known, watch)
    if report.interrupt is not None:
        stopped = stopping.as_stopped(report.interrupt)
        report.errors.append(f"{stopped} after {len(report.results)} of {len(chosen)} cases")
    # In another turn a line may have its case.
    every = [*cases(backend, device=device, full=True), *chosen] if known else []
    for line in known_failures.without_a_case(known, (case.id for case in every)):
        report.errors.append(f"the known failure `{line.pattern}` matches no case of the suite: remove it")
    report.not_run += [f"{dtype}: {reason}" for dtype, reason in untested_dtypes(backend, against).items()]
    return report


def _chosen(backend: Backend, device: str, arguments: argparse.Namespace, against: Platform | None) -> list[Case]:
    layers = tuple(arguments.layer or LAYERS)
    extent: dict[str, Any] = {
        "layers": layers,
        "quick": arguments.quick,
        "full": arguments.full,
        "turn": arguments.turn,
    }
    if arguments.rules:
        return list(cases_of(arguments.rules, backend, device=device, against=against, **extent))
    return list(cases(backend, device=device, against=against, **extent))


def _write(path: Path | None, values: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_files({path: json.dumps(values, indent=1, allow_nan=False) + "\n"})


if __name__ == "__main__":
    sys.exit(main())
