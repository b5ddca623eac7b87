"""An update of a BEAM on a CUDA device that works alone, as two graphs of few launches: up to the gradient, and from there.

The sweeps are samplers/fused.py's, the rest fused_kernels.py beside this; the reference is terms.py, to rounding. All rows are
one block, whatever sampler.num_blocks: the number of blocks does not enter, and bits are those of one worker.
"""

import importlib.util

import torch
from torch import Tensor

from pipeline.comm import LIMIT, Comm
from pipeline.config import RBMConfig
from pipeline.critics.adversary import Adversary, ReplicatedAdversary
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import NeighborCritic, mixed_order
from pipeline.critics.search import search_torch
from pipeline.device.graphs import Graphs
from pipeline.fused.sweeps import FusedGibbs, Tile, operand_form
from pipeline.learning.adam import Adam
from pipeline.models.rbm import RBM, Hidden
from pipeline.models.units import Gaussian
from pipeline.samplers.gibbs import ChainState
from pipeline.training.ascent import Ascent
from pipeline.training.block import Block, Particles
from pipeline.training.terms import Terms

if importlib.util.find_spec("triton"):
    import triton

    from pipeline.fused import update_kernels as kernels

_MOST_ROWS = 8192
"""Chains and data rows of an update up to which launches cost more than what they do; a graph holds its memory for good."""
_MOST_REMEMBERED = 1024
"""Rows of the memory up to which every distance is computed from differences."""
_MEANS, _GRADIENT = Tile(16, 32, 128, 4, 3), Tile(64, 32, 32, 4, 3)
_DISTANCES = Tile(8, 32, 32, 4, 3)


def can_fuse_update(comm: Comm, recall: Adversary | None, feature: str, optimizer: object, rows: int) -> bool:
    """True for one worker with standard Adam whose critic, if any, looks for neighbors among features that are no draws.

    With more than 1024 rows the search is the critic's own, and has to be torch's: faiss cannot be captured in a graph.
    """
    if comm.world_size > 1 or type(optimizer) is not Adam or rows > _MOST_ROWS:
        return False
    if recall is None:
        return True
    if not isinstance(recall, ReplicatedAdversary) or not isinstance(recall.critic, NeighborCritic):
        return False
    return (rows <= _MOST_REMEMBERED or recall.critic.search is search_torch) and feature != "hidden_sample"


