"""Grids of images: one model's, several side by side, originals above their reconstructions.

They are drawn with Pillow, pixel for pixel, so that no resampling flatters or blurs a model's images. Each function writes
one PNG, complete or not at all, and returns its path. Pictures made of synthetic data carry the data's name: pass `dataset`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.pictures.canvas import labeled, write

_GAP = 2  # pixels between images
_MARGIN = 12  # pixels around a picture and between its parts
_TITLE_SIZE, _LABEL_SIZE = 18, 14  # pixels
_INK, _MUTED = (20, 20, 20), (110, 110, 110)


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
    return _save_image(_with_title(_tile(images, columns, scale), labeled(title, dataset), _TITLE_SIZE), path)


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
    return _save_image(_with_title(_stack(rows, _MARGIN), labeled(suptitle, dataset), _TITLE_SIZE), path)


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
    return _save_image(_with_title(_stack(pairs, _MARGIN), labeled(title, dataset), _TITLE_SIZE), path)


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
    return write(path, lambda file: picture.save(file, format="PNG"))
