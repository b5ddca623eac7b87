"""The manifest of a folder of shards: `manifest.json` names every shard with its rows, bytes and sha256.

Nothing is read without a manifest. It is written last: a folder without one is unfinished, whatever lies in it.
"""

import functools
import itertools
import json
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import canonical_hash, write_json

MANIFEST_VERSION = 1
MANIFEST_NAME = "manifest.json"
DTYPES = {"pixels": "uint8", "latents": "float32", "points": "float32"}
REPAIR = "delete it and run the prepare job again: it rewrites only what is missing"


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
    """The contents of a folder of shards.

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
            raise ShardError(f"the manifest has a size that is no whole number from 0; {REPAIR}")
        row_bytes = math.prod(self.row_shape) * np.dtype(DTYPES[self.kind]).itemsize
        for name, split in self.splits.items():
            moments = (*split.mean, *split.std)
            if not all(type(value) in (int, float) and math.isfinite(value) for value in moments):
                raise ShardError(
                    f"split {reprlib.repr(name)} has a mean or deviation that is no finite number; {REPAIR}"
                )
            for shard in split.shards:
                # nothing is compressed, so that a promise of rows beyond the bytes is false: no memory is taken for it
                if shard.rows * row_bytes > shard.bytes:
                    raise ShardError(
                        f"shard {reprlib.repr(shard.name)} of {shard.bytes} bytes cannot hold {shard.rows} rows of "
                        f"{row_bytes} bytes; {REPAIR}"
                    )
                if Path(shard.name).name != shard.name:
                    raise ShardError(f"shard name {reprlib.repr(shard.name)} in the manifest is not a plain file name")
            if (found := sum(shard.rows for shard in split.shards)) != split.rows:
                raise ShardError(f"split {reprlib.repr(name)} has {split.rows} rows, its shards have {found}; {REPAIR}")

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
            raise ShardError(f"the manifest has a missing or unknown field: {str(error)[:200]}; {REPAIR}") from error


def _numbers(shards: Iterable[ShardEntry]) -> Iterator[int]:
    return itertools.chain.from_iterable((shard.rows, shard.bytes) for shard in shards)


def read_manifest(directory: str | Path) -> Manifest:
    """Returns the manifest of a folder of shards.

    Raises:
        ShardError: there is none, it was written by another version, or it was changed after it was written.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ShardError(f"it holds no JSON object; {REPAIR}")
        recorded = values.pop("hash", None)
        manifest = Manifest.from_dict(values)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: these shards were never finished; run the prepare job") from None
    except ShardError as error:
        raise ShardError(f"{path}: {error}") from error
    except (ValueError, RecursionError, AttributeError, OSError) as error:  # JSON's and Unicode's are ValueErrors
        raise ShardError(f"{path} is no manifest ({error}); {REPAIR}") from error
    if manifest.hash != recorded:
        raise ShardError(f"{path} was changed after it was written: its hash is not the recorded one; {REPAIR}")
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json, whole or not at all, with its hash."""
    write_json(Path(directory) / MANIFEST_NAME, {**manifest.to_dict(), "hash": manifest.hash})


def find_split(manifest: Manifest, split: str) -> SplitEntry:
    """Returns the entry of a split; raises ShardError naming the splits there are."""
    if split not in manifest.splits:
        raise ShardError(f"there is no split {split!r}; the manifest has {', '.join(manifest.splits)}")
    return manifest.splits[split]
