"""What `make docs` checks of the web site that it built, on sites that were made up."""

from __future__ import annotations

import zlib
from pathlib import Path

import check_website
import pytest

import portopt


def write_inventory(site: Path, names: set[str]) -> None:
    lines = "".join(f"{name} py:function 1 page.html#$ -\n" for name in sorted(names))
    head = b"# Sphinx inventory version 2\n# Project: portopt\n# Version: 0\n# The rest is compressed.\n"
    (site / "objects.inv").write_bytes(head + zlib.compress(lines.encode()))


def check(site: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["check_website.py", str(site)])
    return check_website.main()


def test_rules_and_functions_are_expected() -> None:
    expected = check_website.expected_names()
    assert {"portopt.get", "portopt.schedules.CosineDecay", "portopt.backend.accept", "portopt_jax.step"} <= expected
    assert {f"portopt.{rule.__name__}" for rule in portopt.RULES} <= expected


def test_a_name_that_the_reference_lacks_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = check_website.expected_names()
    write_inventory(tmp_path, names)
    assert check(tmp_path, monkeypatch) == 0
    write_inventory(tmp_path, names - {"portopt.Adam"})
    assert check(tmp_path, monkeypatch) == 1
    assert capsys.readouterr().err == "the reference lacks portopt.Adam\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<script src="https://unpkg.com/x"></script>', "<script> loads https://unpkg.com/x"),
        ('<img src="//example.com/x.png">', "<img> loads //example.com/x.png"),
        ('<link rel="preconnect" href="https://fonts.example">', "<link> loads https://fonts.example"),
        ('<pre class="mermaid">graph</pre>', "<pre> makes the theme fetch a diagram"),
        ("<style>@import 'https://example.com/x.css'</style>", "a style has @import 'https://"),
    ],
)
def test_a_request_to_another_host_is_an_error(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inventory(tmp_path, check_website.expected_names())
    (tmp_path / "page.html").write_text(content, encoding="utf-8")
    assert check(tmp_path, monkeypatch) == 1
    assert capsys.readouterr().err == f"page.html: {message}\n"


def test_links_and_files_of_the_site_are_no_requests(tmp_path: Path) -> None:
    links = '<a href="https://example.com">x</a><link rel="canonical" href="https://example.com/page">'
    own = '<script src="../assets/x.js"></script><img src="data:image/png;base64,AA=="><link rel="icon" href="x.png">'
    (tmp_path / "page.html").write_text(links + own, encoding="utf-8")
    assert not list(check_website.foreign_requests(tmp_path))
