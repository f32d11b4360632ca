"""Stretches of code that stand in two places."""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Stretch:
    """Lines of two files that say the same."""

    first: Path
    first_line: int
    second: Path
    second_line: int
    lines: int


def stretches(paths: Iterable[Path], least: int = 12) -> list[Stretch]:
    """Return the longest runs of at least `least` lines that are equal in two files, whatever the names in them are.

    Comments, docstrings, imports and empty lines count as nothing.
    """
    files = {path: _lines(path) for path in paths}
    windows = defaultdict(list)
    for path, lines in files.items():
        for start in range(len(lines) - least + 1):
            windows[tuple(text for _, text in lines[start : start + least])].append((path, start))
    matches = {
        pair for places in windows.values() for pair in itertools.combinations(places, 2) if pair[0][0] != pair[1][0]
    }
    return sorted(
        (_grown(pair, matches, files, least) for pair in matches if _moved(pair, -1) not in matches),
        key=lambda stretch: (-stretch.lines, str(stretch.first), stretch.first_line),
    )


Place = tuple[Path, int]


def _moved(pair: tuple[Place, Place], by: int) -> tuple[Place, Place]:
    (a, i), (b, j) = pair
    return (a, i + by), (b, j + by)


def _grown(
    pair: tuple[Place, Place],
    matches: set[tuple[Place, Place]],
    files: dict[Path, list[tuple[int, str]]],
    least: int,
) -> Stretch:
    more = next(n for n in itertools.count(1) if _moved(pair, n) not in matches) - 1
    (a, i), (b, j) = pair
    return Stretch(a, files[a][i][0], b, files[b][j][0], least + more)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of code with their numbers, names and strings made alike."""
    text = path.read_text(encoding="utf-8")
    left_out = {line for node in ast.walk(ast.parse(text)) if _says_nothing(node) for line in _lines_of(node)}
    words: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED and token.start[0] not in left_out:
            words[token.start[0]].append(_word(token))
    # A line of brackets and strings is as good as an empty one.
    return [(line, " ".join(found)) for line, found in sorted(words.items()) if any(map(str.isidentifier, found))]


def _says_nothing(node: ast.AST) -> bool:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


def _lines_of(node: ast.AST) -> range:
    first: int = node.lineno  # type: ignore[attr-defined]  # a statement
    last: int = node.end_lineno  # type: ignore[attr-defined]
    return range(first, last + 1)


def _word(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
        return "name"
    return "''" if token.type == tokenize.STRING else token.string
