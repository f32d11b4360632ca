"""The names of the cases in a module of `cases`, for tests that call them in another process."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TypeVar

from support.places import TESTS

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


def _backends(case: ast.FunctionDef, default: str) -> list[str]:
    for decorator in case.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="on"), args=names):
                return [ast.literal_eval(name) for name in names]
    return [default]
