"""Known failures: what a backend cannot do yet, written down, and strict.

Each line of a file is `PATTERN | REASON | LINK`; a line that starts with `#` is a comment. The pattern is a case's identifier,
in which `*` stands for anything. A line whose cases pass, or that matches no case of the suite, fails the run: the file says
what is, no more.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "known_failures"


class BadLineError(ValueError):
    """A line of a known-failures file cannot be read."""


@dataclass(frozen=True)
class KnownFailure:
    """A line: which cases fail, why, and where more is said about it."""

    pattern: str
    reason: str
    link: str

    def matches(self, case_id: str) -> bool:
        return fnmatch.fnmatchcase(case_id, self.pattern)


def parse(text: str, source: str) -> list[KnownFailure]:
    """Return the lines of a file.

    Raises:
        BadLineError: a line has not the three parts, or one is empty.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 3 or not all(parts):
            raise BadLineError(f"{source}:{number}: expected `PATTERN | REASON | LINK`, but found {line!r}")
        found.append(KnownFailure(*parts))
    return found


def load(path: Path | None, backend_name: str) -> list[KnownFailure]:
    """Return the known failures in a file, or those that the suite has of a backend if none is given.

    Raises:
        BadLineError: a line cannot be read.
        OSError: the file cannot be read.
    """
    if path is None:
        path = FOLDER / f"{backend_name}.txt"
        if not path.is_file():
            return []
    return parse(path.read_text(encoding="utf-8"), str(path))


def without_a_case(known: Iterable[KnownFailure], case_ids: Iterable[str]) -> list[KnownFailure]:
    """Return the known failures that match none of the suite's cases."""
    ids = list(case_ids)
    return [line for line in known if not any(line.matches(case_id) for case_id in ids)]
