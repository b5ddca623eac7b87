"""The gradient's sums of one step: hidden statistics of the rows, T of the particles, weighted energy gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.comm import Comm, ExactSum, snap_to_grid
from pipeline.config import RBMConfig
from pipeline.critics.adversary import Adversary
from pipeline.models.rbm import RBM, Couplings, Hidden
from pipeline.training.block import Block, Counts, Particles, ascent_direction


class Terms(NamedTuple):
    """What a step's rows bring; valid until the next step's."""

    blocks: list[Block]
    mean_score: Tensor
    """Mean of T over the particles of all workers, float64 scalar; 0 without a memory."""
    sums: dict[str, Tensor]
    """Over all workers: the ascent direction by parameter, and `hidden_mean` [H] of the data where offsets follow it."""


class GradientSums:
    """Computes the terms of this worker's blocks."""

    def __init__(
        self,
        rbm: RBM,
        comm: Comm,
        block_chains: list[int],
        feature: str,
        generators: list[torch.Generator],
        recall: Adversary | None,
    ):
        """Make the buffer of the sums.

        Args:
            rbm: the model.
            comm: this worker's group.
            block_chains: numbers of chains of all blocks of the run.
            feature: what the critic sees, as in the config.
            generators: of this worker's blocks, for sampled features.
            recall: the critic and its memory, if any phase has an adversary.
        """
        assert isinstance(rbm.config, RBMConfig)
        self.rbm, self.comm, self.block_chains, self.feature = rbm, comm, block_chains, feature
        self.generators, self.recall = generators, recall
        shapes = {name: p.shape for name, p in rbm.named_parameters()}
        centers = {"hidden_mean": (rbm.config.num_hidden,)} if rbm.config.center_hidden else {}
        self._no_score = torch.zeros((), dtype=torch.float64, device=comm.device)
        self.sums = ExactSum({**shapes, **centers}, comm.device, single=len(block_chains) == 1)

    def take(
        self,
        data: list[Tensor],
        visible: list[Tensor],
        gamma: float,
        with_critic: bool,
        counts: Counts,
        couplings: Couplings | None,
    ) -> Terms:
        """The terms of one step.

        Args:
            data: rows [b, V] of each block of this worker.
            visible: states [m, V] of its particles.
            gamma: of the phase.
            with_critic: the recall is ready, and enters.
            counts: global numbers of rows.
            couplings: of the present parameters, where the caller has them.
        """
        couplings = couplings or self.rbm.couplings()
        blocks = [self._block(i, *rows, couplings, gamma) for i, rows in enumerate(zip(data, visible))]
        mean_score = self._no_score
        if with_critic:
            assert self.recall is not None
            scores = self.recall.score([block.particles.features for block in blocks], self.block_chains, own=True)
            blocks = [block._replace(scores=t) for block, t in zip(blocks, scores)]
            mean_score = self._mean_score(scores)
        weight = gamma if with_critic else 1.0
        # a number where it can be had without waiting for a device
        mean = float(mean_score) if self.comm.device.type == "cpu" else mean_score
        self.sums.zero_()
        for block in blocks:
            self.sums.add_(ascent_direction(self.rbm, block, weight, mean, counts))
            if "hidden_mean" in self.sums.parts:
                self.sums.add_({"hidden_mean": block.data_hidden.states.sum(0) / counts.data})
        return Terms(blocks, mean_score, self.sums.reduce(self.comm))

    def _block(self, i: int, data: Tensor, visible: Tensor, couplings: Couplings, gamma: float) -> Block:
        """What this worker's i-th block brings to a step: its data rows and its particles."""
        generator = self.generators[i]
        data_hidden = self.rbm.hidden_statistics(data, couplings)
        hidden = self.rbm.hidden_statistics(visible, couplings)
        if self.feature == "hidden_sample" and gamma < 1:
            hidden = Hidden(self._sample_hidden(visible, generator), None)
            features, data_features = hidden.states, self._sample_hidden(data, generator)
        elif self.feature == "visible":
            features, data_features = visible, data
        else:
            features, data_features = hidden.states, data_hidden.states
        return Block(data, data_hidden, data_features, Particles(visible, hidden, features), None)

    def _sample_hidden(self, visible: Tensor, generator: torch.Generator) -> Tensor:
        return self.rbm.hidden.sample_(self.rbm.hidden.bias + self.rbm.hidden_field(visible), None, generator)

    def _mean_score(self, scores: list[Tensor]) -> Tensor:
        """Mean of T over the particles of all workers."""
        total = torch.zeros((), dtype=torch.float64, device=self.comm.device)
        for t in scores:
            total += snap_to_grid(t).sum()  # exact, so in any order
        return self.comm.sum_(total) / sum(self.block_chains)
