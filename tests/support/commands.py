"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Sequence

from portopt_tools.command_line import main


def exit_status(arguments: Sequence[str]) -> int:
    """Return the status with which `portopt` would end."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else -1
