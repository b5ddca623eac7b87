"""An update of a BEAM on a CUDA device that works alone, as two graphs of few launches: up to the gradient, and from there.

The sweeps are sweeps.py's, the rest update_kernels.py's; the reference is training/beam.py, to rounding. All rows are one
block, whatever sampler.num_blocks: the number of blocks does not enter, and bits are those of one worker.
"""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.comm import LIMIT, Comm
from pipeline.config import RBMConfig, RunConfig
from pipeline.critics.adversary import Adversary, ReplicatedAdversary
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import NeighborCritic, mixed_order
from pipeline.critics.search import search_torch
from pipeline.data.batches import Batches
from pipeline.fused.sweeps import FusedChains, Tile, operand_form
from pipeline.learning.adam import Adam
from pipeline.models.rbm import RBM, Hidden
from pipeline.models.units import Gaussian
from pipeline.samplers.protocols import WideStart
from pipeline.training.beam import BeamObjective
from pipeline.training.block import Block, Features, Particles, Rows
from pipeline.training.guard import Bad, Guard
from pipeline.training.learners import AdamLearner, Learner
from pipeline.training.monitors import Monitors

if importlib.util.find_spec("triton"):
    import triton

    from pipeline.fused import update_kernels as kernels

_MOST_ROWS = 8192
"""Chains and data rows of an update up to which launches cost more than what they do; a graph holds its memory for good."""
_MOST_REMEMBERED = 1024
"""Rows of the memory up to which every distance is computed from differences."""
_MEANS, _GRADIENT = Tile(16, 32, 128, 4, 3), Tile(64, 32, 32, 4, 3)
_DISTANCES = Tile(8, 32, 32, 4, 3)


def can_fuse_update(config: RunConfig, comm: Comm, adversary: Adversary | None, learner: Learner) -> bool:
    """True for one worker with standard Adam whose critic, if any, looks for neighbors among features that are not draws.

    With more than 1024 rows the search is the critic's own, and has to be torch's: faiss cannot be captured in a graph.
    """
    assert config.sampler is not None
    rows = config.data.batch_size + config.sampler.num_chains
    if not isinstance(learner, AdamLearner) or type(learner.optimizer) is not Adam:
        return False
    if comm.world_size > 1 or rows > _MOST_ROWS:
        return False
    if adversary is None:
        return True
    if not isinstance(adversary, ReplicatedAdversary) or not isinstance(adversary.critic, NeighborCritic):
        return False
    searches = rows <= _MOST_REMEMBERED or adversary.critic.search is search_torch
    return searches and adversary.critic.config.feature != "hidden_sample"


class LargestGuard(Guard):
    """Checks the largest magnitude of each sum and of the rows, the one watched value, on one worker."""

    def __init__(self, names: Sequence[str], gradients: Sequence[str], comm: Comm):
        """`names` of the sums in their order, and those of them that are gradients."""
        super().__init__(comm)
        self.names, self.gradients = list(names), frozenset(gradients)

    def look(self, values: Sequence[Tensor]) -> Tensor:
        """See Guard."""
        return values[0]

    def bad(self, found: Tensor, values: Sequence[Tensor]) -> Bad | None:
        """See Guard."""
        name = next((name for name, fine in zip(self.names, (found < LIMIT).tolist()) if not fine), None)
        if name is None:
            return None
        gradient = "the gradient of " if name in self.gradients else ""
        return Bad(f"{gradient}{name}", [] if bool(torch.isfinite(found[-1])) else [0])


class FusedBeam(BeamObjective):
    """A BEAM whose update is a FusedUpdate; all else is BeamObjective's."""

    def __init__(
        self,
        config: RunConfig,
        batches: Batches,
        rbm: RBM,
        chains: FusedChains,
        learner: Learner,
        adversary: Adversary | None,
        features: Features,
        monitors: Monitors,
        wide_start: WideStart,
        comm: Comm,
    ):
        """See BeamObjective; `chains` have room for a batch of data rows, and `can_fuse_update` is true."""
        assert isinstance(learner, AdamLearner) and isinstance(adversary, ReplicatedAdversary | None)
        super().__init__(config, batches, rbm, chains, learner, adversary, features, monitors, wide_start, comm)
        feature = config.critic.feature if config.critic else "hidden_mean"
        self.update = FusedUpdate(rbm, chains, learner, adversary, feature)
        self.guard = LargestGuard(list(self.update.sums), [name for name, _ in rbm.named_parameters()], self.comm)

    @torch.no_grad()
    def step(self, step: int, measure: bool) -> dict[str, float]:
        """See BeamObjective.step: the same order, in two launches."""
        at, num_data = self.schedule.at(step), self.batches.size(step)
        data = self.batches.batch(step, out=self.update.data(num_data))
        self.noisy(list(data.split(self.batches.block_rows(step))), at)
        memory = self.remembered(step, at)
        rows, largest = self.update.summed(step, num_data, at.gamma, memory is not None)
        self.guard.check()  # of the update before
        self.guard.watch(step, [largest], now=measure)
        report = self.report(step, at)
        if measure:
            report |= self.measured(rows, self.update.mean_score, memory)
        self.update.ascend(at.rate, num_data, remember=at.gamma < 1)
        return report


