"""Shards of one kind of rows -> shards of another: pixels through an autoencoder, rows through a trained RBM.

One task encodes one shard: any process may run any of them, in any order, and a killed run continues. Rows are encoded
on one thread in batches of 256, so their bits depend on the encoding and the data alone. Latents are stored raw, as the
encoder gives them; mean and deviation of every feature are computed in float64 from the moments of each shard, merged in
shard order, so they do not depend on which machine finished first, and are applied when the latents are read.

    if encoded_up_to_date(source, out, encoding) is None:
        specs = plan_encoded_shards(source, out, encoding)
        finish_encoded(source, out, specs, [write_encoded_shard(spec) for spec in specs])
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_prep.tasks import (
    ShardResult,
    build_splits,
    find_finished,
    finish,
    measure_moments,
    order_results,
    read_sidecar,
    shard_name,
    write_sidecar,
)
from pipeline.data.manifest import DTYPES, Manifest, ShardError, read_manifest
from pipeline.data.rows import Scaling
from pipeline.data.shards import BLOCK_ROWS, iterate_split, write_shard
from pipeline.files import canonical_hash
from pipeline.models import stack

BATCH_ROWS = 256
"""Rows that are encoded at once: the last bits of a matrix product depend on its shape. A shard's last batch is smaller."""

Encode = Callable[[Tensor, int], Tensor]
"""(rows [n, ...] as they lie on disk, on the CPU; position of the first in its split) -> encoded rows [n, width]."""


class EncodeError(ValueError):
    """An encoder gave something that cannot be a row."""


@dataclass(frozen=True)
class Encoding:
    """A way to turn rows into other rows by a model."""

    name: str
    """The model in errors, such as "encoder NAME"."""
    takes: tuple[str, ...]
    """Kinds of rows that can be encoded."""
    kind: Literal["latents", "points"]
    """Kind of the encoded rows; latents get their moments into the manifest."""
    width: int
    """Columns of the encoded rows."""
    settings: Mapping[str, Any]
    """Everything besides the rows that decides the encoded ones, as the manifest records it."""
    load: Callable[["EncodedShardSpec"], Encode]
    """Called once per shard, in the process that encodes it; the task travels there, so it must be picklable."""


@dataclass(frozen=True)
class EncodedShardSpec:
    """One shard to write: rows [start, start + rows) of a split, which are one shard of the source.

    `source_hash` is the hash of the source's manifest at planning time.
    """

    split: str
    index: int
    start: int
    rows: int
    source_dir: str
    source_hash: str
    out_dir: str
    encoding: Encoding


def latent_encoding(encoder_version: str, num_features: int, load: Callable[[EncodedShardSpec], Encode]) -> Encoding:
    """Return the encoding of pixels as latents.

    Args:
        encoder_version: names the encoder's weights (their hash): another name, another set of shards.
        num_features: columns of the latents.
        load: gives a function of pixels uint8 [n, size, size, 3], in evaluation mode: each latent depends on its own
            picture alone.

    Raises:
        ValueError: an empty version.
    """
    if not encoder_version:
        raise ValueError("encoder_version is empty; give the registry version or the hash of the encoder's weights")
    settings = {
        "encoder_version": encoder_version,
        "num_features": num_features,
        "batch_rows": BATCH_ROWS,
        "block_rows": BLOCK_ROWS,
    }
    return Encoding(f"encoder {encoder_version}", ("pixels",), "latents", num_features, settings, load)


def layer_encoding(
    layer: int,
    parameters: str,
    num_hidden: int,
    encoding: stack.Encoding,
    seed: int,
    scaling: Scaling,
    load: Callable[[EncodedShardSpec], Encode],
) -> Encoding:
    """Return the encoding of rows by a layer of a stack of RBMs, the data of the next layer.

    Args:
        layer: number of the layer, from 1, the bottom.
        parameters: hash of its parameters.
        num_hidden: its hidden units, the columns of the encoded rows.
        encoding: "sample" or "mean".
        seed: seed of the draws; without effect on means.
        scaling: how the layer's rows were scaled in training.
        load: gives a function of rows float32 [n, V] as they lie on disk.
    """
    settings = {
        "layer": layer,
        "parameters": parameters,
        "num_hidden": num_hidden,
        "encoding": encoding,
        "seed": seed,
        "scaling": scaling,
        "encoding_rows": stack.ENCODING_ROWS,
    }
    return Encoding(f"layer {layer}", ("latents", "points"), "points", num_hidden, settings, load)


