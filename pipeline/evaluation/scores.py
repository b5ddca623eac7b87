"""Score a trained BEAM on the test partition by the fixed protocols, beside baselines that know no model.

Every number comes with the count behind it: as many model rows as test rows, three seeds (their mean and spread).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.baselines import baselines
from pipeline.evaluation.scene import PointScene, Scene
from pipeline.metrics.divergences import forward_reverse_kl
from pipeline.metrics.faces import MissingDetector, face_share
from pipeline.metrics.images import (
    mean_pairwise_distance,
    memorization_ratio,
    project,
    score_latents,
)
from pipeline.models.rbm import RBM
from pipeline.samplers.protocols import DRIVEN, FRESH, WideStart, draw_samples

SEEDS = (101, 102, 103)
FACE_SAMPLES = 1000
TEST_ROWS = 1000
"""At most so many test rows: a fixed count keeps values comparable, and the full set's 19 962 would take an hour."""
MEMORIZATION_ROWS = 6400


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
