"""Three divergences between two Gaussians and the one Gaussian that fits them best, against their separation (Fig. 2).

The data are p = N(-D/2, 1) / 2 + N(D/2, 1) / 2, the separation D in standard deviations of a component (the paper states no
unit); the model is q = N(0, 1 + D^2 / 4), with p's mean and variance. In nats,

    forward         KL(p || q) = integral of p log(p / q)                  (Eq. 3),
    reverse         KL(q || p) = integral of q log(q / p)                  (Eq. 4),
    discriminator   D_D(p || q) = -integral of q log(2 p / (p + q))        (Eq. 5),

and log 2 + D_D = integral of q log(1 + q / p) >= KL(q || p).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STEP = 0.2
"""Step of the quadrature at separation 0. It shrinks as 1 / (1 + D / 2): log cosh bends faster and faster at 0."""
REACH = 14.0
"""Standard deviations of the wider density to each side at which the integrals end; 1e-43 of its mass lies beyond."""
MAX_SEPARATION = 100.0


class Divergences(NamedTuple):
    """Values [n] in nats, float64, one per separation."""

    separation: Tensor
    forward: Tensor
    reverse: Tensor
    discriminator: Tensor
    error: Tensor
    """Estimate of the quadrature's error: the largest change of the three when the step is halved."""


def two_gaussians_against_one(separations: Sequence[float]) -> Divergences:
    """The divergences at each separation, by the trapezoid rule in float64.

    For integrands that are smooth and vanish at both ends the rule converges faster than any power of the step; the error
    at the finer of two steps is far below the difference between them, which is reported.

    Args:
        separations: in standard deviations of a component, 0 to 100.

    Raises:
        ValueError: no separations, or one out of range.
    """
    wrong = [d for d in separations if not 0 <= d <= MAX_SEPARATION]
    if wrong or not separations:
        raise ValueError(
            f"separations {wrong or list(separations)}: give at least one, each in [0, {MAX_SEPARATION:g}]"
        )
    coarse, fine = (torch.stack([_integrals(d, step) for d in separations], 1) for step in (2 * STEP, STEP))
    error = (fine - coarse).abs().amax(0)
    return Divergences(torch.tensor(separations, dtype=torch.float64), fine[0], fine[1], fine[2], error)


def _integrals(separation: float, step: float) -> Tensor:
    """Forward, reverse and discriminator divergence [3] at one separation."""
    half, std = separation / 2, math.sqrt(1 + separation**2 / 4)
    step /= 1 + half
    count = math.ceil((REACH * std + half) / step)
    x = torch.arange(-count, count + 1, dtype=torch.float64) * step
    log_q = -0.5 * (x / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    # log p = log N(x; 0, 1) - half^2 / 2 + log cosh(half x), without overflow
    log_cosh = (half * x).abs() + torch.log1p(torch.exp(-2 * (half * x).abs())) - math.log(2)
    log_p = -0.5 * (x**2 + half**2) + log_cosh - 0.5 * math.log(2 * math.pi)
    ratio = log_q - log_p
    # q - p integrates to 0; with it each term of both KL is at least 0, and small separations keep their digits
    p, q = log_p.exp(), log_q.exp()
    return torch.stack(
        [
            (q - p - p * ratio).sum(),
            (p - q + q * ratio).sum(),
            (q * torch.nn.functional.softplus(ratio)).sum() - math.log(2) * q.sum(),
        ]
    ) * step  # fmt: skip
