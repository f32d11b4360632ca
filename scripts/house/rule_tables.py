"""The places that know rules by name, in each of which a new rule has to be entered."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("src", "backends", "conformance", "scripts", "tests", "examples")
RULES = Path("src") / "portopt" / "rules"
ENOUGH = 3


@dataclass(frozen=True)
class Place:
    """A file or a table in it, and the rules that it names."""

    path: Path
    line: int
    rules: tuple[str, ...]


def rules(root: Path) -> set[str]:
    """Return the names of the rules: of what a module of their folder imports from another one for its users."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((root / RULES).glob("*.py"))]
    imports = [node for tree in trees for node in tree.body if isinstance(node, ast.ImportFrom)]
    from_rules = [node for node in imports if str(node.module).startswith("portopt.rules.")]
    return {alias.name for node in from_rules for alias in node.names if alias.name == alias.asname}


def files(root: Path) -> list[Place]:
    """Return the files outside of the rules' own folder that name three rules or more."""
    known = rules(root)
    return [Place(path, 1, named) for path, tree in _trees(root) if len(named := _named(tree, known)) >= ENOUGH]


def tables(root: Path) -> list[Place]:
    """Return the displays (lists, tuples, sets, dicts) and `match` statements outside of that folder that name three or more."""
    known = rules(root)
    return [place for path, tree in _trees(root) for place in _tables(path, tree, known)]


def _tables(path: Path, node: ast.AST, known: set[str]) -> Iterator[Place]:
    for child in ast.iter_child_nodes(node):
        named = _named(child, known) if isinstance(child, ast.List | ast.Tuple | ast.Set | ast.Dict | ast.Match) else ()
        if len(named) >= ENOUGH:
            yield Place(path, child.lineno, named)  # type: ignore[attr-defined]  # an expression or a statement
        else:
            yield from _tables(path, child, known)


def _trees(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if not path.is_relative_to(root / RULES):
                yield path, ast.parse(path.read_text(encoding="utf-8"))


def _named(tree: ast.AST, known: set[str]) -> tuple[str, ...]:
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.Constant(value=str(name)):
                found.add(name)
    return tuple(sorted(found & known))
