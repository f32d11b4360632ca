"""Types of arguments that several tools have."""

from __future__ import annotations

import argparse


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
