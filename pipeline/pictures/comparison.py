"""The last comparison of a sweep: the recipe against the winner, trained in full with several seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.pictures.canvas import COLORS, broken, new_figure, plain, save_figure


def final_comparison(
    variants: Mapping[str, Sequence[float | None]],
    metric: str,
    path: str | Path,
    title: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Write a dot per training seed, the mean and the spread for each variant, and return the path.

    Args:
        variants: name -> the score of each training seed, None or not finite where a run gave none.
        metric: name of the score.
        path: PNG to write.
        title: drawn above.
        dataset: drawn with the title.

    Raises:
        ValueError: without variants, or when the path is not a PNG's.
    """
    if not variants:
        raise ValueError("no variants to compare; give at least one name with its values")
    figure = new_figure(max(5.6, 2.4 * len(variants)), 4.8, 0.12)
    axes = figure.add_subplot()
    names = []
    for place, (name, given) in enumerate(variants.items()):
        values = [float(value) for value in given if value is not None and np.isfinite(value)]
        color = COLORS[1] if name == "recipe" else COLORS[0] if name == "winner" else COLORS[(place + 2) % len(COLORS)]
        seeds = f"{len(values)} {'seed' if len(values) == 1 else 'seeds'}"
        missing = f"\n{len(given) - len(values)} without a score" if len(given) > len(values) else ""
        names.append(f"{broken(name, 22)}\n{seeds}{missing}")
        if not values:
            continue
        # Dots side by side, so that equal scores of two seeds are seen as two.
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axes.plot(place + np.asarray(offsets), values, "o", color=color, ms=6, alpha=0.8)
        mean = float(np.mean(values))
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        axes.plot([place - 0.24, place + 0.24], [mean, mean], color=color, lw=2.5)
        if spread:
            axes.errorbar(place + 0.24, mean, spread, color=color, lw=1.5, capsize=5)
        text = f"{mean:.4g}" + (f" ± {spread:.2g}" if len(values) > 1 else "")
        axes.annotate(text, (place + 0.24, mean), (9, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5 + 0.35)
    axes.set_ylabel(metric)
    axes.set_xlabel("bar: mean; whisker: standard deviation over training seeds", fontsize=9)
    axes.margins(y=0.15)
    if not axes.lines:
        axes.text(0.5, 0.5, "no run gave a score", ha="center", va="center", transform=axes.transAxes, color="0.35")
        axes.set_yticks([])
    plain(axes)
    axes.grid(axis="x", visible=False)
    return save_figure(figure, path, title, dataset)
