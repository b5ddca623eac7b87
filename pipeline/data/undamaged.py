"""The undamaged rows of a split: damaged ones are left out, named and counted, up to a share that the settings allow.

What is left out depends on the files alone, so workers that see the same files keep the same rows and make equal steps.
"""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.manifest import ShardError, find_split, read_manifest
from pipeline.data.shards import iterate_blocks, load_split

_log = logging.getLogger(__name__)


class UndamagedRows(NamedTuple):
    """Rows of a split without the damaged ones."""

    rows: Tensor
    skipped: tuple[int, ...]
    """Places, in the manifest's order, of the rows left out."""

    @property
    def digest(self) -> int:
        """A number in [0, 2^62) that stands for which rows were kept."""
        text = f"{len(self.rows)} {self.skipped}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def load_undamaged_rows(directory: str | Path, split: str, max_share: float) -> UndamagedRows:
    """All rows of a split (`load_split`) but the damaged ones, if these are at most `max_share` of it.

    Left out are shards that are missing or not what the manifest says, whole (which of their rows are right cannot be
    known), and single rows with values that are not finite. Each finding is a warning.

    Args:
        directory: folder with manifest.json and shards.
        split: "train", "valid" or "test".
        max_share: of the split's rows, in [0, 1); 0: any damage raises.

    Raises:
        ShardError: the first damage when `max_share` is 0, else the share found and all that was wrong.
    """
    if max_share == 0:
        return UndamagedRows(load_split(directory, split), ())
    manifest = read_manifest(directory)
    total = find_split(manifest, split).rows
    kept: list[np.ndarray] = []
    skipped: list[int] = []
    findings: list[str] = []
    first = 0
    for entry in find_split(manifest, split).shards:
        try:
            blocks = list(iterate_blocks(directory, manifest, entry, 0, entry.rows, True, False)) if entry.rows else []
        except ShardError as error:
            findings.append(str(error))
            skipped += range(first, first + entry.rows)
        else:
            for block in blocks:
                good = np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
                kept.append(block[good])
                skipped += (first + np.flatnonzero(~good)).tolist()
                first += len(block)
                if not good.all():
                    findings.append(f"shard {Path(directory) / entry.name}: {(~good).sum()} rows are not finite")
            continue
        first += entry.rows
    if len(skipped) > max_share * total:
        raise ShardError(
            f"{len(skipped)} of {total} rows of split {split!r} are damaged, more than data.max_skipped_share = {max_share} "
            f"allows: {'; '.join(findings)}"
        )
    for finding in findings:
        _log.warning("left out: %s", finding)
    if skipped:
        _log.warning("%d of %d rows of split %r are damaged and left out", len(skipped), total, split)
    rows = np.concatenate([np.empty((0, *manifest.row_shape), kept[0].dtype if kept else np.float32), *kept])
    return UndamagedRows(torch.from_numpy(rows), tuple(skipped))
