"""Measure how a checkout is built: rooms, floors, circles of imports, private names, large files, duplicates, tables of rules."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from house import duplicates, modules, privates, rule_tables
from house.modules import When
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
LARGEST = 10
LIBRARY = "portopt"


def measure(root: Path) -> dict[str, Any]:
    """Return every number with what it counts, as JSON has it."""
    house = modules.read(root)
    imports = modules.imports(house)
    run = [one for one in imports if one.when is not When.FOR_TYPES]
    at_import = [one for one in imports if one.when is When.AT_IMPORT]

    rooms = {name: module.room for name, module in house.items() if name.partition(".")[0] == LIBRARY}
    inside = [one for one in run if one.importer in rooms and one.imported in rooms]
    between_rooms = modules.graph(inside, rooms.__getitem__)
    every, files_with_rules = rule_tables.rules(root), rule_tables.files(root)
    by_size = sorted(house.values(), key=lambda module: (-module.lines, module.name))
    return {
        "lines": sum(module.lines for module in house.values()),
        "modules": len(house),
        "folders": sorted({module.folder for module in house.values()}),
        "rooms": sorted(set(rooms.values())),
        "floors of rooms": modules.floors(between_rooms),
        "floors of modules": modules.floors(modules.graph(run)),
        "circles of rooms": modules.circles(between_rooms),
        "circles of modules": modules.circles(modules.graph(run)),
        "circles at import": modules.circles(modules.graph(at_import)),
        "circles with types": modules.circles(modules.graph(imports)),
        "private names": [f"{use.module}:{use.line} {use.name}" for use in privates.uses(house, imports)],
        "largest files": [f"{module.lines} {module.path.relative_to(root)}" for module in by_size[:LARGEST]],
        "duplicates": _duplicates(root, modules.SOURCES),
        "duplicates in tests": _duplicates(root, ("tests",)),
        "files with rules": _places(root, files_with_rules),
        "those outside of tests": _places(root, [place for place in files_with_rules if not _is_test(root, place)]),
        "files with every rule": _places(root, [place for place in files_with_rules if set(place.rules) == every]),
        "tables of rules": _places(root, rule_tables.tables(root)),
    }


def _duplicates(root: Path, folders: Sequence[str]) -> list[str]:
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    return [
        f"{found.lines} lines: {found.first.relative_to(root)}:{found.first_line} "
        f"{found.second.relative_to(root)}:{found.second_line}"
        for found in duplicates.stretches(paths)
    ]


def _is_test(root: Path, place: rule_tables.Place) -> bool:
    return place.path.is_relative_to(root / "tests")


def _places(root: Path, places: Sequence[rule_tables.Place]) -> list[str]:
    return [f"{place.path.relative_to(root)}:{place.line} {', '.join(place.rules)}" for place in places]


MEANINGS = {
    "lines": "of all modules in src, backends and conformance",
    "modules": "how many these are",
    "folders": "with modules, in all of these",
    "rooms": "of the library: folders in src/portopt, and modules that lie directly in it",
    "floors of rooms": "the longest chain of imports between them, a circle being one floor",
    "floors of modules": "the same between all modules",
    "circles of rooms": "sets of rooms that import each other",
    "circles of modules": "sets of modules that import each other, in calls too",
    "circles at import": "of these, by imports that happen when the module is imported",
    "circles with types": "with imports that only type checkers see",
    "private names": "uses of a private name of another module",
    "largest files": "lines of the ten largest",
    "duplicates": "stretches of 12 or more lines in two files that differ in names at most",
    "duplicates in tests": "the same in tests",
    "files with rules": "files outside src/portopt/rules that name three or more rules",
    "those outside of tests": "which are those that a new rule has to be entered in",
    "files with every rule": "those that name them all",
    "tables of rules": "lists, dicts and matches there that name three or more",
}


def show(measured: dict[str, Any], *, details: bool) -> None:
    """Print the numbers as a table, and what they count below it."""
    console = Console(soft_wrap=True)
    table = Table("what", "number", "meaning")
    for name, meaning in MEANINGS.items():
        table.add_row(name, str(_number(name, measured[name])), meaning)
    console.print(table)
    for name, value in measured.items():
        if isinstance(value, list) and (details or name == "largest files"):
            console.print(f"\n{name}", style="bold")
            for entry in value:
                print("  " + (", ".join(entry) if isinstance(entry, list) else entry))


def _number(name: str, value: Any) -> Any:
    if name == "largest files":
        return value[0].partition(" ")[0] if value else 0
    return len(value) if isinstance(value, list) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=HERE, help="the checkout to measure; this one by default")
    parser.add_argument("--details", action="store_true", help="print what each number counts")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(arguments)
    measured = measure(options.root.resolve())
    if options.json:
        print(json.dumps(measured, indent=2))
    else:
        show(measured, details=options.details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
