"""`portopt backends`: what is installed, and how to get what is missing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from portopt_tools.errors import SUCCESS
from portopt_tools.inventory import HELPER_PACKAGES, BackendEntry, as_json, installed_backends
from portopt_tools.tool import Tool

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _run(arguments: argparse.Namespace, command: str) -> int:
    found = installed_backends()
    if arguments.json:
        print(json.dumps(as_json(found), indent=2))
    else:
        from portopt_tools.output import output_console

        print_inventory(output_console(), found)
    return SUCCESS


def print_inventory(console: Console, backends: Sequence[BackendEntry]) -> None:
    """Print the backends, the helper packages, and how to get what is missing."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Backends", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("backend", "installed", "version", "devices", "dtypes", "modes"):
        table.add_column(column, overflow="fold")
    for entry in backends:
        installed = "error" if entry.problem else "yes"
        if entry.version is None and entry.install_command is not None:
            installed = "no"
        devices = [name if reason is None else f"({name}: {reason})" for name, reason in entry.devices.items()]
        cells = (installed, entry.version or "", "\n".join(devices), " ".join(entry.dtypes), " ".join(entry.modes))
        table.add_row(Text(entry.name, style="bold"), *map(Text, cells))
    console.print(table)

    helpers = Table(title="Helper packages", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("package", "installed", "version", "what for"):
        helpers.add_column(column, overflow="fold")
    for helper in HELPER_PACKAGES:
        version = helper.version
        helpers.add_row(
            Text(helper.name, style="bold"), "no" if version is None else "yes", version or "", Text(helper.purpose)
        )
    console.print(helpers)

    missing = [(e.name, e.problem, e.install_command) for e in backends if e.problem is not None]
    missing += [(h.name, "not installed", h.install_command) for h in HELPER_PACKAGES if h.version is None]
    for name, problem, command in missing:
        console.print(Text(f"{name}: {problem}" + (f"\n    {command}" if command else "")), soft_wrap=True)
    if not missing:
        console.print("Nothing is missing.")


TOOL = Tool(
    name="backends",
    summary="list the installed backends, and how to install what is missing",
    description="List the installed backends, and how to install what is missing: each backend's version, devices (in "
    "parentheses those that cannot be used, with the reason), parameter dtypes and modes, and the packages that add to them.",
    add_arguments=_add_arguments,
    run=_run,
)
