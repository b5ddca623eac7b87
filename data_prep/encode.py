"""Shards of pixels -> shards of latents: one task encodes one shard, and the manifest carries what whitens them.

Latents are stored raw, as the encoder gives them. Mean and deviation of every feature are computed in float64 from the
moments of each shard, merged in shard order, so they do not depend on which machine finished first; they are applied
when the latents are read. The encoder is a plain function, so a GPU, a thread or a test can run the same task:

    if latents_up_to_date(pixels, out, settings) is None:
        specs = plan_latent_shards(pixels, out, settings)
        finish_latents(pixels, out, specs, [write_latent_shard(spec, encode) for spec in specs])
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
    measure_moments,
    order_results,
    read_sidecar,
    shard_name,
    write_sidecar,
)
from pipeline.data.manifest import Manifest, ShardError, read_manifest
from pipeline.data.shards import BLOCK_ROWS, iterate_split, pixels_to_images, write_shard
from pipeline.files import canonical_hash

Encode = Callable[[Tensor], Tensor]  # images float32 [n, 3, size, size] in [0, 1] -> latents [n, F]


class EncodeError(ValueError):
    """The encoder gave something that cannot be a latent."""


@dataclass(frozen=True)
class LatentSettings:
    """What decides the latents besides the pixels.

    `encoder_version` names the encoder's weights (a registry version or their hash): another name, another set of
    shards. `batch_rows` images go through the encoder at once; it is part of the settings because the last bits of a
    matrix product depend on its shape. The last batch of a shard may be smaller.
    """

    encoder_version: str
    num_features: int = 1024
    batch_rows: int = 256

    def __post_init__(self) -> None:
        """Raises ValueError for a setting out of range."""
        if not self.encoder_version:
            raise ValueError("encoder_version is empty; give the registry version or the hash of the encoder's weights")
        for name in ("num_features", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1")

    def describe(self) -> dict[str, Any]:
        """Returns the settings as the manifest records them."""
        return {**asdict(self), "block_rows": BLOCK_ROWS}


@dataclass(frozen=True)
class LatentShardSpec:
    """One shard of latents to write: rows [start, start + rows) of a split, which are one shard of pixels.

    `source_hash` is the hash of the pixels' manifest at planning time.
    """

    split: str
    index: int
    start: int
    rows: int
    pixel_dir: str
    source_hash: str
    out_dir: str
    settings: LatentSettings


def plan_latent_shards(pixel_dir: str | Path, out_dir: str | Path, settings: LatentSettings) -> list[LatentShardSpec]:
    """Returns one spec per shard of pixels, in the same order; any process may run any of them, in any order.

    Raises:
        ShardError: `pixel_dir` holds no finished pixels.
        ValueError: both folders are the same.
    """
    pixels, out = Path(pixel_dir).resolve(), Path(out_dir).resolve()
    manifest = _read_pixels(pixels)
    if pixels == out:
        raise ValueError(f"pixels and latents cannot share the folder {out}: their shards have the same names")
    specs = []
    for split, entry in manifest.splits.items():
        start = 0
        for index, shard in enumerate(entry.shards):
            specs.append(
                LatentShardSpec(split, index, start, shard.rows, str(pixels), manifest.hash, str(out), settings)
            )
            start += shard.rows
    return specs


def write_latent_shard(spec: LatentShardSpec, encode: Encode) -> ShardResult:
    """Encodes one shard; does nothing if it is there with its sidecar, from the same inputs, and the sha256 fits.

    Args:
        spec: one shard of the plan.
        encode: images float32 [n, 3, size, size] in [0, 1], on the CPU -> latents [n, num_features], on any device.
            It has to be in evaluation mode: each latent a function of its own image. Called without autograd.

    Raises:
        ShardError: the pixels are damaged, or changed since the plan was made.
        EncodeError: latents of another shape, or not finite.
    """
    out, name = Path(spec.out_dir), shard_name(spec.split, spec.index)
    fingerprint = canonical_hash([spec.source_hash, spec.split, spec.start, spec.rows, spec.settings.describe()])
    done = read_sidecar(out, name, fingerprint)
    if done is not None:
        return done
    pixel_dir, settings = Path(spec.pixel_dir), spec.settings
    manifest = _read_pixels(pixel_dir)
    if manifest.hash != spec.source_hash:
        raise ShardError(
            f"the pixels in {pixel_dir} changed since these shards were planned; run the prepare job again"
        )
    empty = np.empty((0, *manifest.row_shape), np.uint8)
    blocks = iterate_split(pixel_dir, manifest, spec.split, spec.start, spec.start + spec.rows, verify=True)
    pixels = torch.from_numpy(np.concatenate([empty, *blocks]))
    rows = np.empty((spec.rows, settings.num_features), np.float32)
    for start in range(0, spec.rows, settings.batch_rows):
        with torch.inference_mode():
            latents = encode(pixels_to_images(pixels[start : start + settings.batch_rows])).float().cpu()
        batch = rows[start : start + settings.batch_rows]
        if latents.shape != batch.shape:
            raise EncodeError(
                f"encoder {settings.encoder_version} gave latents {list(latents.shape)} for {len(batch)} images; "
                f"expected {list(batch.shape)}: check num_features"
            )
        if not torch.isfinite(latents).all():
            raise EncodeError(
                f"encoder {settings.encoder_version} gave values that are not finite for rows {spec.start + start} to "
                f"{spec.start + start + len(batch) - 1} of split {spec.split}; train it again"
            )
        batch[:] = latents.numpy()
    out.mkdir(parents=True, exist_ok=True)
    entry = write_shard(out / name, rows)
    result = ShardResult(spec.split, spec.index, entry, moments=measure_moments(rows))
    write_sidecar(out, fingerprint, result)
    return result


def finish_latents(
    pixel_dir: str | Path, out_dir: str | Path, specs: Sequence[LatentShardSpec], results: Sequence[ShardResult]
) -> Manifest:
    """Merges the moments in shard order, writes the manifest and removes what killed runs left.

    Raises:
        ShardError: the pixels changed since the plan, or a shard is gone.
        ValueError: a planned shard has no result.
    """
    pixels, settings = _read_pixels(Path(pixel_dir)), specs[0].settings
    if pixels.hash != specs[0].source_hash:
        raise ShardError(
            f"the pixels in {pixel_dir} changed since these shards were planned; run the prepare job again"
        )
    ordered = order_results([shard_name(spec.split, spec.index) for spec in specs], results)
    shape, splits = (settings.num_features,), build_splits(ordered)
    manifest = Manifest("latents", pixels.dataset, pixels.hash, settings.describe(), shape, splits)
    return finish(Path(out_dir), manifest)


def latents_up_to_date(
    pixel_dir: str | Path, out_dir: str | Path, settings: LatentSettings, verify: bool = False
) -> Manifest | None:
    """Returns the manifest if `out_dir` holds these latents, each shard of its size (with `verify`: sha256); else None.

    Raises:
        ShardError: `pixel_dir` holds no finished pixels.
    """
    pixels = _read_pixels(Path(pixel_dir))
    return find_finished(Path(out_dir), "latents", pixels.hash, settings.describe(), verify)


def _read_pixels(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    if manifest.kind != "pixels":
        raise ShardError(f"{directory} holds {manifest.kind}, not pixels; give the folder of the pixel shards")
    return manifest
