"""Rows drawn from a Gaussian mixture, as shards of points: the data of Table I."""

from pathlib import Path

import numpy as np

from data_prep.manifest import find_finished, finish, shard_name
from pipeline.data.mixtures import MIXTURES
from pipeline.data.shards import Manifest, SplitEntry, canonical_hash, write_shard
from pipeline.streams import stream

HELD_OUT_ROWS = 2000


def draw_mixture(name: str, directory: Path, train_rows: int = 10_000, seed: int = 0) -> Manifest:
    """Write splits train, valid and test (2 000 rows each of the latter) of a mixture; does nothing when they are there.

    Raises:
        ValueError: an unknown mixture.
    """
    if name not in MIXTURES:
        raise ValueError(f"mixture {name!r} is unknown; there are {', '.join(MIXTURES)}")
    mixture = MIXTURES[name]()
    rows = {"train": train_rows, "valid": HELD_OUT_ROWS, "test": HELD_OUT_ROWS}
    settings = {"mixture": name, "centers": mixture.centers.tolist(), "std": mixture.std, "seed": seed, "rows": rows}
    source = canonical_hash(settings)
    if (found := find_finished(directory, "points", source, settings, verify=False)) is not None:
        return found
    directory.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, count in rows.items():
        drawn = mixture.sample(count, stream(seed, f"mixture {split}")).numpy()
        splits[split] = SplitEntry(count, (write_shard(directory / shard_name(split, 0), np.ascontiguousarray(drawn)),))
    manifest = Manifest("points", f"mixture-{name}", source, settings, (mixture.centers.shape[1],), splits)
    return finish(directory, manifest)
