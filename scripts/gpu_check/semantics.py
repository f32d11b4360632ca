"""Stub."""

from __future__ import annotations
from typing import Any


def run(options: Any) -> Any: ...
def work(options: Any, argument: Any, keep: Any) -> None: ...
