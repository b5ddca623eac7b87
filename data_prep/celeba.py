"""CelebA as people have it -> shards of 64x64 pixels: finding the data set, reading it honestly, one task per shard.

The photographs may be a folder or the zip (which is never unpacked), in torchvision's layout, in Kaggle's or in the
authors' own (`Img/`, `Eval/`). Whatever cannot become a row (a broken file, an image without a partition line, a line
without an image) is counted and named in the manifest, and too many of them stop the job: a data set that silently lost
a tenth of its faces gives another model. Nothing in here knows what runs the tasks:

    source = open_celeba("data/celeba")
    if pixels_up_to_date(source, out, settings) is None:
        specs = plan_pixel_shards(source, out, settings)
        finish_pixels(source, out, specs, [write_pixel_shard(spec) for spec in specs])
"""

import hashlib
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.images import FILTER, crop_photograph, file_stamp, open_zip, read_photograph
from data_prep.synthetic_faces import IMAGES, MARKER, read_marker
from data_prep.tasks import (
    SPLITS,
    ShardResult,
    build_splits,
    check_problems,
    find_finished,
    finish,
    order_results,
    read_sidecar,
    shard_name,
    write_sidecar,
)
from pipeline.data.manifest import Manifest, Problem
from pipeline.data.shards import BLOCK_ROWS, write_shard
from pipeline.files import canonical_hash

PARTITION = "list_eval_partition"


@dataclass(frozen=True)
class CelebASource:
    """A data set that was found and listed; nothing of it is decoded yet. Small enough to travel to other processes.

    Fields:
        images: absolute path of the folder or zip with the photographs.
        folder: prefix of the photographs in the zip, like "img_align_celeba/" ("" at its root and for a folder).
        dataset: "synthetic-faces" where the generator left its marker, else "celeba".
        names: split -> file names that are present, sorted. Rows of the shards follow this order.
        problems: images without a partition line, and lines without an image.
        content_hash: sha256 over (name, size, crc) of every image, sorted, and every partition line, sorted. In a
            zip the crc is of the contents; in a folder only the size is known without reading every file, so an edit
            that keeps the size goes unnoticed there. It does not depend on where the data set lies.
        drawing: version of the drawing of synthetic faces, 2 or more; None for version 1, whose manifests name none,
            and for photographs.
    """

    images: str
    folder: str
    dataset: str
    names: Mapping[str, tuple[str, ...]]
    problems: tuple[Problem, ...]
    content_hash: str
    drawing: int | None = None

    @property
    def total(self) -> int:
        """Number of images, present or listed."""
        return sum(map(len, self.names.values())) + len(self.problems)

    def describe(self, settings: "PixelSettings") -> dict[str, Any]:
        """Return what the manifest of its pixels records: the settings, and the version of the drawing if there is one."""
        return settings.describe() | ({} if self.drawing is None else {"drawing": self.drawing})


@dataclass(frozen=True)
class PixelSettings:
    """The settings that decide the rows of pixel shards: side of the center crop, side of the result (pixels), rows per shard.

    `max_bad_share` is the share of missing or broken images above which the job stops; it changes no row.
    """

    crop: int = 148
    size: int = 64
    rows_per_shard: int = 2048
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        """Raises ValueError for a setting out of range."""
        for name in ("crop", "size", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}; it is a share between 0 and 1")

    def describe(self) -> dict[str, Any]:
        """Returns the settings as the manifest records them: what decides the rows."""
        recorded = {**asdict(self), "filter": FILTER, "block_rows": BLOCK_ROWS}
        del recorded["max_bad_share"]
        return recorded


@dataclass(frozen=True)
class PixelShardSpec:
    """One pixel shard to write, self-contained: the photographs `names` in row order and what to do with them."""

    split: str
    index: int
    names: tuple[str, ...]
    images: str
    folder: str
    source_hash: str
    out_dir: str
    settings: PixelSettings


