"""Shards: rows of fixed shape in tar files with a manifest; how they are written, checked and read.

All data sets of this project are kept this way: `pixels` (uint8 [size, size, 3]), `latents` (float32 [F], raw; they are
whitened when read) and `points` (float32 [d], drawn from a density and used as they are). A member of a tar is a
*block* of 256 rows as `.npy`: rows one by one read ten times slower.
The bytes of a shard depend on its rows only, so equal rows have equal sha256, and the manifest (`manifest.json`) names
every shard with its rows, bytes and sha256. Nothing is read without a manifest and nothing is unpickled.

A shard that is not what its manifest says raises ShardError when it is read, naming shard, expectation and finding: a
damaged row would otherwise become part of a model without anybody noticing.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import reprlib
import tarfile
import tokenize
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from webdataset.tariterators import tar_file_iterator
from webdataset.writer import TarWriter

from pipeline.disk import naming_a_full_disk

MANIFEST_VERSION = 1
MANIFEST_NAME = "manifest.json"
BLOCK_ROWS = 256
_HEADER_BYTES = 1 << 14  # of a .npy file, at most
DTYPES = {"pixels": "uint8", "latents": "float32", "points": "float32"}
_REPAIR = "delete it and run the prepare job again: it rewrites only what is missing"


class ShardError(ValueError):
    """A shard or a manifest is missing, damaged, or not what was expected."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest knows it: file name, number of rows, size in bytes, sha256 of the file (hex)."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Problem:
    """One image of the source that gave no row; `split` is None when the partition file does not mention it."""

    name: str
    split: str | None
    reason: str


