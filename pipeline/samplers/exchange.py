"""Replica exchange (parallel tempering): chains at fixed inverse temperatures that trade places.

Each chain at beta = 1 has replicas at lower beta, where modes are easily left. After every sweep neighbors in temperature
propose to exchange their states, and do so with probability

    min(1, exp((beta_i - beta_j) (E_i - E_j))),

which leaves the product of the laws p(v, h)^beta_i unchanged. The chains at beta = 1 are thus drawn from the model itself
and still change modes; no temperature drifts, so nothing needs to be corrected or weighted.

Rows are ordered by temperature, the coldest (beta = 1) first: with T temperatures and m chains, row t m + i is replica t of
chain i.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.rbm import RBM, Couplings
from pipeline.samplers.gibbs import ChainState, gibbs_sweep
from pipeline.streams import Random, RowStreams, uniform_


def geometric_betas(num_temperatures: int, lowest: float) -> tuple[float, ...]:
    """`num_temperatures` inverse temperatures from 1 down to `lowest`, at equal ratios; (1,) for one."""
    if num_temperatures == 1:
        return (1.0,)
    return tuple(lowest ** (t / (num_temperatures - 1)) for t in range(num_temperatures))


@dataclass(frozen=True)
class ExchangeGibbs:
    """`num_sweeps` sweeps of Gibbs at `betas` (from 1 downward), each followed by proposed exchanges.

    Even sweeps pair temperatures (0, 1), (2, 3), ...; odd ones (1, 2), (3, 4), ... .
    """

    betas: tuple[float, ...]
    num_sweeps: int

    def at_temperatures(self, chains: ChainState) -> ChainState:
        """The chains [T m, .] with beta set by their places."""
        betas = chains.beta.new_tensor(self.betas)
        return chains._replace(beta=betas.repeat_interleave(len(chains.beta) // len(betas))[:, None])

    def at_one(self, chains: ChainState) -> ChainState:
        """Select the m chains at beta = 1, views."""
        return ChainState(*(column[: len(column) // len(self.betas)] for column in chains))

    @torch.no_grad()
    def run(self, rbm: RBM, chains: ChainState, random: Random, couplings: Couplings | None = None) -> ChainState:
        """The chains of one block after `num_sweeps` sweeps and exchanges; see DrivenGibbs.run."""
        assert not isinstance(random, RowStreams) or len(random.rows) == 1
        couplings = couplings or rbm.couplings()
        for sweep in range(self.num_sweeps):
            chains = gibbs_sweep(rbm, couplings, chains, chains.beta, random)
            chains = self._exchange(rbm, chains, sweep % 2, random)
        return chains

    def _exchange(self, rbm: RBM, chains: ChainState, first: int, random: Random) -> ChainState:
        """The chains after one proposed exchange between temperatures first + 2 j and first + 2 j + 1, for every j."""
        num_pairs = (len(self.betas) - first) // 2
        if num_pairs == 0:
            return chains
        energy = rbm.energy(chains.visible, chains.hidden).view(len(self.betas), -1)
        cold = torch.arange(first, first + 2 * num_pairs, 2, device=energy.device)
        beta = energy.new_tensor(self.betas)
        log_ratio = (beta[cold] - beta[cold + 1])[:, None] * (energy[cold] - energy[cold + 1])
        accepted = uniform_(torch.empty_like(log_ratio), random).log_() < log_ratio
        source = torch.arange(len(chains.beta), device=energy.device).view_as(energy)
        there, back = source[cold], source[cold + 1]
        source = source.index_copy(0, cold, torch.where(accepted, back, there))
        source = source.index_copy(0, cold + 1, torch.where(accepted, there, back)).flatten()
        return chains._replace(visible=_picked(chains.visible, source), hidden=_picked(chains.hidden, source))


def _picked(rows: Tensor, source: Tensor) -> Tensor:
    return rows.index_select(0, source)
