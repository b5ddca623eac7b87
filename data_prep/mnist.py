"""MNIST from its four IDX files, or scikit-learn's 8x8 digits where it is not at hand, as shards of points with labels.

Rows are float32 in [0, 1], a pixel per column; with `binary` a pixel is 1 where it is above 0.5, else 0. The classes lie
in the folder `labels` beside the rows (`pipeline.data.rows.load_labels` reads them).

MNIST: 54 000 of the 60 000 training images to train on, 6 000 held out (the monitors' 10 %), and the 10 000 test images.
All three are shuffled by fixed streams: the first half of MNIST's test images comes from easier writers than the second,
so that the first thousand of them would flatter every model.
"""

import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data_prep.tasks import find_finished, finish, shard_name
from pipeline.data.manifest import Manifest, SplitEntry
from pipeline.data.rows import LABELS
from pipeline.data.shards import write_shard
from pipeline.files import canonical_hash, file_hash, parse_checksums
from pipeline.streams import stream

CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""Sha256 of the original files, by name."""
HELD_OUT_SHARE = 10
"""One in so many training images is held out."""
DIGITS = "digits-8x8"
DIGITS_HELD_OUT = 250
"""Number of the 1 797 small digits in each of valid and test."""
SHARD_ROWS = 6000
_CHUNK = 1 << 20
_MAX_BYTES = 1 << 30
_SEED = 0


class IDXError(ValueError):
    """An IDX file is missing, another than expected, or damaged."""


class LabeledImages(NamedTuple):
    """Grey images and their classes."""

    images: np.ndarray
    """uint8 [n, height, width]."""
    labels: np.ndarray
    """uint8 [n]."""


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array uint8 of a gzipped IDX file with so many dimensions (1: labels, 3: images).

    The header is read first, and then what it promises and no more, piece by piece: neither a false header nor a
    compressed bomb takes more memory than the data that are there.

    Raises:
        IDXError: no gzip file, another magic number, a size of zero or beyond 1 GiB, or more or fewer bytes than the
            header promises.
    """
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions:
                raise IDXError(f"{path} ends within its header ({len(header)} of {4 + 4 * dimensions} bytes)")
            magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if magic != 0x800 + dimensions:
                raise IDXError(
                    f"{path} begins with {magic}; an IDX file of bytes in {dimensions} dimensions has {0x800 + dimensions}"
                )
            size = 1
            for length in shape:
                size *= length
            if not 0 < size <= _MAX_BYTES:
                raise IDXError(f"{path} says it holds {' x '.join(map(str, shape))} bytes: must be 1 to {_MAX_BYTES}")
            content = bytearray()
            while len(content) < size and (part := file.read(min(_CHUNK, size - len(content)))):
                content += part
            if len(content) < size:
                raise IDXError(f"{path} is cut short: {len(content)} of the {size} bytes that its header promises")
            if file.read(1):
                raise IDXError(f"{path} goes on after the {size} bytes that its header promises")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise IDXError(f"{path} is no whole gzip file: {error}") from error
    except OSError as error:
        raise IDXError(f"{path} cannot be read: {error.strerror or error}") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Compare the four files in `folder` with their sha256.

    Raises:
        IDXError: one is missing or differs; names all four, the folder, and what to do.
    """
    missing = [name for name in CHECKSUMS if not (folder / name).is_file()]
    if missing:
        raise IDXError(
            f"MNIST is not in {folder.resolve()}: {', '.join(missing)} missing. The four files {', '.join(CHECKSUMS)} belong "
            f"there, as they were published (gzipped). Name the folder that has them, or use the small {DIGITS} instead"
        )
    if absent := [name for name in CHECKSUMS if name not in checksums]:
        raise IDXError(f"there is no checksum for {', '.join(absent)}; give one for each of {', '.join(CHECKSUMS)}")
    for name in CHECKSUMS:
        if (found := file_hash(folder / name)) != checksums[name]:
            raise IDXError(
                f"{folder.resolve() / name} has sha256 {found}, expected is {checksums[name]}: it is not the published file. "
                f"Fetch the four files {', '.join(CHECKSUMS)} again; for another set of this layout give its own checksums"
            )


def read_checksums(path: Path) -> dict[str, str]:
    """Name -> sha256 of a text file as `sha256sum` writes it. Raises IDXError when it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IDXError(f"the checksums cannot be read: {error}") from error
    try:
        return {Path(name).name: sha256 for name, sha256 in parse_checksums(text, str(path)).items()}
    except ValueError as error:
        raise IDXError(str(error)) from error


