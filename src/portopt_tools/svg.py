"""Charts as SVG text. Needs matplotlib."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any

from portopt_tools.errors import UnusableArgumentsError

# Okabe and Ito's colours, which remain distinct to colour-blind readers.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
)  # fmt: skip


def require_matplotlib(purpose: str, extra: str) -> None:
    """Raise `UnusableArgumentsError` if there is no matplotlib.

    Args:
        purpose: what needs it.
        extra: the extra of portopt that has it.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UnusableArgumentsError(
            f'{purpose} needs matplotlib, which cannot be imported ({error}): pip install "portopt[{extra}]"'
        ) from error


def drawn(width: float, height: float, draw: Callable[[Any], None]) -> str:
    """Return as SVG what a function draws into a figure of so many inches; the same text each time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    buffer = io.StringIO()
    # Text stays text, so it is searchable and in the page's font; the salt makes the ids the same in every run.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "portopt", "font.family": "sans-serif"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
