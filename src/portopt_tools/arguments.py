"""Arguments that several tools have, and their types."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """Return an integer of at least 1."""
    return _integer(text, 1)


def seed(text: str) -> int:
    """Return an integer of at least 0."""
    return _integer(text, 0)


def _integer(text: str, at_least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = at_least - 1
    if value < at_least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {at_least}, but {text!r} was given")
    return value


def add_backends(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--backend`, which may be repeated."""
    parser.add_argument("--backend", action="append", default=[], dest="backends", metavar="NAME", help=purpose)


def add_out(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--out`, the folder of the reports."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=purpose)
