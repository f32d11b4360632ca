"""Private names of one module that another one uses."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from house.modules import Import, Module

# What a named tuple has for everybody.
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}


@dataclass(frozen=True)
class Use:
    """A private name, the module that uses it, and the line."""

    module: str
    name: str
    line: int


def uses(modules: Mapping[str, Module], imports: Iterable[Import]) -> list[Use]:
    """Return the private names that a module imports from another, or reads from an object though only others give it."""
    found = set(imported(imports))
    owners = {name: _given(module.tree) for name, module in modules.items()}
    known = {name for given in owners.values() for name in given} - OF_NAMED_TUPLES
    for name, module in modules.items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in known - owners[name] and not _is_own(node.value):
                found.add(Use(name, node.attr, node.lineno))
    return sorted(found, key=lambda use: (use.module, use.line, use.name))


def imported(imports: Iterable[Import]) -> Iterator[Use]:
    """Yield the private names that a module imports from another, and the private modules of other packages."""
    for one in imports:
        if one.name is not None and _is_private(one.name):
            yield Use(one.importer, f"{one.imported}.{one.name}", one.line)
        elif any(map(_is_private, _beyond(one.imported, one.importer))):
            yield Use(one.importer, one.imported, one.line)


def _beyond(imported: str, importer: str) -> list[str]:
    """Return what of a module's path does not lead into a package that the importer lies in; there, modules may be private."""
    parts, inside = imported.split("."), importer.split(".")
    common = next((i for i, (a, b) in enumerate(zip(parts, inside, strict=False)) if a != b), len(parts))
    return parts[common + bool(common) :]


def _given(tree: ast.Module) -> set[str]:
    """Return the private names that a module defines or sets."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.Call(func=ast.Name(id="setattr"), args=[_, ast.Constant(value=str(name)), *_]):
                names.add(name)
    return {name for name in names if _is_private(name)}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def _is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")
