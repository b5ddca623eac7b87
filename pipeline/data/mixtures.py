"""The Gaussian mixtures of Table I: densities in one or two dimensions with known modes.

The paper states no scales; these are ours: modes far apart beside their width, so that one Gaussian is a bad fit. Every
geometry is a setting, and any mixture can be shifted and scaled (`moved`): what a recipe reaches should not hang on ours.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
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


def bimodal(separation: float = 4.0, std: float = 0.5) -> GaussianMixture:
    """Two modes on a line, `separation` apart around 0: at -2 and 2 of standard deviation 0.5 by default."""
    return _checked(GaussianMixture(torch.tensor([[-0.5], [0.5]], dtype=torch.float64) * separation, std))


def ring(num_modes: int = 8, radius: float = 2.0, std: float = 0.2) -> GaussianMixture:
    """Modes at equal distances on a circle around 0, the first on the x-axis: eight of standard deviation 0.2 by default."""
    _check_count("num_modes", num_modes)
    angles = torch.arange(num_modes, dtype=torch.float64) * (2 * torch.pi / num_modes)
    return _checked(GaussianMixture(radius * torch.stack([angles.cos(), angles.sin()], 1), std))


def grid(rows: int = 5, columns: int = 5, spacing: float = 1.0, std: float = 0.1) -> GaussianMixture:
    """Modes on a grid around 0, `columns` along x and `rows` along y: 5 x 5 of standard deviation 0.1 by default."""
    _check_count("rows", rows)
    _check_count("columns", columns)
    x, y = (spacing * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) for n in (columns, rows))
    return _checked(GaussianMixture(torch.cartesian_prod(x, y), std))


MIXTURES: dict[str, Callable[..., GaussianMixture]] = {"bimodal": bimodal, "ring": ring, "grid": grid}
"""By name; called without settings they are the data sets of Table I."""


def make_mixture(name: str, settings: Mapping[str, float] | None = None) -> GaussianMixture:
    """The mixture of this name with some of its settings changed.

    Raises:
        ValueError: an unknown name or setting, or a value out of its range; names what there is.
    """
    if name not in MIXTURES:
        raise ValueError(f"mixture {name!r} is unknown; there are {', '.join(MIXTURES)}")
    known = inspect.signature(MIXTURES[name]).parameters
    for key in settings or {}:
        if key not in known:
            raise ValueError(f"mixture {name!r} has no setting {key!r}; its settings are {', '.join(known)}")
    return MIXTURES[name](**(settings or {}))


def moved(mixture: GaussianMixture, shift: Sequence[float] | float = 0.0, scale: float = 1.0) -> GaussianMixture:
    """The mixture of rows scale * x + shift, for x of `mixture`.

    Args:
        mixture: of d dimensions.
        shift: one number for all dimensions, or d of them.
        scale: positive.

    Raises:
        ValueError: another number of shifts, or a scale that is not positive.
    """
    width = mixture.centers.shape[1]
    shifts = torch.tensor([shift] * width if isinstance(shift, int | float) else list(shift), dtype=torch.float64)
    if len(shifts) != width:
        raise ValueError(f"shift = {shifts.tolist()}: give one number, or {width} for a mixture of {width} dimensions")
    if not scale > 0:
        raise ValueError(f"scale = {scale}: must be positive")
    # adding 0 would turn -0.0 into 0.0, and with it the hash of the data
    centers = mixture.centers if scale == 1 else mixture.centers * scale
    centers = centers + shifts if bool(shifts.any()) else centers
    return _checked(GaussianMixture(centers, mixture.std * scale))


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} = {value!r}: must be a whole number, at least 1")


def _checked(mixture: GaussianMixture) -> GaussianMixture:
    if not (math.isfinite(mixture.std) and mixture.std > 0):
        raise ValueError(f"std = {mixture.std}: must be positive")
    if not bool(mixture.centers.isfinite().all()):
        raise ValueError(f"the centers are {mixture.centers.tolist()}: all must be finite")
    return mixture
