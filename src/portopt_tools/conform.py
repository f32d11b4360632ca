"""`portopt conform`: the conformance suite, which has its own parser, so that `python -m portopt_conformance` is the same."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

NAME = "conform"
SUMMARY = "run the conformance suite against a backend"


def main(arguments: Sequence[str]) -> int:
    """Run the suite as the arguments say, and return the exit status."""
    suite = importlib.import_module("portopt_conformance.__main__")
    status: int = suite.main(arguments, prog=f"portopt {NAME}")
    return status
