"""Fixed sampling protocols for evaluation and pictures: no setting that a search may change enters them.

Chains start wide (each visible unit from the data's mean and standard deviation, discrete units from their mean alone) and

- `fresh`:  100 sweeps of Gibbs at beta = 1 (the paper's Fig. 6);
- `driven`: 100 sweeps of the driven sampler at std 0.95, phi 0.9, then 5 at beta = 1. It covers more modes and is the
  default for pictures and selection.

Rows are drawn in blocks of 32 with a generator each, so the result does not depend on the number of workers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.comm import Comm, split_rows
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess, plain_gibbs
from pipeline.samplers.gibbs import ChainState
from pipeline.streams import stream

ROWS_PER_BLOCK = 32


class Protocol(NamedTuple):
    """A sequence of samplers, each going on where the last one ended."""

    name: str
    stages: tuple[DrivenGibbs, ...]


FRESH = Protocol("fresh", (plain_gibbs(100),))
DRIVEN = Protocol("driven", (DrivenGibbs(GammaProcess(0.95, 0.9), 100), plain_gibbs(5)))


class Samples(NamedTuple):
    """Rows drawn from a model."""

    visible: Tensor
    """v [n, V], with the noise of the visible units."""
    visible_mean: Tensor
    """E[v | h] of the last sweep [n, V]; what a picture shows."""


class WideStart(NamedTuple):
    """Mean and standard deviation per visible unit [V] of the data from which chains start; a part of a packaged model."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, data: Tensor) -> "WideStart":
        """Moments of data rows [N, V]."""
        return cls(data.double().mean(0).to(data.dtype), data.double().std(0).to(data.dtype))

    def draw(self, rbm: RBM, rows: int, generator: torch.Generator) -> ChainState:
        """`rows` chains at independent wide positions, beta 1; the hidden states are set by the first sweep."""
        mean = self.mean.expand(rows, -1)
        visible = rbm.visible.spread(mean, self.std, generator)
        ones = torch.ones(rows, 1, dtype=mean.dtype, device=mean.device)
        return ChainState(visible, visible.new_zeros(rows, len(rbm.hidden.bias)), ones)


@torch.no_grad()
def draw_samples(
    rbm: RBM, start: WideStart, protocol: Protocol, num_rows: int, seed: int, comm: Comm | None = None
) -> Samples:
    """`num_rows` samples by `protocol`, the same on all workers, who share the work; `seed` fixes every number."""
    comm = comm or Comm(device=rbm.weights.device)
    block_rows = split_rows(num_rows, max(1, -(-num_rows // ROWS_PER_BLOCK)))
    visible, means = [], []
    for block in comm.my_blocks(len(block_rows)):
        generator = stream(seed, f"evaluation {protocol.name}", block, device=rbm.weights.device)
        chains = start.draw(rbm, block_rows[block], generator)
        for sampler in protocol.stages:
            beta = sampler.process.stationary(chains.beta, generator)
            chains = sampler.run(rbm, chains._replace(beta=beta), generator)
        visible.append(chains.visible)
        means.append(rbm.visible_mean(chains.hidden))
    rows_per_rank = comm.rows_per_rank(block_rows)
    empty = rbm.weights.new_zeros(0, rbm.weights.shape[0])
    return Samples(
        comm.gather(torch.cat(visible or [empty]), rows_per_rank),
        comm.gather(torch.cat(means or [empty]), rows_per_rank),
    )
