"""The Gaussian mixtures of Table I: densities in one or two dimensions with known modes.

The paper states no scales; these are ours: modes far apart beside their width, so that one Gaussian is a bad fit.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class GaussianMixture(NamedTuple):
    """Equally likely Gaussians of one standard deviation."""

    centers: Tensor
    """[K, d], float64."""
    std: float

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Rows [num_rows, d], float32."""
        modes = torch.randint(len(self.centers), (num_rows,), generator=generator)
        noise = torch.randn(num_rows, self.centers.shape[1], generator=generator, dtype=torch.float64)
        return (self.centers[modes] + self.std * noise).float()

    def log_prob(self, rows: Tensor) -> Tensor:
        """Log p of rows [n, d] in nats: [n], float64, log of the mean over modes of N(row; center, std^2 I)."""
        modes = torch.distributions.Categorical(torch.ones(len(self.centers), dtype=torch.float64))
        normal = torch.distributions.Normal(self.centers, torch.full_like(self.centers, self.std))
        parts = torch.distributions.Independent(normal, 1)
        return torch.distributions.MixtureSameFamily(modes, parts).log_prob(rows.double())


def bimodal() -> GaussianMixture:
    """Two modes on a line, at -2 and 2, of standard deviation 0.5."""
    return GaussianMixture(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), 0.5)


def ring() -> GaussianMixture:
    """Eight modes on a circle of radius 2, of standard deviation 0.2."""
    angles = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    return GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.2)


def grid() -> GaussianMixture:
    """Twenty-five modes on a 5 x 5 grid of spacing 1 around the origin, of standard deviation 0.1."""
    axis = torch.arange(-2, 3, dtype=torch.float64)
    return GaussianMixture(torch.cartesian_prod(axis, axis), 0.1)


MIXTURES = {"bimodal": bimodal, "ring": ring, "grid": grid}
