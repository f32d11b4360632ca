"""Check that no module imports from another what begins with an underscore there; ruff's PLC2701 leaves out a package's own.

    python scripts/check_private_names.py src backends conformance

Modules that begin with an underscore belong to their package, whose other modules may import them and what is public in them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from house import modules, privates


def main(roots: list[str]) -> int:
    """Print what is found; the exit status is 1 if there is something."""
    house = modules.read(Path(), roots)
    found = [
        f"{house[use.module].path}:{use.line}: {use.name} is private: make it public there, or do without it"
        for use in privates.imported(modules.imports(house))
    ]
    print("\n".join(found or ["no module imports a private name of another"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
