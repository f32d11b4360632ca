"""README and docs/: the examples run, the commands and links exist."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT

from portopt_tools import command_line

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

FENCE = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(?<!`)`(?P<text>[^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
NAME = re.compile(r"`(portopt\.[\w.]*\w|portopt\w*)`")
HEADING = re.compile(r"^#+ +(?P<text>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which its text starts."""

    language: str
    text: str
    line: int


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        yield Block(match["language"], match["text"], text.count("\n", 0, match.start("text")) + 1)


def run_examples(text: str, filename: str) -> None:
    """Run the Python blocks of a page, in order and in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(text):
        if block.language != "python":
            continue
        if ">>>" not in block.text:
            # The empty lines give a traceback the line number that the reader sees.
            exec(compile("\n" * (block.line - 1) + block.text, filename, "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(block.text, namespace, filename, filename, block.line - 1)
        report = io.StringIO()
        results = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.write, clear_globs=False)
        assert not results.failed, report.getvalue()
        namespace.update(test.globs)


@every_page
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(page.read_text(encoding="utf-8"), name_of(page))


def test_a_wrong_example_is_noticed() -> None:
    run_examples("```python\nx = 1\n```\n\n```python\n>>> x\n1\n```\n", "right.md")
    with pytest.raises(AssertionError, match="Expected"):
        run_examples("```python\nx = 1\n```\n\n```python\n>>> x\n2\n```\n", "wrong.md")
    with pytest.raises(ZeroDivisionError):
        run_examples("```python\n1 / 0\n```\n", "wrong.md")


def test_every_python_example_is_in_a_block_that_runs() -> None:
    for page in PAGES:
        languages = {block.language for block in blocks(page.read_text(encoding="utf-8"))}
        allowed = {"python", "sh", "text", "toml", "json"}
        assert languages <= allowed, f"{name_of(page)} has blocks of {sorted(languages - allowed)}"


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in the page's shell blocks, and of each `portopt` or `make` command in its prose."""
    for block in blocks(text):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield words
    for match in INLINE_CODE.finditer(FENCE.sub("", text)):
        if re.match(r"(portopt|make|python -m portopt\w*) [a-z-]", match["text"]):
            yield shlex.split(match["text"], comments=True)


def check_command(words: list[str]) -> None:
    match words:
        case ["make", *targets]:
            check_make([target for target in targets if "=" not in target])
        case ["portopt", *arguments] | ["python", "-m", "portopt", *arguments]:
            check_options(command_line.main, arguments[:1], arguments[1:])
        case ["python", "-m", "portopt_conformance", *arguments]:
            check_options(importlib.import_module("portopt_conformance.__main__").main, [], arguments)
        case ["pip", "install", *requirements]:
            check_extras(requirements)
        case ["python", script, *_] if (ROOT / script).is_file():
            pass
        case ["pytest", folder, *_] if (ROOT / folder).is_dir():
            pass
        case _:
            raise AssertionError(f"not a command that this test can check: {shlex.join(words)}")


def check_make(targets: list[str]) -> None:
    result = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def check_options(main: Any, subcommand: list[str], arguments: list[str]) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as exit_:
        main([*subcommand, "--help"])
    assert exit_.value.code == 0, f"{subcommand} has no help"
    known = set(re.findall(r"--?[a-z][a-z-]*", printed.getvalue()))
    for option in (word.partition("=")[0] for word in arguments if word.startswith("-")):
        assert option in known, f"{' '.join(subcommand)} has no option {option}"


def check_extras(requirements: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in requirements:
        match = re.fullmatch(r"portopt(?:\[(?P<extras>[\w,-]+)\])?", requirement)
        if match and match["extras"]:
            unknown = set(match["extras"].split(",")) - set(project["optional-dependencies"])
            assert not unknown, f"portopt has no extra {sorted(unknown)}"


@every_page
def test_commands_exist(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        check_command(words)


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "portopt no-such-command",
        "portopt compare --no-such-option",
        "python -m portopt_conformance --no-such-option",
        "pip install portopt[no-such-extra]",
        "no-such-program",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check_command(shlex.split(command))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Markdown renderers make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    kept = (re.sub(r"[^\w\- ]", "", heading["text"].lower()) for heading in HEADING.finditer(text))
    return {heading.strip().replace(" ", "-") for heading in kept}


def check_links(page: Path, text: str) -> None:
    for match in LINK.finditer(FENCE.sub("", text)):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        destination = (page.parent / path).resolve() if path else page
        assert destination.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(destination), f"{name_of(page)} links to {target}, but there is no such heading"
        if page.is_relative_to(ROOT / "docs"):
            assert destination.is_relative_to(ROOT / "docs"), (
                f"{name_of(page)} links to {target}, outside of the web site"
            )


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    check_links(page, page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("link", ["[x](no-such-page.md)", "[x](quickstart.md#no-such-heading)", "[x](../README.md)"])
def test_a_broken_link_is_noticed(link: str) -> None:
    with pytest.raises(AssertionError, match="links to"):
        check_links(ROOT / "docs" / "index.md", link)


def test_the_web_site_has_every_page() -> None:
    listed = re.findall(r"^ +- .*?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)


def exists(name: str) -> bool:
    """Tell whether there is such a module, or such an attribute of one. A package of a framework is not imported for it."""
    package, *parts = name.split(".")
    if importlib.util.find_spec(package) is None or not parts:
        return importlib.util.find_spec(package) is not None
    found = importlib.import_module(package)
    try:
        for i, part in enumerate(parts, 1):
            found = (
                getattr(found, part)
                if hasattr(found, part)
                else importlib.import_module(".".join([package, *parts[:i]]))
            )
    except ModuleNotFoundError:
        return False
    return True


@every_page
def test_names_of_the_library_exist(page: Path) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    for name in set(NAME.findall(page.read_text(encoding="utf-8"))) - set(groups):
        assert exists(name), f"{name_of(page)} names {name}, which does not exist"


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert exists("portopt.step.do_step")
    assert exists("portopt.Optimizer.apply")
    assert not exists("portopt.step.do_nothing")
    assert not exists("portopt.no_such_module")
    assert not exists("portopt_no_such_package")
