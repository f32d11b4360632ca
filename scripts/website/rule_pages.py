"""A hook of mkdocs that gives each module of `portopt.rules` a page: nobody keeps a list of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

RULES = Path(__file__).resolve().parents[2] / "src" / "portopt" / "rules"
OVERVIEW = "api/portopt.rules.md"

PAGE = """\
# portopt.rules.{name}

::: portopt.rules.{name}
    options:
      show_root_heading: false
"""


def pages() -> dict[str, str]:
    """Map the name of each module with a class, a rule or what rules share, to where its page lies."""
    names = sorted(
        path.stem for path in RULES.glob("[a-z]*.py") if any(isinstance(n, ast.ClassDef) for n in parsed(path).body)
    )
    return {name: f"api/portopt.rules.{name}.md" for name in names}


def on_config(config: MkDocsConfig) -> None:
    """List the pages below the one of `portopt.rules`."""
    for section in config.nav or []:
        for entries in section.values():
            if isinstance(entries, list) and {"portopt.rules": OVERVIEW} in entries:
                position = entries.index({"portopt.rules": OVERVIEW})
                entries[position] = {"portopt.rules": [OVERVIEW, *({name: page} for name, page in pages().items())]}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Write the pages."""
    from mkdocs.structure.files import File

    for name, page in pages().items():
        files.append(File.generated(config, page, content=PAGE.format(name=name)))


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Link to the pages from that of `portopt.rules`."""
    if page.file.src_uri != OVERVIEW:
        return markdown
    links = [f"- [{name}](portopt.rules.{name}.md): {summary(name)}" for name in pages()]
    return "\n".join([markdown, "", *links])


def summary(name: str) -> str:
    return (ast.get_docstring(parsed(RULES / f"{name}.py")) or "").partition("\n")[0]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
