"""Scores of generated rows against held-out rows in the latent space of the autoencoder.

A face model is judged by several scores together, because each is blind to something: the Frechet distance to noise,
k-NN precision to blur (an independent Gaussian reaches 1), variance and duplicates to everything but collapse. The
baselines (gaussians.py) say how much of a score any Gaussian gets; a table without them proves nothing. Nearest neighbors
and the Frechet distance are taken in the leading principal components of the training latents, where 1,000 rows suffice.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.metrics.divergences import nearest_distances

_BLOCK = 8192  # rows converted to float64 at a time: 64 MiB at 1024 features


class PrincipalSpace(NamedTuple):
    """Leading principal components of a set of rows; coordinates are not scaled to unit variance."""

    mean: Tensor
    """[d], float64."""
    components: Tensor
    """[d, c], float64, orthonormal columns in descending order of variance."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of generated rows on the real manifold, and of real rows on the generated one."""

    precision: float
    recall: float


class LatentScores(NamedTuple):
    """The result of `score_latents`; the counts and the rows' origin belong in every table that shows it."""

    frechet: float
    """Frechet distance in the principal space, squared units of the latents; depends on the number of rows."""
    precision: float
    recall: float
    duplicates: float
    """Share of samples with a near-copy among the samples (`duplicate_share`)."""
    variance_ratio: float
    """Total variance of the samples over that of the held-out rows, all dimensions; 1 is right, near 0 collapse."""
    num_rows: int
    """Samples, and held-out rows: equal numbers."""
    manifold_rows: Literal["latents", "reencoded"]
    """The rows that precision, recall and duplicates were taken from."""


def fit_principal_space(latents: Tensor, num_components: int = 100) -> PrincipalSpace:
    """Return the leading principal components by eigh of the covariance in float64.

    The sign of a component is fixed by making its entry of largest magnitude positive, so two fits agree.

    Args:
        latents: [n, d] training rows; never the held-out rows or samples, or scores of different models would lie in
            different spaces.
        num_components: c, from 1 to min(n - 1, d).

    Returns:
        Mean [d] and components [d, c], on the device of `latents`.

    Raises:
        ValueError: on a wrong shape, values that are not finite or too many components.
    """
    mean, covariance = moments("latents", latents)
    limit = min(len(latents) - 1, latents.shape[1])
    if not 1 <= num_components <= limit:
        raise ValueError(
            f"num_components is {num_components}; latents of shape {tuple(latents.shape)} have between 1 and {limit}"
        )
    return PrincipalSpace(mean, leading_components(covariance, num_components)[1])


def fit_wide_principal_space(rows: Tensor, num_components: int = 100) -> PrincipalSpace:
    """Return what `fit_principal_space` does, for few rows of very many columns: by eigh of the [n, n] products.

    With X the centered rows and X X^T u = s^2 u, a component is X^T u / s. For n = 1 000 images of 12 288 values this is a
    second, where a covariance of the columns would take minutes and gigabytes.

    Args:
        rows: [n, d] training rows, n at most a few thousand.
        num_components: c, from 1 to min(n - 1, d); components of no variance are left out.

    Raises:
        ValueError: on a wrong shape, values that are not finite, too many components, or rows that are all equal.
    """
    _require_rows("rows", rows, at_least=2)
    limit = min(len(rows) - 1, rows.shape[1])
    if not 1 <= num_components <= limit:
        raise ValueError(
            f"num_components is {num_components}; rows of shape {tuple(rows.shape)} have between 1 and {limit}"
        )
    mean = rows.mean(0, dtype=torch.float64)
    centered = rows.double() - mean
    values, vectors = leading_components(centered @ centered.T, num_components)
    rounding = 1e-24 * rows.double().square().sum()  # what the mean of equal rows leaves
    kept = values > torch.maximum(values[0] * 1e-12, rounding)
    if not bool(kept.any()):
        raise ValueError("the rows are all equal: they span no principal space")
    components = centered.T @ (vectors[:, kept] / values[kept].sqrt())
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    return PrincipalSpace(mean, components * largest.sign())