class FusedUpdate:
    """Rows, chains, sums and the critic's memory in buffers that graphs can name."""

    def __init__(
        self,
        rbm: RBM,
        sweeps: FusedGibbs,
        rows: Tensor,
        recall: Adversary | None,
        feature: str,
        ascent: Ascent,
        graph: bool,
    ):
        """Make the buffers.

        Args:
            rbm: the model.
            sweeps: of all chains, M; its `statistics` are the last M rows of `rows`.
            rows: [B + M, V], for at most B data rows; those of a smaller batch end where the particles begin.
            recall: the critic and its memory, if any phase has an adversary.
            feature: what the critic sees, "hidden_mean" or "visible".
            ascent: of `rbm`.
            graph: capture the launches; needs a CUDA device.
        """
        assert (
            isinstance(rbm.config, RBMConfig)
            and sweeps.statistics.data_ptr() == rows[-len(sweeps.visible) :].data_ptr()
        )
        assert recall is None or isinstance(recall, ReplicatedAdversary)
        self.rbm, self.sweeps, self.rows, self.recall, self.feature = rbm, sweeps, rows, recall, feature
        self.ascent, self.graphs = ascent, Graphs(graph)
        num_visible, num_hidden = rbm.weights.shape
        self.num_chains, self.most_data = len(sweeps.visible), len(rows) - len(sweeps.visible)
        self.states = rows.new_zeros(len(rows), num_hidden)
        self.sums = {name: torch.zeros_like(p) for name, p in rbm.named_parameters()}
        self.sums["hidden_mean"] = rows.new_zeros(num_hidden)
        self.weights, self.scores = rows.new_zeros(len(rows)), rows.new_zeros(self.num_chains)
        self.mean_score = torch.zeros((), dtype=torch.float64, device=rows.device)
        self.square = rows.new_zeros(num_visible)
        self.coupling = rows.new_zeros(-(-num_hidden // _GRADIENT.cols), num_visible)
        features = rows if feature == "visible" else self.states
        self.remembered = torch.zeros_like(features)
        """Features of the update before, placed as the rows are."""
        few = recall is not None and len(rows) <= _MOST_REMEMBERED
        self.squared = rows.new_zeros(self.num_chains, len(rows)) if few else None
        self.rate, self._rate = rows.new_zeros(()), 0.0
        self._orders: dict[int, Tensor] = {}

    def data(self, num_data: int) -> Tensor:
        """Where an update's data rows [num_data, V] are to be put."""
        return self.rows[self.most_data - num_data : self.most_data]

    def hold(self, chains: list[ChainState]) -> list[ChainState]:
        """FusedGibbs.hold, for a start and after a checkpoint, which brings new tensors of the optimizer."""
        self.graphs.forget()
        return self.sweeps.hold(chains)

    def terms(self, step: int, num_data: int, gamma: float, with_critic: bool) -> tuple[Terms, Tensor]:
        """Move the chains and compute the terms of update `step` from them and the rows in `data`, as one block.

        Also the largest magnitude of each sum, and of the rows: what `bad` needs, on the device.
        """
        self.sweeps.step.fill_(step)
        memory = self._memory() if with_critic else None
        key = ("terms", num_data, gamma, memory and memory.num_data)
        return self.graphs(key, lambda: self._compute(num_data, gamma, memory))

    def ascend(self, rate: float, num_data: int, remember: bool) -> None:
        """Move the parameters along the sums of `terms`, then keep its features for the critic, if asked to."""
        if rate != self._rate:
            self.rate.fill_(rate)
            self._rate = rate
        self.graphs(("ascent", num_data, remember), lambda: self._ascend(num_data, remember))
        if remember:
            assert self.recall is not None
            self.recall.memory = self._remembered(num_data)

    def bad(self, largest: Tensor) -> tuple[str | None, list[int]]:
        """The first sum that was not finite or beyond LIMIT, if there is one, and this worker's rank if its rows were not."""
        fine = (largest < LIMIT).tolist()
        bad = next((name for name, is_fine in zip(self.sums, fine) if not is_fine), None)
        return bad, [] if bool(torch.isfinite(largest[-1])) else [0]

    @torch.no_grad()
    def _ascend(self, num_data: int, remember: bool) -> None:
        self.ascent.step(self.sums, self.rate)
        if remember:
            assert self.recall is not None
            features = (self.rows if self.feature == "visible" else self.states)[self.most_data - num_data :]
            self._remembered(num_data).features.copy_(self.recall.wire.unpack(self.recall.wire.pack(features)))

    def _remembered(self, num_data: int) -> Memory:
        return Memory(self.remembered[self.most_data - num_data :], num_data)

    def _memory(self) -> Memory:
        """The recall's memory, moved into the buffer if it came from a checkpoint."""
        assert self.recall is not None and self.recall.memory is not None
        memory = self.recall.memory
        mine = self._remembered(memory.num_data)
        if memory.features.data_ptr() != mine.features.data_ptr():
            mine.features.copy_(memory.features)
            self.recall.memory = mine
        return mine

    @torch.no_grad()
    def _compute(self, num_data: int, gamma: float, memory: Memory | None) -> tuple[Terms, Tensor]:
        self.sweeps.launch()
        rows, states, weights = (x[self.most_data - num_data :] for x in (self.rows, self.states, self.weights))
        features = rows if self.feature == "visible" else states
        self._means(rows, states)
        if memory is not None:
            self._score(features[num_data:], memory)
        kernels.row_weights[(1,)](
            self.scores, weights, self.mean_score, num_data, self.num_chains, gamma if memory is not None else 1.0,
            CRITIC=memory is not None,
            BD=triton.next_power_of_2(num_data), BM=triton.next_power_of_2(self.num_chains),
        )  # fmt: skip
        self._gradient(rows, states, weights, num_data)
        largest = torch.stack(torch._foreach_norm([*self.sums.values(), rows], float("inf")))
        data, particles = rows[:num_data], rows[num_data:]
        data_hidden, hidden = Hidden(states[:num_data], None), Hidden(states[num_data:], None)
        block = Block(
            data, data_hidden, features[:num_data], Particles(particles, hidden, features[num_data:]),
            self.scores if memory is not None else None,
        )  # fmt: skip
        return Terms([block], self.mean_score, self.sums), largest

    def _means(self, rows: Tensor, states: Tensor) -> None:
        (num_rows, num_visible), num_hidden, tile = rows.shape, states.shape[1], _MEANS
        grid = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_hidden, tile.cols)
        kernels.hidden_means[grid](
            rows, self.sweeps.exact_to_hidden, self.sweeps.exact_hidden_bias, states, num_rows, num_hidden, num_visible,
            PRECISION=operand_form(rows.dtype), EVEN=tile.fits(num_rows, num_hidden, num_visible),
            BM=tile.rows, BN=tile.cols, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    def _score(self, queries: Tensor, memory: Memory) -> None:
        assert self.recall is not None and isinstance(self.recall.critic, NeighborCritic)
        critic, count = self.recall.critic, len(memory.features)
        if self.squared is None:
            self.scores.copy_(critic.score(queries, memory, 0))
            return
        config = critic.config
        order = self._orders.get(memory.num_data)
        if order is None:  # kept: a graph names it
            order = mixed_order(memory.num_data, memory.num_particles, queries.device)
            self._orders[memory.num_data] = order
        tile = _DISTANCES
        grid = triton.cdiv(self.num_chains, tile.rows), triton.cdiv(count, tile.cols)
        kernels.distances[grid](
            queries, memory.features, order, self.squared, self.num_chains, count, queries.shape[1],
            BM=tile.rows, BN=tile.cols, BF=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        kernels.votes[(self.num_chains,)](
            self.squared, order, self.scores, count, memory.num_data, 0, config.num_neighbors, config.epsilon,
            float(config.sign), config.min_probability, DISTANCE=config.weighting == "distance",
            LINEAR=config.form == "linear", HIDE=config.exclude_own_chain, BN=triton.next_power_of_2(count),
        )  # fmt: skip

    def _gradient(self, rows: Tensor, states: Tensor, weights: Tensor, num_data: int) -> None:
        rbm, tile, sums = self.rbm, _GRADIENT, self.sums
        v, gaussian = rbm.visible, isinstance(rbm.visible, Gaussian)
        (num_visible, num_hidden) = rbm.weights.shape
        grid = triton.cdiv(num_visible, tile.rows), triton.cdiv(num_hidden, tile.cols)
        kernels.gradient[grid](
            rows, states, weights, rbm.weights, v.log_variance if gaussian else v.bias, v.bias, v.offset, rbm.hidden.offset,
            sums["weights"], sums["visible.bias"], sums["hidden.bias"], self.square, self.coupling, sums["hidden_mean"],
            len(rows), num_data, num_visible, num_hidden,
            GAUSSIAN=gaussian, BM=tile.rows, BN=tile.cols, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if gaussian:
            kernels.log_variance_gradient[(triton.cdiv(num_visible, 128),)](
                self.square, self.coupling, sums["visible.log_variance"], grid[1], num_visible, B=128
            )
