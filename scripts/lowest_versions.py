"""Print, as requirements, the lowest versions that pyproject.toml allows of the core and of some extras.

    python scripts/lowest_versions.py EXTRA ... [--tools NAME ...]

Tools are printed at the version that constraints.txt has.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)>=(?P<version>[\w.]+)(?P<rest>[^;]*)(?P<marker>;.*)?")


def lowest(extras: list[str]) -> list[str]:
    """Return one requirement for each dependency of the core and of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    found = []
    for requirement in requirements:
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise SystemExit(f"{requirement!r} in pyproject.toml has no lowest version, NAME>=VERSION")
        found.append(f"{match['name']}=={match['version']}{match['marker'] or ''}")
    return found


def pinned(tools: list[str]) -> list[str]:
    """Return the lines of constraints.txt for these packages."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0]: line for line in lines}
    if unknown := set(tools) - set(pins):
        raise SystemExit(f"constraints.txt does not have {', '.join(sorted(unknown))}")
    return [pins[tool] for tool in tools]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--tools", nargs="*", default=[])
    arguments = parser.parse_args()
    print(*lowest(arguments.extras), *pinned(arguments.tools), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
