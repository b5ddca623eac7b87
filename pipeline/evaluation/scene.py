"""A scene: the rows that models are compared on, and the way between latents and pixels."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.data.manifest import read_manifest
from pipeline.data.rows import Scaling, load_rows, read_scaling
from pipeline.data.whitening import Whitening
from pipeline.metrics.images import (
    PrincipalSpace,
    fit_principal_space,
)
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.files import PackageError
from pipeline.packages.models import load_package
from pipeline.registry.fetch import fetch_model
from pipeline.registry.versions import RegistryError, find_version
from pipeline.samplers.protocols import Samples

SEEDS = (101, 102, 103)
FACE_SAMPLES = 1000
TEST_ROWS = 1000
"""At most so many test rows: a fixed count keeps values comparable, and the full set's 19 962 would take an hour."""
MEMORIZATION_ROWS = 6400


@dataclass(frozen=True)
class Scene:
    """The whitened latents of the partitions on which models are compared, and the way to and from pixels."""

    train: Tensor
    test: Tensor
    whitening: Whitening
    autoencoder: PackagedAutoencoder
    space: PrincipalSpace

    @classmethod
    def of(
        cls, train: Tensor, test: Tensor, whitening: Whitening, autoencoder: PackagedAutoencoder, components: int
    ) -> "Scene":
        """The scene with principal components fitted to the training rows."""
        components = min(components, train.shape[1], len(train) - 1, len(test) - 1)
        return cls(train, test, whitening, autoencoder, fit_principal_space(train, components))

    def pixels(self, latents: Tensor) -> Tensor:
        """Whitened latents [n, 1024] as uint8 images [n, 64, 64, 3]."""
        return self.autoencoder.decode(self.whitening.invert(latents))

    def again(self, pixels: Tensor) -> Tensor:
        """Images encoded again, whitened [n, 1024]."""
        return self.whitening.apply(self.autoencoder.encode(pixels))

    def manifold(self, samples: Tensor) -> Tensor:
        """Samples decoded and encoded again [n, 1024]: what precision, recall and duplicates are about."""
        return self.again(self.pixels(samples))

    def compared(self, drawn: Samples) -> Tensor:
        """The rows that are compared with data: E[v | h]."""
        return drawn.visible_mean


@dataclass(frozen=True)
class PointScene:
    """The rows on which models of points are compared: of a density, with its noise."""

    train: Tensor
    test: Tensor
    space: PrincipalSpace

    def manifold(self, samples: Tensor) -> Tensor:
        """The samples themselves: there is nothing to decode."""
        return samples

    def compared(self, drawn: Samples) -> Tensor:
        """The rows that are compared with data: v with its noise."""
        return drawn.visible


def open_scene(data_dir: Path, cache: Path, num_components: int, scaling: Scaling = "manifest") -> Scene | PointScene:
    """The scene of a folder of latents or points, on at most TEST_ROWS rows of its test partition, scaled as the models' were.

    Raises:
        RegistryError: the autoencoder that made the latents is neither in `cache`/models nor in the registry.
        ShardError: the folder holds neither.
    """
    train, test = (load_rows(data_dir, split, scaling) for split in ("train", "test"))
    test = test[:TEST_ROWS]
    manifest = read_manifest(data_dir)
    if manifest.kind == "latents":
        encoder = find_encoder(str(manifest.settings.get("encoder_version")), cache)
        return Scene.of(train, test, read_scaling(data_dir, scaling), encoder, num_components)
    components = min(num_components, train.shape[1], len(train) - 1, len(test) - 1)
    return PointScene(train, test, fit_principal_space(train, components))


def find_encoder(encoder: str, cache: Path, tracking: str | None = None) -> PackagedAutoencoder:
    """The registered autoencoder `NAME/HASH` (the start of its content hash): from `cache`/models, else the registry.

    Raises:
        RegistryError: it is in neither.
    """
    name, *_, content = encoder.split("/")
    if content == name or not content:
        raise RegistryError(f"encoder {encoder!r} is no registered autoencoder, so its latents cannot be decoded")
    for folder in sorted((cache / "models").glob(f"{name}-v*-{content}*")):
        with contextlib.suppress(PackageError):  # damaged: fetched again below
            model = load_package(folder)
            if isinstance(model, PackagedAutoencoder):
                return model
    newest = find_version(name, {}, tracking=tracking)
    for number in range(int(newest.version) if newest else 0, 0, -1):
        version = find_version(name, str(number), tracking=tracking)
        if version is not None and version.tags.get("content_hash", "").startswith(content):
            model = load_package(fetch_model(version.uri, cache / "models", tracking=tracking).folder)
            if isinstance(model, PackagedAutoencoder):
                return model
    raise RegistryError(f"autoencoder {name} with content {content}, which made the latents, is not in the registry")
