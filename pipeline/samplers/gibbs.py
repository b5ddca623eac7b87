"""Block Gibbs sweeps: draw all hidden units given the visible, then all visible given the hidden."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.models.rbm import RBM, Couplings


class ChainState(NamedTuple):
    """What the next sweep of some chains needs; every field lives on the model's device."""

    visible: Tensor
    """[M, V]"""
    hidden: Tensor
    """[M, H], the draw from which `visible` was drawn."""
    beta: Tensor
    """[M, 1], the driven sampler's inverse temperatures; ones for plain Gibbs."""


@torch.no_grad()
def gibbs_sweep(
    rbm: RBM, couplings: Couplings, chains: ChainState, beta: Tensor | None, generator: torch.Generator
) -> ChainState:
    """One sweep at inverse temperature `beta` ([M, 1]; None for 1): h ~ p(h | v), then v ~ p(v | h).

    `couplings` are the model's folded products, made once for many sweeps. The chains' own beta is carried along.
    """
    hidden = torch.addmm(couplings.hidden_bias, chains.visible, couplings.to_hidden)
    hidden = rbm.hidden.sample_(hidden, beta, generator)
    visible = torch.addmm(couplings.visible_bias, hidden, couplings.to_visible)
    visible = rbm.visible.sample_(visible, beta, generator)
    return ChainState(visible, hidden, chains.beta)
