"""Names of a module that are imported when one of them is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any


def names_of(module: str, namespace: dict[str, Any]) -> tuple[Callable[[str], Any], Callable[[], Iterable[str]]]:
    """Return `__getattr__` and `__dir__` for a module that offers all public names of another, imported at the first use.

    Args:
        module: the full name of the other module.
        namespace: `globals()` of the module that offers the names, which takes them over then.
    """

    def load() -> None:
        offered = importlib.import_module(module)
        namespace.update({name: value for name, value in vars(offered).items() if not name.startswith("_")})

    def get(name: str) -> Any:
        # `from portopt import *` asks for this one first; without it the names not yet imported would be left out.
        if name == "__all__":
            load()
            return [known for known in namespace if not known.startswith("_")]
        if not name.startswith("_"):
            load()
            if name in namespace:
                return namespace[name]
        raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")

    def names() -> Iterable[str]:
        load()
        return list(namespace)

    return get, names
