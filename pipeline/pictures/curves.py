"""Curves of a training run, and a model's points beside the data's.

Each function writes one PNG, complete or not at all, and returns its path. Pictures made of synthetic data carry the data's
name: pass `dataset`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from pipeline.pictures.canvas import COLORS, STYLES, new_figure, plain, save_figure


def training_curves(
    history: Sequence[Mapping[str, float]],
    path: str | Path,
    panels: Mapping[str, Sequence[str]],
    phase_change: int | None = None,
    title: str | None = None,
    dataset: str | None = None,
    phase_label: str = "adversary on",
) -> Path:
    """Write one panel of curves over the training step per entry of `panels`, and return the path.

    Args:
        history: rows with "step" and any metrics; a metric may be missing from a row (logged less often) or not finite.
        path: PNG to write.
        panels: panel title -> metric keys. Metrics never logged are left out, and so are panels without any.
        phase_change: step at which the objective changed; a vertical dashed line in every panel.
        title: drawn above.
        dataset: drawn with the title.
        phase_label: names the line, together with its step.

    Raises:
        ValueError: when a row has no "step", or none of the metrics was ever logged.
    """
    for row in history:
        if "step" not in row:
            raise ValueError(f'a row of the history has no "step"; its keys are {sorted(row)}')
    curves = {
        name: {key: points for key in keys if (points := _points(history, key)) is not None}
        for name, keys in panels.items()
    }
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        wanted = sorted({key for keys in panels.values() for key in keys})
        logged = sorted({key for row in history for key in row} - {"step"})
        raise ValueError(f"none of {wanted} was logged in {len(history)} rows; logged metrics: {logged}")
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(6.4 * columns, 3.6 * rows + 0.5, pad=0.12)
    # One range of steps for all panels, however often each metric was logged.
    first, last = min(row["step"] for row in history), max(row["step"] for row in history)
    margin = 0.03 * (last - first) or 1.0
    phase = {} if phase_change is None else {f"{phase_label} (step {phase_change:,})": phase_change}
    for place, (name, found) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_panel(axes, name, found, phase)
        axes.set_xlim(first - margin, max([last, *phase.values()]) + margin)
    return save_figure(figure, path, title, dataset)


def point_density(
    data: np.ndarray | Tensor,
    samples: np.ndarray | Tensor,
    path: str | Path,
    title: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Write a model's points beside the data, histograms in one dimension and a scatter in two, and return the path.

    Args:
        data: [n, d] rows, d 1 or 2, n >= 1.
        samples: [m, d] rows of the model, finite, m >= 1.
        path: PNG to write.
        title: drawn above.
        dataset: drawn with the title.

    Raises:
        ValueError: on another shape, or values that are not finite.
    """
    rows = {"data": np.asarray(data, dtype=float), "samples": np.asarray(samples, dtype=float)}
    shapes = [value.shape for value in rows.values()]
    fits = all(len(shape) == 2 and shape[0] and shape[1] == shapes[0][1] for shape in shapes) and shapes[0][1] in (1, 2)
    if not fits or not all(np.isfinite(value).all() for value in rows.values()):
        raise ValueError(f"points have shapes {shapes}; expected finite rows [n, 1] or [n, 2], n >= 1, of both")
    figure = new_figure(6.4, 3.6 if shapes[0][1] == 1 else 6.0)
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(np.concatenate([value[:, 0] for value in rows.values()]), 60)
    for (name, value), color in zip(rows.items(), ("0.7", COLORS[1])):
        label = f"{name} ({len(value):,})"
        if shapes[0][1] == 1:
            heights = np.histogram(value[:, 0], edges, density=True)[0]
            axes.stairs(heights, edges, fill=name == "data", color=color, label=label, lw=1.6)
        else:
            size = 6 if len(value) > 500 else 24
            axes.scatter(value[:, 0], value[:, 1], s=size, color=color, label=label, alpha=0.7, lw=0)
            axes.set_aspect("equal")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path, title, dataset)


def _draw_panel(
    axes: Axes, title: str, curves: Mapping[str, tuple[list[float], list[float]]], phase: Mapping[str, int]
) -> None:
    for number, (key, (steps, values)) in enumerate(curves.items()):
        color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
        axes.plot(
            steps, values, style, color=color, lw=1.6, marker="o" if len(steps) <= 30 else None, ms=3.5, label=key
        )
    for label, step in phase.items():
        axes.axvline(step, color="0.35", ls="--", lw=1.2, label=label)
    # Title and legend stand together above the axes, where no curve can run into them.
    longest = max(len(text) for text in (*curves, *phase))
    legend_columns = max(1, min(3, 75 // (longest + 8)))
    axes.legend(
        title=title, alignment="left", loc="lower left", bbox_to_anchor=(0, 1), ncols=legend_columns, frameon=False,
        fontsize=9, title_fontproperties={"weight": "bold", "size": 11}, borderpad=0,
    )  # fmt: skip
    axes.set_xlabel("step")
    plain(axes)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)


def _points(history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]] | None:
    """Return the steps and finite values of a metric in order of the step, or None when it was never logged."""
    found = sorted((row["step"], row[key]) for row in history if row.get(key) is not None and np.isfinite(row[key]))
    return ([step for step, _ in found], [value for _, value in found]) if found else None
