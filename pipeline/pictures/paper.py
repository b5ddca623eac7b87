"""The figures of the paper, redrawn from our own numbers: divergences, samples, chains and grids of digits.

Each function writes one PNG, complete or not at all, and returns its path. Lines stand for means, bands
for the smallest and largest of several seeds. What lies outside of a panel is counted in it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes

from pipeline.pictures.canvas import COLORS, STYLES, new_figure, plain, save_figure
from pipeline.pictures.grids import compare_grids

Curve = Sequence[tuple[float, float, float]]
"""(epoch, forward, reverse) of one seed."""
_BINS = 60
_POINTS = 2000  # of a scatter: as many of every model
_GRID_SIDE = 64  # pixels, about, of one digit
_PAD, _GRID, _SMALL = 0.06, "0.92", 8.0  # inches around axes, gray of the grid, size of the ticks' labels


def separation_curves(
    path: str | Path, separations: Sequence[float], curves: Mapping[str, Sequence[float]], title: str | None = None
) -> Path:
    """Write divergences against the separation of two Gaussians (Fig. 2), linear and logarithmic, and return the path.

    Args:
        path: PNG to write.
        separations: increasing, in standard deviations of a component.
        curves: name -> values in nats, one per separation; a name that begins with `log 2` is drawn thin, as a bound.
        title: drawn above.

    Raises:
        ValueError: no curves, or one of another length.
    """
    if not curves or any(len(values) != len(separations) for values in curves.values()):
        lengths = {name: len(values) for name, values in curves.items()}
        raise ValueError(
            f"curves have lengths {lengths} for {len(separations)} separations; give one value per separation"
        )
    figure = new_figure(10.5, 4.0, _PAD)
    for place, scale in enumerate(("linear", "log"), start=1):
        axes = figure.add_subplot(1, 2, place)
        for number, (name, values) in enumerate(curves.items()):
            bound = name.startswith("log 2")
            style: dict[str, Any] = (
                {"color": "0.35", "ls": ":", "lw": 1.4} if bound else {"color": COLORS[number], "lw": 1.8}
            )
            points = np.asarray(values, dtype=float)
            shown = np.where(points > 0, points, np.nan) if scale == "log" else points
            axes.plot(separations, shown, label=name, **style)
        axes.set_yscale(scale)
        if scale == "log":
            axes.set_ylim(bottom=1e-5)
        axes.set_xlim(separations[0], separations[-1])
        axes.set_xlabel("separation (standard deviations of a component)")
        axes.set_ylabel("nats")
        plain(axes, _GRID, _SMALL)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return save_figure(figure, path, title)


def sample_panels(
    path: str | Path,
    rows: Mapping[str, Mapping[str, np.ndarray]],
    densities: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    extents: Mapping[str, tuple[float, float]] | None = None,
    title: str | None = None,
) -> Path:
    """Write a panel of samples per data set (rows) and model (columns) as Fig. 3, and return the path.

    In one dimension a histogram with the true density; in two a scatter of the first 2 000 points over contours of the
    true density. All panels of a row have one extent, and each says what share of its samples lies outside.

    Args:
        path: PNG to write.
        rows: data set -> model -> samples [n, d], d 1 or 2. The models may differ between data sets.
        densities: data set -> function of points [n, d] that gives the true density [n]. A data set may be absent.
        extents: data set -> (low, high) of all its axes; default: the range of the first model's samples, a tenth wider
            (so put the data first).
        title: drawn above.

    Raises:
        ValueError: no samples, samples of another shape, or values that are not finite.
    """
    models = list(dict.fromkeys(model for samples in rows.values() for model in samples))
    if not models:
        raise ValueError("there are no samples to draw; give at least one data set with one model")
    figure = new_figure(2.3 * len(models) + 0.3, 2.4 * len(rows) + 0.4, _PAD)
    for row, (dataset, samples) in enumerate(rows.items()):
        points = {model: _points(dataset, model, values) for model, values in samples.items()}
        extent = (extents or {}).get(dataset) or _range(next(iter(points.values())))
        for model, values in points.items():
            axes = figure.add_subplot(len(rows), len(models), row * len(models) + models.index(model) + 1)
            draw = _histogram_panel if values.shape[1] == 1 else _scatter_panel
            draw(axes, values, densities.get(dataset), extent)
            outside = float(((values < extent[0]) | (values > extent[1])).any(1).mean())
            if outside > 0:
                axes.text(
                    *(0.98, 0.98, f"{100 * outside:.2g}% outside"),
                    transform=axes.transAxes, ha="right", va="top", fontsize=7, color="0.35",
                )  # fmt: skip
            if row == 0 or model not in list(rows.values())[row - 1]:
                axes.set_title(model, fontsize=10)
            if model == next(iter(points)):
                axes.set_ylabel(dataset, fontsize=10)
    return save_figure(figure, path, title)


def divergence_curves(
    path: str | Path,
    histories: Mapping[str, Curve | Sequence[Curve]],
    phase_change: float | None = None,
    title: str | None = None,
    dataset: str | None = None,
    unit: str = "nats per dimension",
) -> Path:
    """Write forward and reverse KL per epoch, a panel each, as Fig. 4, 5, 9 and 10, and return the path.

    Args:
        path: PNG to write.
        histories: model -> (epoch, forward, reverse) of one seed, or a list of such sequences: mean line, min-max band.
            Values that are not finite are left out.
        phase_change: epoch at which the adversary sets in; a dashed vertical line.
        title: drawn above.
        dataset: name of the data, drawn with the title.
        unit: of the divergences.

    Raises:
        ValueError: nothing to draw.
    """
    seeds = {model: _seeds(history) for model, history in histories.items()}
    if not any(curve for curves in seeds.values() for curve in curves):
        raise ValueError(f"no divergences to draw: the histories of {list(histories)} are empty")
    figure = new_figure(10.5, 4.2, _PAD)
    for place, name in enumerate(("forward KL(data || model)", "reverse KL(model || data)"), start=1):
        axes = figure.add_subplot(1, 2, place)
        for number, (model, curves) in enumerate(seeds.items()):
            by_epoch: dict[float, list[float]] = {}
            for point in (point for curve in curves for point in curve):
                if np.isfinite(point[place]):
                    by_epoch.setdefault(point[0], []).append(point[place])
            if not by_epoch:
                continue
            epochs = sorted(by_epoch)
            values = [by_epoch[epoch] for epoch in epochs]
            color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
            label = model if len(curves) == 1 else f"{model} ({len(curves)} seeds)"
            marker = "o" if len(epochs) <= 30 else None
            axes.plot(
                epochs, [np.mean(v) for v in values], style, color=color, lw=1.6, marker=marker, ms=3, label=label
            )
            if len(curves) > 1:
                low, high = [min(v) for v in values], [max(v) for v in values]
                axes.fill_between(epochs, low, high, color=color, alpha=0.18, lw=0)
        if phase_change is not None:
            axes.axvline(phase_change, color="0.35", ls="--", lw=1.2, label=f"adversary on (epoch {phase_change:g})")
        axes.axhline(0, color="0.6", lw=0.8)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        plain(axes, _GRID, _SMALL)
    entries = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save_figure(figure, path, title, dataset)


def digit_grids(
    path: str | Path,
    grids: Mapping[str, np.ndarray],
    columns: int = 4,
    title: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Write labeled grids of columns x columns digits as Fig. 6, 11 and 12, and return the path.

    Args:
        path: PNG to write.
        grids: label -> images [n, side, side], floats (drawn from 0, black, to 1, white; what lies beyond is cut there)
            or uint8. The first columns x columns of each are shown: none is selected.
        columns: images per row of each grid.
        title: drawn above.
        dataset: name of the data, drawn with the title.

    Raises:
        ValueError: no grids, another shape, or values that are not finite.
    """
    pixels = {}
    for name, images in grids.items():
        found = np.asarray(images)
        if found.ndim != 3 or 0 in found.shape or not np.isfinite(found).all():
            raise ValueError(f"grid {name!r} has shape {found.shape}; expected finite images [n, side, side], n >= 1")
        whole = found if found.dtype == np.uint8 else np.round(255 * np.clip(found, 0, 1)).astype(np.uint8)
        pixels[name] = whole[..., None]
    side = max((images.shape[1] for images in pixels.values()), default=1)
    scale = max(1, round(_GRID_SIDE / side))
    return compare_grids(pixels, path, columns, title, scale, dataset, grids_per_row=min(6, max(len(pixels), 1)))


