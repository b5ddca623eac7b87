"""The optimal critic where both densities are known (Eq. 6), to compare critics with."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pipeline.config import ScoreConfig
from pipeline.critics.critic import score_of
from pipeline.metrics.exact import log_partition
from pipeline.models.rbm import RBM

LogDensity = Callable[[Tensor], Tensor]
"""Points [n, V] -> log p [n] in nats, normalized; as GaussianMixture.log_prob and `rbm_log_density(rbm)`."""


def rbm_log_density(rbm: RBM) -> LogDensity:
    """Log p(v) = -F(v) - log Z of a small RBM, with Z computed once, now: see metrics.exact.log_partition.

    Points are converted to the RBM's type. Raises ValueError when neither layer can be enumerated.
    """
    log_z = log_partition(rbm).detach()
    return lambda points: -rbm.free_energy(points.to(log_z)).detach() - log_z


def optimal_log_probability(points: Tensor, log_data: LogDensity, log_model: LogDensity) -> Tensor:
    """Log p(data | v) = log( p_d(v) / (p_d(v) + p_model(v)) ) of points [n, V] (Eq. 6): [n], at most 0, float64."""
    return F.logsigmoid(log_data(points).double() - log_model(points).double())


def optimal_score(
    points: Tensor, log_data: LogDensity, log_model: LogDensity, config: ScoreConfig | None = None
) -> Tensor:
    """T [n] of points [n, V] by Eq. 6, in the form, with the floor and the sign of `config`; None: linear, 2p - 1.

    It is the limit of every critic on the visible layer; one on the hidden layer sees less, unless E[h | v] tells all v
    apart.
    """
    return score_of(optimal_log_probability(points, log_data, log_model).exp(), config or ScoreConfig())


class DivergenceEstimate(NamedTuple):
    """A mean over rows."""

    nats: float
    standard_error: float


def discriminator_divergence(model_rows: Tensor, log_data: LogDensity, log_model: LogDensity) -> DivergenceEstimate:
    """Estimate of D_D(p_d || p_model) = -log 2 - E_model[log p(data | v)] (Eq. 7) from rows [n, V] of the model.

    That is minus the mean of the log form of T, without its floor. log 2 + D_D is at least the reverse KL divergence. A
    mean over rows that the model puts where data have no density can be as large as their log ratio.

    Raises:
        ValueError: with fewer than two rows.
    """
    if len(model_rows) < 2:
        raise ValueError(f"{len(model_rows)} rows of the model: at least 2 are needed for a mean and its error")
    terms = -math.log(2) - optimal_log_probability(model_rows, log_data, log_model)
    return DivergenceEstimate(float(terms.mean()), float(terms.std()) / len(terms) ** 0.5)
