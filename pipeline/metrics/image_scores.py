"""Scores of generated pictures in a feature space that no model was trained in, beside two baselines that know no model.

All models of a table are measured against the same real pictures, in equal numbers. No score decides alone: precision
is blind to collapse, recall to noise on a few, MMD to copies; and by all that compare with held-out pictures, drawing
training pictures with replacement is the best model there is. Only the distance to the training pictures gives it away.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.metrics.image_features import hog
from pipeline.metrics.images import PrecisionRecall, nearest_training_distance, precision_recall
from pipeline.metrics.two_samples import (
    DiscrepancyEstimate,
    NeighborAccuracy,
    fit_kernel,
    kernel_discrepancy,
    neighbor_accuracy,
)

GAUSSIAN = "full Gaussian"
"""Name of the first baseline: a Gaussian with the mean and covariance of the training latents, decoded
(`gaussians.sample_full_gaussian`); of the pixels themselves where there is no autoencoder, cut to [0, 1]."""
BOOTSTRAP = "training rows"
"""Name of the second: training pictures drawn with replacement (`bootstrap`)."""


class ImageScores(NamedTuple):
    """The result of `score_images` for one set of pictures."""

    polynomial: DiscrepancyEstimate
    """Squared MMD with the kernel of KID; 0 for the real law, lower is better."""
    gaussian: DiscrepancyEstimate
    """Squared MMD with a Gaussian kernel of median bandwidth."""
    manifold: PrecisionRecall
    """k-NN precision and recall, k = num_neighbors."""
    neighbors: NeighborAccuracy
    """Nearest-neighbor two-sample accuracies against the held-out pictures; .5 for the real law."""
    novelty: float | None
    """Median distance to the nearest training picture over that of the real held-out ones: 1 as new as those, 0 copies.
    None without training pictures."""
    num_rows: int
    """Generated pictures, and real ones."""
    num_neighbors: int
    num_features: int


def bootstrap(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return n rows drawn with replacement from `rows` [N, ...], of any type: the model that only remembers.

    Raises:
        ValueError: on no rows or n < 1.
    """
    if len(rows) == 0 or n < 1:
        raise ValueError(f"cannot draw {n} rows from {len(rows)}; give at least one of each")
    chosen = torch.randint(len(rows), (n,), generator=generator, device=generator.device)
    return rows[chosen.to(rows.device)]


def score_images(
    real_pixels: Tensor,
    generated: Mapping[str, Tensor],
    num_neighbors: int = 3,
    num_subsets: int = 10,
    train_pixels: Tensor | None = None,
) -> dict[str, ImageScores]:
    """Return the scores of every set of generated pictures against the same real ones, in `hog` features.

    Nothing is drawn but the deal of rows to subsets, by a fixed seed: equal inputs give equal scores. Color and overall
    brightness are not in the features.

    Args:
        real_pixels: uint8 [n, s, s, 3] or [n, s, s] of the test split, n >= 2 * num_subsets.
        generated: name -> pictures of the same shape and type, as many. The names GAUSSIAN and BOOTSTRAP must be among
            them: a score without what a Gaussian and what memory get proves nothing.
        num_neighbors: k of the precision and recall, from 1 to n - 1.
        num_subsets: disjoint parts of the MMD's error bar.
        train_pixels: all training pictures, [N, ...] of the same size, for `novelty`; N n features multiplications.

    Returns:
        The scores by name, in the order given.

    Raises:
        ValueError: on missing baselines, unequal counts or shapes, or impossible settings.
    """
    if missing := [name for name in (GAUSSIAN, BOOTSTRAP) if name not in generated]:
        raise ValueError(
            f"the baselines {missing} are missing among {sorted(generated)}: decode `sample_full_gaussian` of the "
            f"training latents as {GAUSSIAN!r}, and draw `bootstrap` of the training pictures as {BOOTSTRAP!r}"
        )
    for name, pixels in generated.items():
        if pixels.shape != real_pixels.shape or pixels.dtype != real_pixels.dtype:
            raise ValueError(
                f"{name!r} is {pixels.dtype} of shape {tuple(pixels.shape)}, the real pictures {real_pixels.dtype} of "
                f"{tuple(real_pixels.shape)}: the scores depend on the number of rows, so give equally many of each"
            )
    real = hog(real_pixels)
    polynomial, gaussian = fit_kernel(real, "polynomial"), fit_kernel(real, "gaussian")
    train = None if train_pixels is None else hog(train_pixels.to(real.device))
    usual_distance = 0.0 if train is None else nearest_training_distance(real, train)
    if train is not None and usual_distance == 0:
        raise ValueError("half of the real pictures or more are training pictures: give pictures of the test split")
    scores = {}
    for name, pixels in generated.items():
        rows = hog(pixels.to(real.device))
        scores[name] = ImageScores(
            polynomial=kernel_discrepancy(real, rows, polynomial, num_subsets),
            gaussian=kernel_discrepancy(real, rows, gaussian, num_subsets),
            manifold=precision_recall(real, rows, num_neighbors),
            neighbors=neighbor_accuracy(real, rows),
            novelty=None if train is None else nearest_training_distance(rows, train) / usual_distance,
            num_rows=len(rows),
            num_neighbors=num_neighbors,
            num_features=rows.shape[1],
        )
    return scores
