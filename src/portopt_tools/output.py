"""Where results go: the standard output, and files in a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from portopt.files import replacing
from portopt_tools.errors import UnusableArgumentsError
from portopt_tools.svg import require_matplotlib

_WIDTH = 120
"""Columns where there is no terminal to ask, as in a log."""


def output_console() -> Console:
    """Return the console for results."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    return console


def prepare_reports(folder: Path | None, purpose: str, extra: str) -> None:
    """Make the folder of `--out`, before anything is measured that could not be written.

    Args:
        folder: None if nothing is to be written.
        purpose: what of the reports needs matplotlib.
        extra: the extra of portopt that has it.

    Raises:
        UnusableArgumentsError: there is no matplotlib, or no file can be written in the folder.
    """
    if folder is None:
        return
    require_matplotlib(purpose, extra)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnusableArgumentsError(f"--out: no file can be written in {str(folder)!r} ({error})") from error


def write_files(texts: Mapping[Path, str]) -> list[Path]:
    """Write texts, each file as a whole or not at all, and return the paths."""
    for path, text in texts.items():
        with replacing(path, durable=False) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)


def print_written(console: Console, paths: list[Path]) -> None:
    """Print where files were written."""
    console.print(f"written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)
