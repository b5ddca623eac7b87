"""The rows that a model of rows is trained on: how those on disk are scaled, and the labels beside them."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.data.manifest import Manifest, ShardError, find_split, read_manifest
from pipeline.data.shards import load_split
from pipeline.data.whitening import Whitening, read_whitening

Scaling = Literal["manifest", "isotropic"]
LABELS = "labels"
"""The folder of a data set in which its labels lie, where it has any."""


def read_scaling(directory: str | Path, scaling: Scaling = "manifest") -> Whitening:
    """Between the rows on disk and the rows of a BEAM.

    `manifest`: as the kind of data asks for: the train split's whitening of latents, the identity for points.
    `isotropic`: x -> (x - m) / r, with m [V] the columns' means and r ONE number, the root mean square of the columns'
    standard deviations, all on the train split. Shapes and distances stay as they are up to r, so what is learned does not
    depend on where the data lie nor on their unit.

    Raises:
        ShardError: the folder holds pixels (a BEAM is not trained on them), or rows that are all alike.
    """
    manifest = read_manifest(directory)
    if manifest.kind not in ("latents", "points"):
        raise ShardError(
            f"{directory} holds {manifest.kind}; a BEAM is trained on latents: encode them with the prepare job"
        )
    if scaling == "isotropic":
        return _isotropic(directory, manifest)
    if manifest.kind == "latents":
        return read_whitening(directory)
    width = manifest.row_shape[0]
    return Whitening(torch.zeros(width), torch.ones(width))


def load_rows(directory: str | Path, split: str, scaling: Scaling = "manifest") -> Tensor:
    """The rows float32 [N, V] of a split as a BEAM sees them. Raises ShardError as `load_split` and `read_scaling`."""
    return read_scaling(directory, scaling).apply(load_split(directory, split))


def load_labels(directory: str | Path, split: str) -> Tensor:
    """The classes int64 [N] of a split's rows, in their order.

    Raises:
        ShardError: the data set has no labels, or they are those of other rows.
    """
    folder = Path(directory) / LABELS
    if not folder.is_dir():
        raise ShardError(f"{directory} holds {read_manifest(directory).dataset}, which has no labels")
    labels, rows = read_manifest(folder), read_manifest(directory)
    if labels.source_hash != rows.hash:
        raise ShardError(f"the labels in {folder} belong to other rows; delete it and run the prepare job again")
    return load_split(folder, split)[:, 0].long()


def _isotropic(directory: str | Path, manifest: Manifest) -> Whitening:
    train = find_split(manifest, "train")
    if train.mean:  # latents: their moments are known
        mean, std = np.asarray(train.mean), np.asarray(train.std)
    elif train.rows:
        # numpy, in float64: neither the number of threads nor a large shift may change the bits
        rows = load_split(directory, "train").double().numpy()
        mean, std = rows.mean(0), rows.std(0)
    else:
        raise ShardError(f"the train split of {directory} is empty: there is nothing to scale by")
    size = float(np.sqrt(np.mean(std**2)))
    if not size > 1e-6 * float(np.abs(mean).max()):  # float32 rows: anything less is rounding
        raise ShardError(f"all training rows of {directory} are alike: there is nothing to scale them by")
    return Whitening(torch.from_numpy(mean).float(), torch.full((len(mean),), size, dtype=torch.float32))
