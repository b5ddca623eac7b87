"""Samples of a trained BEAM -> shards: one task draws one shard, from a stream named by the seed and the shard's number.

So the rows do not depend on who draws what. The folder begins with a record of what it is for (`generate.json`), so
that an unfinished one takes no other settings in, and ends with its manifest.

    claim_folder(out, model, settings)
    specs = plan_sample_shards(model, settings, out)
    finish_samples(model, settings, out, specs, [draw_shard(spec) for spec in specs])
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data_prep.tasks import (
    ShardResult,
    finish,
    measure_moments,
    merge_moments,
    order_results,
    read_sidecar,
    shard_name,
    write_sidecar,
)
from pipeline.data.manifest import Manifest, SplitEntry
from pipeline.data.shards import BLOCK_ROWS, write_shard
from pipeline.files import canonical_hash, write_json
from pipeline.models.autoencoder import IMAGE_SIZE
from pipeline.packages.inputs import SAMPLE_RANGES
from pipeline.packages.models import PackagedBeam, load_package
from pipeline.registry.mlflow_folder import package_folder
from pipeline.streams import stream_seed

SPLIT = "samples"
RECORD_NAME = "generate.json"
PROTOCOLS = ("driven", "fresh")
WHAT = ("pixels", "latents", "points")
_MAX_SHARDS = 100_000  # five digits in a shard's name


class Model(NamedTuple):
    """The model that draws, as a folder that every task reads."""

    folder: Path
    name: str
    content: str
    """Hash of weights and settings."""
    dataset: str
    width: int
    """Visible units."""
    draws_pictures: bool


@dataclass(frozen=True)
class SampleSettings:
    """All that decides the rows.

    `what`: `pixels` uint8 [64, 64, 3], decoded from E[v | h]; `latents` float32 [V], E[v | h] on the scale of the raw
    latents on disk; `points` float32 [V], v with its noise, of a model without an autoencoder.
    """

    model: str
    """Hash of the model's content."""
    what: str
    n: int
    shard_rows: int = 1024
    seed: int = 0
    gibbs_steps: int = 100
    protocol: str = "driven"

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of its range."""
        if self.protocol not in PROTOCOLS or self.what not in WHAT:
            raise ValueError(f"protocol {self.protocol!r}, what {self.what!r}: must be of {PROTOCOLS} and {WHAT}")
        low, high = SAMPLE_RANGES["n_samples"]
        ranges = {
            "shard_rows": (low, high),
            "n": (1, _MAX_SHARDS * self.shard_rows),
            "gibbs_steps": SAMPLE_RANGES["gibbs_steps"],
            "seed": SAMPLE_RANGES["seed"],
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: must be a whole number from {low} to {high}")

    def describe(self) -> dict[str, Any]:
        """Return the settings as the manifest records them."""
        return {**asdict(self), "block_rows": BLOCK_ROWS}

    def shard_seed(self, index: int) -> int:
        """Return the seed of a shard, in [0, 2^31).

        Consecutive numbers from a start that is a hash of the seed: two shards of a run never share one, and the shards
        of two runs with different seeds do so with a chance of about (number of shards) / 2^30. The sampler hashes it
        once more with the number of a block of 32 rows, so that neighboring numbers share nothing. (Of that hash torch's
        CPU generator uses 32 bits: two of the 1 563 blocks of 50 000 rows are the same with a chance of 3e-4.)
        """
        return (stream_seed(self.seed, "generate") + index) % (SAMPLE_RANGES["seed"][1] + 1)


@dataclass(frozen=True)
class ShardSpec:
    """One shard to draw; plain values, so that it travels."""

    index: int
    rows: int
    out_dir: str
    model_dir: str
    settings: SampleSettings

    @property
    def name(self) -> str:
        """File name."""
        return shard_name(SPLIT, self.index)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the rows."""
        return canonical_hash([self.settings.describe(), self.index, self.rows])

    def finished(self) -> ShardResult | None:
        """The shard's record when it is there, whole and from the same settings; else None."""
        return read_sidecar(Path(self.out_dir), self.name, self.fingerprint)


