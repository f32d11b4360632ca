"""Print what an environment of other versions than those of constraints.txt has, as a requirements file.

    python scripts/version_requirements.py lowest|pinned|newest [EXTRA ...] --tools NAME ...

The core and the extras are there in the lowest versions that pyproject.toml allows, in those of constraints.txt, or in the newest
that install; the tools in those of constraints.txt.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)>=(?P<version>[\w.]+)(?P<rest>[^;]*)(?P<marker>;.*)?")


def requirements(extras: list[str]) -> list[str]:
    """Return the requirements of the core and of these extras as they stand in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]


def lowest(requirement: str) -> str:
    """Return a requirement that only the lowest version of another one meets."""
    match = REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise SystemExit(f"{requirement!r} in pyproject.toml has no lowest version: it must be NAME>=VERSION")
    return f"{match['name']}=={match['version']}{match['marker'] or ''}"


def pinned(name: str) -> str:
    """Return the line of constraints.txt for a package."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.partition("==")[0].lower().replace("_", "-") == name.lower().replace("_", "-"):
            return line
    raise SystemExit(f"constraints.txt does not have {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("versions", choices=["lowest", "pinned", "newest"])
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--tools", nargs="*", default=[])
    arguments = parser.parse_args()
    found = requirements(arguments.extras)
    match arguments.versions:
        case "lowest":
            found = [lowest(requirement) for requirement in found]
        case "pinned":
            found = [pinned(re.split(r"[<>=;\[ ]", requirement)[0]) for requirement in found]
    print(*found, *map(pinned, arguments.tools), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
