"""Photographs as files: read from a folder or from inside a zip, bounded in size, cropped and reduced to pixels."""

import functools
import io
import lzma
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FILTER = "bilinear"
"""Pillow's: a triangle as wide as the reduction, so that it antialiases, as torchvision's Resize does."""
# What reading one member of a zip, and what decoding one file, is known to raise when the file is damaged.
_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    OSError,
    ValueError,
    struct.error,
)
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    AssertionError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
FORMATS = ("JPEG", "PNG")
"""Pillow is not asked for others: one of its decoders starts a program (EPS), and none of them is needed."""
MAX_PHOTOGRAPH_BYTES = 1 << 26
MAX_PHOTOGRAPH_PIXELS = 1 << 26
"""64 MiB and 67 million pixels, beyond any camera's photograph: a bomb is refused before it is read or decoded."""


def open_zip(path: Path) -> zipfile.ZipFile:
    """Return the zip file at `path`, opened once per process: listing 200 000 members takes seconds, more than a shard."""
    return _cached_zip(path, file_stamp(path), os.getpid())


@functools.lru_cache(maxsize=1)
def _cached_zip(path: Path, stamp: tuple[int, int] | None, process: int) -> zipfile.ZipFile:
    # Kept neither across a fork, where the file position would be shared, nor after the file changed.
    return zipfile.ZipFile(path)


def read_photograph(path: Path, archive: zipfile.ZipFile | None, name: str) -> bytes:
    """Return the bytes of the photograph `name` in the folder `path`, or in its zip where `archive` is given.

    Raises:
        ValueError: it is gone, damaged, or larger than any photograph.
    """
    try:
        size = (path / name).stat().st_size if archive is None else archive.getinfo(name).file_size
        if size > MAX_PHOTOGRAPH_BYTES:
            raise ValueError(f"says it has {size} bytes; a photograph has at most {MAX_PHOTOGRAPH_BYTES}")
        # a zip's member gives no more than the size it says; of a folder's file no more is read
        with (path / name).open("rb") if archive is None else archive.open(name) as file:
            return file.read(size)
    except (FileNotFoundError, KeyError) as error:
        raise ValueError("was there when the data set was listed and is gone") from error
    except _READ_ERRORS as error:
        if archive is None or type(error) is ValueError:
            raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
        raise ValueError(f"cannot be read from the zip: {error}") from error


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of modification (ns) of a file; None when there is none."""
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def crop_photograph(data: bytes, crop: int = 148, size: int = 64) -> np.ndarray:
    """Returns the centered square of `crop` pixels of an image file, reduced to uint8 [size, size, 3] (RGB).

    148 of 178x218 begins at column 15, row 35. Reduced by Pillow's bilinear filter, which antialiases.

    Raises:
        ValueError: the file is broken, truncated, or smaller than the crop.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PHOTOGRAPH_PIXELS:
                raise ValueError(f"{width}x{height} pixels are more than the {MAX_PHOTOGRAPH_PIXELS} of any photograph")
            if min(width, height) < crop:
                raise ValueError(f"{width}x{height} is smaller than the crop of {crop}x{crop}")
            left, top = (width - crop) // 2, (height - crop) // 2
            center = image.convert("RGB").crop((left, top, left + crop, top + crop))
    except _DECODE_ERRORS as error:
        # Pillow names the buffer it read from, which differs from run to run; the manifest must not.
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(reason) from error
    return np.asarray(center.resize((size, size), Image.Resampling.BILINEAR))
