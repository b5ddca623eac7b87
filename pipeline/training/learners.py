"""Learners: how the parameters of an RBM move along the summed gradient of an update, in ascent direction."""

from typing import Protocol

import torch
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import NaturalGradientConfig
from pipeline.learning.adam import Adam, load_optimizer_state, optimizer_state
from pipeline.learning.natural_gradient import natural_step
from pipeline.models.rbm import RBM
from pipeline.training.block import Rows
from pipeline.training.objective import part_of, prefixed


class Learner(Protocol):
    """Moves the parameters; every worker makes the same move."""

    def step(self, sums: dict[str, Tensor], rows: Rows, rate: float) -> None:
        """Move the parameters once, keep the scales above their floor, move the hidden offsets.

        Args:
            sums: the ascent direction by parameter, summed over all workers, and `hidden_mean` [H] where units are centered.
            rows: this worker's rows of the update.
            rate: learning rate.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """State on which the remaining updates depend besides the parameters, by full name; empty before the first update."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned, among other tensors."""
        ...


class AdamLearner:
    """Adam over all parameters; a fixed sigma does not move."""

    def __init__(self, rbm: RBM, optimizer: Adam):
        """`optimizer` is over the parameters of `rbm`, and maximizes."""
        self.rbm, self.optimizer = rbm, optimizer

    def step(self, sums: dict[str, Tensor], rows: Rows, rate: float) -> None:
        """See Learner."""
        self.move(sums, rate)

    def move(self, sums: dict[str, Tensor], rate: float | Tensor) -> None:
        """`step` without its rows; `rate` may be a scalar on the device, where the move is captured as a graph."""
        if self.rbm.config.fixed_std is not None:
            sums["visible.log_variance"].zero_()
        self.optimizer.step_along(sums, rate)
        clamp_and_center(self.rbm, sums)

    def state(self) -> dict[str, Tensor]:
        """See Learner: the moments."""
        return prefixed("optimizer.", optimizer_state(self.optimizer, self.rbm))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Learner."""
        load_optimizer_state(self.optimizer, self.rbm, part_of(state, "optimizer."))


class NaturalLearner:
    """Natural gradient; every worker computes it from the rows of all, in the order of blocks. It has no state."""

    def __init__(self, rbm: RBM, config: NaturalGradientConfig, comm: Comm):
        """Nothing to prepare."""
        self.rbm, self.config, self.comm = rbm, config, comm
        self.frozen = frozenset() if rbm.config.fixed_std is None else frozenset({"visible.log_variance"})

    def step(self, sums: dict[str, Tensor], rows: Rows, rate: float) -> None:
        """See Learner."""
        empty = self.rbm.weights.new_zeros(0, self.rbm.config.num_visible)
        data, particles = (
            self.comm.gather(torch.cat(mine or [empty]), self.comm.rows_per_rank(block_rows))
            for mine, block_rows in (
                ([block.data for block in rows.blocks], rows.data_rows),
                ([block.particles.visible for block in rows.blocks], rows.chain_rows),
            )
        )
        change = natural_step(self.rbm, sums, data, particles, self.config, rate, self.frozen)
        for name, parameter in self.rbm.named_parameters():
            parameter.add_(change[name].to(parameter.dtype))
        clamp_and_center(self.rbm, sums)

    def state(self) -> dict[str, Tensor]:
        """See Learner."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Learner."""


def clamp_and_center(rbm: RBM, sums: dict[str, Tensor]) -> None:
    """Clamp the scales; where hidden units are centered, move their offsets towards the data's mean states in `sums`."""
    config = rbm.config
    if config.fixed_std is None:
        rbm.visible.clamp_(config.min_std)
    rbm.hidden.clamp_(config.min_std)
    if config.center_hidden:
        mean = sums["hidden_mean"].to(rbm.hidden.offset.dtype)
        rbm.move_hidden_offset_(rbm.hidden.offset.lerp(mean, config.centering_rate))