class FusedUpdate:
    """Rows, chains, sums and the critic's memory in buffers that graphs can name."""

    def __init__(
        self, rbm: RBM, chains: FusedChains, learner: AdamLearner, adversary: ReplicatedAdversary | None, feature: str
    ):
        """Make the buffers.

        Args:
            rbm: the model.
            chains: all M of the run, with room for at most B data rows; those of a smaller batch end where the particles begin.
            learner: of `rbm`.
            adversary: the critic and its memory, if any phase has an adversary.
            feature: what the critic sees, "hidden_mean" or "visible".
        """
        assert isinstance(rbm.config, RBMConfig)
        rows = chains.rows
        self.rbm, self.gibbs, self.rows, self.adversary, self.feature = rbm, chains.gibbs, rows, adversary, feature
        self.learner, self.graphs = learner, chains.gibbs.graphs
        num_visible, num_hidden = rbm.weights.shape
        self.num_chains = len(self.gibbs.visible)
        self.most_data = len(rows) - self.num_chains
        self.states = rows.new_zeros(len(rows), num_hidden)
        self.sums = {name: torch.zeros_like(p) for name, p in rbm.named_parameters()}
        self.sums["hidden_mean"] = rows.new_zeros(num_hidden)
        self.weights, self.scores = rows.new_zeros(len(rows)), rows.new_zeros(self.num_chains)
        self.mean_score = torch.zeros((), dtype=torch.float64, device=rows.device)
        """Mean of T over the particles; 0 without a memory."""
        self.square = rows.new_zeros(num_visible)
        self.coupling = rows.new_zeros(-(-num_hidden // _GRADIENT.cols), num_visible)
        features = rows if feature == "visible" else self.states
        self.remembered = torch.zeros_like(features)
        """Features of the update before, placed as the rows are."""
        few = adversary is not None and len(rows) <= _MOST_REMEMBERED
        self.squared = rows.new_zeros(self.num_chains, len(rows)) if few else None
        self.rate, self._rate = rows.new_zeros(()), 0.0
        self._orders: dict[int, Tensor] = {}

    def data(self, num_data: int) -> Tensor:
        """The place for an update's data rows [num_data, V]."""
        return self.rows[self.most_data - num_data : self.most_data]

    def summed(self, step: int, num_data: int, gamma: float, with_critic: bool) -> tuple[Rows, Tensor]:
        """Move the chains, and sum the gradient of update `step` over them and the rows in `data`, as one block, into `sums`.

        Also returns the largest magnitude of each sum, and of the rows, for a LargestGuard.
        """
        self.gibbs.step.fill_(step)
        memory = self._memory() if with_critic else None
        key = ("summed", num_data, gamma, memory and memory.num_data)
        return self.graphs(key, lambda: self._compute(num_data, gamma, memory))

    def ascend(self, rate: float, num_data: int, remember: bool) -> None:
        """Move the parameters along `sums`, then keep the features for the critic, if asked to."""
        if rate != self._rate:
            self.rate.fill_(rate)
            self._rate = rate
        self.graphs(("ascent", num_data, remember), lambda: self._ascend(num_data, remember))
        if remember:
            assert self.adversary is not None
            self.adversary.memory = self._remembered(num_data)

    @torch.no_grad()
    def _ascend(self, num_data: int, remember: bool) -> None:
        self.learner.move(self.sums, self.rate)
        if remember:
            assert self.adversary is not None
            features = (self.rows if self.feature == "visible" else self.states)[self.most_data - num_data :]
            self._remembered(num_data).features.copy_(self.adversary.wire.unpack(self.adversary.wire.pack(features)))

    def _remembered(self, num_data: int) -> Memory:
        return Memory(self.remembered[self.most_data - num_data :], num_data)

    def _memory(self) -> Memory:
        """The adversary's memory, moved into the buffer if it came from a checkpoint."""
        assert self.adversary is not None and self.adversary.memory is not None
        memory = self.adversary.memory
        mine = self._remembered(memory.num_data)
        if memory.features.data_ptr() != mine.features.data_ptr():
            mine.features.copy_(memory.features)
            self.adversary.memory = mine
        return mine

    @torch.no_grad()
    def _compute(self, num_data: int, gamma: float, memory: Memory | None) -> tuple[Rows, Tensor]:
        self.gibbs.launch()
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
            data, data_hidden, features[:num_data],
            Particles(particles, hidden, features[num_data:], self.gibbs.chains.beta),
            self.scores if memory is not None else None,
        )  # fmt: skip
        return Rows([block], [num_data], [self.num_chains]), largest

    def _means(self, rows: Tensor, states: Tensor) -> None:
        (num_rows, num_visible), num_hidden, tile = rows.shape, states.shape[1], _MEANS
        grid = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_hidden, tile.cols)
        kernels.hidden_means[grid](
            rows, self.gibbs.exact_to_hidden, self.gibbs.exact_hidden_bias, states, num_rows, num_hidden, num_visible,
            PRECISION=operand_form(rows.dtype), EVEN=tile.fits(num_rows, num_hidden, num_visible),
            BM=tile.rows, BN=tile.cols, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    def _score(self, queries: Tensor, memory: Memory) -> None:
        assert self.adversary is not None and isinstance(self.adversary.critic, NeighborCritic)
        critic, count = self.adversary.critic, len(memory.features)
        if self.squared is None:
            # by torch, whatever search a checkpoint has brought: faiss cannot be captured
            self.scores.copy_(NeighborCritic(critic.config, search_torch).score(queries, memory, 0))
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
