"""What each tool tells the command line of itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tool:
    """A command `portopt NAME`.

    Attributes:
        name: the command.
        summary: what it does, for the list of commands.
        description: what it does, at length.
        add_arguments: adds its arguments to a parser.
        run: is given the parsed arguments and the command line as text; returns the exit status.
        epilog: what is said below the arguments.
    """

    name: str
    summary: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, str], int]
    epilog: str | None = None
