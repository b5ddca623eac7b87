"""Measures of how rows cover the modes of a Gaussian mixture, and the exact divergences between a mixture and a small RBM.

A count of modes alone proves nothing: one Gaussian with the data's moments "covers" all eight modes of the ring. It is
always given with the precision and with the total variation of the modes' shares. Rows of chains say what the chains
reached from their start; rows of `exact_samples` say what the model itself holds, its equilibrium, and the two can
disagree completely. The divergences here need no neighbors and no chains: both densities are known.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.mixtures import GaussianMixture
from pipeline.metrics.exact import exact_samples, in_float64, log_partition
from pipeline.models.rbm import RBM

RADIUS = 3.0
"""A row belongs to its nearest mode when it lies within this many standard deviations of the center."""
COVERED_SHARE = 0.2
"""A mode is covered when it holds at least this part of its expected share, 1/K of all rows."""

_BLOCK = 8192  # rows measured against all centers at a time


class Coverage(NamedTuple):
    """The spread of rows over the modes of a mixture."""

    num_covered: int
    """Modes that hold at least COVERED_SHARE / K of *all* rows; 0 .. num_modes."""
    num_modes: int
    precision: float
    """Share of rows within RADIUS standard deviations of some center; .989 for the mixture itself in two dimensions."""
    total_variation: float
    """(sum_k |share_k - 1/K| + share outside all modes) / 2, in [0, 1]; 0 for equal shares and nothing outside."""
    shares: tuple[float, ...]
    """Share of all rows in each mode, in the order of the centers; sums to `precision`."""
    num_rows: int


class MonteCarloKL(NamedTuple):
    """A Kullback-Leibler divergence as the mean of an exactly known log ratio over independent rows."""

    nats: float
    """Unbiased; not divided by the number of dimensions."""
    standard_error: float
    """Standard deviation of the log ratio over sqrt(num_rows). Too small where rare rows carry the divergence."""
    num_rows: int


class ExactDivergences(NamedTuple):
    """Both divergences between a mixture and an RBM, and the modes of the rows drawn from the RBM itself."""

    forward: MonteCarloKL
    """D(mixture || model)."""
    reverse: MonteCarloKL
    """D(model || mixture)."""
    equilibrium: Coverage
    """Coverage of the model's independent rows."""


def mode_coverage(rows: Tensor, mixture: GaussianMixture) -> Coverage:
    """Return the modes covered, the precision and the total variation of the modes' shares.

    Args:
        rows: [n, d], any floating type, n >= 1.
        mixture: K equally likely modes in d dimensions. Modes closer than 2 RADIUS standard deviations share rows by
            the nearest center.

    Raises:
        ValueError: on another number of columns, no rows, or values that are not finite.
    """
    centers = mixture.centers.to(rows.device)
    num_modes, dimension = centers.shape
    if rows.ndim != 2 or rows.shape[1] != dimension or len(rows) == 0:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}; a mixture in {dimension} dimensions needs [n >= 1, {dimension}]"
        )
    if not torch.isfinite(rows).all():
        bad = int((~torch.isfinite(rows)).any(1).sum())
        raise ValueError(f"{bad} of {len(rows)} rows hold values that are not finite: the run has diverged")
    counts = torch.zeros(num_modes, dtype=torch.int64, device=rows.device)
    for block in rows.split(_BLOCK):
        distances = torch.cdist(block.double(), centers, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, mode = distances.min(1)
        counts += torch.bincount(mode[nearest <= RADIUS * mixture.std], minlength=num_modes)
    num_rows = len(rows)
    inside = counts.tolist()
    shares = tuple(count / num_rows for count in inside)
    outside = (num_rows - sum(inside)) / num_rows
    return Coverage(
        num_covered=sum(share >= COVERED_SHARE / num_modes for share in shares),
        num_modes=num_modes,
        precision=sum(inside) / num_rows,
        total_variation=0.5 * (sum(abs(share - 1 / num_modes) for share in shares) + outside),
        shares=shares,
        num_rows=num_rows,
    )


@torch.no_grad()
def exact_log_prob(rbm: RBM, rows: Tensor, scaling: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return log p(v) = -F(v) - log Z of rows [n, V] in nats: [n], float64; log Z by enumeration.

    Args:
        rbm: with one enumerable layer, or two Gaussian ones.
        rows: [n, V], in the units of the data.
        scaling: (mean [V], std [V]) when the model was trained on (rows - mean) / std; the density returned is that
            of `rows`, so sum log std is taken off.

    Raises:
        ValueError: when log Z cannot be enumerated.
    """
    rbm = in_float64(rbm)
    rows = rows.to(rbm.weights)
    log_volume = 0.0
    if scaling is not None:
        mean, std = (part.to(rows) for part in scaling)
        rows, log_volume = (rows - mean) / std, std.log().sum().item()
    return -rbm.free_energy(rows) - log_partition(rbm) - log_volume


@torch.no_grad()
def exact_kl(
    rbm: RBM,
    mixture: GaussianMixture,
    num_rows: int,
    generator: torch.Generator,
    scaling: tuple[Tensor, Tensor] | None = None,
) -> ExactDivergences:
    """Return D(mixture || model) and D(model || mixture) from exact densities, over independent rows of either.

        forward = E_mixture[log p_d(v) - log p(v)],    reverse = E_model[log p(v) - log p_d(v)]

    log p(v) = -F(v) - log Z with log Z by enumeration of the hidden states; the model's rows are drawn from its
    exact marginal (`exact_samples`), so the only error is the Monte-Carlo error that is given. At 2 visible and 20
    hidden units and 4,000 rows: below a second on one thread, and about 100 MiB.

    Args:
        rbm: Gaussian visible units and an enumerable hidden layer (Bernoulli up to 20 units, or one-hot).
        mixture: the data's density, in as many dimensions as there are visible units.
        num_rows: rows drawn from each, at least 2.
        generator: decides the rows: first the mixture's, then the model's.
        scaling: as in `exact_log_prob`.

    Raises:
        ValueError: on fewer than 2 rows, a mixture of other dimensions, or a model that cannot be enumerated.
    """
    if num_rows < 2:
        raise ValueError(f"num_rows is {num_rows}; a mean with an error bar needs at least 2 rows")
    if (width := len(rbm.visible.bias)) != mixture.centers.shape[1]:
        raise ValueError(f"the model has {width} visible units, the mixture {mixture.centers.shape[1]} dimensions")
    data = mixture.sample(num_rows, generator).double()
    model = exact_samples(in_float64(rbm), num_rows, generator)
    if scaling is not None:
        mean, std = (part.to(model) for part in scaling)
        model = model * std + mean
    log_model = exact_log_prob(rbm, torch.cat([data, model]), scaling)
    log_mixture = mixture.log_prob(torch.cat([data, model]))
    difference = log_mixture - log_model
    return ExactDivergences(
        forward=_mean(difference[:num_rows]),
        reverse=_mean(-difference[num_rows:]),
        equilibrium=mode_coverage(model, mixture),
    )


def _mean(values: Tensor) -> MonteCarloKL:
    return MonteCarloKL(values.mean().item(), values.std().item() / math.sqrt(len(values)), len(values))
