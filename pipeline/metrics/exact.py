"""Exact quantities of small RBMs: log Z, log-likelihood and independent samples, by enumeration or in closed form.

Differentiable (autograd is the tests' independent check of every gradient formula). States are made and used a block at
a time, so a layer of 20 units costs 2^20 log weights and not the products of all its states.
"""

import copy
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian, Units

MAX_UNITS = 20
"""A Bernoulli layer is enumerated up to this size: 2^20 states."""

_BLOCK_ELEMENTS = 1 << 22
"""States of a block times units of the wider layer: 32 MiB of float64 for each product of the block."""


def layer_states(units: Units) -> Tensor:
    """All states of a discrete layer [num_states, size], in ascending order as binary numbers (first unit highest).

    One-hot layers: the rows of the identity.

    Raises:
        ValueError: on more than MAX_UNITS Bernoulli units, or a Gaussian layer.
    """
    return torch.cat(list(_state_blocks(units, len(units.bias))))


def _state_blocks(units: Units, width: int) -> Iterator[Tensor]:
    """Consecutive blocks [rows, size] of `layer_states` with rows * width <= _BLOCK_ELEMENTS (at least one row)."""
    rows, log2_states = max(1, _BLOCK_ELEMENTS // width), units.log2_states()
    if MAX_UNITS < log2_states < math.inf:
        raise ValueError(
            f"a {type(units).__name__} layer of {len(units.bias)} units has 2^{log2_states:g} states; at most "
            f"{MAX_UNITS} units are enumerated"
        )
    num_states = 1 if log2_states == math.inf else round(2**log2_states)  # real units refuse to be listed
    for start in range(0, num_states, rows):
        yield units.states(torch.arange(start, min(start + rows, num_states), device=units.bias.device))


def is_enumerable(units: Units) -> bool:
    """True when `layer_states` lists the layer's states: one-hot, or Bernoulli with at most MAX_UNITS units."""
    return units.log2_states() <= MAX_UNITS


def log_partition(rbm: RBM, beta: float = 1.0) -> Tensor:
    """Log Z at inverse temperature beta (scalar): enumerates the smaller discrete layer, the other in closed form.

    Two Gaussian layers: closed form, after the check that the precision matrix is positive definite (ValueError).
    """
    if isinstance(rbm.hidden, Gaussian) and isinstance(rbm.visible, Gaussian):
        return _log_partition_gaussian(rbm, beta)
    return torch.logsumexp(state_log_weights(rbm, _layer_to_enumerate(rbm), beta), 0)


def state_log_weights(rbm: RBM, layer: Literal["visible", "hidden"], beta: float = 1.0) -> Tensor:
    """Log of the unnormalized marginal probability of every state of a layer [num_states], ordered as `layer_states`.

    log sum or integral over the other layer of exp(-beta E(v, h)); its logsumexp is log Z. Where the states take more
    than one block, autograd recomputes a block's products in the backward pass instead of keeping them: the parameters
    must not change between the two passes.

    Raises:
        ValueError: as `layer_states`.
    """

    def of(states: Tensor) -> Tensor:
        if layer == "visible":
            return -rbm.free_energy(states, beta)
        return -beta * rbm.hidden.self_energy(states) + rbm.visible.log_partition(rbm.visible_field(states), beta)

    units = rbm.visible if layer == "visible" else rbm.hidden
    width = max(rbm.weights.shape)
    num_states = round(2 ** min(units.log2_states(), MAX_UNITS))
    blocks = _state_blocks(units, width)
    if torch.is_grad_enabled():
        if num_states * width <= _BLOCK_ELEMENTS:
            return torch.cat([of(states) for states in blocks])
        return torch.cat([checkpoint(of, states, use_reentrant=False, preserve_rng_state=False) for states in blocks])
    log_weights = rbm.weights.new_empty(num_states)
    start = 0
    for states in blocks:  # small results kept between large ones would hold the memory of all blocks
        log_weights[start : start + len(states)] = of(states)
        start += len(states)
    return log_weights


@torch.no_grad()
def exact_samples(rbm: RBM, n: int, generator: torch.Generator) -> Tensor:
    """Return n independent rows v [n, V] from p(v) itself: no chain, so no burn-in and no mixing enters.

    The smaller discrete layer is drawn from its exact marginal over all states, computed in float64; when that is the
    hidden one, v ~ p(v | h) follows.

    Args:
        rbm: with a one-hot layer, or a Bernoulli layer of at most MAX_UNITS units.
        n: rows, at least 1.
        generator: decides the draw; on the model's device.

    Returns:
        In the model's type and on its device.

    Raises:
        ValueError: on n < 1, or a model without such a layer.
    """
    if n < 1:
        raise ValueError(f"n is {n}; draw at least one row")
    layer = _layer_to_enumerate(rbm)
    precise = in_float64(rbm)
    cumulative = torch.softmax(state_log_weights(precise, layer), 0).cumsum(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=cumulative.device) * cumulative[-1]
    # Uniform numbers lie in [0, total): with right=True a state of probability 0 is never chosen.
    indices = torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(cumulative) - 1)
    states = (precise.visible if layer == "visible" else precise.hidden).states(indices)
    if layer == "hidden":
        total = precise.visible.bias + precise.visible_field(states)
        states = precise.visible.sample_(total, None, generator)
    return states.to(rbm.weights.dtype)


def in_float64(rbm: RBM) -> RBM:
    """Return the model itself when it is in float64, else a float64 copy."""
    return rbm if rbm.weights.dtype == torch.float64 else copy.deepcopy(rbm).double()


def _layer_to_enumerate(rbm: RBM) -> Literal["visible", "hidden"]:
    """The discrete layer with fewer states; when both have too many to enumerate, the one `layer_states` refuses."""
    return "hidden" if rbm.hidden.log2_states() <= rbm.visible.log2_states() else "visible"


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