def read_part(folder: Path, part: str) -> LabeledImages:
    """Images and labels of `train` or `t10k`. Raises IDXError, also when their counts differ."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels):
        raise IDXError(f"{folder}: {part} has {len(images)} images and {len(labels)} labels")
    return LabeledImages(images, labels)


def write_mnist(
    folder: Path,
    directory: Path,
    binary: bool = False,
    checksums: Mapping[str, str] | None = None,
    label: str = "mnist",
) -> Manifest:
    """Write the shards of the IDX files in `folder`; does nothing when they are there and whole.

    Args:
        folder: holds the four files of CHECKSUMS.
        directory: where the shards go.
        binary: pixels are 0 or 1; the data set's name then ends in `-binary`.
        checksums: sha256 by file name of another set of this layout; None: MNIST's own.
        label: the name of that other set.

    Raises:
        IDXError: files are missing, differ, or are damaged; or another set would be called mnist.
    """
    if checksums is not None and dict(checksums) != CHECKSUMS and label == "mnist":
        raise IDXError("with checksums of your own the data are not MNIST: give them another name")
    if checksums is None and label != "mnist":
        raise IDXError(f"{label!r} is not MNIST: give the sha256 of its four files")
    checksums = CHECKSUMS if checksums is None else checksums
    check_files(folder, checksums)
    source = {name: checksums[name] for name in CHECKSUMS}

    def read() -> dict[str, LabeledImages]:
        train, test = read_part(folder, "train"), read_part(folder, "t10k")
        if train.images.shape[1:] != test.images.shape[1:]:
            raise IDXError(
                f"{folder}: training images are {train.images.shape[1:]}, test images {test.images.shape[1:]}"
            )
        return _split(train, len(train.labels) // HELD_OUT_SHARE, "mnist") | {"test": _shuffled(test, "mnist test")}

    return _write(directory, label, binary, source, read, 255)


def write_digits(directory: Path, binary: bool = False) -> Manifest:
    """Write scikit-learn's 1 797 real digits of 8x8 pixels (1 297, 250 and 250 rows): not MNIST, but always at hand."""
    from sklearn.datasets import load_digits

    found = load_digits()
    digits = LabeledImages(found.images.astype(np.uint8), found.target.astype(np.uint8))
    source = {"digits": canonical_hash([digits.images.tolist(), digits.labels.tolist()])}

    def read() -> dict[str, LabeledImages]:
        splits = _split(digits, 2 * DIGITS_HELD_OUT, "digits")
        valid, test = (
            LabeledImages(*(part[i * DIGITS_HELD_OUT :][:DIGITS_HELD_OUT] for part in splits["valid"])) for i in (0, 1)
        )
        return {"train": splits["train"], "valid": valid, "test": test}

    return _write(directory, DIGITS, binary, source, read, 16)


def _shuffled(part: LabeledImages, name: str) -> LabeledImages:
    order = torch.randperm(len(part.labels), generator=stream(_SEED, name)).numpy()
    return LabeledImages(part.images[order], part.labels[order])


def _split(part: LabeledImages, held_out: int, name: str) -> dict[str, LabeledImages]:
    """The last `held_out` of the shuffled images as `valid`, the others as `train`."""
    cut = len(part.labels) - held_out
    images, labels = _shuffled(part, f"{name} split")
    return {"train": LabeledImages(images[:cut], labels[:cut]), "valid": LabeledImages(images[cut:], labels[cut:])}


def _write(directory: Path, label: str, binary: bool, source: Mapping[str, str], read: Any, brightest: int) -> Manifest:
    """The shards of what `read` gives, the labels first: a folder with a manifest has both."""
    settings = {"binary": binary, "brightest": brightest, "seed": _SEED, "shard_rows": SHARD_ROWS}
    dataset = f"{label}-binary" if binary else label
    source_hash = canonical_hash(source)
    labels_settings = {"labels_of": dataset}
    found = find_finished(directory, "points", source_hash, settings, verify=False)
    if found is not None and found.dataset != dataset:
        found = None
    if found and find_finished(directory / LABELS, "points", found.hash, labels_settings, verify=False):
        return found
    (directory / LABELS).mkdir(parents=True, exist_ok=True)
    splits, label_splits, row_shape = {}, {}, (0,)
    for split, (images, labels) in read().items():
        pixels = images.reshape(len(images), -1)
        rows = (pixels > brightest / 2) if binary else pixels / np.float32(brightest)
        splits[split] = _write_split(directory, split, rows.astype(np.float32))
        label_splits[split] = _write_split(directory / LABELS, split, labels[:, None].astype(np.float32))
        row_shape = (pixels.shape[1],)
    manifest = Manifest("points", dataset, source_hash, settings, row_shape, splits)
    finish(
        directory / LABELS, Manifest("points", f"{dataset}-labels", manifest.hash, labels_settings, (1,), label_splits)
    )
    return finish(directory, manifest)


def _write_split(directory: Path, split: str, rows: np.ndarray) -> SplitEntry:
    shards = tuple(
        write_shard(directory / shard_name(split, index), rows[start : start + SHARD_ROWS])
        for index, start in enumerate(range(0, len(rows), SHARD_ROWS))
    )
    return SplitEntry(len(rows), shards)
