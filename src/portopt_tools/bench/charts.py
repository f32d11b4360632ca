"""How many times as fast as the best of the other libraries, as SVG text. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portopt_tools import svg
from portopt_tools.bench.markdown import nearest_ratio, preferred
from portopt_tools.bench.wording import Report, set_title, shape_sets

_COLORS = (svg.BLUE, svg.VERMILLION, svg.GREEN, svg.PURPLE, svg.ORANGE)


def ratios_svg(report: Report) -> str:
    """Return a panel for each shape set, with a bar for each rule and backend; without other libraries, steps per second."""
    sets = list(shape_sets(report).values())
    return svg.drawn(8.5, max(1, len(sets)) * 2.9, lambda figure: _draw(figure, sets, partial=report["partial"]))


def _draw(figure: Any, sets: Sequence[list[Report]], *, partial: bool) -> None:
    axes: Any = figure.subplots(max(1, len(sets)), 1, squeeze=False)
    labels: dict[str, Any] = {}
    for axis, groups in zip(axes[:, 0], sets, strict=False):
        _panel(axis, list(groups), labels)
    if partial:
        figure.suptitle("partial: the measurement was stopped", fontsize=10)
    if labels:
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=3, frameon=False)


def _panel(axis: Any, groups: list[Report], labels: dict[str, Any]) -> None:
    names = list(dict.fromkeys(c["name"] for group in groups for c in preferred(group)))
    width = 0.8 / max(1, len(names))
    compared = False
    for i, name in enumerate(names):
        heights, against = [], ""
        for group in groups:
            contender = next((c for c in preferred(group) if c["name"] == name), None)
            ratio = nearest_ratio(contender) if contender is not None else None
            compared = compared or ratio is not None
            against = f" against {ratio[0]}" if ratio else against
            heights.append(_height(contender, ratio))
        bars = axis.bar([x + i * width for x in range(len(groups))], heights, width, color=_COLORS[i % len(_COLORS)])
        labels.setdefault(name + against, bars)
    axis.set_title(set_title(groups[0]), fontsize=10)
    axis.set_ylabel("times as fast" if compared else "steps per second", fontsize=9)
    axis.set_xticks([x + 0.4 - width / 2 for x in range(len(groups))], [group["rule"] for group in groups])
    axis.set_yscale("log")
    if compared:
        axis.axhline(1.0, color="black", linewidth=0.8)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _height(contender: Any, ratio: tuple[str, float] | None) -> float:
    if contender is None:
        return float("nan")
    return ratio[1] if ratio else 1 / float(contender["seconds_per_step"])
