"""Gaussian baselines: rows drawn from Gaussians that are fitted to training rows."""

import torch
from torch import Tensor

from pipeline.metrics.images import leading_components, moments


def sample_full_gaussian(latents: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n rows from the Gaussian with the mean and covariance of `latents` [N, d]: [n, d], the latents' type."""
    return sample_principal_gaussian(latents, n, generator, num_components=latents.shape[-1])


def sample_principal_gaussian(latents: Tensor, n: int, generator: torch.Generator, num_components: int) -> Tensor:
    """Draw n rows from the Gaussian fitted to the leading components of `latents`, the other components at their mean.

    The strongest cheap baseline for pictures: decoded, 100 components look like faces.

    Args:
        latents: [N, d] training rows.
        n: rows to draw.
        generator: decides the draw; on its own device.
        num_components: c, from 1 to d.

    Returns:
        [n, d], type and device of `latents`.

    Raises:
        ValueError: on a wrong shape, values that are not finite, n < 1 or num_components outside 1..d.
    """
    if not 1 <= num_components <= latents.shape[-1]:
        raise ValueError(
            f"num_components is {num_components}; latents of {latents.shape[-1]} columns have at most that"
        )
    mean, covariance = moments("latents", latents)
    values, vectors = leading_components(covariance, num_components)
    drawn = _normal(n, num_components, generator, latents) * values.sqrt()
    return (mean + drawn @ vectors.T).to(latents.dtype)


def sample_independent_gaussian(latents: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n rows with the mean and variance of each column of `latents` [N, d], independently: [n, d], their type."""
    mean, covariance = moments("latents", latents)
    return (mean + _normal(n, len(mean), generator, latents) * covariance.diagonal().sqrt()).to(latents.dtype)


def _normal(n: int, columns: int, generator: torch.Generator, like: Tensor) -> Tensor:
    if n < 1:
        raise ValueError(f"n is {n}; draw at least one row")
    return torch.randn(n, columns, generator=generator, dtype=torch.float64, device=generator.device).to(like.device)