def plan_encoded_shards(source_dir: str | Path, out_dir: str | Path, encoding: Encoding) -> list[EncodedShardSpec]:
    """Return one spec per shard of the source, in the same order; any process may run any of them, in any order.

    Raises:
        ShardError: `source_dir` holds no finished rows of a kind that can be encoded.
        ValueError: both folders are the same.
    """
    source, out = Path(source_dir).resolve(), Path(out_dir).resolve()
    manifest = _read_source(source, encoding)
    if source == out:
        raise ValueError(f"rows and their encodings cannot share the folder {out}: their shards have the same names")
    specs = []
    for split, entry in manifest.splits.items():
        start = 0
        for index, shard in enumerate(entry.shards):
            specs.append(
                EncodedShardSpec(split, index, start, shard.rows, str(source), manifest.hash, str(out), encoding)
            )
            start += shard.rows
    return specs


def write_encoded_shard(spec: EncodedShardSpec) -> ShardResult:
    """Encode one shard; does nothing if it is there with its sidecar, from the same inputs, and the sha256 fits.

    Raises:
        ShardError: the rows are damaged, or changed since the plan was made.
        EncodeError: encoded rows of another shape, or not finite.
    """
    out, name, encoding = Path(spec.out_dir), shard_name(spec.split, spec.index), spec.encoding
    fingerprint = canonical_hash([spec.source_hash, spec.split, spec.start, spec.rows, dict(encoding.settings)])
    if (done := read_sidecar(out, name, fingerprint)) is not None:
        return done
    source = Path(spec.source_dir)
    manifest = _read_source(source, encoding, spec.source_hash)
    empty = np.empty((0, *manifest.row_shape), DTYPES[manifest.kind])
    blocks = iterate_split(source, manifest, spec.split, spec.start, spec.start + spec.rows, verify=True)
    rows = torch.from_numpy(np.concatenate([empty, *blocks]))
    encoded = np.empty((spec.rows, encoding.width), np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the bits of a product depend on it
    try:
        encode = encoding.load(spec)
        for start in range(0, spec.rows, BATCH_ROWS):
            batch = rows[start : start + BATCH_ROWS]
            with torch.inference_mode():
                found = encode(batch, spec.start + start).float().cpu()
            encoded[start : start + BATCH_ROWS] = _checked(found, len(batch), spec, spec.start + start).numpy()
    finally:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    moments = measure_moments(encoded) if encoding.kind == "latents" else None
    result = ShardResult(spec.split, spec.index, write_shard(out / name, encoded), moments=moments)
    write_sidecar(out, fingerprint, result)
    return result


def finish_encoded(
    source_dir: str | Path, out_dir: str | Path, specs: Sequence[EncodedShardSpec], results: Sequence[ShardResult]
) -> Manifest:
    """Merge the moments in shard order, write the manifest and remove what killed runs left.

    Raises:
        ShardError: the source changed since the plan, or a shard is gone.
        ValueError: a planned shard has no result.
    """
    encoding = specs[0].encoding
    source = _read_source(Path(source_dir), encoding, specs[0].source_hash)
    ordered = order_results([shard_name(spec.split, spec.index) for spec in specs], results)
    settings, splits = dict(encoding.settings), build_splits(ordered)
    manifest = Manifest(encoding.kind, source.dataset, source.hash, settings, (encoding.width,), splits)
    return finish(Path(out_dir), manifest)


def encoded_up_to_date(
    source_dir: str | Path, out_dir: str | Path, encoding: Encoding, verify: bool = False
) -> Manifest | None:
    """Return the manifest if `out_dir` holds these rows, each shard of its size (with `verify`: sha256); else None.

    Raises:
        ShardError: `source_dir` holds no finished rows of a kind that can be encoded.
    """
    source = _read_source(Path(source_dir), encoding)
    return find_finished(Path(out_dir), encoding.kind, source.hash, dict(encoding.settings), verify)


def _read_source(directory: Path, encoding: Encoding, expected_hash: str | None = None) -> Manifest:
    manifest = read_manifest(directory)
    if manifest.kind not in encoding.takes:
        raise ShardError(
            f"{directory} holds {manifest.kind}, not {' or '.join(encoding.takes)}; give the folder of these"
        )
    if expected_hash not in (None, manifest.hash):
        raise ShardError(
            f"the {manifest.kind} in {directory} changed since these shards were planned; run the job again"
        )
    return manifest


def _checked(encoded: Tensor, count: int, spec: EncodedShardSpec, first: int) -> Tensor:
    name, expected = spec.encoding.name, [count, spec.encoding.width]
    if list(encoded.shape) != expected:
        raise EncodeError(f"{name} gave {list(encoded.shape)} for {count} rows; expected {expected}")
    if not torch.isfinite(encoded).all():
        raise EncodeError(
            f"{name} gave values that are not finite for rows {first} to {first + count - 1} of split {spec.split}; "
            "train it again"
        )
    return encoded
