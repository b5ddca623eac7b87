"""Shard tasks, for the writers of pixels and of latents: tasks that can be killed, retried and skipped, and their end.

A task writes its shard and then a sidecar (`train-00003.tar.json`) with a fingerprint of everything that decides the
rows. A later run trusts a shard only if fingerprint, size and sha256 fit, so a killed run continues where it was and a
deleted shard is rewritten alone. The manifest comes last: a folder without one is unfinished, whatever lies in it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    Problem,
    ShardEntry,
    ShardError,
    SplitEntry,
    read_manifest,
    write_manifest,
)
from pipeline.data.shards import check_shard
from pipeline.files import write_json

SPLITS = ("train", "valid", "test")
_OWN_FILE = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.tar(\.json)?")
_LEFTOVER = re.compile(rf"\.({_OWN_FILE.pattern}|{re.escape(MANIFEST_NAME)})\.[0-9a-f]{{12}}\.tmp")


class BadImagesError(ValueError):
    """More images are missing or broken than the settings allow."""


@dataclass(frozen=True)
class Moments:
    """Count, mean [F] and sum of squared deviations from it [F] of the rows of one shard, in float64."""

    rows: int
    mean: tuple[float, ...]
    deviations: tuple[float, ...]


@dataclass(frozen=True)
class ShardResult:
    """The result of a shard task: the shard, the images that gave no row, and for latents the moments."""

    split: str
    index: int
    entry: ShardEntry
    problems: tuple[Problem, ...] = ()
    moments: Moments | None = None


def shard_name(split: str, index: int) -> str:
    """Returns the file name of a shard."""
    return f"{split}-{index:05d}.tar"


def write_sidecar(directory: Path, fingerprint: str, result: ShardResult) -> None:
    """Records a finished shard beside it."""
    write_json(directory / f"{result.entry.name}.json", {"fingerprint": fingerprint, **asdict(result)})


def read_sidecar(directory: Path, name: str, fingerprint: str) -> ShardResult | None:
    """Returns the recorded result if the shard is there, whole, and was made from the same inputs; else None."""
    try:
        values = json.loads((directory / f"{name}.json").read_bytes())
        if values.pop("fingerprint") != fingerprint:
            return None
        moments = values["moments"]
        if moments is not None:
            moments = Moments(moments["rows"], tuple(moments["mean"]), tuple(moments["deviations"]))
        problems = tuple(Problem(**problem) for problem in values["problems"])
        entry = ShardEntry(**values["entry"])
        result = ShardResult(**{**values, "entry": entry, "problems": problems, "moments": moments})
        check_shard(directory, entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent or damaged: the shard is written again
        return None
    return result if entry.name == name else None


def measure_moments(rows: np.ndarray) -> Moments:
    """Returns the moments of rows [n, F]."""
    if not len(rows):
        return Moments(0, (0.0,) * rows.shape[1], (0.0,) * rows.shape[1])
    values = rows.astype(np.float64)
    mean = values.mean(axis=0)
    return Moments(len(rows), tuple(mean.tolist()), tuple(((values - mean) ** 2).sum(axis=0).tolist()))


def merge_moments(moments: Sequence[Moments]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean [F] and standard deviation [F] (by N) of all rows: Chan's update over the shards in index order.

    The order is that of the shards, not of the tasks that finished, so the bits do not depend on who ran them.
    """
    total, mean, deviations = 0, np.zeros(len(moments[0].mean)), np.zeros(len(moments[0].mean))
    for part in moments:
        if part.rows:
            shift = np.asarray(part.mean) - mean
            deviations = deviations + np.asarray(part.deviations) + shift**2 * (total * part.rows / (total + part.rows))
            mean = mean + shift * (part.rows / (total + part.rows))
            total += part.rows
    return tuple(mean.tolist()), tuple(np.sqrt(deviations / max(total, 1)).tolist())


def check_problems(problems: Sequence[Problem], total: int, max_share: float) -> None:
    """Stops when more than `max_share` of `total` images gave no row.

    Raises:
        BadImagesError: listing the first 20 of them.
    """
    if len(problems) <= max_share * total:
        return
    lines = [f"  {problem.name} ({problem.split or 'no split'}): {problem.reason}" for problem in problems[:20]]
    if len(problems) > 20:
        lines.append(f"  and {len(problems) - 20} more")
    raise BadImagesError(
        f"{len(problems)} of {total} images ({len(problems) / total:.2%}) are missing or broken, more than the allowed "
        f"{max_share:.2%}:\n" + "\n".join(lines) + "\nRepair or download the data set again, or raise max_bad_share."
    )


def order_results(names: Sequence[str], results: Sequence[ShardResult]) -> list[ShardResult]:
    """Returns the results in the order of the plan's shard names, whatever order the tasks finished in.

    Raises:
        ValueError: a planned shard has no result, or one too many.
    """
    found = {result.entry.name: result for result in results}
    if sorted(names) != sorted(result.entry.name for result in results):
        missing = sorted(set(names) - set(found))
        raise ValueError(f"{len(results)} results for {len(names)} planned shards; without a result: {missing[:20]}")
    return [found[name] for name in names]


def build_splits(results: Sequence[ShardResult]) -> dict[str, SplitEntry]:
    """Returns the manifest's splits from ordered results; a split without shards has 0 rows."""
    splits = {}
    for split in SPLITS:
        own = [result for result in results if result.split == split]
        moments = [result.moments for result in own if result.moments is not None]
        mean, std = merge_moments(moments) if moments else ((), ())
        shards = tuple(result.entry for result in own)
        splits[split] = SplitEntry(sum(shard.rows for shard in shards), shards, mean, std)
    return splits


def finish(directory: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest and removes what killed or older runs left: our temporary files and shards not in it.

    Raises:
        ShardError: a shard is not there with its size; the folder then stays without the new manifest.
    """
    entries = [shard for split in manifest.splits.values() for shard in split.shards]
    for entry in entries:
        check_shard(directory, entry, verify=False)
    write_manifest(directory, manifest)
    kept = {entry.name for entry in entries} | {f"{entry.name}.json" for entry in entries}
    for path in directory.iterdir():
        if _LEFTOVER.fullmatch(path.name) or (_OWN_FILE.fullmatch(path.name) and path.name not in kept):
            path.unlink(missing_ok=True)
    return manifest


def find_finished(
    directory: Path, kind: str, source_hash: str, settings: Mapping[str, Any], verify: bool
) -> Manifest | None:
    """Returns the folder's manifest if it stands for these inputs and every shard is there, else None.

    `verify` compares each shard's sha256 too, not only its size.
    """
    try:
        manifest = read_manifest(directory)
        if (manifest.kind, manifest.source_hash, manifest.settings) != (kind, source_hash, settings):
            return None
        for split in manifest.splits.values():
            for entry in split.shards:
                check_shard(directory, entry, verify)
    except ShardError:
        return None
    return manifest
