"""Pictures of speed: panels of lines over workers on logarithmic axes, and bars. Each is written whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from pipeline.pictures.canvas import COLORS, new_figure, plain, save_figure

_COLUMNS = 2


class Panel(NamedTuple):
    """One set of axes: workers across, all values positive."""

    title: str
    label: str
    """Of the vertical axis, with its unit."""
    lines: Mapping[str, Mapping[int, float]]
    """Name -> workers -> value; values that are not positive are left out."""
    points: Mapping[str, Mapping[int, tuple[float, float, float]]] = {}
    """Name of a line -> workers -> (median, smallest, largest) that was measured."""
    limits: Mapping[str, float] = {}
    """Horizontal lines."""


def scaling_panels(panels: Sequence[Panel], path: str | Path, title: str | None = None) -> Path:
    """Write the panels, two in a row, and return the path.

    Args:
        panels: at least one, each with a line.
        path: PNG to write.
        title: drawn above.

    Raises:
        ValueError: no panels, one without lines, or points of no line.
    """
    if not panels:
        raise ValueError("no panels to draw; give at least one")
    for panel in panels:
        if not panel.lines or not set(panel.points) <= set(panel.lines):
            raise ValueError(
                f"panel {panel.title!r} has lines {list(panel.lines)} and points of {list(panel.points)}; give at least one "
                "line, and points of lines only"
            )
    rows = -(-len(panels) // _COLUMNS)
    figure = new_figure(11.0, 4.4 * rows + 0.4, pad=0.08)
    for place, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(rows, min(_COLUMNS, len(panels)), place), panel)
    return save_figure(figure, path, title)


def _draw(axes: Axes, panel: Panel) -> None:
    for number, (name, values) in enumerate(panel.lines.items()):
        color, style = COLORS[number % len(COLORS)], "-" if number < len(COLORS) else "--"
        shown = {n: value for n, value in sorted(values.items()) if value > 0}
        axes.plot(list(shown), list(shown.values()), style, color=color, lw=1.6, label=name)
        measured = panel.points.get(name, {})
        if measured:
            middle = [median for median, _, _ in measured.values()]
            below = [median - low for median, low, _ in measured.values()]
            above = [high - median for median, _, high in measured.values()]
            axes.errorbar(list(measured), middle, [below, above], fmt="o", ms=4, color=color, capsize=3, lw=1.0)
    for name, value in panel.limits.items():
        axes.axhline(value, color="0.35", ls=":", lw=1.2)
        axes.annotate(
            name, (1, value), xytext=(2, 2), textcoords="offset points", fontsize=8, color="0.35", va="bottom"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    every = sorted({n for values in panel.lines.values() for n in values})
    ticks = [2**i for i in range(0, 21, 1 if every[-1] <= 32 else 2) if 2**i <= every[-1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(n) for n in ticks])
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("workers", fontsize=9)
    axes.set_ylabel(panel.label, fontsize=9)
    plain(axes, "0.92", label_size=8)
    # below the axes: lines cross the whole panel
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def speed_bars(
    cases: Mapping[str, Mapping[str, tuple[float, float, float]]],
    path: str | Path,
    label: str,
    title: str | None = None,
) -> Path:
    """Write one row of bars per contender in a panel per case, on an axis from 0 (logarithmic over decades); return the path.

    Args:
        cases: name of a case -> contender -> (median, smallest, largest), positive.
        path: PNG to write.
        label: of the horizontal axes, with the unit.
        title: drawn above.

    Raises:
        ValueError: no cases, or one without contenders.
    """
    if not cases or not all(cases.values()):
        raise ValueError("no bars to draw; give at least one case with a contender")
    heights = [len(found) + 1.5 for found in cases.values()]
    figure = new_figure(9.0, 0.3 * sum(heights) + 0.8)
    for axes, (name, found) in zip(
        figure.subplots(len(cases), 1, height_ratios=heights, squeeze=False)[:, 0], cases.items()
    ):
        middle = [value for value, _, _ in found.values()]
        spread = [[m - low for m, low, _ in found.values()], [high - m for m, _, high in found.values()]]
        colors = [COLORS[0 if "torch" not in who and "rbms" not in who and "scikit" not in who else 1] for who in found]
        axes.barh(list(found), middle, xerr=spread, color=colors, error_kw={"linewidth": 1})
        axes.invert_yaxis()
        if max(middle) > 20 * min(middle):
            axes.set_xscale("log")
            axes.set_xlim(min(middle) / 2, max(middle) * 2.5)
        else:
            axes.set_xlim(0, 1.15 * max(high for _, _, high in found.values()))
        for row, (value, _, high) in enumerate(found.values()):
            axes.annotate(
                f"{value:.3g}", (high, row), va="center", fontsize=8, xytext=(4, 0), textcoords="offset points"
            )
        axes.set_title(name, fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
    axes.set_xlabel(label, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    return save_figure(figure, path)
