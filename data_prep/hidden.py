"""Shards of rows -> shards of points: each row encoded by a trained RBM, the data of the next layer of a stack.

One task encodes one shard, as in encode.py: any process may run any of them, in any order, and a killed run continues.
Encodings are computed on the CPU in blocks of 256 rows, and draws come from a stream per block, so the rows depend on the
layer, the seed and the data alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.manifest import (
    ShardResult,
    build_splits,
    find_finished,
    finish,
    order_results,
    read_sidecar,
    shard_name,
    write_sidecar,
)
from pipeline.data.manifest import Manifest, ShardError, read_manifest
from pipeline.data.rows import Scaling, read_scaling
from pipeline.data.shards import iterate_split, write_shard
from pipeline.files import canonical_hash
from pipeline.models.stack import ENCODING_ROWS, Encoding

EncodeRows = Callable[[Tensor, str, int], Tensor]
"""(rows float32 [n, V] as the layer was trained on, split, position of the first row) -> [n, H]."""


@dataclass(frozen=True)
class HiddenSettings:
    """What decides the encoded rows besides the data: a layer's parameters (their hash), its number, and how it encodes."""

    layer: int
    """From 1, the bottom."""
    parameters: str
    num_hidden: int
    encoding: Encoding
    seed: int
    """Of the draws; without effect on means."""
    scaling: Scaling = "manifest"
    """Of the source's rows, as the layer was trained on them."""

    def describe(self) -> dict[str, Any]:
        """The settings as the manifest records them."""
        return {**asdict(self), "encoding_rows": ENCODING_ROWS}


@dataclass(frozen=True)
class HiddenShardSpec:
    """One shard to write: rows [start, start + rows) of a split, which are one shard of the source."""

    split: str
    index: int
    start: int
    rows: int
    source_dir: str
    source_hash: str
    out_dir: str
    settings: HiddenSettings


def plan_hidden_shards(source_dir: Path, out_dir: Path, settings: HiddenSettings) -> list[HiddenShardSpec]:
    """One spec per shard of latents or points, in the same order.

    Raises:
        ShardError: `source_dir` holds no finished latents or points, or is `out_dir`.
    """
    source, out = source_dir.resolve(), out_dir.resolve()
    if source == out:
        raise ShardError(f"rows and their encodings cannot share the folder {out}: their shards have the same names")
    read_scaling(source)  # refuses pixels
    manifest = read_manifest(source)
    specs = []
    for split, entry in manifest.splits.items():
        start = 0
        for index, shard in enumerate(entry.shards):
            specs.append(
                HiddenShardSpec(split, index, start, shard.rows, str(source), manifest.hash, str(out), settings)
            )
            start += shard.rows
    return specs


def write_hidden_shard(spec: HiddenShardSpec, encode: EncodeRows) -> ShardResult:
    """Encode one shard; does nothing if it is there with its sidecar, from the same inputs, and the sha256 fits.

    Raises:
        ShardError: the rows are damaged, or changed since the plan was made.
        ValueError: encodings of another shape, or not finite.
    """
    out, name = Path(spec.out_dir), shard_name(spec.split, spec.index)
    fingerprint = canonical_hash([spec.source_hash, spec.split, spec.start, spec.rows, spec.settings.describe()])
    if (done := read_sidecar(out, name, fingerprint)) is not None:
        return done
    source = Path(spec.source_dir)
    manifest = _unchanged(source, spec.source_hash)
    empty = np.empty((0, *manifest.row_shape), np.float32)
    blocks = iterate_split(source, manifest, spec.split, spec.start, spec.start + spec.rows, verify=True)
    rows = read_scaling(source, spec.settings.scaling).apply(torch.from_numpy(np.concatenate([empty, *blocks])))
    encoded = encode(rows, spec.split, spec.start).float().cpu()
    expected = (spec.rows, spec.settings.num_hidden)
    if tuple(encoded.shape) != expected:
        raise ValueError(f"layer {spec.settings.layer} gave rows {list(encoded.shape)}; expected {list(expected)}")
    out.mkdir(parents=True, exist_ok=True)
    result = ShardResult(spec.split, spec.index, write_shard(out / name, encoded.numpy()))
    write_sidecar(out, fingerprint, result)
    return result


def finish_hidden(
    source_dir: Path, out_dir: Path, specs: Sequence[HiddenShardSpec], results: Sequence[ShardResult]
) -> Manifest:
    """Write the manifest of encoded rows, kind "points", and remove what killed runs left.

    Raises:
        ShardError: the source changed since the plan, or a shard is gone.
        ValueError: a planned shard has no result.
    """
    source, settings = _unchanged(source_dir, specs[0].source_hash), specs[0].settings
    ordered = order_results([shard_name(spec.split, spec.index) for spec in specs], results)
    shape, splits = (settings.num_hidden,), build_splits(ordered)
    return finish(out_dir, Manifest("points", source.dataset, source.hash, settings.describe(), shape, splits))


def hidden_up_to_date(source_dir: Path, out_dir: Path, settings: HiddenSettings) -> Manifest | None:
    """The manifest if `out_dir` holds these encodings of `source_dir`, each shard of its size; else None."""
    source = read_manifest(source_dir).hash
    return find_finished(out_dir, "points", source, settings.describe(), verify=False)


def _unchanged(source_dir: Path, source_hash: str) -> Manifest:
    manifest = read_manifest(source_dir)
    if manifest.hash != source_hash:
        raise ShardError(f"the rows in {source_dir} changed since these shards were planned; run the job again")
    return manifest
