"""Backends that are installed for the length of a test."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import portopt
from portopt.backend import ENTRY_POINT_GROUP


@contextmanager
def further_entry_points() -> Iterator[Callable[[str, str], None]]:
    """Give a function that adds an entry point, of a name and `module:attribute`, to those of the environment."""
    original = importlib.metadata.entry_points
    added: list[importlib.metadata.EntryPoint] = []

    def entry_points(**parameters: Any) -> Any:
        found = list(original(**parameters))
        return [*found, *added] if parameters.get("group") == ENTRY_POINT_GROUP else found

    def add(name: str, value: str) -> None:
        added.append(importlib.metadata.EntryPoint(name, value, ENTRY_POINT_GROUP))
        portopt.backends.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "entry_points", entry_points)
        yield add
    portopt.backends.cache_clear()
