"""Whitening of latents: mean 0 and standard deviation 1 of each feature, by the train split's moments in the manifest."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.manifest import ShardError, find_split, read_manifest


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
    manifest = read_manifest(directory)
    if manifest.kind != "latents":
        raise ShardError(f"{directory} holds {manifest.kind}, not latents; encode them with the prepare job")
    train = find_split(manifest, "train")
    if not train.rows:
        raise ShardError(f"the train split of {directory} is empty: there is nothing to whiten by")
    std = torch.tensor(train.std, dtype=torch.float64)
    std = torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))
    return Whitening(torch.tensor(train.mean, dtype=torch.float64).float(), std.float())
