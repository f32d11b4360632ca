"""Finding the backend that was asked for."""

from __future__ import annotations

import importlib

from portopt import Backend, get_backend


class UnavailableBackendError(ImportError):
    """The backend that was asked for, or its library, is not there."""


def find(name: str) -> Backend:
    """Return a backend by its name, by that of an array API module, or as an object: `package.module:attribute`.

    Raises:
        UnavailableBackendError: there is no such backend, or its library cannot be imported.
        TypeError: the object is no backend.
    """
    module_name, colon, attribute = name.partition(":")
    try:
        backend = getattr(importlib.import_module(module_name), attribute) if colon else get_backend(name)
    except (ImportError, ValueError, AttributeError) as error:
        raise UnavailableBackendError(str(error)) from error
    try:
        # First, because Python 3.11 reads every attribute to see whether an object fits, and some import the library.
        version = getattr(backend, "version", lambda: None)
        version()
    except ImportError as error:
        remedy = backend.install_command
        raise UnavailableBackendError(f"{backend.name} is not installed ({error}); install it: {remedy}") from error
    if not isinstance(backend, Backend):
        protocol = sorted(n for n in (*Backend.__annotations__, *vars(Backend)) if not n.startswith("_"))
        lacks = ", ".join(n for n in protocol if not hasattr(backend, n))
        raise TypeError(f"{name} is {backend!r}, which is no backend: it lacks {lacks}")
    return backend
