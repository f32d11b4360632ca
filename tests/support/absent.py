"""Libraries that a run of the tests does without, and said so: `PORTOPT_TESTS_WITHOUT="torch jax"`.

A module of tests that imports one of them is skipped as a whole, as is a test marked `needs("torch")`. A library that is missing
and not named there is an error, as is one that is named and installed: nothing is left out that nobody meant to leave out.
"""

from __future__ import annotations

import ast
import functools
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from support.places import TESTS

NAMED = frozenset(os.environ.get("PORTOPT_TESTS_WITHOUT", "").split())
ABSENT = NAMED if (sys.platform, platform.machine()) == ("linux", "x86_64") else NAMED | {"cupy"}
"""The named, and on other systems what the extra `test` of pyproject.toml has on this one alone."""


def check() -> str | None:
    """Return what is wrong with the list of absent libraries, or None."""
    there = sorted(name for name in NAMED if find_spec(name) is not None)
    return f"PORTOPT_TESTS_WITHOUT names libraries that are installed: {', '.join(there)}" if there else None


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return what a module imports at its top level, and the helpers of the tests that it imports do at theirs."""
    found: set[str] = set()
    for statement in ast.parse(path.read_bytes()).body:
        match statement:
            case ast.Import():
                found |= {alias.name for alias in statement.names}
            case ast.ImportFrom(module=str(module)):
                found |= {module, *(f"{module}.{alias.name}" for alias in statement.names)}
            case _:
                pass
    helpers = [helper for name in found if (helper := TESTS.joinpath(*name.split(".")).with_suffix(".py")).is_file()]
    return frozenset({name.partition(".")[0] for name in found}.union(*map(imports, helpers)))
