"""Wings of tests stand alone: what several need is in `support`, and what runs elsewhere in `cases`."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.places import ROOT, TESTS

SHARED = {"support", "cases"}
WINGS = {path.parent.name for path in TESTS.glob("*/test_*.py")} - SHARED


def imported_folders(path: Path) -> Iterator[str]:
    for statement in ast.walk(ast.parse(path.read_bytes())):
        match statement:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case _:
                pass


@pytest.mark.parametrize("folder", sorted(WINGS | SHARED))
def test_a_wing_needs_no_other_wing(folder: str) -> None:
    allowed = {folder, "support"} | (SHARED if folder in WINGS else set())
    for path in (TESTS / folder).glob("*.py"):
        needed = set(imported_folders(path)) & (WINGS | SHARED)
        assert needed <= allowed, f"{path.name} imports from {sorted(needed - allowed)}"


def test_no_two_modules_have_one_name() -> None:
    names = Counter(path.name for folder in WINGS | SHARED for path in (TESTS / folder).glob("*.py"))
    assert [name for name, count in names.items() if count > 1 and not name.startswith("__")] == []


def test_contributing_lists_the_wings() -> None:
    text = ROOT.joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {folder for folder in WINGS | SHARED if f"| `{folder}` |" not in text} == set()
