"""Log Z and the log-likelihood of data with error bars: exact where possible, by annealing otherwise, and it says which."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.metrics.exact import in_float64, is_enumerable, log_partition
from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian
from pipeline.samplers.ais import annealed_partition

Method = Literal["enumeration", "closed form", "annealing"]

_BLOCK = 4096  # rows whose free energy is computed at a time


class PartitionEstimate(NamedTuple):
    """Log Z and how it was found."""

    log_partition: float
    standard_error: float
    """0 when exact."""
    method: Method
    effective_sample_size: float | None
    """Effective size of the annealed chains' weights, out of `num_chains`; None when exact. A small one voids the error bar."""
    num_chains: int
    """0 when exact."""
    num_temperatures: int
    """0 when exact."""


class LikelihoodEstimate(NamedTuple):
    """Mean log p(v) over rows, in nats a row."""

    nats: float
    data_error: float
    """Standard error from the finite number of rows: equal rows give equal errors to models that are compared."""
    partition_error: float
    """Standard error of log Z, common to all rows; 0 when exact."""
    num_rows: int
    partition: PartitionEstimate

    @property
    def standard_error(self) -> float:
        """Both errors together."""
        return math.hypot(self.data_error, self.partition_error)


@torch.no_grad()
def estimate_log_partition(
    rbm: RBM, data: Tensor, num_chains: int = 256, num_temperatures: int = 1000, seed: int = 0
) -> PartitionEstimate:
    """Return log Z: by enumeration when a layer is one-hot or has at most 20 Bernoulli units, in closed form for two
    Gaussian layers, else by annealed importance sampling.

    Args:
        rbm: any unit kinds with finite Z.
        data: [N, V], N >= 2; sets where the annealing starts, and is not looked at otherwise.
        num_chains: of the annealing.
        num_temperatures: of the annealing.
        seed: of the annealing.

    Raises:
        ValueError: as `annealed_partition`.
    """
    if isinstance(rbm.visible, Gaussian) and isinstance(rbm.hidden, Gaussian):
        method: Method | None = "closed form"
    else:
        method = "enumeration" if is_enumerable(rbm.visible) or is_enumerable(rbm.hidden) else None
    if method is not None:
        return PartitionEstimate(log_partition(in_float64(rbm)).item(), 0.0, method, None, 0, 0)
    found = annealed_partition(rbm, data, num_chains, num_temperatures, seed)
    return PartitionEstimate(
        found.log_partition,
        found.standard_error,
        "annealing",
        found.effective_sample_size,
        num_chains,
        num_temperatures,
    )


@torch.no_grad()
def estimate_log_likelihood(rbm: RBM, data: Tensor, partition: PartitionEstimate) -> LikelihoodEstimate:
    """Return the mean of log p(v) = -F(v) - log Z over data rows, with the errors of both parts.

    An annealed log Z is too low on average, so an annealed likelihood is too *high*.

    Args:
        rbm: the model that `partition` is of.
        data: [n, V], n >= 2; binary rows for Bernoulli units, or the value is no likelihood.
        partition: from `estimate_log_partition`.

    Raises:
        ValueError: on another shape or values that are not finite.
    """
    if data.ndim != 2 or len(data) < 2 or data.shape[1] != len(rbm.visible.bias):
        raise ValueError(f"data has shape {tuple(data.shape)}; expected [n >= 2, {len(rbm.visible.bias)}]")
    rbm = in_float64(rbm)
    free_energies = torch.cat([rbm.free_energy(block.to(rbm.weights)) for block in data.split(_BLOCK)])
    if not torch.isfinite(free_energies).all():
        raise ValueError("the free energy of some rows is not finite: the data or the model's parameters are not")
    return LikelihoodEstimate(
        nats=-free_energies.mean().item() - partition.log_partition,
        data_error=free_energies.std().item() / math.sqrt(len(data)),
        partition_error=partition.standard_error,
        num_rows=len(data),
        partition=partition,
    )
