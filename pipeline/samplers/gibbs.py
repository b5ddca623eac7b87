"""Block Gibbs sweeps: draw all hidden units given the visible, then all visible given the hidden."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.models.rbm import RBM, Couplings
from pipeline.models.units import OneHot
from pipeline.streams import Random


class ChainState(NamedTuple):
    """The state from which the next Gibbs step of some chains starts; every field lives on the model's device."""

    visible: Tensor
    """[M, V]"""
    hidden: Tensor
    """[M, H], the draw from which `visible` was drawn."""
    beta: Tensor
    """[M, 1], the driven sampler's inverse temperatures; ones for plain Gibbs."""


class Sampler(Protocol):
    """A way to move the persistent chains of one block."""

    @property
    def replicas(self) -> int:
        """Chain states per chain: 1, or the number of temperatures of replica exchange."""
        ...

    def start(self, chains: ChainState, random: Random) -> ChainState:
        """New chains [replicas m, .] with the inverse temperatures of a start."""
        ...

    def run(self, rbm: RBM, chains: ChainState, random: Random, couplings: Couplings | None = None) -> ChainState:
        """The chains after the sampler's Gibbs steps; `couplings` are `rbm.couplings()`, where the caller has them."""
        ...

    def at_one(self, chains: ChainState) -> ChainState:
        """The m chains that count as draws from the model, of chain states [replicas m, .]; views."""
        ...


@torch.no_grad()
def gibbs_sweep(rbm: RBM, couplings: Couplings, chains: ChainState, beta: Tensor | None, random: Random) -> ChainState:
    """One sweep at inverse temperature `beta` ([M, 1]; None for 1): h ~ p(h | v), then v ~ p(v | h).

    `couplings` are the model's folded products, made once for many sweeps. The chains' own beta is carried along.
    """
    hidden = torch.addmm(couplings.hidden_bias, chains.visible, couplings.to_hidden)
    hidden = rbm.hidden.sample_(hidden, beta, random)
    visible = torch.addmm(couplings.visible_bias, hidden, couplings.to_visible)
    visible = rbm.visible.sample_(visible, beta, random)
    return ChainState(visible, hidden, chains.beta)


_MOST_TRIALS, _LEAST_TRIALS, _COMPARED = 16, 4, 2**20
"""Trials of blocks_stand_alone: enough that about so many sums are compared."""


@torch.no_grad()
def blocks_stand_alone(rbm: RBM, rows: Sequence[int]) -> bool:
    """True when blocks of `rows` rows can be swept in one tensor and each keep the bits that it has when swept alone.

    Larger products are faster, but a library may add up a row in another order when there are more rows beside it, and a
    vectorized function may treat the last few values of a tensor differently. Which it does depends on shapes and on where
    a tensor begins in memory, not on the values; but other orders often round alike, so products both ways and conditional
    means are compared bit by bit on several draws. One-hot layers are never merged.
    """
    if isinstance(rbm.visible, OneHot) or isinstance(rbm.hidden, OneHot):
        return False
    like = rbm.weights.detach()
    generator = torch.Generator(device=like.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)

    def means(v: Tensor, h: Tensor, weights: Tensor, bias_v: Tensor, bias_h: Tensor) -> tuple[Tensor, ...]:
        to_h, to_v = torch.addmm(bias_h, v, weights), torch.addmm(bias_v, h, weights.T)
        return to_h, to_v, rbm.hidden.mean(to_h), rbm.visible.mean(to_v)

    num_visible, num_hidden = like.shape
    trials = _COMPARED // max(1, sum(rows) * (num_visible + num_hidden))
    for trial in range(max(_LEAST_TRIALS, min(_MOST_TRIALS, trials))):
        v, h = draw(sum(rows), num_visible), draw(sum(rows), num_hidden)
        if trial % 2:
            v, h = v.gt(0).to(v), h.gt(0).to(h)
        # weights of its own: those of a run may still be zero
        model = draw(num_visible, num_hidden) / max(num_visible, num_hidden) ** 0.5, draw(num_visible), draw(num_hidden)
        together = means(v, h, *model)
        # copies begin where a block's own tensor would, not amid another one
        pairs = zip(v.split(list(rows)), h.split(list(rows)))
        apart = [means(part_v.clone(), part_h.clone(), *model) for part_v, part_h in pairs]
        if not all(torch.equal(whole, torch.cat(parts)) for whole, parts in zip(together, zip(*apart))):
            return False
    return True