def mixing_traces(
    path: str | Path, experiment: Mapping[str, Any], title: str | None = None, dataset: str | None = None
) -> Path:
    """Write traces and histograms of Gibbs and driven chains on one mixture (Fig. 8), and return the path.

    Per sampler the visible unit of one chain over sweeps, with its inverse temperature below when it moves, and the
    histogram of all chains beside the exact density.

    Args:
        path: PNG to write.
        experiment: one geometry of `jobs.paper.sampling.mixing_experiment`.
        title: drawn above.
        dataset: drawn with the title.
    """
    samplers, modes = experiment["samplers"], experiment["modes"]
    hot = {name: any(beta != 1 for beta in sampler["trace"]["beta"]) for name, sampler in samplers.items()}
    heights = [height for name in samplers for height in ((3.0, 1.2) if hot[name] else (3.0,))]
    figure = new_figure(10.5, 0.85 * sum(heights) + 0.8, _PAD)
    grid = figure.add_gridspec(len(heights), 2, width_ratios=(3.2, 1), height_ratios=heights)
    reach = max(abs(edge) for edge in next(iter(samplers.values()))["histogram"]["edges"])
    line = 0
    for number, (name, sampler) in enumerate(samplers.items()):
        color, trace = COLORS[number], sampler["trace"]
        sweeps = np.arange(1, len(trace["v"]) + 1)
        axes = figure.add_subplot(grid[line, 0])
        axes.plot(sweeps, trace["v"], color=color, lw=0.7)
        for mean in modes["means"]:
            axes.axhline(mean, color="0.6", lw=0.7, ls=":")
        switches = (
            f"{sampler['switches_per_1000'][of]['value']:.3g} ± {sampler['switches_per_1000'][of]['error']:.1g}"
            for of in ("visible", "hidden")
        )
        axes.set_title(
            f"{name}: changes of mode per 1 000 sweeps: {' of v, '.join(switches)} of h", fontsize=10, loc="left"
        )
        _trace_axes(axes, "v", len(sweeps), (-reach, reach))
        last = axes
        side = figure.add_subplot(grid[line, 1], sharey=axes)
        edges, density = sampler["histogram"]["edges"], sampler["histogram"]["density"]
        outside = 1 - float(np.dot(density, np.diff(edges)))
        label = f"all chains ({100 * outside:.2g}% outside)" if outside > 1e-6 else "all chains"
        side.stairs(density, edges, orientation="horizontal", fill=True, color=color, alpha=0.45, label=label)
        side.plot(experiment["density"]["p"], experiment["density"]["v"], color="0.1", lw=1.1, label="exact")
        side.tick_params(labelleft=False)
        side.set_xlabel("density", fontsize=9)
        side.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        plain(side, _GRID, _SMALL)
        line += 1
        if hot[name]:
            below = figure.add_subplot(grid[line, 0], sharex=axes)
            below.plot(sweeps, trace["beta"], color="0.35", lw=0.7)
            below.axhline(1, color="0.6", lw=0.7, ls=":")
            below.set_yscale("log")
            _trace_axes(below, "β", len(sweeps), None)
            last = below
            line += 1
    last.set_xlabel("sweep")
    return save_figure(figure, path, title, dataset)


