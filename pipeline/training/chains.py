"""Persistent chains (fantasy particles) of this worker: how they start, move, and are saved."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from pipeline.comm import Comm, split_rows
from pipeline.config import SamplerConfig
from pipeline.device.precision import Precision, Products, rounding_operands
from pipeline.models.rbm import RBM, Couplings
from pipeline.samplers.driven import plain_gibbs
from pipeline.samplers.gibbs import ChainState, Sampler, blocks_stand_alone
from pipeline.streams import RowStreams, stream
from pipeline.training.objective import part_of, prefixed

Start = Callable[[int, Generator], ChainState]
"""Makes a number of chains at beta = 1, from the block's random stream."""


def start_at_data(rbm: RBM, rows: Tensor) -> Start:
    """A start at random rows of the data [N, V]."""

    def draw(count: int, generator: Generator) -> ChainState:
        visible = rows[torch.randint(len(rows), (count,), generator=generator, device=rows.device)]
        return ChainState(visible, visible.new_zeros(count, rbm.config.num_hidden), visible.new_ones(count, 1))

    return draw


class Chains:
    """Chains dealt to workers in fixed blocks, each with a random stream of its own. A subclass says how they move."""

    def __init__(self, rbm: RBM, sampler: Sampler, config: SamplerConfig, start: Start, seed: int, comm: Comm):
        """Start this worker's chains.

        Args:
            rbm: the model, whose present parameters every move uses.
            sampler: moves the chains of one block.
            config: numbers of chains and blocks, and of the Gibbs steps for the statistics.
            start: where chains start.
            seed: of the run.
            comm: this worker's group and device.
        """
        self.rbm, self.sampler, self.comm = rbm, sampler, comm
        self.block_rows = split_rows(config.num_chains, config.num_blocks)
        """Chains of every block of the run."""
        self.blocks = comm.my_blocks(config.num_blocks)
        self.generators = [stream(seed, "chains", b, device=comm.device) for b in self.blocks]
        sizes = [self.block_rows[b] * sampler.replicas for b in self.blocks]
        self.states = [sampler.start(start(n, g), g) for n, g in zip(sizes, self.generators)]
        """Chain states of each block of this worker: its chains and, with replica exchange, their hotter replicas."""

    def advance(self, step: int, couplings: Couplings) -> list[Tensor]:
        """Move the chains by the sampler's Gibbs steps, then a copy of them at beta = 1.

        Args:
            step: number of the update.
            couplings: of the present parameters.

        Returns:
            Visible states [m, V] of the copy, for the statistics, by block.
        """
        raise NotImplementedError

    def at_one(self) -> list[ChainState]:
        """The chains of each block of this worker that count as draws from the model."""
        return [self.sampler.at_one(state) for state in self.states]

    def samples(self) -> ChainState:
        """The chains of all workers that count as draws from the model, in the order of blocks."""
        return self._gathered(self.at_one(), self.block_rows)

    def _gathered(self, states: Sequence[ChainState], block_rows: list[int]) -> ChainState:
        like = self.rbm.weights
        empty = ChainState(*(like.new_zeros(0, n) for n in (*like.shape, 1)))
        columns = [torch.cat(parts) for parts in zip(*(states or [empty]))]
        return ChainState(*(self.comm.gather(c, self.comm.rows_per_rank(block_rows)) for c in columns))

    def state(self) -> dict[str, Tensor]:
        """All chain states in the order of blocks, and the states of the blocks' streams [num_blocks, bytes]."""
        all_rows = [rows * self.sampler.replicas for rows in self.block_rows]
        generators = [g.get_state() for g in self.generators]
        width = stream(0, "size", device=self.comm.device).get_state().numel()
        mine = torch.stack(generators) if generators else torch.zeros(0, width, dtype=torch.uint8)
        per_rank = self.comm.rows_per_rank([1] * len(self.block_rows))
        return {
            **prefixed("chains.", self._gathered(self.states, all_rows)._asdict()),
            "generators": self.comm.gather(mine.to(self.comm.device), per_rank),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned, among other tensors."""
        saved, all_rows = part_of(state, "chains."), [rows * self.sampler.replicas for rows in self.block_rows]
        columns = [saved[name].to(self.comm.device).split(all_rows) for name in ChainState._fields]
        self.states = [ChainState(*(column[b].clone() for column in columns)) for b in self.blocks]
        for generator, block in zip(self.generators, self.blocks):
            generator.set_state(state["generators"][block].clone())


class TorchChains(Chains):
    """Chains moved by torch; blocks are moved as one tensor where that changes no bit, since small products are slower."""

    def __init__(
        self,
        rbm: RBM,
        sampler: Sampler,
        config: SamplerConfig,
        start: Start,
        seed: int,
        comm: Comm,
        arithmetic: tuple[Precision, Products],
    ):
        """See Chains; `arithmetic` is that of the Gibbs steps' normal numbers on a CPU, and of their products."""
        super().__init__(rbm, sampler, config, start, seed, comm)
        self.statistics_sampler = plain_gibbs(config.statistics_sweeps)
        self.precision, self.products = arithmetic
        rows = [self.block_rows[b] for b in self.blocks]
        with rounding_operands(self.products):
            together = (
                sampler.replicas == 1 and len(rows) > 1 and (comm.device.type != "cpu" or blocks_stand_alone(rbm, rows))
            )
        self.groups = [list(range(len(rows)))] if together else [[i] for i in range(len(rows))]
        """Places of the blocks that are moved as one tensor."""

    def advance(self, step: int, couplings: Couplings) -> list[Tensor]:
        """See Chains."""
        with rounding_operands(self.products):
            return [visible for group in self.groups for visible in self._advance(group, couplings)]

    def _advance(self, group: list[int], couplings: Couplings) -> list[Tensor]:
        """`advance` of the blocks at these places."""
        rows = [len(self.states[i].beta) for i in group]
        random = RowStreams([self.generators[i] for i in group], rows, self.precision == "bfloat16")
        moved = self.states[group[0]]
        if len(group) > 1:
            moved = ChainState(*(torch.cat(columns) for columns in zip(*(self.states[i] for i in group))))
        moved = self.sampler.run(self.rbm, moved, random, couplings)
        visible = self.statistics_sampler.run(self.rbm, self.sampler.at_one(moved), random, couplings).visible
        if len(group) == 1:
            self.states[group[0]] = moved
            return [visible]
        for i, parts in zip(group, zip(*(column.split(rows) for column in moved))):
            self.states[i] = ChainState(*parts)
        # copies: products of a tensor that begins amid another one may differ in bits
        return [part.clone() for part in visible.split(rows)]
