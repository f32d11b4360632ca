"""Libraries that are imported, or are not, or are just being imported by another thread."""

from __future__ import annotations

import sys
from typing import Any


def imported(name: str) -> Any:
    """Return a module if it is imported, else None.

    One that is still being imported counts as not imported: nobody has anything of it yet, and attributes may be lacking. Who
    needs the module itself calls `importlib.import_module`, which waits for the thread that imports it.
    """
    module = sys.modules.get(name)
    return None if module is None or _is_being_imported(module) else module


def _is_being_imported(module: Any) -> bool:
    # What the import system itself looks at before it gives out a module.
    return getattr(getattr(module, "__spec__", None), "_initializing", False) is True
