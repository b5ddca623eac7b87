"""A small folder of latent shards, written as the prepare job writes them."""

from pathlib import Path

import torch

from data_prep.tasks import measure_moments, merge_moments
from pipeline.data.manifest import Manifest, SplitEntry, write_manifest
from pipeline.data.shards import write_shard
from pipeline.streams import stream


def write_latents(folder: Path, width: int = 23, train: int = 200, valid: int = 40) -> Manifest:
    """Correlated Gaussian rows in splits train, valid and test; the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    mix = torch.randn(width, width, generator=stream(0, "mix"))
    splits = {}
    for name, count in (("train", train), ("valid", valid), ("test", valid)):
        rows = (torch.randn(count, width, generator=stream(0, name)) @ mix).numpy()
        shard = write_shard(folder / f"{name}-00000.tar", rows)
        mean, std = merge_moments([measure_moments(rows)])
        splits[name] = SplitEntry(count, (shard,), mean, std)
    manifest = Manifest("latents", "synthetic-faces", "0" * 64, {"encoder_version": "none"}, (width,), splits)
    write_manifest(folder, manifest)
    return manifest
