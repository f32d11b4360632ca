"""Distributions that are installed for the length of a test, as far as entry points can tell.

They are folders on `sys.path`, as a package of a third party is: nothing of the standard library is replaced, so that a library
which looks at entry points when it is first imported finds its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import portopt
import portopt.backend
from portopt.interchange import frameworks as native_frameworks

Add = Callable[[str, str], None]
"""Adds an entry point of a name and `module:attribute`."""


def write_distribution(folder: Path, name: str, group: str, entry: str) -> None:
    """Write the metadata of a distribution with one entry point into a folder that is, or will be, on the path."""
    information = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    information.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n"
    (information / "METADATA").write_text(metadata, encoding="utf-8")
    (information / "entry_points.txt").write_text(f"[{group}]\n{entry}\n", encoding="utf-8")


@contextmanager
def further_entry_points(folder: Path, group: str = portopt.backend.ENTRY_POINT_GROUP) -> Iterator[Add]:
    """Give a function that adds an entry point to those of the environment, each in a distribution of its own."""
    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patch:

        def add(name: str, value: str) -> None:
            number = next(numbers)
            # A folder is not read again while its time of modification stays, so each has its own.
            path = folder / f"distribution-{number}"
            write_distribution(path, f"portopt-test-{number}", group, f"{name} = {value}")
            patch.syspath_prepend(path)
            forget()

        yield add
    forget()


def forget() -> None:
    """Make portopt look at the entry points again."""
    portopt.backends.cache_clear()
    portopt.backend.registry.forget_types()
    native_frameworks.frameworks.cache_clear()
