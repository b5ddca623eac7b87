"""Rows drawn from a Gaussian mixture, as shards of points: the data of Table I, or any other geometry."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_prep.tasks import find_finished, finish, shard_name
from pipeline.data.manifest import Manifest, SplitEntry
from pipeline.data.mixtures import MIXTURES, GaussianMixture, make_mixture
from pipeline.data.shards import write_shard
from pipeline.files import canonical_hash
from pipeline.streams import stream

HELD_OUT_ROWS = 2000


def draw_mixture(
    mixture: str | GaussianMixture,
    directory: Path,
    train_rows: int = 10_000,
    seed: int = 0,
    settings: Mapping[str, float] | None = None,
    label: str | None = None,
) -> Manifest:
    """Write splits train, valid and test (2 000 rows each of the latter) of a mixture; does nothing when they are there.

    The density is in the manifest and decides the data's hash. The data set is named
    `mixture-NAME` for the three of Table I as they are, and `mixture-LABEL-HASH` for any other geometry.

    Args:
        mixture: a name of MIXTURES, or a density of one's own.
        directory: where the shards go.
        train_rows: at least 1.
        seed: of the rows.
        settings: of a named mixture's geometry, as `num_modes`.
        label: of another geometry: words of a-z and 0-9 joined by `-`; default: the name, or `custom`.

    Raises:
        ValueError: an unknown mixture or setting, a value out of its range, or settings for a mixture without a name.
    """
    if train_rows < 1:
        raise ValueError(f"train_rows = {train_rows}: at least 1")
    name, drawn_from = (mixture, make_mixture(mixture, settings)) if isinstance(mixture, str) else ("custom", mixture)
    if settings and not isinstance(mixture, str):
        raise ValueError(f"settings {dict(settings)} belong to a mixture by name; this one is a density already")
    geometry = {"centers": drawn_from.centers.tolist(), "std": drawn_from.std}
    standard = next((known for known, make in MIXTURES.items() if same_mixture(make(), drawn_from)), None)
    # the three of Table I keep the names and hashes that registered models know them by, however they were asked for
    name = standard or f"{label or name}-{canonical_hash(geometry)[:8]}"
    rows = {"train": train_rows, "valid": HELD_OUT_ROWS, "test": HELD_OUT_ROWS}
    described = {"mixture": name, **geometry, "seed": seed, "rows": rows}
    source = canonical_hash(described)
    if (found := find_finished(directory, "points", source, described, verify=False)) is not None:
        return found
    directory.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, count in rows.items():
        drawn = drawn_from.sample(count, stream(seed, f"mixture {split}")).numpy()
        splits[split] = SplitEntry(count, (write_shard(directory / shard_name(split, 0), np.ascontiguousarray(drawn)),))
    manifest = Manifest("points", f"mixture-{name}", source, described, (drawn_from.centers.shape[1],), splits)
    return finish(directory, manifest)


def same_mixture(one: GaussianMixture, other: GaussianMixture) -> bool:
    """True when two densities have the same centers, in order, and the same width, bit for bit."""
    return one.std == other.std and one.centers.tolist() == other.centers.tolist()
