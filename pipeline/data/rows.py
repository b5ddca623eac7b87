"""The rows that a BEAM is trained on: latents are whitened, points are taken as they are."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.shards import ShardError, Whitening, load_split, read_manifest, read_whitening


def read_scaling(directory: str | Path) -> Whitening:
    """Between the rows on disk and the rows of a BEAM: the train split's whitening of latents, the identity for points.

    Raises:
        ShardError: the folder holds pixels: a BEAM is not trained on them.
    """
    manifest = read_manifest(directory)
    if manifest.kind == "latents":
        return read_whitening(directory)
    if manifest.kind != "points":
        raise ShardError(
            f"{directory} holds {manifest.kind}; a BEAM is trained on latents: encode them with the prepare job"
        )
    width = manifest.row_shape[0]
    return Whitening(torch.zeros(width), torch.ones(width))


def load_rows(directory: str | Path, split: str) -> Tensor:
    """The rows float32 [N, V] of a split as a BEAM sees them. Raises ShardError as `load_split`, and for pixels."""
    return read_scaling(directory).apply(load_split(directory, split))
