"""The API reference: each page documents its module, nothing public is left out, and each rule has a page by itself."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import check_website
import pytest
from support.places import ROOT
from website import rule_pages

import portopt

PAGES = sorted((ROOT / "docs" / "api").glob("portopt*.md"))
DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)$", re.MULTILINE)


def directives(page: Path) -> list[str]:
    return DIRECTIVE.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_has_the_module_of_its_name_or_members_of_it(page: Path) -> None:
    names = directives(page)
    assert names
    if names != [page.stem]:
        assert {name.rpartition(".")[0] for name in names} == {page.stem}
        module = importlib.import_module(page.stem)
        missing = [name for name in names if not hasattr(module, name.rpartition(".")[2])]
        assert not missing, f"{page.name} documents {missing}, which do not exist"
    check_website.source(page.stem)


def pages_of(name: str) -> set[str]:
    """Return the pages that have a public name of `portopt`: as a directive, as a module, or since their module has it too."""
    modules = {page.stem for page in PAGES if page.stem.startswith("portopt.")}
    modules |= {f"portopt.rules.{rule}" for rule in rule_pages.pages()}
    thing = getattr(portopt, name)
    found = {module for module in modules if getattr(importlib.import_module(module), name, None) is thing}
    directive = f"portopt.{name}"
    return found | (modules & {directive}) | {page.stem for page in PAGES if directive in directives(page)}


def test_every_public_name_of_portopt_is_on_a_page() -> None:
    missing = [name for name in check_website.public_names("portopt") if not pages_of(name)]
    assert not missing, f"no page of docs/api has portopt.{missing[0]}: add it to docs/api/portopt.md"


def test_a_name_that_is_on_no_page_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portopt, "forgotten", lambda: None, raising=False)
    assert not pages_of("forgotten")


def test_every_rule_has_a_page() -> None:
    assert {rule.__module__.rpartition(".")[2] for rule in portopt.RULES} <= rule_pages.pages().keys()


def test_a_new_rule_gets_a_page_and_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newest.py").write_text(
        '"""Newest: a rule of tomorrow.\n\nMore."""\n\n\nclass Newest: ...\n', encoding="utf-8"
    )
    (tmp_path / "registry.py").write_text("from portopt.rules.newest import Newest as Newest\n", encoding="utf-8")
    monkeypatch.setattr(rule_pages, "RULES", tmp_path)
    assert rule_pages.pages() == {"newest": "api/portopt.rules.newest.md"}
    assert rule_pages.summary("newest") == "Newest: a rule of tomorrow."


def test_the_list_of_modules_has_every_page() -> None:
    listed = set(
        re.findall(r"\]\((portopt[\w.]*)\.md\)", (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8"))
    )
    assert listed == {page.stem for page in PAGES}