def plan_sample_shards(model: Model, settings: SampleSettings, out: Path) -> list[ShardSpec]:
    """Return one spec per shard; any process may draw any of them, in any order."""
    return [
        ShardSpec(index, min(settings.shard_rows, settings.n - start), str(out), str(model.folder), settings)
        for index, start in enumerate(range(0, settings.n, settings.shard_rows))
    ]


def draw_shard(spec: ShardSpec) -> ShardResult:
    """Draw one shard, unless it is there with its record; on the GPU where the task has one.

    Raises:
        ValueError: the model is not the one that was asked for.
    """
    if (found := spec.finished()) is not None:
        return found
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    threads, settings = torch.get_num_threads(), spec.settings
    torch.set_num_threads(1)  # the bits of a product depend on it
    try:
        model, content = load_beam(Path(spec.model_dir), device)
        if content != settings.model:
            raise ValueError(f"the model in {spec.model_dir} changed while its samples were drawn; run the job again")
        options = (spec.rows, settings.gibbs_steps, settings.shard_seed(spec.index), settings.protocol)
        latents = settings.what == "latents"
        drawn = model.whitening.invert(model.sample_latents(*options)) if latents else model.sample(*options)
        rows: np.ndarray = drawn.cpu().numpy()
    finally:
        torch.set_num_threads(threads)
    out = Path(spec.out_dir)
    entry = write_shard(out / spec.name, rows if settings.what == "pixels" else rows.astype(np.float32, copy=False))
    moments = measure_moments(rows) if latents else None
    result = ShardResult(SPLIT, spec.index, entry, moments=moments)
    write_sidecar(out, spec.fingerprint, result)
    return result


def load_beam(folder: Path, device: torch.device | str = "cpu") -> tuple[PackagedBeam, str]:
    """Return the verified model and the hash of its content. Raises ValueError when it is damaged or no BEAM."""
    folder = package_folder(folder)
    packaged = load_package(folder, device)
    if not isinstance(packaged, PackagedBeam):
        raise ValueError(
            f"the model in {folder} is no BEAM but an autoencoder, which draws nothing; give a ...-beam model"
        )
    return packaged, json.loads((folder / "config.json").read_bytes())["hash"]


def finish_samples(
    model: Model, settings: SampleSettings, out: Path, specs: Sequence[ShardSpec], results: Sequence[ShardResult]
) -> Manifest:
    """Write the manifest and remove what killed tasks left; mean and standard deviation are those of the samples.

    Raises:
        ShardError: a shard is gone.
        ValueError: a planned shard has no result.
    """
    ordered = order_results([spec.name for spec in specs], results)
    moments = [result.moments for result in ordered if result.moments is not None]
    mean, std = merge_moments(moments) if moments else ((), ())
    split = SplitEntry(settings.n, tuple(result.entry for result in ordered), mean, std)
    shape = (IMAGE_SIZE, IMAGE_SIZE, 3) if settings.what == "pixels" else (model.width,)
    # The name says that these are no data: neither photographs nor drawn faces.
    dataset = f"{model.dataset}-samples"
    manifest = Manifest(settings.what, dataset, model.content, settings.describe(), shape, {SPLIT: split})
    finish(out, manifest)
    for leftover in out.glob(f".{SPLIT}-*.tmp"):
        leftover.unlink(missing_ok=True)
    return manifest


def claim_folder(out: Path, model: Model, settings: SampleSettings) -> None:
    """Record what `out` is for, before its first shard; refuse a folder that is for something else.

    Raises:
        ValueError: naming what is in it, or the settings that differ.
        OSError: it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    ours = settings.describe()
    try:
        theirs = json.loads((out / RECORD_NAME).read_bytes())["settings"]
    except FileNotFoundError:
        if others := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
            raise ValueError(
                f"{out} holds {others[0]!r} and no {RECORD_NAME}, so it is no folder of samples; give a new one"
            ) from None
        write_json(out / RECORD_NAME, {"settings": ours, "model": model.name, "dataset": model.dataset})
        return
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out / RECORD_NAME} cannot be read ({error}); give a new folder, or delete this one"
        ) from error
    differing = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if differing:
        texts = [f"{key} is {_short(theirs.get(key))} there and {_short(ours.get(key))} here" for key in differing]
        raise ValueError(
            f"{out} holds samples of other settings: {', '.join(texts)}; give another folder, or delete it"
        )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
