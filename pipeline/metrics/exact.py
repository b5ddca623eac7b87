"""Exact quantities of small RBMs: log Z, log-likelihood and expectations by enumeration or in closed form.

Differentiable (autograd is the tests' independent check of every gradient formula).
"""

import itertools
import math

import torch
from torch import Tensor

from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian, OneHot, Units

MAX_UNITS = 20
"""A Bernoulli layer is enumerated up to this size: 2^20 states."""


def layer_states(units: Units) -> Tensor:
    """All states of a discrete layer [num_states, size]. Raises ValueError when there are too many, or not countable."""
    size = len(units.bias)
    if isinstance(units, Gaussian):
        raise ValueError("a Gaussian layer cannot be enumerated; enumerate the other one, or use quadrature")
    if isinstance(units, OneHot):
        return torch.eye(size, dtype=units.bias.dtype)
    if size > MAX_UNITS:
        raise ValueError(
            f"a Bernoulli layer of {size} units has 2^{size} states; at most {MAX_UNITS} units are enumerated"
        )
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), dtype=units.bias.dtype)


def log_partition(rbm: RBM, beta: float = 1.0) -> Tensor:
    """Log Z at inverse temperature beta (scalar): enumerates the smaller discrete layer, the other in closed form.

    Two Gaussian layers: closed form, after the check that the precision matrix is positive definite (ValueError).
    """
    hidden_discrete = not isinstance(rbm.hidden, Gaussian)
    visible_discrete = not isinstance(rbm.visible, Gaussian)
    if not hidden_discrete and not visible_discrete:
        return _log_partition_gaussian(rbm, beta)
    use_hidden = hidden_discrete and (not visible_discrete or len(rbm.hidden.bias) <= len(rbm.visible.bias))
    if use_hidden:
        h = layer_states(rbm.hidden)
        log_terms = -beta * rbm.hidden.self_energy(h) + rbm.visible.log_partition(rbm.visible_field(h), beta)
    else:
        log_terms = -rbm.free_energy(layer_states(rbm.visible), beta)
    return torch.logsumexp(log_terms, 0)


def _log_partition_gaussian(rbm: RBM, beta: float) -> Tensor:
    """Z of exp(-beta (x - m)^T P (x - m) / 2 + const): a Gaussian integral over x = (v, h)."""
    rbm.check_normalizable()
    s_v, s_h = rbm.visible.variance(), rbm.hidden.variance()
    assert s_v is not None and s_h is not None
    coupling = rbm.weights / (s_v[:, None] * s_h)
    precision = torch.cat(
        [torch.cat([torch.diag(1 / s_v), -coupling], 1), torch.cat([-coupling.T, torch.diag(1 / s_h)], 1)], 0
    )
    # E = x^T P x / 2 - linear^T x + constant
    linear = torch.cat(
        [rbm.visible.bias / s_v - coupling @ rbm.hidden.offset, rbm.hidden.bias / s_h - coupling.T @ rbm.visible.offset]
    )
    constant = (
        (rbm.visible.bias**2 / (2 * s_v)).sum()
        + (rbm.hidden.bias**2 / (2 * s_h)).sum()
        - rbm.visible.offset @ coupling @ rbm.hidden.offset
    )
    size = len(linear)
    return (
        0.5 * size * math.log(2 * math.pi / beta)
        - 0.5 * torch.linalg.slogdet(precision).logabsdet
        + beta * (0.5 * linear @ torch.linalg.solve(precision, linear) - constant)
    )


def log_likelihood(rbm: RBM, data: Tensor) -> Tensor:
    """Mean log p(v) over data rows [N, V] (scalar, nats); the L of Eq. 2."""
    return -rbm.free_energy(data).mean() - log_partition(rbm)