def _trace_axes(axes: Axes, label: str, sweeps: int, limits: tuple[float, float] | None) -> None:
    axes.set_ylabel(label)
    axes.set_xlim(0, sweeps)
    if limits is not None:
        axes.set_ylim(*limits)
    plain(axes, _GRID, _SMALL)


def _histogram_panel(
    axes: Axes, values: np.ndarray, density: Callable[[np.ndarray], np.ndarray] | None, extent: tuple[float, float]
) -> None:
    edges = np.linspace(*extent, _BINS + 1)
    counts = np.histogram(values[:, 0], edges)[0]  # of all samples: mass outside the extent lowers the bars
    axes.stairs(counts / len(values) / (edges[1] - edges[0]), edges, fill=True, color=COLORS[0], alpha=0.5)
    if density is not None:
        line = np.linspace(*extent, 401)
        height = np.asarray(density(line[:, None]))
        axes.plot(line, height, color="0.1", lw=1.0)
        axes.set_ylim(0, 1.6 * height.max())  # one scale for all models, whatever their spikes
    axes.set_xlim(*extent)
    axes.set_yticks([])
    plain(axes, _GRID, _SMALL)


def _scatter_panel(
    axes: Axes, values: np.ndarray, density: Callable[[np.ndarray], np.ndarray] | None, extent: tuple[float, float]
) -> None:
    if density is not None:
        line = np.linspace(*extent, 161)
        x, y = np.meshgrid(line, line)
        height = np.asarray(density(np.stack([x.ravel(), y.ravel()], 1))).reshape(x.shape)
        # exp(-2) of the top is two standard deviations of a Gaussian mode
        axes.contour(x, y, height, levels=[height.max() * np.exp(-2.0)], colors="0.55", linewidths=0.7)
    shown = values[:_POINTS]
    axes.scatter(shown[:, 0], shown[:, 1], s=2.5, color=COLORS[0], alpha=0.45, lw=0)
    axes.set_xlim(*extent)
    axes.set_ylim(*extent)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _points(dataset: str, model: str, values: np.ndarray) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if found.ndim != 2 or not len(found) or found.shape[1] not in (1, 2) or not np.isfinite(found).all():
        raise ValueError(
            f"samples of {model} on {dataset} have shape {found.shape}; expected finite rows [n, 1] or [n, 2]"
        )
    return found


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def _seeds(history: Curve | Sequence[Curve]) -> Sequence[Curve]:
    """One seed's curve as a list of one."""
    if history and history[0] and np.ndim(history[0][0]) == 0:
        return [cast(Curve, history)]
    return cast(Sequence[Curve], history)
