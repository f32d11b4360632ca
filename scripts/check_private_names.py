"""Check that no module imports from another what begins with an underscore there; ruff's PLC2701 leaves out a package's own.

    python scripts/check_private_names.py src backends conformance

Modules that begin with an underscore belong to their package, whose other modules may import them and what is public in them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def private_imports(file: Path, root: Path) -> Iterator[str]:
    """Yield a line for each private name that a module imports from a module of any package beside its own."""
    own = file.relative_to(root).parts[0]
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            folder = root.joinpath(*str(node.module).split("."))
            for name in (alias.name for alias in node.names if _is_private(alias.name)):
                is_module = folder.joinpath(f"{name}.py").exists() or folder.joinpath(name).is_dir()
                if not is_module or str(node.module).split(".")[0] != own:
                    yield f"{file}:{node.lineno}: {name} is private to {node.module}: make it public there, or do without it"
            if str(node.module).split(".")[0] != own and any(map(_is_private, str(node.module).split("."))):
                yield f"{file}:{node.lineno}: {node.module} is private to its package: import from the package"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def main(roots: list[str]) -> int:
    """Print what is found; the exit status is 1 if there is something."""
    found = [
        line for root in map(Path, roots) for file in sorted(root.rglob("*.py")) for line in private_imports(file, root)
    ]
    print("\n".join(found or ["no module imports a private name of another"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
