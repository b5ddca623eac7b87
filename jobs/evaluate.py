"""Score a trained BEAM on the test partition by the fixed protocols, beside baselines that know no model.

Every number comes with the count behind it: as many model rows as test rows, three seeds (their mean and spread).
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.manifest import read_manifest
from pipeline.data.rows import Scaling, load_rows, read_scaling
from pipeline.data.whitening import Whitening
from pipeline.metrics.divergences import forward_reverse_kl
from pipeline.metrics.faces import MissingDetector, face_share
from pipeline.metrics.images import (
    PrincipalSpace,
    fit_principal_space,
    mean_pairwise_distance,
    memorization_ratio,
    project,
    sample_full_gaussian,
    sample_independent_gaussian,
    sample_principal_gaussian,
    score_latents,
)
from pipeline.models.rbm import RBM
from pipeline.packages.files import PackageError
from pipeline.packages.models import PackagedAutoencoder, load_package
from pipeline.registry.fetch import fetch_model
from pipeline.registry.versions import RegistryError, find_version
from pipeline.samplers.protocols import DRIVEN, FRESH, Samples, WideStart, draw_samples
from pipeline.streams import stream

SEEDS = (101, 102, 103)
FACE_SAMPLES = 1000
TEST_ROWS = 1000
"""At most so many test rows: a fixed count keeps values comparable, and the full set's 19 962 would take an hour."""
MEMORIZATION_ROWS = 6400


@dataclass(frozen=True)
class Scene:
    """What models are compared on: whitened latents of the partitions, and the way to and from pixels."""

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
    """What models of points are compared on: rows of a density, which have its noise."""

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


def score_samples(scene: Scene | PointScene, samples: Tensor, num_neighbors: int) -> dict[str, float]:
    """Distances of samples [n, V] (n = number of test rows) from the test rows; of faces, manifold metrics re-encoded."""
    manifold = scene.manifold(samples)
    scores = score_latents(scene.space, scene.test, samples, manifold)
    forward, reverse = forward_reverse_kl(scene.test, samples, num_neighbors)
    points = project(scene.space, manifold)
    return {
        "frechet_latent": scores.frechet,
        "precision": scores.precision,
        "recall": scores.recall,
        "duplicates": scores.duplicates,
        "variance_ratio": scores.variance_ratio,
        "kl_forward": forward.per_dimension,
        "kl_reverse": reverse.per_dimension,
        "kl_sum": forward.per_dimension + reverse.per_dimension,
        "pairwise_distance": mean_pairwise_distance(points),
        "memorization_ratio": memorization_ratio(
            points, project(scene.space, scene.test), project(scene.space, scene.train[:MEMORIZATION_ROWS])
        ),
    }


def score_draws(scene: Scene | PointScene, draw: Callable[[int], Tensor], num_neighbors: int) -> dict[str, float]:
    """Mean over SEEDS of `score_samples` of anything that draws rows, with `<metric>_spread` (sd over seeds).

    Args:
        scene: what is compared on.
        draw: seed -> rows [n, V], as many as test rows; whitened where the scene's are.
        num_neighbors: of the KL estimate.
    """
    rows = [score_samples(scene, draw(seed), num_neighbors) for seed in SEEDS]
    table = {k: torch.tensor([row[k] for row in rows], dtype=torch.float64) for k in rows[0]}
    return {
        **{k: float(v.mean()) for k, v in table.items()},
        **{f"{k}_spread": float(v.std()) for k, v in table.items()},
    }


def score_model(scene: Scene | PointScene, rbm: RBM, start: WideStart, num_neighbors: int) -> dict[str, float]:
    """`score_draws` of an RBM by the driven protocol.

    Compared is E[v | h], of points v. `fresh_*` are the same by the fresh protocol (first seed); `sample_*` of v with its
    noise (driven, first seed).
    """
    driven = {seed: draw_samples(rbm, start, DRIVEN, len(scene.test), seed) for seed in SEEDS}
    scores = score_draws(scene, lambda seed: scene.compared(driven[seed]), num_neighbors)
    with_noise = score_samples(scene, driven[SEEDS[0]].visible, num_neighbors)
    drawn = draw_samples(rbm, start, FRESH, len(scene.test), SEEDS[0])
    fresh = score_samples(scene, scene.compared(drawn), num_neighbors)
    return {
        **scores,
        **{f"fresh_{k}": v for k, v in fresh.items()},
        **{f"sample_{k}": v for k, v in with_noise.items() if k in ("frechet_latent", "recall", "kl_reverse")},
    }


def baselines(scene: Scene) -> dict[str, Tensor]:
    """Rows [n, 1024] of baselines with as many rows as the test set: Gaussians fitted to the training latents, and
    training rows themselves (the floor of every distance at this count).
    """
    n = len(scene.test)
    generator = stream(0, "baselines", device=scene.train.device)
    picks = torch.randperm(len(scene.train), generator=stream(0, "training rows"))[:n]
    floor = {"training rows": scene.train[picks]} if len(scene.train) >= n else {}
    return {
        **floor,
        "full Gaussian": sample_full_gaussian(scene.train, n, generator),
        "top-component Gaussian": sample_principal_gaussian(scene.train, n, generator, scene.space.components.shape[1]),
        "independent Gaussian": sample_independent_gaussian(scene.train, n, generator),
    }


def detected_faces(pixels: Tensor) -> float | None:
    """Share of images in which the stock detector finds a face; None without the detector (extra `bench`)."""
    try:
        return face_share(pixels).share
    except MissingDetector:
        return None


def compare(scene: Scene, models: dict[str, RBM], start: WideStart, num_neighbors: int) -> dict[str, dict[str, Any]]:
    """All metrics of each named model and of the baselines, with the detector's share where it is installed."""
    table: dict[str, dict[str, Any]] = {}
    for name, rbm in models.items():
        table[name] = dict(score_model(scene, rbm, start, num_neighbors))
        many = draw_samples(rbm, start, DRIVEN, FACE_SAMPLES, SEEDS[0]).visible_mean
        table[name]["face_share"] = detected_faces(scene.pixels(many))
    for name, rows in baselines(scene).items():
        table[name] = {**score_samples(scene, rows, num_neighbors), "face_share": detected_faces(scene.pixels(rows))}
    reconstructed = scene.pixels(scene.test)
    points = project(scene.space, scene.test)
    table["test reconstructions"] = {
        "face_share": detected_faces(reconstructed),
        "pairwise_distance": mean_pairwise_distance(points),
    }
    return table


def as_text(table: dict[str, dict[str, Any]], keys: tuple[str, ...]) -> str:
    """A plain-text table: one line per model."""
    width = max(len(name) for name in table)
    lines = [" " * width + "".join(f"{key.removesuffix('_latent'):>13s}" for key in keys)]
    for name, row in table.items():
        cells = ("-" if row.get(key) is None else f"{row[key]:.3g}" for key in keys)
        lines.append(f"{name:{width}s}" + "".join(f"{cell:>13s}" for cell in cells))
    return "\n".join(lines)


TABLE_KEYS = (
    "frechet_latent",
    "recall",
    "precision",
    "duplicates",
    "kl_forward",
    "kl_reverse",
    "variance_ratio",
    "face_share",
)
