"""The command `portopt`: what is installed, what a rule becomes, comparisons of bits and of speed, the conformance suite."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

import portopt
from portopt_tools import backends, conform, show, stopping
from portopt_tools.bench import command as bench
from portopt_tools.compare import command as compare
from portopt_tools.errors import BROKEN_PIPE, UNUSABLE_ARGUMENTS, UnusableArgumentsError

TOOLS = (backends.TOOL, show.TOOL, compare.TOOL, bench.TOOL)
"""The commands but for `conform`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: the arguments, without the program's name; None means those of the process.

    Raises:
        SystemExit: `--help` or `--version` was given (status 0), or the arguments cannot be parsed (status 2).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [conform.NAME]:
        return conform.main(arguments[1:])
    parsed = parser().parse_args(arguments)
    command = shlex.join(["portopt", *arguments])
    try:
        with stopping.stoppable():
            status: int = parsed.run(parsed, command)
            sys.stdout.flush()
    except UnusableArgumentsError as error:
        print(f"portopt {parsed.command}: {error}", file=sys.stderr)
        return UNUSABLE_ARGUMENTS
    except KeyboardInterrupt as interrupt:
        return stopping.as_stopped(interrupt).status
    except BrokenPipeError:
        # The reader, such as `head`, has had enough; what Python still holds for it must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="portopt",
        description="Gradient optimizers with the same bits on every array library.",
        epilog="`portopt COMMAND --help` describes the options of a command.",
    )
    result.add_argument("--version", action="version", version=f"portopt {portopt.__version__}")
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for tool in TOOLS:
        added = commands.add_parser(tool.name, help=tool.summary, description=tool.description, epilog=tool.epilog)
        tool.add_arguments(added)
        added.set_defaults(run=tool.run)
    commands.add_parser(conform.NAME, add_help=False, help=conform.SUMMARY)
    return result
