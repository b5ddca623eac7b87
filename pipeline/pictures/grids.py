"""Every plot and image grid of the project, but for a sweep's; only it and `sweep_pictures` import matplotlib.

Grids are drawn with Pillow, pixel for pixel, so that no resampling flatters or blurs a model's images; curves with
matplotlib's Agg canvas, without pyplot and so without global state or a display. Each function writes one PNG, complete
or not at all, and returns its path. Pictures made of stand-in data carry the data's name: pass `dataset`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP = 2  # pixels between images
_MARGIN = 12  # pixels around a picture and between its parts
_TITLE_SIZE, _LABEL_SIZE = 18, 14  # pixels
_INK, _MUTED = (20, 20, 20), (110, 110, 110)
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
_STYLES = ("-", "--", ":")


def image_grid(
    images: np.ndarray | Tensor,
    columns: int,
    path: str | Path,
    title: str | None = None,
    scale: int = 2,
    dataset: str | None = None,
) -> Path:
    """Write all images as one grid, row by row, and return the path.

    Args:
        images: [n, H, W, C], uint8, C = 1 or 3, on the CPU.
        columns: images per row, >= 1.
        path: PNG to write; its folder is made.
        title: drawn above, wrapped to the width.
        scale: each pixel becomes scale x scale pixels.
        dataset: name of the data the images come from, drawn with the title.

    Raises:
        ValueError: on another shape or type, no images, or columns or scale < 1.
    """
    return _save_image(_with_title(_tile(images, columns, scale), _labeled(title, dataset), _TITLE_SIZE), path)


def compare_grids(
    grids: Mapping[str, np.ndarray | Tensor],
    path: str | Path,
    columns: int = 6,
    suptitle: str | None = None,
    scale: int = 2,
    dataset: str | None = None,
    grids_per_row: int = 3,
) -> Path:
    """Write several titled square grids side by side and return the path.

    Args:
        grids: title -> images [n, H, W, C] as in `image_grid`; the first columns x columns of each are shown, so that
            every model gets the same number of images and none is selected.
        path: PNG to write.
        columns: images per row of each grid.
        suptitle: drawn above all grids.
        scale: as in `image_grid`.
        dataset: as in `image_grid`.
        grids_per_row: grids beside each other before the next row of grids.

    Raises:
        ValueError: as `image_grid`, or when there are no grids.
    """
    if not grids or grids_per_row < 1:
        raise ValueError(f"{len(grids)} grids, {grids_per_row} per row: give at least one grid and one per row")
    font = _font(_LABEL_SIZE)
    tiles = [(title, _tile(images[: columns * columns], columns, scale)) for title, images in grids.items()]
    rows = []
    for start in range(0, len(tiles), grids_per_row):
        row = tiles[start : start + grids_per_row]
        tallest = max(len(_wrap(title, font, tile.width)) for title, tile in row)  # keeps the grids level
        rows.append(_beside([_with_title(tile, title, _LABEL_SIZE, 0, tallest) for title, tile in row]))
    return _save_image(_with_title(_stack(rows, _MARGIN), _labeled(suptitle, dataset), _TITLE_SIZE), path)


def reconstruction_rows(
    originals: np.ndarray | Tensor,
    reconstructions: np.ndarray | Tensor,
    path: str | Path,
    title: str | None = None,
    columns: int = 10,
    scale: int = 2,
    dataset: str | None = None,
) -> Path:
    """Write originals with their reconstructions right below, in labeled pairs of rows, and return the path.

    Args:
        originals: [n, H, W, C] as in `image_grid`.
        reconstructions: the same shape, in the same order.
        path: PNG to write.
        title: drawn above.
        columns: pairs per pair of rows.
        scale: as in `image_grid`.
        dataset: as in `image_grid`.

    Raises:
        ValueError: as `image_grid`, or when the two shapes differ.
    """
    if tuple(originals.shape) != tuple(reconstructions.shape):
        raise ValueError(
            f"originals have shape {tuple(originals.shape)} and reconstructions {tuple(reconstructions.shape)}; "
            "give one reconstruction per original, in its order"
        )
    label_width = max(round(_font(_LABEL_SIZE).getlength(name)) for name in ("original", "decoded")) + 2
    columns = min(columns, len(originals))
    pairs = []
    for start in range(0, max(len(originals), 1), max(columns, 1)):
        rows = []
        for name, images in (("original", originals), ("decoded", reconstructions)):
            tile = _tile(images[start : start + columns], columns, scale)
            rows.append(_beside([_label(name, label_width, tile.height), tile]))
        pairs.append(_stack(rows, _GAP))
    return _save_image(_with_title(_stack(pairs, _MARGIN), _labeled(title, dataset), _TITLE_SIZE), path)


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
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(6.4 * columns, 3.6 * rows + 0.5), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    # One range of steps for all panels, however often each metric was logged.
    first, last = min(row["step"] for row in history), max(row["step"] for row in history)
    margin = 0.03 * (last - first) or 1.0
    phase = {} if phase_change is None else {f"{phase_label} (step {phase_change:,})": phase_change}
    for place, (name, found) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_panel(axes, name, found, phase)
        axes.set_xlim(first - margin, max([last, *phase.values()]) + margin)
    if text := _labeled(title, dataset):
        figure.suptitle(text, fontsize=13, wrap=True)
    return _write(path, lambda target: figure.savefig(target, format="png", metadata={"Software": None}))


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
    figure = Figure(figsize=(6.4, 3.6 if shapes[0][1] == 1 else 6.0), dpi=110, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(np.concatenate([value[:, 0] for value in rows.values()]), 60)
    for (name, value), color in zip(rows.items(), ("0.7", _COLORS[1])):
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
    if text := _labeled(title, dataset):
        figure.suptitle(text, fontsize=13, wrap=True)
    return _write(path, lambda target: figure.savefig(target, format="png", metadata={"Software": None}))


def _draw_panel(
    axes: Axes, title: str, curves: Mapping[str, tuple[list[float], list[float]]], phase: Mapping[str, int]
) -> None:
    for number, (key, (steps, values)) in enumerate(curves.items()):
        color, style = _COLORS[number % len(_COLORS)], _STYLES[number // len(_COLORS) % len(_STYLES)]
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
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)


def _points(history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]] | None:
    """Return the steps and finite values of a metric in order of the step, or None when it was never logged."""
    found = sorted((row["step"], row[key]) for row in history if row.get(key) is not None and np.isfinite(row[key]))
    return ([step for step, _ in found], [value for _, value in found]) if found else None


def _labeled(title: str | None, dataset: str | None) -> str | None:
    """Put the name of the data on a line of its own below the title."""
    return "\n".join(part for part in (title, f"data: {dataset}" if dataset else None) if part) or None


def _tile(images: np.ndarray | Tensor, columns: int, scale: int) -> Image.Image:
    """Lay out images row by row on white, each pixel enlarged to a square, thin gaps between."""
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"images are {pixels.dtype} of shape {pixels.shape}; expected uint8 [n, H, W, C] with n >= 1 and C 1 or 3: "
            "scale floats from [0, 1] by 255, round, and put channels last"
        )
    if columns < 1 or scale < 1:
        raise ValueError(f"columns is {columns} and scale {scale}; both must be at least 1")
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    number, height, width, channels = pixels.shape
    rows = -(-number // columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for place, image in enumerate(pixels if channels == 3 else pixels.repeat(3, -1)):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def _with_title(
    picture: Image.Image, title: str | None, size: int, margin: int = _MARGIN, num_lines: int = 0
) -> Image.Image:
    """Put the title above the picture, in room for at least `num_lines` lines, and a white margin around.

    The sheet is widened to a word that is longer than the picture, so that nothing is ever cut.
    """
    font = _font(size)
    lines = _wrap(title, font, picture.width)
    line_height = round(size * 1.3)
    width = max([picture.width, *(int(font.getlength(line)) + 1 for line in lines)])
    num_lines = max(len(lines), num_lines)
    above = num_lines * line_height + (size // 3 if num_lines else 0)
    sheet = Image.new("RGB", (width + 2 * margin, picture.height + above + 2 * margin), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines, start=num_lines - len(lines)):
        draw.text((margin, margin + number * line_height), line, fill=_INK, font=font)
    sheet.paste(picture, (margin, margin + above))
    return sheet


def _wrap(title: str | None, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a title into lines of at most `width` pixels, between words only."""
    lines = []
    for paragraph in (title or "").splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def _label(name: str, width: int, height: int) -> Image.Image:
    """Draw the name of a block of images, vertically centered, to stand left of it."""
    sheet = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(sheet).text((width, height // 2), name, fill=_MUTED, font=_font(_LABEL_SIZE), anchor="rm")
    return sheet


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Set pictures side by side, aligned at the top."""
    width = sum(picture.width for picture in pictures) + _MARGIN * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + _MARGIN
    return sheet


def _stack(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Set pictures below each other, aligned at the left."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the sans serif that matplotlib ships, so that a picture looks alike on machines without fonts."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _save_image(picture: Image.Image, path: str | Path) -> Path:
    return _write(path, lambda target: picture.save(target, format="PNG"))


def _write(path: str | Path, save: Callable[[Path], object]) -> Path:
    """Write beside the target and rename, so that a reader or a killed job never meets half a picture."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path is {str(path)!r}; pictures are written as PNG: give a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
