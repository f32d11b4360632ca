"""Which backends there are, and which one an array or a name belongs to."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Protocol

from portopt.backend.protocol import Backend

ENTRY_POINT_GROUP = "portopt.backends"
"""The group of entry points in which packages announce their backends."""


class Finder(Protocol):
    """What finds backends that nobody has announced."""

    def backend_of(self, leaf: object) -> Backend | None:
        """Return the backend of an array, or None if `leaf` is none that it knows."""

    def backend_named(self, name: str, *, may_import: bool) -> Backend | None:
        """Return the backend of a library, which it may import if `may_import`; None if it knows none of that name."""


class UnknownBackendError(ValueError):
    """No installed backend has the name that was asked for."""


@functools.cache
def backends() -> Mapping[str, Backend]:
    """Return the installed backends by name, found through the entry-point group `portopt.backends`.

    One that cannot be loaded is left out, with a warning: the others must go on working.
    """
    # It takes longer to import than all of portopt, and nobody needs it before the first step.
    from importlib import metadata

    found: dict[str, tuple[Backend, str]] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in found:
            if found[entry.name][1] == entry.value:
                continue
            raise ValueError(
                f"two packages provide the portopt backend {entry.name!r}: {found[entry.name][1]} and {entry.value}; "
                "uninstall one of them"
            )
        try:
            found[entry.name] = (entry.load(), entry.value)
        except Exception as error:
            warnings.warn(
                f"the portopt backend {entry.name!r} ({entry.value}) cannot be loaded and is left out: {error!r}",
                RuntimeWarning,
                stacklevel=2,
            )
    return {name: backend for name, (backend, _) in sorted(found.items())}


def get_backend(name: str) -> Backend:
    """Return the backend of that name, an installed one or that of an importable array API library."""
    if name in backends():
        return backends()[name]
    backend = _named_last(name, may_import=True)
    if backend is None:
        raise UnknownBackendError(f"no backend is named {name!r}; installed are {', '.join(backends())}")
    return backend


def known_backend(name: str) -> Backend:
    """Return the backend of that name if it is installed, or its library is imported already.

    Unlike `get_backend`, it imports nothing for a name, so that the name may come from anywhere.
    """
    for backend in (*backends().values(), *_recognized):
        if backend.name == name:
            return backend
    met = _named_last(name, may_import=False)
    if met is None:
        raise UnknownBackendError(f"no backend is named {name!r:.80}; installed are {', '.join(backends())}")
    return met


def _named_last(name: str, *, may_import: bool) -> Backend | None:
    found = (finder.backend_named(name, may_import=may_import) for finder in _last)
    return next((backend for backend in found if backend is not None), None)


_by_type: dict[type, Backend] = {}
_recognized: list[Backend] = []
_preferred: Backend | None = None
_last: list[Finder] = []


def ask_last(finder: Finder) -> None:
    """Ask `finder` for the backends of arrays and names that no installed or recognized one is found for."""
    _last.append(finder)


def recognize(backend: Backend) -> None:
    """Take arrays that `backend` owns from now on, though it is not among the installed `backends()`, which come first."""
    if backend not in _recognized:
        _recognized.append(backend)


@contextlib.contextmanager
def prefer(backend: Backend) -> Iterator[None]:
    """Use `backend` for the arrays it owns, whatever is installed; for testing a backend, in one thread."""
    global _preferred
    before = _preferred
    forget_types()
    _preferred = backend
    try:
        yield
    finally:
        _preferred = before
        forget_types()


def forget_types() -> None:
    """Look anew for the backend of each type of arrays, since there are others than before."""
    _by_type.clear()


def find_backend(leaf: object) -> Backend | None:
    """Return the backend of an array, or None if `leaf` is no array."""
    kind = type(leaf)
    backend = _by_type.get(kind)
    if backend is None:
        candidates = ([] if _preferred is None else [_preferred]) + list(backends().values()) + _recognized
        backend = next((b for b in candidates if b.owns(leaf)), None)
        if backend is None:
            backend = next((b for b in (finder.backend_of(leaf) for finder in _last) if b is not None), None)
            if backend is None:
                return None
        _by_type[kind] = backend
    return backend


def is_set_aside(backend: Backend) -> bool:
    """Tell whether another backend is being tested, by `prefer`, which may own the arrays of this one."""
    return _preferred is not None and _preferred is not backend


def is_preferred(backend: Backend) -> bool:
    """Tell whether a backend is being tested, by `prefer`."""
    return backend is _preferred
