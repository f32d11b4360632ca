"""The names of the cases in a module of `cases`, for tests that call them in another process."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from support.places import TESTS
from support.turns import in_turns

KERAS_BACKENDS = ("jax", "torch", "tensorflow")
"""The backends of Keras on which the cases are called."""

Case = TypeVar("Case", bound=Callable[..., None])


def on(*backends: str) -> Callable[[Case], Case]:
    """Mark a case that is for some backends of Keras alone, with their names as literals: `cases_of` reads them from the text."""
    return lambda case: case


def cases_of(module: str, backend: str) -> list[str]:
    """Return the names of a module's cases for a backend of Keras. The module is only read: importing it would load Keras."""
    tree = ast.parse((TESTS / "cases" / f"{module}.py").read_bytes())
    functions = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("case_")]
    assert functions, f"{module} has no cases"
    return [f.name for f in functions if backend in _backends(f, backend)]


def cases_in_turns(
    modules: Sequence[str], backends: Sequence[str], in_all: Collection[str]
) -> list[tuple[str, str, str]]:
    """Return backend, module and name of cases: each on one of its backends in turns, those of `in_all` on all.

    What is the adapter's own shows on any backend; each has cases of all kinds in each run.
    """
    names = {
        backend: {(module, name) for module in modules for name in cases_of(module, backend)} for backend in backends
    }
    every = list(dict.fromkeys((m, n) for b in backends for m in modules for n in cases_of(m, b) if (m, n) in names[b]))
    found = []
    for i, (module, name) in enumerate(every):
        own = [backend for backend in backends if (module, name) in names[backend]]
        chosen = own if name in in_all else [backend for _, backend in in_turns([name], own, start=i)]
        found += [(backend, module, name) for backend in chosen]
    return sorted(found, key=lambda case: backends.index(case[0]))


def _backends(case: ast.FunctionDef, default: str) -> list[str]:
    for decorator in case.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="on"), args=names):
                return [ast.literal_eval(name) for name in names]
    return [default]
