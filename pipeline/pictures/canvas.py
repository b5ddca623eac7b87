"""The look that all pictures share, and the writing of one: colors, figures without a display, axes, titles."""

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import IO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pipeline.data.shards import replace_file

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Seven colors that color-blind readers tell apart (Okabe and Ito 2008)."""
STYLES = ("-", "--", ":")
"""Styles of lines, one more round of colors each."""


def labeled(title: str | None, dataset: str | None) -> str | None:
    """Return the title with the name of the data on a line of its own below, or None without both."""
    return "\n".join(part for part in (title, f"data: {dataset}" if dataset else None) if part) or None


def broken(key: str, width: int) -> str:
    """Break a long key after its dots and underscores, where they are, into lines of about `width` characters."""
    lines = textwrap.wrap(re.sub(r"([._])", "\\1\0 ", key), width + 4, break_long_words=True)
    return "\n".join(line.replace("\0 ", "").replace("\0", "") for line in lines)


def new_figure(width: float, height: float, pad: float | None = None) -> Figure:
    """Return a figure on matplotlib's Agg canvas: without pyplot, and so without global state or a display.

    Args:
        width: inches, of 110 pixels.
        height: inches.
        pad: inches around the axes; default: matplotlib's.
    """
    figure = Figure(figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad))
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, grid: str = "0.9", label_size: float = 10) -> None:
    """Draw a light grid behind the curves, and no frame above and to the right."""
    axes.grid(color=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=label_size)


def save_figure(figure: Figure, path: str | Path, title: str | None = None, dataset: str | None = None) -> Path:
    """Write the figure, title and name of the data above it, as `write` does, and return the path."""
    if text := labeled(title, dataset):
        figure.suptitle(text, fontsize=13, wrap=True)
    return write(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def write(path: str | Path, save: Callable[[IO[bytes]], object]) -> Path:
    """Write a picture, whole or not at all, and return its path.

    Args:
        path: PNG to write; its folder is made.
        save: writes the PNG's bytes to the file it is given.

    Raises:
        ValueError: when the path is not a PNG's.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path is {str(path)!r}; pictures are written as PNG: give a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        save(file)
    return path