def open_celeba(path: str | Path) -> CelebASource:
    """Finds the photographs and the partition and lists them.

    Args:
        path: a folder that holds `img_align_celeba/` or `img_align_celeba.zip` (also inside `celeba/` or `Img/`), or
            the path of either itself. `list_eval_partition.txt` or `.csv` lies beside it or in `Eval/`.

    Raises:
        ValueError: this is no CelebA (saying what was looked for and where), or a partition line makes no sense.
    """
    root = Path(path).expanduser().resolve()
    images, folder, sizes = _find_images(root)
    partition_path = _find_partition(images)
    partition = _read_partition(partition_path)
    problems = [Problem(name, None, "no line in the partition file") for name in sorted(sizes.keys() - partition)]
    for name in sorted(partition.keys() - sizes):
        problems.append(
            Problem(name, SPLITS[partition[name]], "listed in the partition file, but there is no such image")
        )
    names = {
        split: tuple(sorted(name for name in sizes if partition.get(name) == number))
        for number, split in enumerate(SPLITS)
    }
    if not names["train"]:
        raise ValueError(f"no image of {images} is in the train split of {partition_path}: do they belong together?")
    if unlisted := [split for number, split in enumerate(SPLITS) if number not in partition.values()]:
        raise ValueError(
            f"{partition_path} lists no image of the {unlisted[0]} split (partition {SPLITS.index(unlisted[0])}): training, "
            "validation and test images are all needed"
        )
    lines = [f"{name} {sizes[name]}" for name in sorted(sizes)]
    lines += [f"{name} {partition[name]}" for name in sorted(partition)]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    marked = [place for place in (images.parent, partition_path.parent) if (place / MARKER).is_file()]
    version = read_marker(marked[0]).get("generator_version") if marked else None
    drawing = version if isinstance(version, int) and version > 1 else None
    dataset = "synthetic-faces" if marked else "celeba"
    return CelebASource(str(images), folder, dataset, names, tuple(problems), digest, drawing)


def _find_images(root: Path) -> tuple[Path, str, dict[str, str]]:
    """Returns path, folder inside the zip, and name -> "size crc" (zip) or "size" (folder)."""
    places = [root]
    for base in (root, root / "celeba", root / "Img"):
        places += [base / IMAGES / IMAGES, base / IMAGES, base / f"{IMAGES}.zip"]
    for place in places:
        if place.is_dir():
            with os.scandir(place) as entries:
                found = [entry for entry in entries if _is_photograph(entry.name) and entry.is_file()]
                sizes = {entry.name: str(entry.stat().st_size) for entry in found}
            if sizes:
                return place, "", sizes
        elif place.is_file():
            return place, *_list_zip(place)
    looked = "\n".join(map(str, places))
    raise ValueError(
        f"{root} is no CelebA: neither a folder with .jpg files nor a zip was found among\n{looked}\n"
        f"Give the folder that holds {IMAGES}/ or {IMAGES}.zip, or the path of either."
    )


def _is_photograph(name: str) -> bool:
    return name.lower().endswith(".jpg") and not name.startswith(".")


def _list_zip(path: Path) -> tuple[str, dict[str, str]]:
    try:
        members = open_zip(path).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is no CelebA: it is not a whole zip file ({error}); download it again") from error
    folders: dict[str, dict[str, str]] = {}
    for member in members:
        name = member.filename.rpartition("/")[2]
        folder = member.filename.removesuffix(name)
        if _is_photograph(name) and not folder.startswith("__MACOSX"):
            folders.setdefault(folder, {})[name] = f"{member.file_size} {member.CRC:08x}"
    if len(folders) != 1:
        found = f"in {len(folders)} folders: {', '.join(sorted(folders)[:5])}" if folders else "nowhere"
        raise ValueError(f"{path} is no CelebA: its .jpg files should be in one folder and are {found}")
    return next(iter(folders.items()))


def _find_partition(images: Path) -> Path:
    places = [images.parent]
    if images.parent.name in (IMAGES, "Img"):  # Kaggle's doubled folder, the authors' own layout
        places += [images.parent.parent, images.parent.parent / "Eval"]
    candidates = [place / f"{PARTITION}{suffix}" for place in places for suffix in (".txt", ".csv")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = "\n".join(map(str, candidates))
    raise ValueError(f"the photographs {images} have no partition file; looked for\n{looked}\nPut it beside them.")


def _read_partition(path: Path) -> dict[str, int]:
    """Returns image name -> 0 (train), 1 (valid), 2 (test)."""
    partition: dict[str, int] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); fetch it again"
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.replace(",", " ").split()
        if not fields or (number == 1 and fields == ["image_id", "partition"]):
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not an image and its partition (0, 1 or 2)")
        if partition.setdefault(fields[0], int(fields[1])) != int(fields[1]):
            raise ValueError(f"{path}, line {number}: {fields[0]} is already in partition {partition[fields[0]]}")
    return partition