def project(space: PrincipalSpace, x: Tensor) -> Tensor:
    """Return the principal coordinates (x - mean) components: [n, d] -> [n, c], float64."""
    _require_rows("x", x, columns=len(space.mean))
    return torch.cat([(block.double() - space.mean) @ space.components for block in x.split(_BLOCK)])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet (2-Wasserstein) distance between the Gaussians with the moments of two sets of rows.

        |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)        (Dowson and Landau 1982; Heusel et al. 2017)

    A and B are unbiased covariances; the roots are symmetric, by eigh in float64. Two samples of one law are not at 0:
    the floor grows as about c^2 / n, so only distances from equal numbers of rows compare.

    Args:
        a: [n, c] rows.
        b: [m, c] rows.

    Raises:
        ValueError: on mismatched columns, fewer than two rows or values that are not finite.
    """
    mean_a, cov_a = moments("a", a)
    mean_b, cov_b = moments("b", b, columns=a.shape[1])
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ cov_b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def precision_recall(real: Tensor, generated: Tensor, num_neighbors: int = 3) -> PrecisionRecall:
    """Return k-NN manifold precision and recall (Kynkaanniemi et al. 2019).

    Precision: share of generated rows within the k-NN radius of at least one real row. Adversary: the same with the two
    exchanged. Do not gate on precision alone: noise in many dimensions and blur both reach 1.

    Args:
        real: [n, c] rows.
        generated: [n, c] rows, as many: radii shrink with the number of rows.
        num_neighbors: k of the radii within each set, from 1 to n - 1.

    Raises:
        ValueError: on unequal shapes, values that are not finite or too few rows.
    """
    _require_equal("real", real, "generated", generated)
    real, generated = real.double(), generated.double()
    return PrecisionRecall(
        precision=_covered_share(generated, real, num_neighbors), recall=_covered_share(real, generated, num_neighbors)
    )


def duplicate_share(samples: Tensor, heldout: Tensor) -> float:
    """Return the share of samples whose nearest fellow sample is closer than 1/4 of the held-out median.

    The held-out median is the median distance of a held-out row to its nearest held-out row. Give about equal numbers:
    neighbor distances shrink as rows are added. 0 for real data; a collapsed model goes toward 1.

    Args:
        samples: [n, c] rows, n >= 2.
        heldout: [m, c] rows of data, m >= 2.

    Raises:
        ValueError: on mismatched columns, fewer than two rows or values that are not finite.
    """
    _require_rows("heldout", heldout, columns=samples.shape[-1], at_least=2)
    _require_rows("samples", samples, at_least=2)
    threshold = nearest_distances(heldout, None, 1).median() / 4
    return (nearest_distances(samples, None, 1) < threshold).double().mean().item()


def mean_pairwise_distance(x: Tensor) -> float:
    """Return the mean Euclidean distance over all pairs of different rows of x [n, d], n >= 2: a measure of spread."""
    _require_rows("x", x, at_least=2)
    rows = x.double() - x.mean(0, dtype=torch.float64)
    total = 0.0
    for start in range(0, len(rows), 1024):
        distances = torch.cdist(rows[start : start + 1024], rows, compute_mode="use_mm_for_euclid_dist")
        distances.diagonal(start).zero_()  # the product form leaves about 1e-6 there
        total += distances.sum().item()
    return total / (len(rows) * (len(rows) - 1))


def nearest_training_distance(samples: Tensor, train: Tensor) -> float:
    """Return the median Euclidean distance of a sample to its nearest training row.

    A model that memorizes is closer to its training rows than new data are: see `memorization_ratio`.

    Args:
        samples: [n, c] rows.
        train: [m, c] rows; n m c multiplications in float64, so project or draw a subset of large sets.

    Raises:
        ValueError: on mismatched columns or values that are not finite.
    """
    return nearest_distances(samples, train, 1).median().item()


def memorization_ratio(samples: Tensor, heldout: Tensor, train: Tensor) -> float:
    """Return the samples' nearest_training_distance over that of held-out rows: 1 as new as those, 0 copies.

    Raises:
        ValueError: as `nearest_training_distance`, and when the held-out rows are themselves training rows.
    """
    reference = nearest_training_distance(heldout, train)
    if reference == 0:
        raise ValueError("half of the held-out rows or more equal training rows: give rows that were not trained on")
    return nearest_training_distance(samples, train) / reference


def total_variance_ratio(samples: Tensor, heldout: Tensor) -> float:
    """Return the sum over columns of the unbiased variance of `samples` [n, d] over that of `heldout` [m, d]."""
    _require_rows("samples", samples, columns=heldout.shape[-1], at_least=2)
    _require_rows("heldout", heldout, at_least=2)
    reference = heldout.double().var(0).sum().item()
    if reference == 0:
        raise ValueError(f"all {len(heldout)} held-out rows are equal, so they have no variance to compare with")
    return samples.double().var(0).sum().item() / reference


def score_latents(
    space: PrincipalSpace, heldout: Tensor, samples: Tensor, reencoded: Tensor | None = None
) -> LatentScores:
    """Score samples against equally many held-out rows; nothing is drawn, so equal inputs give equal scores.

    Args:
        space: of the *training* latents (`fit_principal_space`).
        heldout: [n, d] latents of data the model never saw.
        samples: [n, d] latents of the model; say in the report whether v or E[v|h] (they differ more than models do).
        reencoded: [n, d], the decoded samples encoded again, or None. When given, precision, recall and duplicates are
            taken from these rows (they are about pictures); Frechet distance and variance always from `samples`.

    Raises:
        ValueError: on unequal shapes, values that are not finite or too few rows.
    """
    _require_equal("heldout", heldout, "samples", samples)
    manifold = samples
    if reencoded is not None:
        _require_equal("heldout", heldout, "reencoded", reencoded)
        manifold = reencoded
    heldout_points, manifold_points = project(space, heldout), project(space, manifold)
    precision, recall = precision_recall(heldout_points, manifold_points)
    return LatentScores(
        frechet=frechet_distance(project(space, samples), heldout_points),
        precision=precision,
        recall=recall,
        duplicates=duplicate_share(manifold_points, heldout_points),
        variance_ratio=total_variance_ratio(samples, heldout),
        num_rows=len(samples),
        manifold_rows="latents" if reencoded is None else "reencoded",
    )


def _covered_share(points: Tensor, centers: Tensor, num_neighbors: int) -> float:
    radii = nearest_distances(centers, None, num_neighbors)[:, -1]
    middle = centers.mean(0)
    around = centers - middle
    squares = around.square().sum(1)
    covered = []
    for block in points.split(1024):
        rows = block - middle
        sizes = rows.square().sum(1, keepdim=True) + squares
        inside = radii.square() - torch.addmm(sizes, rows, around.T, alpha=-2)  # r^2 - |x - c|^2
        rounding = 1e-10 * sizes
        found = (inside > rounding).any(1)
        # Direct distances where rounding would decide: a point that equals a center of radius 0 is covered.
        unsure = ~found & (inside >= -rounding).any(1)
        direct = torch.cdist(block[unsure], centers, compute_mode="donot_use_mm_for_euclid_dist")
        found[unsure] = (direct <= radii).any(1)
        covered.append(found)
    return torch.cat(covered).double().mean().item()


def leading_components(covariance: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues [c], descending, and their eigenvectors [d, c] with the sign fixed."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:num_components].clamp_min(0), vectors.flip(1)[:, :num_components]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, (vectors * largest.sign()).contiguous()


def moments(name: str, rows: Tensor, columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean [d] and the unbiased covariance [d, d], float64, converting a block of rows at a time."""
    _require_rows(name, rows, columns=columns, at_least=2)
    mean = rows.mean(0, dtype=torch.float64)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
    for block in rows.split(_BLOCK):
        centered = block.double() - mean
        scatter.addmm_(centered.T, centered)
    return mean, scatter / (len(rows) - 1)


def _require_equal(name: str, rows: Tensor, other_name: str, other: Tensor) -> None:
    if rows.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)} and {other_name} {tuple(other.shape)}: the score depends on the "
            "number of rows, so give equally many of each, in one space"
        )


def _require_rows(name: str, rows: Tensor, columns: int | None = None, at_least: int = 1) -> None:
    if rows.ndim != 2 or rows.shape[0] < at_least or (columns is not None and rows.shape[1] != columns):
        wanted = f"[n >= {at_least}, {'d' if columns is None else columns}]"
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; expected rows {wanted}")
    if not torch.isfinite(rows).all():
        raise ValueError(f"{name} holds values that are not finite: the run that made it has diverged")
