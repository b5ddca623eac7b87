"""What a report looks at besides the run's folder: its shards and the autoencoder that made and draws its latents.

A run remembers its data by hash; folders move. So shards are taken from where the run found them, or from anywhere in the
cache that has the same hash, and never from a folder with another one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from jobs.report_runs import Missing, Training
from pipeline.config import AutoencoderConfig, RBMConfig
from pipeline.data.manifest import MANIFEST_NAME, Manifest, ShardError, read_manifest
from pipeline.data.rows import load_rows, read_scaling
from pipeline.data.shards import iterate_split
from pipeline.device.precision import choose_precision
from pipeline.evaluation.scene import TEST_ROWS, Scene
from pipeline.evaluation.scores import SEEDS
from pipeline.models.autoencoder import NUM_FEATURES, Autoencoder
from pipeline.models.rbm import RBM
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.files import PackageError
from pipeline.packages.models import load_package
from pipeline.registry.fetch import fetch_model
from pipeline.registry.versions import find_version
from pipeline.runs.trained import read_beam
from pipeline.samplers.protocols import DRIVEN, Samples, WideStart, draw_samples
from pipeline.training.checkpoint import Checkpoint, load_latest
from pipeline.training.objective import part_of


@dataclass
class Material:
    """The data and models of one training; each is read when it is first asked for, and raises Missing with the reason."""

    training: Training
    cache: Path
    tracking: str | None = None

    @cached_property
    def shards(self) -> Path:
        """The folder of shards it was trained on."""
        wanted = self.training.data_hash
        if wanted is None:
            raise Missing("the run does not say which data it was trained on (no job.json and no checkpoint)")
        hint = self.training.job.get("data_dir")
        return find_shards(wanted, self.cache, Path(hint) if hint else None)

    @cached_property
    def manifest(self) -> Manifest:
        """Of `shards`."""
        return read_manifest(self.shards)

    @cached_property
    def pixels(self) -> Path:
        """The pixel shards that the latents were encoded from, or those of an autoencoder's own training."""
        if self.manifest.kind == "pixels":
            return self.shards
        if self.manifest.kind != "latents":
            raise Missing(f"its data are {self.manifest.kind}, not latents of photographs")
        return find_shards(self.manifest.source_hash, self.cache, None, self.shards.parent)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The newest whole one."""
        found = load_latest(self.training.folder / "checkpoints")
        if found is None:
            raise Missing(f"{self.training.name} has no whole checkpoint")
        return found

    @cached_property
    def autoencoder(self) -> PackagedAutoencoder:
        """Of an autoencoder's training the trained one; of a BEAM's the version that encoded its latents."""
        if self.training.kind == "GAN":
            raise Missing(f"{self.training.name} is a GAN, which has no autoencoder")
        if self.training.is_beam:
            return find_autoencoder(str(self.manifest.settings.get("encoder_version")), self.cache, self.tracking)
        config = self.training.config.model
        assert isinstance(config, AutoencoderConfig)
        model = Autoencoder(config)
        model.load_state_dict(part_of(self.checkpoint.tensors, "model."))
        return PackagedAutoencoder(model, choose_precision(config.precision, "cpu"), self.manifest.dataset)

    @cached_property
    def rbm(self) -> RBM:
        """The trained RBM."""
        if not isinstance(self.training.config.model, RBMConfig):
            raise Missing(f"{self.training.name} is not a BEAM: it has no RBM to sample from")
        return read_beam(self.checkpoint, self.training.config)[0]

    @cached_property
    def train_rows(self) -> Tensor:
        """The rows it was trained on, as it saw them: whitened latents, or points."""
        return load_rows(self.shards, "train", self.training.config.data.scaling)

    @cached_property
    def scene(self) -> Scene:
        """Latents, whitening, principal space and autoencoder, as the scores have them."""
        if self.manifest.kind != "latents":
            raise Missing(f"its data are {self.manifest.kind}, not latents of photographs")
        if self.manifest.row_shape != (NUM_FEATURES,):
            raise Missing(
                f"its rows are {list(self.manifest.row_shape)}: the autoencoder decodes {NUM_FEATURES} features"
            )
        scaling = self.training.config.data.scaling
        test = load_rows(self.shards, "test", scaling)[:TEST_ROWS]
        components = self.training.config.evaluation.num_components
        return Scene.of(self.train_rows, test, read_scaling(self.shards, scaling), self.autoencoder, components)

    def draw(self, num_rows: int) -> Samples:
        """`num_rows` samples of the newest checkpoint by the driven protocol, with the first seed of the scores."""
        return draw_samples(self.rbm, WideStart.of(self.train_rows), DRIVEN, num_rows, SEEDS[0])


def find_shards(wanted: str, cache: Path, hint: Path | None, beside: Path | None = None) -> Path:
    """The folder of shards whose manifest has the hash `wanted`: `hint`, in the folder `beside`, or in the cache.

    Raises:
        Missing: there is none.
    """
    for folder in (*([hint] if hint else ()), *_folders(beside, cache)):
        try:
            if json.loads((folder / MANIFEST_NAME).read_bytes()).get("hash") == wanted:
                read_manifest(folder)
                return folder
        except (OSError, ValueError, AttributeError):  # not there, or damaged: it may lie elsewhere, too
            continue
    gone = f"{hint.name} is gone or has changed, and" if hint is not None else "the run does not name their folder, and"
    raise Missing(f"the data (manifest {wanted[:12]}) are not here: {gone} {cache.name}/ has no shards with that hash")


def _folders(beside: Path | None, cache: Path) -> Iterator[Path]:
    searched = [*([beside.glob(f"*/{MANIFEST_NAME}")] if beside else ())]
    searched += [cache.glob(f"{depth}/{MANIFEST_NAME}") for depth in ("*", "*/*")]
    for found in searched:
        yield from (path.parent for path in sorted(found))


def find_autoencoder(encoder: str, cache: Path, tracking: str | None) -> PackagedAutoencoder:
    """The registered autoencoder `NAME/.../HASH` (start of its content hash): from the cache, else from the registry.

    Raises:
        Missing: it is in neither.
    """
    name, content = encoder.split("/")[0], encoder.split("/")[-1]
    if "/" not in encoder or not content:
        raise Missing(f"the latents' encoder {encoder!r} is no registered autoencoder, so they cannot be decoded")
    for folder in sorted((cache / "models").glob(f"{name}-v*-{content}*")):
        try:
            model = load_package(folder)
        except PackageError:
            continue  # fetched again below
        if isinstance(model, PackagedAutoencoder):
            return model
    newest = find_version(name, {}, tracking=tracking)
    for number in range(int(newest.version) if newest else 0, 0, -1):
        version = find_version(name, str(number), tracking=tracking)
        if version is not None and version.tags.get("content_hash", "").startswith(content):
            model = load_package(fetch_model(version.uri, cache / "models", tracking=tracking).folder)
            if isinstance(model, PackagedAutoencoder):
                return model
    raise Missing(f"autoencoder {name} with content {content}, which made the latents, is not in the model registry")


def read_rows(folder: Path, split: str, places: list[int]) -> Tensor:
    """The rows at `places` of a split, in that order; only the shards that hold them are opened. Raises ShardError."""
    manifest = read_manifest(folder)
    found = {i: next(iterate_split(folder, manifest, split, i, i + 1, verify=False)) for i in sorted(set(places))}
    if not places:
        raise ShardError(f"no rows of {split} were asked for")
    return torch.cat([torch.from_numpy(found[i]) for i in places])
