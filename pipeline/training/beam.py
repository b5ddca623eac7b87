"""One update of a BEAM, on one page: an RBM trained by likelihood and adversary together (Eq. 9).

Data rows and chains are dealt to workers in fixed blocks. Each update moves the chains, scores them against the memory of
the update before, sums one weighted energy gradient over all rows of all workers, and moves the parameters along it. With
gamma = 1 there is no memory, and the numbers are those of persistent contrastive divergence.
"""

import torch
from torch import Tensor

from pipeline.comm import Comm, ExactSum, snap_to_grid
from pipeline.config import RunConfig
from pipeline.critics.adversary import Adversary
from pipeline.data.batches import Batches
from pipeline.learning.schedule import At, Schedule
from pipeline.models.rbm import RBM, Couplings
from pipeline.samplers.protocols import WideStart
from pipeline.training.block import Features, Measurements, Rows, ascent_direction, look
from pipeline.training.chains import Chains
from pipeline.training.guard import Guard, SumGuard
from pipeline.training.learners import Learner
from pipeline.training.monitors import Monitors
from pipeline.training.objective import Evaluation, part_of, prefixed, require_fit, saved


class BeamObjective:
    """A BEAM on `comm.world_size` workers; implements training.objective.Objective. pipeline/build.py makes it."""

    def __init__(
        self,
        config: RunConfig,
        batches: Batches,
        rbm: RBM,
        chains: Chains,
        learner: Learner,
        adversary: Adversary | None,
        features: Features,
        monitors: Monitors,
        wide_start: WideStart,
        comm: Comm,
    ):
        """Put the pieces together.

        Args:
            config: of the run.
            batches: the training rows, whitened, the same on all workers.
            rbm: the model, on `comm.device`.
            chains: this worker's.
            learner: moves the parameters of `rbm`.
            adversary: the critic and its memory; None when gamma is 1 in all phases.
            features: gives blocks the features that the critic sees.
            monitors: of the held-out rows.
            wide_start: moments of the training rows, where the chains of evaluations start.
            comm: this worker's group.
        """
        self.config, self.comm, self.batches, self.rbm, self.chains = config, comm, batches, rbm, chains
        self.learner, self.adversary, self.features = learner, adversary, features
        self.monitors, self.wide_start = monitors, wide_start
        self.schedule = Schedule(config.schedules, batches.steps_per_epoch, config.epochs_scale)
        gradients = {name: p.shape for name, p in rbm.named_parameters()}
        centers = {"hidden_mean": (rbm.config.num_hidden,)} if rbm.config.center_hidden else {}
        self.sums = ExactSum({**gradients, **centers}, comm.device, single=len(chains.block_rows) == 1)
        self.guard: Guard = SumGuard(self.sums, comm, list(gradients))
        self.measurements = Measurements(rbm, comm.device)

    # --- one update ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, step: int, measure: bool) -> dict[str, float]:
        """One update; see Objective.step. All returned numbers are global."""
        at, couplings = self.schedule.at(step), self.rbm.couplings()
        data = self.noisy(self.batches.blocks(step, self.chains.blocks), at)
        visible = self.chains.advance(step, couplings)
        self.guard.check()  # of the update before, for which a GPU would have waited
        memory = self.remembered(step, at)  # its gather ran meanwhile
        rows = self.look(step, data, visible, couplings, at)
        rows, mean_score = self.scored(rows, memory)
        sums = self.summed(rows, mean_score, at.gamma if memory else 1.0)
        self.guard.watch(step, rows.tensors(), now=measure)
        report = self.report(step, at)
        if measure:
            report |= self.measured(rows, mean_score, memory)
        self.learner.step(sums, rows, at.rate)
        self.remember(rows, at)
        return report

    def noisy(self, data: list[Tensor], at: At) -> list[Tensor]:
        """Add the schedule's noise to the data rows [b, V] of each block, in place."""
        if at.noise > 0:
            for rows, generator in zip(data, self.chains.generators):
                rows.add_(torch.empty_like(rows).normal_(generator=generator).mul_(at.noise))
        return data

    def remembered(self, step: int, at: At) -> Adversary | None:
        """The adversary with the memory of the update before; None with gamma = 1, and in the first update below."""
        return self.adversary if at.gamma < 1 and self.adversary and self.adversary.ready(step) else None

    def look(self, step: int, data: list[Tensor], visible: list[Tensor], couplings: Couplings, at: At) -> Rows:
        """E[h given v] of the data rows and particles, and the features of both that the critic sees."""
        betas = [chains.beta for chains in self.chains.at_one()]
        blocks = [look(self.rbm, *rows, couplings) for rows in zip(data, visible, betas)]
        if at.gamma < 1:
            blocks = [self.features(self.rbm, block, g) for block, g in zip(blocks, self.chains.generators)]
        return Rows(blocks, self.batches.block_rows(step), self.chains.block_rows)

    def scored(self, rows: Rows, memory: Adversary | None) -> tuple[Rows, float | Tensor]:
        """T of each particle, and its mean over the particles of all workers; no T and mean 0 without a memory."""
        if memory is None:
            return rows, 0.0
        scores = memory.score(rows.features()[1], rows.chain_rows, own=True)
        total = torch.zeros((), dtype=torch.float64, device=self.comm.device)
        for t in scores:
            total += snap_to_grid(t).sum()  # exact, so in any order
        mean = self.comm.sum_(total) / rows.counts.particles
        blocks = [block._replace(scores=t) for block, t in zip(rows.blocks, scores)]
        # a number where it can be had without waiting for a device
        return rows._replace(blocks=blocks), float(mean) if mean.device.type == "cpu" else mean

    def summed(self, rows: Rows, mean_score: float | Tensor, gamma: float) -> dict[str, Tensor]:
        """The weighted energy gradient of all rows of all workers (Eq. 9), an exact sum and one all-reduce."""
        self.sums.zero_()
        for block in rows.blocks:
            self.sums.add_(ascent_direction(self.rbm, block, gamma, mean_score, rows.counts))
            if self.rbm.config.center_hidden:
                self.sums.add_({"hidden_mean": block.data_hidden.states.sum(0) / rows.counts.data})
        return self.sums.reduce(self.comm)

    def remember(self, rows: Rows, at: At) -> None:
        """Start the gather of the next update's memory, where the adversary takes part."""
        if at.gamma < 1 and self.adversary:
            self.adversary.remember(*rows.features(), rows.data_rows)

    def report(self, step: int, at: At) -> dict[str, float]:
        """The numbers of an update that cost nothing."""
        return {"gamma": at.gamma, "epoch": step / self.batches.steps_per_epoch, "learning_rate": at.rate}

    def measured(self, rows: Rows, mean_score: float | Tensor, memory: Adversary | None) -> dict[str, float]:
        """The costlier numbers of an update; see Measurements."""
        scores = None if memory is None else memory.score(rows.features()[0], rows.data_rows, own=False)
        return self.measurements.take(self.rbm, rows, float(mean_score), scores, self.comm)

    # --- evaluation and state ---------------------------------------------------------------------------------------

    def evaluate(self, step: int) -> Evaluation:
        """Held-out monitors by the fixed protocols, and the same distances for the persistent chains under own names."""
        self.guard.check()
        # no hidden state has been drawn before the first update
        chains = self.chains.samples() if step > 0 else None
        return self.monitors.measure(self.rbm, self.wide_start, chains, self.comm)

    def state(self) -> dict[str, Tensor]:
        """See Objective.state."""
        self.guard.check()
        parts = [prefixed("model.", self.rbm.state_dict()), self.learner.state(), self.chains.state()]
        if self.adversary is not None:
            parts.append(self.adversary.state())
        return saved({name: value for part in parts for name, value in part.items()})

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Objective.load_state."""
        require_fit(_always_there(state), {name: value.shape for name, value in _always_there(self.state()).items()})
        self.rbm.load_state_dict(part_of(state, "model."))
        self.learner.load_state(state)
        self.chains.load_state(state)
        if self.adversary is not None:
            self.adversary.load_state(state)


def _always_there(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what comes with the first update, or with the adversary."""
    optional = ("optimizer.", "memory.", "critic.")
    return {name: value for name, value in state.items() if not name.startswith(optional)}
