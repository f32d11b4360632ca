"""Check a web site that mkdocs built: the reference has every public name, and no page asks another host for anything."""

from __future__ import annotations

import argparse
import ast
import re
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import portopt

ROOT = Path(__file__).resolve().parents[1]

RESOURCES = {"src", "srcset", "data", "poster"}
LOADED_LINKS = {"stylesheet", "icon", "preconnect", "preload", "manifest", "dns-prefetch"}
IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//")
# What the theme would fetch its own parts for.
FETCHED_FOR = {"mermaid": "a diagram", "md-source": "the numbers of a repository"}


def public_names(module: str) -> Iterator[str]:
    """Yield what a module defines or imports for its users (`import x as x`), of which a reader expects documentation."""
    for node in ast.walk(ast.parse(source(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name == alias.asname and alias.name[0] != "_")
    for node in ast.parse(source(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_" and ast.get_docstring(node):
            yield node.name


def source(module: str) -> Path:
    """Return the file of a module of this repository, without importing it."""
    for folder in ("src", "backends", "conformance"):
        path = ROOT / folder / module.replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    raise FileNotFoundError(f"no module {module} in src, backends or conformance")


def documented_modules() -> list[str]:
    """Return the modules that have a page in the reference, written by hand or made for a rule."""
    pages = [page.stem for page in (ROOT / "docs" / "api").glob("portopt*.md")]
    return sorted({*pages, *(rule.__module__ for rule in portopt.RULES)})


def expected_names() -> set[str]:
    """Return the names that the reference must have."""
    names = {f"{module}.{name}" for module in documented_modules() for name in public_names(module)}
    return names | {f"portopt.{rule.__name__}" for rule in portopt.RULES}


def inventory(site: Path) -> set[str]:
    """Return the names in a site's `objects.inv`, which says where each object is documented."""
    compressed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(compressed).decode().splitlines()}


class Requests(HTMLParser):
    """Collects what a page asks other hosts for. Links that a reader may follow are none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        loaded = [given[name] for name in sorted(RESOURCES & given.keys())]
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            loaded.append(given.get("href", ""))
        self.found += [f"<{tag}> loads {address}" for address in loaded if re.match("(?:https?:)?//", address)]
        classes = set(given.get("class", "").split())
        self.found += [f"<{tag}> makes the theme fetch {what}" for name, what in FETCHED_FOR.items() if name in classes]


def foreign_requests(site: Path) -> Iterator[str]:
    """Yield each request to another host that a file of the site would make."""
    for path in sorted(site.rglob("*.html")):
        page = Requests()
        page.feed(path.read_text(encoding="utf-8"))
        yield from (f"{path.relative_to(site)}: {request}" for request in page.found)
    for path in sorted([*site.rglob("*.css"), *site.rglob("*.html"), *site.rglob("*.svg")]):
        if match := IN_STYLES.search(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: a style has {match[0]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("site", type=Path, help="the folder that mkdocs wrote")
    site = parser.parse_args().site
    faults = [f"the reference lacks {name}" for name in sorted(expected_names() - inventory(site))]
    faults += foreign_requests(site)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