@dataclass(frozen=True)
class SplitEntry:
    """The shards of one split in row order; for latents also mean and standard deviation (by N) of each feature."""

    rows: int
    shards: tuple[ShardEntry, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Fields: kind "pixels", "latents" or "points"; dataset label; source_hash: content hash of the photographs, for latents
    the hash of the pixels' manifest, for points that of the density; settings: everything else that decides the rows;
    row_shape; splits by name; problems.
    """

    kind: str
    dataset: str
    source_hash: str
    settings: Mapping[str, Any]
    row_shape: tuple[int, ...]
    splits: Mapping[str, SplitEntry]
    problems: tuple[Problem, ...] = ()
    version: int = MANIFEST_VERSION

    def __post_init__(self) -> None:
        """Refuses an unknown kind, shard names that point out of their folder, and row counts that do not add up."""
        if self.kind not in DTYPES:
            raise ShardError(f"manifest kind {reprlib.repr(self.kind)} is unknown; the kinds are {', '.join(DTYPES)}")
        sizes = (*self.row_shape, *(n for s in self.splits.values() for n in (s.rows, *_numbers(s.shards))))
        if not self.row_shape or not all(type(size) is int and 0 <= size < 2**53 for size in sizes):
            raise ShardError(f"the manifest has a size that is no whole number from 0; {_REPAIR}")
        row_bytes = math.prod(self.row_shape) * np.dtype(DTYPES[self.kind]).itemsize
        for name, split in self.splits.items():
            moments = (*split.mean, *split.std)
            if not all(type(value) in (int, float) and math.isfinite(value) for value in moments):
                raise ShardError(
                    f"split {reprlib.repr(name)} has a mean or deviation that is no finite number; {_REPAIR}"
                )
            for shard in split.shards:
                # nothing is compressed, so that a promise of rows beyond the bytes is false: no memory is taken for it
                if shard.rows * row_bytes > shard.bytes:
                    raise ShardError(
                        f"shard {reprlib.repr(shard.name)} of {shard.bytes} bytes cannot hold {shard.rows} rows of "
                        f"{row_bytes} bytes; {_REPAIR}"
                    )
                if Path(shard.name).name != shard.name:
                    raise ShardError(f"shard name {reprlib.repr(shard.name)} in the manifest is not a plain file name")
            if (found := sum(shard.rows for shard in split.shards)) != split.rows:
                raise ShardError(
                    f"split {reprlib.repr(name)} has {split.rows} rows, its shards have {found}; {_REPAIR}"
                )

    @functools.cached_property
    def hash(self) -> str:
        """Sha256 (hex) of the manifest's canonical JSON: two manifests with one hash stand for the same rows."""
        return canonical_hash(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Manifest":
        """Returns the manifest that `to_dict` gave.

        Raises:
            ShardError: another version, a missing or unknown field.
        """
        if values.get("version") != MANIFEST_VERSION:
            raise ShardError(
                f"manifest version {reprlib.repr(values.get('version'))} is unknown; this program reads version "
                f"{MANIFEST_VERSION}: run the prepare job again, or use the program that wrote it"
            )
        try:
            splits = {
                name: SplitEntry(
                    rows=split["rows"],
                    shards=tuple(ShardEntry(**shard) for shard in split["shards"]),
                    mean=tuple(split["mean"]),
                    std=tuple(split["std"]),
                )
                for name, split in values["splits"].items()
            }
            problems = tuple(Problem(**problem) for problem in values["problems"])
            fields = {**values, "splits": splits, "problems": problems, "row_shape": tuple(values["row_shape"])}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ShardError(f"the manifest has a missing or unknown field: {str(error)[:200]}; {_REPAIR}") from error


def _numbers(shards: Iterable[ShardEntry]) -> Iterator[int]:
    return itertools.chain.from_iterable((shard.rows, shard.bytes) for shard in shards)


def canonical_hash(values: Any) -> str:
    """Returns sha256 (hex) of `values` as JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Returns sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file to write that becomes `path` when all of it is on disk, and nothing when the body raises.

    A killed process leaves `.NAME.ID.tmp` beside `path`; the name is unique, so that a retried task cannot meet the
    first attempt that still runs. A full disk raises DiskFull with the path.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with naming_a_full_disk(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself has to survive a power cut
    finally:
        os.close(folder)


def write_shard(path: Path, rows: np.ndarray) -> ShardEntry:
    """Writes rows [n, ...] (n may be 0) as one shard, atomically; equal rows give equal bytes.

    Raises:
        ValueError: rows that are neither uint8 nor float32, or not finite.
    """
    if str(rows.dtype) not in DTYPES.values():
        raise ValueError(f"{path.name}: rows of type {rows.dtype}; a shard holds uint8 pixels or float32 latents")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ValueError(f"{path.name}: {np.count_nonzero(~np.isfinite(rows))} values are not finite")
    # Time, owner and mode are fixed: the sha256 must not depend on who wrote the shard, nor when.
    with replace_file(path) as file, TarWriter(file, user="", group="", mode=0o444, encoder=False, mtime=0) as tar:
        for block, start in enumerate(range(0, len(rows), BLOCK_ROWS)):
            npy = io.BytesIO()
            np.save(npy, np.ascontiguousarray(rows[start : start + BLOCK_ROWS]), allow_pickle=False)
            tar.write({"__key__": f"{block:06d}", "npy": npy.getvalue()})
    return ShardEntry(path.name, len(rows), path.stat().st_size, file_hash(path))


def read_manifest(directory: str | Path) -> Manifest:
    """Returns the manifest of a folder of shards.

    Raises:
        ShardError: there is none, it was written by another version, or it was changed after it was written.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ShardError(f"it holds no JSON object; {_REPAIR}")
        recorded = values.pop("hash", None)
        manifest = Manifest.from_dict(values)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: these shards were never finished; run the prepare job") from None
    except ShardError as error:
        raise ShardError(f"{path}: {error}") from error
    except (ValueError, RecursionError, AttributeError, OSError) as error:  # JSON's and Unicode's are ValueErrors
        raise ShardError(f"{path} is no manifest ({error}); {_REPAIR}") from error
    if manifest.hash != recorded:
        raise ShardError(f"{path} was changed after it was written: its hash is not the recorded one; {_REPAIR}")
    return manifest


def check_shard(directory: str | Path, entry: ShardEntry, verify: bool = True) -> None:
    """Compares a shard's size, and with `verify` its sha256, with the manifest.

    Raises:
        ShardError: the shard is missing or differs.
    """
    path = Path(directory) / entry.name
    if not path.is_file():
        raise ShardError(f"shard {path} is missing; run the prepare job again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ShardError(f"shard {path} has {size} bytes, its manifest says {entry.bytes}; {_REPAIR}")
    if verify and (found := file_hash(path)) != entry.sha256:
        raise ShardError(f"shard {path} has sha256 {found}, its manifest says {entry.sha256}; {_REPAIR}")


def iterate_blocks(
    directory: str | Path,
    manifest: Manifest,
    entry: ShardEntry,
    start: int,
    stop: int,
    verify: bool,
    finite: bool = True,
) -> Iterator[np.ndarray]:
    """Yields rows [start, stop) of one shard in order, in arrays of at most 256 rows; stops reading at `stop`.

    With `finite` false, values that are not finite are for the caller to find.

    Raises:
        ShardError: the shard is missing, damaged, or does not hold the rows that the manifest promises.
    """
    check_shard(directory, entry, verify)
    path, dtype = Path(directory) / entry.name, DTYPES[manifest.kind]
    position = start - start % BLOCK_ROWS
    try:
        with path.open("rb") as file:
            first = f"{position // BLOCK_ROWS:06d}"
            _check_members(file, math.prod(manifest.row_shape) * BLOCK_ROWS * np.dtype(dtype).itemsize)
            for member in tar_file_iterator(file, select_files=lambda name: name >= first):
                expected = (min(BLOCK_ROWS, entry.rows - position), *manifest.row_shape)
                block = _read_block(member["data"])
                if block.shape != expected or block.dtype != dtype:
                    raise ShardError(
                        f"shard {path}, block {member['fname']} holds {block.dtype} {list(block.shape)}, "
                        f"its manifest says {dtype} {list(expected)}; {_REPAIR}"
                    )
                if finite and block.dtype.kind == "f" and not np.isfinite(block).all():
                    raise ShardError(f"shard {path}, block {member['fname']} has values that are not finite; {_REPAIR}")
                yield block[max(start - position, 0) : stop - position]
                position += len(block)
                if position >= stop:
                    return
    except ShardError:
        raise
    except (tarfile.TarError, EOFError, ValueError, TypeError, OverflowError, OSError) as error:
        raise ShardError(f"shard {path} cannot be read ({error}); {_REPAIR}") from error
    raise ShardError(f"shard {path} ends after {position} rows, its manifest says {entry.rows}; {_REPAIR}")


def _check_members(file: IO[bytes], block_bytes: int) -> None:
    """Refuses a tar with anything but blocks of plain bytes, by the headers alone, and rewinds the file.

    The reader takes compressed and sparse tars too, which could unfold to any size, and so could a member's header.

    Raises:
        tarfile.TarError, ValueError: naming the member.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not re.fullmatch(r"\d{6}\.npy", member.name):
                raise ValueError(f"member {member.name[:80]!r} is no block of rows")
            if not member.isreg() or member.issparse() or member.size > block_bytes + _HEADER_BYTES:
                raise ValueError(f"member {member.name!r} is no plain file of at most {block_bytes} bytes")
    file.seek(0)


def _read_block(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file of version 1. Raises ValueError, also where it is not as large as it says."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a block of another version of .npy")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (
        SyntaxError,
        TypeError,
        RecursionError,
        tokenize.TokenError,
    ) as error:  # numpy parses it as Python's literals
        raise ValueError(f"a block's header is damaged ({error})") from error
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickles")
    if fortran or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"a block says it has {dtype} {list(shape)} and has {len(data) - file.tell()} bytes")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()


def find_split(manifest: Manifest, split: str) -> SplitEntry:
    """Returns the entry of a split; raises ShardError naming the splits there are."""
    if split not in manifest.splits:
        raise ShardError(f"there is no split {split!r}; the manifest has {', '.join(manifest.splits)}")
    return manifest.splits[split]


def iterate_split(
    directory: str | Path, manifest: Manifest, split: str, start: int, stop: int, verify: bool
) -> Iterator[np.ndarray]:
    """Yields rows [start, stop) of a split in order, opening only the shards that overlap them."""
    first = 0
    for entry in find_split(manifest, split).shards:
        low, high = max(start - first, 0), min(stop - first, entry.rows)
        if low < high:
            yield from iterate_blocks(directory, manifest, entry, low, high, verify)
        first += entry.rows


def load_split(directory: str | Path, split: str, verify: bool = True) -> Tensor:
    """Returns all rows of a split in the manifest's order, resident: uint8 [N, size, size, 3] or float32 [N, F] (raw).

    `verify` compares each shard's sha256; sizes, shapes, row counts and finiteness are checked in any case.

    Raises:
        ShardError: naming the shard, what was expected and found, and what to do.
    """
    manifest = read_manifest(directory)
    rows = find_split(manifest, split).rows
    result = torch.empty((rows, *manifest.row_shape), dtype=getattr(torch, DTYPES[manifest.kind]))
    position = 0
    for block in iterate_split(directory, manifest, split, 0, rows, verify):
        result[position : position + len(block)] = torch.from_numpy(block)
        position += len(block)
    return result


def iterate_rows(
    directory: str | Path, split: str, rank: int, world_size: int, batch_rows: int, lanes: int = 12, verify: bool = True
) -> Iterator[Tensor]:
    """Yields this rank's share of each global batch of one pass, for sets that do not fit in memory.

    The split's rows are cut into `lanes` contiguous ranges, and each global batch takes the next few rows of every
    lane. A rank owns neighboring lanes, reads only the shards that overlap them and holds one block per lane. So for
    any number of ranks there are exactly ceil(rows / batch_rows) steps, every row comes once, and the ranks'
    shares of a step, one after another, are the same global batch. Rows are not shuffled: a batch mixes distant rows.

    Args:
        directory: folder with manifest.json and shards.
        split: "train", "valid" or "test".
        rank: this worker, 0 to world_size - 1.
        world_size: number of workers, at most `lanes`.
        batch_rows: rows of a *global* batch.
        lanes: a setting of the run like batch_rows: it decides which rows share a batch. Any number from 1; shares
            are even where world_size divides it.
        verify: compare the sha256 of the shards when they are opened; not needed again in a later pass.

    Returns:
        An iterator of [n, *row_shape]; n differs by a row or so between ranks and may be 0 in a small last batch.

    Raises:
        ValueError: rank, world_size, batch_rows or lanes out of range.
        ShardError: as `load_split`.
    """
    if not 0 <= rank < world_size <= lanes:
        raise ValueError(f"rank {rank}, world_size {world_size}, lanes {lanes}: 0 <= rank < world_size <= lanes fails")
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}; a global batch has at least 1 row")
    manifest = read_manifest(directory)
    full, rest = divmod(find_split(manifest, split).rows, batch_rows)

    def read_lane(lane: int) -> Iterator[list[np.ndarray]]:
        # Width of the lane in a full batch and in the last, partial one; the lanes before it take start rows in all.
        low, high = lane * batch_rows // lanes, (lane + 1) * batch_rows // lanes
        last_low, last_high = lane * rest // lanes, (lane + 1) * rest // lanes
        start, stop = full * low + last_low, full * high + last_high
        sizes = [high - low] * full + [last_high - last_low] * bool(rest)
        return _cut(iterate_split(directory, manifest, split, start, stop, verify), sizes)

    owned = [read_lane(lane) for lane in range(rank * lanes // world_size, (rank + 1) * lanes // world_size)]
    empty = np.empty((0, *manifest.row_shape), DTYPES[manifest.kind])
    return (torch.from_numpy(np.concatenate([empty, *itertools.chain(*step)])) for step in zip(*owned))


def _cut(blocks: Iterator[np.ndarray], sizes: Iterable[int]) -> Iterator[list[np.ndarray]]:
    """Yields for each size a list of arrays with that many rows in all, in order."""
    held: np.ndarray | None = None
    for size in sizes:
        parts = []
        while size:
            held = next(blocks) if held is None or not len(held) else held
            parts.append(held[:size])
            held = held[size:]
            size -= len(parts[-1])
        yield parts


class Whitening(NamedTuple):
    """Mean [F] and standard deviation [F] (float32) of the raw latents of the train split."""

    mean: Tensor
    std: Tensor

    def apply(self, raw_latents: Tensor) -> Tensor:
        """Returns latents [..., F] with mean 0 and standard deviation 1 per feature (on the train split)."""
        return (raw_latents - self.mean) / self.std

    def invert(self, latents: Tensor) -> Tensor:
        """Returns raw latents [..., F], which the decoder takes."""
        return latents * self.std + self.mean


def read_whitening(directory: str | Path) -> Whitening:
    """Returns the train split's whitening from the manifest of a folder of latents.

    A feature that is constant on the train split (deviation below 1e-6 of the largest) gets 1 instead of its deviation:
    dividing by rounding noise would make a loud feature of a dead one.

    Raises:
        ShardError: the folder holds no latents, or its train split is empty.
    """
    train = find_split(_latent_manifest(directory), "train")
    if not train.rows:
        raise ShardError(f"the train split of {directory} is empty: there is nothing to whiten by")
    std = torch.tensor(train.std, dtype=torch.float64)
    std = torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))
    return Whitening(torch.tensor(train.mean, dtype=torch.float64).float(), std.float())


def load_latents(directory: str | Path, split: str, verify: bool = True) -> Tensor:
    """Returns the raw latents float32 [N, F] of a split; raises ShardError as `load_split`, and for pixels."""
    _latent_manifest(directory)
    return load_split(directory, split, verify)


def _latent_manifest(directory: str | Path) -> Manifest:
    manifest = read_manifest(directory)
    if manifest.kind != "latents":
        raise ShardError(f"{directory} holds {manifest.kind}, not latents; encode them with the prepare job")
    return manifest


def pixels_to_images(pixels: Tensor) -> Tensor:
    """Returns images float32 [n, 3, size, size] in [0, 1] of pixels uint8 [n, size, size, 3]."""
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 255
