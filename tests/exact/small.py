"""Small RBMs of every unit pairing, and their joint distribution as a table: enumerated, or by quadrature where Gaussian."""

import itertools

import torch
from torch import Tensor

from pipeline.config import RBMConfig
from pipeline.metrics.exact import layer_states, log_partition
from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian, Units

KINDS = ("bernoulli", "gaussian", "onehot")
PAIRINGS = list(itertools.product(KINDS, KINDS))


def small_rbm(visible: str, hidden: str, seed: int = 0, centered: bool = False) -> RBM:
    """A float64 RBM with random parameters; 5 (Gaussian: 2) visible and 3 (Gaussian: 1) hidden units."""
    generator = torch.Generator().manual_seed(seed)
    config = RBMConfig(2 if visible == "gaussian" else 5, 1 if hidden == "gaussian" else 3, visible, hidden)
    rbm = RBM(config, torch.float64)
    with torch.no_grad():
        for name, p in rbm.named_parameters():
            scale = 0.25 if name == "weights" and "gaussian" in (visible, hidden) else 0.6
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        if centered:
            for layer in (rbm.visible, rbm.hidden):
                layer.offset.copy_(0.3 * torch.randn(layer.offset.shape, generator=generator, dtype=torch.float64))
    return rbm


def log_likelihood(rbm: RBM, data: Tensor) -> Tensor:
    """Mean log p(v) over data rows [N, V] (scalar, nats); the L of Eq. 2."""
    return -rbm.free_energy(data).mean() - log_partition(rbm)


def axis_states(units: Units, points: int = 181, half_width: float = 18.0) -> tuple[Tensor, float]:
    """States of a layer [n, size] and the volume of each: 1 when discrete, the cell of a uniform grid when Gaussian.

    The trapezoid rule on a uniform grid converges faster than any power for smooth functions that vanish at the ends.
    """
    if not isinstance(units, Gaussian):
        return layer_states(units), 1.0
    line = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    size = len(units.bias)
    states = torch.cartesian_prod(*[line] * size).reshape(-1, size)
    return states, float(line[1] - line[0]) ** size


def joint_table(rbm: RBM) -> tuple[Tensor, Tensor, float]:
    """All pairs v [n, V], h [n, H] and the volume of each pair."""
    v, cell_v = axis_states(rbm.visible)
    h, cell_h = axis_states(rbm.hidden)
    n, m = len(v), len(h)
    return v.repeat_interleave(m, 0), h.repeat(n, 1), cell_v * cell_h
