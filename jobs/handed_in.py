"""What a user names on a command line for a trained model: photographs, rows of points, cells and units, results as files."""

import tokenize
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.celeba import PixelSettings
from data_prep.images import FORMATS, MAX_PHOTOGRAPH_BYTES, crop_photograph
from pipeline.files import replacing
from pipeline.packages.inputs import CELLS

PHOTOGRAPHS = (".jpg", ".jpeg", ".png")
ROWS = (".npy", ".csv")
MAX_PHOTOGRAPHS = 100
# What a damaged header of a .npy file is known to raise: numpy parses it as Python's literals.
_HEADER_ERRORS = (SyntaxError, TypeError, OverflowError, RecursionError, tokenize.TokenError)
_ALIGNED = (178, 218)  # pixels of a photograph of CelebA
_GRID = np.arange(CELLS * CELLS).reshape(CELLS, CELLS)
_HALVES = {"top": _GRID[:2], "bottom": _GRID[2:], "left": _GRID[:, :2], "right": _GRID[:, 2:]}


def read_photographs(places: Sequence[Path], crop: int | None = None) -> np.ndarray:
    """Pixels uint8 [n, 64, 64, 3] of image files and of all image files in folders, by name.

    Args:
        places: files and folders.
        crop: side in pixels of the centered square that is taken; None: 148 for CelebA's 178x218, as in training, and
            the largest square of any other size.

    Raises:
        ValueError: a place that is not there or holds no photograph, a broken file, one smaller than the crop, or more
            than 100 photographs.
    """
    files: list[Path] = []
    for place in places:
        found = [place]
        if place.is_dir():
            found = sorted(f for f in place.iterdir() if f.suffix.lower() in PHOTOGRAPHS and not f.name.startswith("."))
            if not found:
                raise ValueError(f"{place} holds no photographs: looked for {', '.join(PHOTOGRAPHS)}")
        elif not place.is_file():
            raise ValueError(f"{place} is not there: give image files or a folder of them")
        files += found
    if len(files) > MAX_PHOTOGRAPHS:
        raise ValueError(f"{len(files)} photographs: one picture shows at most {MAX_PHOTOGRAPHS}; name some of them")
    return np.stack([_read_photograph(file, crop) for file in files])


def _read_photograph(file: Path, crop: int | None) -> np.ndarray:
    try:
        if (size := file.stat().st_size) > MAX_PHOTOGRAPH_BYTES:
            raise ValueError(f"it has {size} bytes, a photograph at most {MAX_PHOTOGRAPH_BYTES}")
        if crop is None:
            with Image.open(file, formats=FORMATS) as image:
                crop = PixelSettings().crop if image.size == _ALIGNED else min(image.size)
        return crop_photograph(file.read_bytes(), crop)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{file} is not an image") from None
    except (ValueError, SyntaxError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error


def read_rows(file: Path) -> np.ndarray:
    """The rows [n, V] of a .npy file, or of a .csv file without header. Raises ValueError."""
    if file.suffix.lower() not in ROWS:
        raise ValueError(f"{file}: rows of points are read from {' or '.join(ROWS)}")
    try:
        if file.suffix.lower() == ".npy":
            # mapped first: a header that promises more than the file holds takes no memory
            found = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(found, np.ndarray):
                raise ValueError("it is an archive of arrays: give one array")
            return np.array(found)
        return np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float64)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, *_HEADER_ERRORS) as error:
        raise ValueError(f"{file} cannot be read as rows of numbers ({error})") from error


def write_rows(rows: np.ndarray, path: Path) -> Path:
    """Write rows float32 [n, V] as .npy or .csv, whole or not at all, and return the path. Raises ValueError."""
    if path.suffix.lower() not in ROWS:
        raise ValueError(
            f"--out is {str(path)!r}: this is a model of points; give a name that ends in {' or '.join(ROWS)}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        if path.suffix.lower() == ".npy":
            np.save(file, rows, allow_pickle=False)
        else:
            np.savetxt(file, rows, delimiter=",", fmt="%.9g")  # nine digits give back every bit of a float32
    return path


def parse_cells(text: str) -> list[int]:
    """Cells of a picture by number (`0,1,4-7`) or name (`top`, `bottom`, `left`, `right`). Raises ValueError."""
    return _HALVES[text].ravel().tolist() if text in _HALVES else parse_numbers(text, "--cells", ", ".join(_HALVES))


def parse_numbers(text: str, option: str, names: str = "") -> list[int]:
    """Whole numbers and ranges of them, like `0,3-5`. Raises ValueError that names the option."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 20:
            also = f", or one of {names}" if names else ""
            raise ValueError(f"{option} is {text!r}: write numbers and ranges such as 0,3-5{also}")
        low, high = int(first), int(last or first)
        if not low <= high < 1_000_000:
            raise ValueError(f"{option} has {part.strip()!r}: a range goes upward, below 1000000")
        numbers += range(low, high + 1)
    return numbers