def plan_pixel_shards(
    source: CelebASource, out_dir: str | Path, settings: PixelSettings | None = None
) -> list[PixelShardSpec]:
    """Returns one spec per shard, train first; any process may run any of them, in any order, with one result.

    Raises:
        BadImagesError: already more images are missing than the settings allow.
    """
    settings = settings or PixelSettings()
    check_problems(source.problems, source.total, settings.max_bad_share)
    out, step = str(Path(out_dir).resolve()), settings.rows_per_shard
    return [
        PixelShardSpec(
            split, index, names[start : start + step], source.images, source.folder, source.content_hash, out, settings
        )
        for split, names in source.names.items()
        for index, start in enumerate(range(0, len(names), step))
    ]


def write_pixel_shard(spec: PixelShardSpec) -> ShardResult:
    """Writes one shard and its sidecar; does nothing if both are there from the same inputs and the sha256 fits.

    Images without a row are named in the result; the others keep their order. Raises ValueError without a data set.
    """
    out, name, path = Path(spec.out_dir), shard_name(spec.split, spec.index), Path(spec.images)
    if not path.exists():
        raise ValueError(f"{path} is not on this machine: every machine that writes shards has to see the data set")
    archive = None if path.is_dir() else open_zip(path)
    # A folder's content hash misses a repair that keeps a file's size; the times of the shard's own files do not.
    stamps = [file_stamp(path / photograph) for photograph in spec.names] if archive is None else []
    fingerprint = canonical_hash([spec.source_hash, spec.split, spec.names, stamps, spec.settings.describe()])
    done = read_sidecar(out, name, fingerprint)
    if done is not None:
        return done
    rows = np.empty((len(spec.names), spec.settings.size, spec.settings.size, 3), np.uint8)
    count, problems = 0, []
    for photograph in spec.names:
        try:
            data = read_photograph(path, archive, spec.folder + photograph)
            rows[count] = crop_photograph(data, spec.settings.crop, spec.settings.size)
            count += 1
        except ValueError as error:
            problems.append(Problem(photograph, spec.split, str(error)))
    out.mkdir(parents=True, exist_ok=True)
    result = ShardResult(spec.split, spec.index, write_shard(out / name, rows[:count]), tuple(problems))
    write_sidecar(out, fingerprint, result)
    return result


def finish_pixels(
    source: CelebASource, out_dir: str | Path, specs: Sequence[PixelShardSpec], results: Sequence[ShardResult]
) -> Manifest:
    """Checks the share of bad images, writes the manifest and removes what killed runs left.

    Raises:
        BadImagesError: too many images are missing or broken; the shards stay, so that a repair costs little.
    """
    settings = specs[0].settings
    ordered = order_results([shard_name(spec.split, spec.index) for spec in specs], results)
    problems = source.problems + tuple(problem for result in ordered for problem in result.problems)
    check_problems(problems, source.total, settings.max_bad_share)
    shape = (settings.size, settings.size, 3)
    manifest = Manifest(
        "pixels", source.dataset, source.content_hash, source.describe(settings), shape, build_splits(ordered), problems
    )
    return finish(Path(out_dir), manifest)


def pixels_up_to_date(
    source: CelebASource, out_dir: str | Path, settings: PixelSettings | None = None, verify: bool = False
) -> Manifest | None:
    """Returns the manifest if `out_dir` holds these pixels, every shard of its size (with `verify`: sha256); else None.

    Raises:
        BadImagesError: it does, but with more missing or broken images than the settings now allow.
    """
    settings = settings or PixelSettings()
    manifest = find_finished(Path(out_dir), "pixels", source.content_hash, source.describe(settings), verify)
    if manifest is None or manifest.dataset != source.dataset:
        return None
    check_problems(manifest.problems, source.total, settings.max_bad_share)
    return manifest
