"""The curves of a comparison, as SVG text. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from portopt_tools import svg
from portopt_tools.compare.comparison import Comparison, Run, Verdict

_COLORS = (svg.SKY_BLUE, svg.VERMILLION, svg.GREEN, svg.PURPLE, svg.ORANGE, svg.BLUE, svg.BLACK)


@dataclass(frozen=True)
class _Curve:
    """Runs that are one line, because their bits are the same."""

    label: str
    run: Run


def curves_svg(comparison: Comparison) -> str:
    """Return loss and test accuracy over the epochs, and the distance from the reference where there is one.

    Runs with the same bits share a line, since they would hide each other.
    """
    curves = _curves(comparison)
    distant = [c for c in curves if c.run.measurements and any(c.run.measurements.distances or ())]
    return svg.drawn(4.6 * (3 if distant else 2), 3.9, lambda figure: _draw(figure, curves, distant))


def _draw(figure: Any, curves: Sequence[_Curve], distant: Sequence[_Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes: Sequence[Any] = figure.subplots(1, 3 if distant else 2)
    for position, curve in enumerate(curves):
        found = curve.run.measurements
        assert found is not None
        epochs = range(len(found.losses))
        style: dict[str, Any] = {"color": _COLORS[position % len(_COLORS)], "label": curve.label}
        style |= {"linewidth": 4} if position == 0 else {"linewidth": 1.3, "linestyle": (0, (4, 2))}
        axes[0].plot(epochs, found.losses, **style)
        axes[1].plot(epochs, found.accuracies, **style)
        if curve in distant and found.distances is not None:
            axes[2].plot(epochs, [value or float("nan") for value in found.distances], **style)
    titles = ("mean loss on the training images", "accuracy on the test images", "largest difference of a parameter")
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_yscale("log")
    if distant:
        axes[2].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False)


def _curves(comparison: Comparison) -> list[_Curve]:
    same = [run for run in comparison.runs if run.verdict in (Verdict.REFERENCE, Verdict.IDENTICAL)]
    curves = []
    if same:
        names = ", ".join(run.name for run in same)
        curves.append(_Curve(f"the same bits: {names}" if len(same) > 1 else f"{names} (reference)", same[0]))
    for run in comparison.runs:
        if run.verdict is Verdict.DIFFERENT:
            curves.append(_Curve(f"{run.name} (different bits)", run))
        elif run.verdict is Verdict.OTHER_FORMULA:
            curves.append(_Curve(f"{run.name} (different formula)", run))
    return curves
