"""The modules of a tree, and what each imports from the others."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeGuard

SOURCES = ("src", "backends", "conformance")


class When(Enum):
    """When an import happens: with that of the module, in a call, or only for a type checker."""

    AT_IMPORT = "at import"
    IN_A_CALL = "in a call"
    FOR_TYPES = "for types"


Statement = ast.Import | ast.ImportFrom | ast.Call
"""What imports: a statement, or a call of `importlib.import_module` with the name as it stands."""


@dataclass(frozen=True)
class Import:
    """One import of a module of the tree by another."""

    importer: str
    imported: str
    name: str | None
    line: int
    when: When


@dataclass(frozen=True)
class Module:
    """A module: its name, its file, and the file's syntax tree."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def folder(self) -> str:
        """The package that it lies in, or is."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0] or self.name

    @property
    def room(self) -> str:
        """The folder that it lies in, or itself where that is the folder of the whole package."""
        return self.folder if "." in self.folder else self.name


def read(root: Path, folders: Iterable[str] = SOURCES) -> dict[str, Module]:
    """Return the modules of a checkout by name."""
    modules = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or folder
            text = path.read_text(encoding="utf-8")
            modules[name] = Module(name, path, ast.parse(text), len(text.splitlines()))
    return modules


def imports(modules: Mapping[str, Module]) -> list[Import]:
    """Return every import of one module of the tree by another. What the packages around the imported one import is not added."""
    return [found for module in modules.values() for found in _imports_of(module, modules)]


def _imports_of(module: Module, modules: Mapping[str, Module]) -> Iterator[Import]:
    for node, when in _statements(module.tree, When.AT_IMPORT):
        for target, name in _targets(node, module):
            whole = f"{target}.{name}"
            found = (whole, None) if whole in modules else (target, name)
            if found[0] in modules and found[0] != module.name:
                yield Import(module.name, *found, node.lineno, when)


def _statements(node: ast.AST, when: When) -> Iterator[tuple[Statement, When]]:
    for child in ast.iter_child_nodes(node):
        inside = when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when is When.AT_IMPORT:
            inside = When.IN_A_CALL
        if isinstance(child, ast.Import | ast.ImportFrom) or _is_call_of_import_module(child):
            yield child, when
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _statements(ast.Module([statement], []), When.FOR_TYPES)
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), when)
        else:
            yield from _statements(child, inside)


def _is_call_of_import_module(node: ast.AST) -> TypeGuard[ast.Call]:
    match node:
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"), args=[ast.Constant()]):
            return True
    return False


def _targets(node: Statement, module: Module) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, ast.Call):
        yield ast.literal_eval(node.args[0]), None
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
        package = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
        base = f"{package}.{base}".rstrip(".")
    yield from ((base, alias.name) for alias in node.names)


Graph = Mapping[str, set[str]]


def graph(found: Iterable[Import], of: Callable[[str], str] = str) -> Graph:
    """Return who imports whom; `of` maps a module to what stands for it, such as its room."""
    edges: dict[str, set[str]] = defaultdict(set)
    for one in found:
        importer, imported = of(one.importer), of(one.imported)
        edges[imported] |= set()
        if importer != imported:
            edges[importer].add(imported)
    return edges


def circles(edges: Graph) -> list[list[str]]:
    """Return the sets of more than one member of which each imports all others, in some number of steps."""
    reached = {start: _reachable(edges, start) for start in edges}
    groups = {tuple(sorted({a, *(b for b in reached[a] if a in reached[b])})) for a in edges}
    return sorted((list(group) for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


def _reachable(edges: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found


def floors(edges: Graph) -> list[str]:
    """Return the longest chain of imports, from the top to the bottom; a circle counts as one floor."""
    circle_of = {name: circle[0] for circle in circles(edges) for name in circle}
    condensed: dict[str, set[str]] = defaultdict(set)
    for name, imported in edges.items():
        top = circle_of.get(name, name)
        condensed[top] |= {circle_of.get(other, other) for other in imported} - {top}
    longest: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in longest:
            below = max((chain(other) for other in sorted(condensed[name])), key=len, default=[])
            longest[name] = [name, *below]
        return longest[name]

    return max((chain(name) for name in sorted(condensed)), key=len, default=[])
