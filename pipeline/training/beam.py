"""Training an RBM by likelihood and adversary together (Eq. 9): one step, its state, its held-out evaluation.

A step, with particles and batch dealt to workers in fixed blocks: sweep the chains; score each particle against the
memory of the previous step; one weighted sum of energy gradients over all rows; one all-reduce; one Adam step; gather
this step's features into the next memory. With gamma = 1 there is no memory, and the numbers are plain PCD.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pipeline.captured import Later
from pipeline.comm import Comm, split_rows
from pipeline.config import NaturalGradientConfig, Phase, PowerLaw, RBMConfig, RunConfig, SamplerConfig
from pipeline.critics.build import build_recall, choose_wire
from pipeline.critics.recall import Recall
from pipeline.data.batches import Batches
from pipeline.models.initialize import initialize_rbm
from pipeline.models.rbm import Couplings
from pipeline.natural_gradient import natural_step
from pipeline.optimizers import build_optimizer, load_optimizer_state, optimizer_state
from pipeline.precision import choose_for_sweeps, rounding_operands
from pipeline.samplers.build import build_sampler
from pipeline.samplers.driven import DrivenGibbs, plain_gibbs
from pipeline.samplers.exchange import ExchangeGibbs
from pipeline.samplers.gibbs import ChainState, blocks_stand_alone
from pipeline.samplers.protocols import WideStart
from pipeline.schedules import learning_rate, noise_std
from pipeline.streams import RowStreams, stream, stream_seed
from pipeline.training.ascent import Ascent, settle
from pipeline.training.block import Block, Counts, Measurements
from pipeline.training.monitors import Monitors
from pipeline.training.objective import Evaluation, NonFinite
from pipeline.training.terms import GradientSums, Terms

if TYPE_CHECKING:
    from pipeline.samplers.fused import FusedGibbs
    from pipeline.training.fused_update import FusedUpdate


class PhasePosition(NamedTuple):
    """Where a step lies in the schedule."""

    phase: Phase
    name: str
    step: int
    num_steps: int


class _Unchecked(NamedTuple):
    """A step whose sums may be bad; they and the rows are there until the next step's are computed."""

    step: int
    blocks: list[Block]
    found: Later
    """Whether they are within the limit; of a fused update its `largest`."""


class BeamObjective:
    """A BEAM on `comm.world_size` workers; implements training.objective.Objective."""

    def __init__(self, config: RunConfig, train: Tensor, heldout: Tensor, comm: Comm):
        """Build the model from data and start the chains.

        Args:
            config: with an RBMConfig, a SamplerConfig and, when a phase has gamma < 1, a critic's.
            train: training rows [N, V], whitened; the same on all workers.
            heldout: held-out rows [n, V] for the monitors.
            comm: this worker's group; its device is the model's.
        """
        if not isinstance(config.model, RBMConfig) or config.sampler is None:
            raise ValueError(f"recipe {config.name!r} is not a BEAM: it has no RBM or no sampler")
        self.config, self.comm = config, comm
        self.sampler_config: SamplerConfig = config.sampler
        train = train.to(comm.device)
        self.batches = Batches(train, config.data.batch_size, config.seed, self.sampler_config.num_blocks)
        self.rbm = initialize_rbm(config.model, train, config.seed, comm.device)
        self.parameters = dict(self.rbm.named_parameters())
        natural = isinstance(config.optimizer, NaturalGradientConfig)
        self.ascent = None if natural else Ascent(self.rbm, build_optimizer(self.rbm, config.optimizer, maximize=True))
        """None for the natural gradient, which has no state."""
        s = self.sampler_config
        self.sampler = build_sampler(s)
        self.statistics_sampler = plain_gibbs(s.statistics_sweeps)
        self.wide_start = WideStart.of(train)
        self.monitors = Monitors(config.evaluation, train, heldout.to(comm.device))

        self.block_chains = split_rows(s.num_chains, s.num_blocks)
        self.block_replicas = [rows * s.num_temperatures for rows in self.block_chains]
        """Rows of chain states of each block: its chains and, with replica exchange, their hotter replicas."""
        self.blocks = comm.my_blocks(s.num_blocks)
        self.generators = [stream(config.seed, "chains", b, device=comm.device) for b in self.blocks]
        self.chains = [self._start_block(b, g) for b, g in zip(self.blocks, self.generators)]
        exchanges = isinstance(self.sampler, ExchangeGibbs)
        self.precision, self.products = choose_for_sweeps(
            s.precision, min(self.rbm.weights.shape), s.kernel == "fused", exchanges, comm
        )
        """Of the sweeps' normal numbers on a CPU, and of their products."""
        # one sweep of all rows where that changes no bit: products of few rows are slower
        own = [self.block_chains[b] for b in self.blocks]
        driven = isinstance(self.sampler, DrivenGibbs) and len(own) > 1
        with rounding_operands(self.products):
            self.merged = driven and (comm.device.type != "cpu" or blocks_stand_alone(self.rbm, own))
        self.feature = config.critic.feature if config.critic else "hidden_mean"
        self.recall = self._build_recall()
        """The critic and its memory; None when no phase has an adversary."""
        self.whole: FusedUpdate | None = None
        """Fused updates as a whole, where they are possible."""
        self.fused: FusedGibbs | None = None
        """Fused sweeps alone; None where torch makes the sweeps, or all is fused."""
        if s.kernel == "fused":
            self._fuse(own)
        self.terms = GradientSums(self.rbm, comm, self.block_chains, self.feature, self.generators, self.recall)
        self.measurements = Measurements(self.rbm, comm.device)
        self.checks_later = comm.device.type != "cpu"
        """Whether a step's sums are looked at during the next step's sweeps: a GPU would idle while the host waits for them."""
        self._unchecked: _Unchecked | None = None
        epochs = self.batches.steps_per_epoch
        phases = config.schedules
        self.switch_step = phases.likelihood.num_updates(epochs, config.epochs_scale)
        """First step of the adversarial phase."""
        self.total_steps = self.switch_step + phases.adversarial.num_updates(epochs, config.epochs_scale)

    # --- schedule -----------------------------------------------------------------------------------------------------

    def position(self, step: int) -> PhasePosition:
        """The phase of update `step`."""
        if step < self.switch_step:
            return PhasePosition(self.config.schedules.likelihood, "likelihood", step, self.switch_step)
        return PhasePosition(
            self.config.schedules.adversarial,
            "adversarial",
            step - self.switch_step,
            self.total_steps - self.switch_step,
        )

    def learning_rate(self, step: int) -> float:
        """Learning rate of update `step`."""
        at = self.position(step)
        rule = at.phase.learning_rate
        unit = rule.decay_updates if isinstance(rule, PowerLaw) else None
        unit = unit or self.batches.steps_per_epoch
        return learning_rate(rule, at.step, at.num_steps, max(1, round(unit * self.config.epochs_scale)))

    # --- one step -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, step: int, measure: bool) -> dict[str, float]:
        """One update; see Objective.step. All returned numbers are global."""
        gamma, rate = self.position(step).phase.gamma, self.learning_rate(step)
        counts = Counts(self.batches.size(step), self.sampler_config.num_chains)
        recall = self.recall if gamma < 1 else None
        compute = self._terms if self.whole is None else self._fused_terms
        (blocks, mean_score, sums), critic = compute(step, gamma, counts, recall)
        if measure or not self.checks_later:
            self._check()
        report = {"gamma": gamma, "epoch": step / self.batches.steps_per_epoch, "learning_rate": rate}
        if measure:
            betas, rows = [self.sampler.at_one(chains).beta for chains in self.chains], self.batches.block_rows(step)
            if self.whole is not None:  # all rows are one block
                betas, rows = [torch.cat(betas)], [counts.data]
            features = [block.data_features for block in blocks]
            data_scores = None if critic is None else critic.score(features, rows, own=False)
            report |= self.measurements.take(self.rbm, blocks, betas, float(mean_score), counts, data_scores, self.comm)
        if self.whole is not None:
            self.whole.ascend(rate, counts.data, remember=recall is not None)
            return report
        if self.ascent is not None:
            self.ascent.step(sums, rate)
        else:
            self._natural_update(sums, rate, step, blocks)
        if recall is not None:
            recall.remember(
                [block.data_features for block in blocks],
                [block.particles.features for block in blocks],
                self.batches.block_rows(step),
            )
        return report

    def _terms(self, step: int, gamma: float, counts: Counts, recall: Recall | None) -> tuple[Terms, Recall | None]:
        """The terms of a step, and the critic that entered; moves the chains."""
        couplings = self.rbm.couplings() if self.fused is None else None
        data = [self.batches.block(step, block) for block in self.blocks]
        self._add_noise(step, data)
        visible = self._sweep(step, couplings)
        self._check()
        # what it remembers has traveled during the sweeps; while that is nothing, the step is plain PCD
        critic = recall if recall is not None and recall.ready(step) else None
        terms = self.terms.take(data, visible, gamma, critic is not None, counts, couplings)
        self._unchecked = _Unchecked(step, terms.blocks, Later(self.terms.sums.within_limit()))
        return terms, critic

    def _fused_terms(
        self, step: int, gamma: float, counts: Counts, recall: Recall | None
    ) -> tuple[Terms, Recall | None]:
        """`_terms` by fused kernels."""
        assert self.whole is not None
        data = self.batches.batch(step, out=self.whole.data(counts.data))
        self._add_noise(step, data.split(self.batches.block_rows(step)))
        critic = recall if recall is not None and recall.ready(step) else None
        terms, largest = self.whole.terms(step, counts.data, gamma, critic is not None)
        self._check()  # of the step before
        self._unchecked = _Unchecked(step, terms.blocks, Later(largest))
        return terms, critic

    def _check(self) -> None:
        """Raise NonFinite when the sums of the last step were bad; waits for them if they are still being computed."""
        if self._unchecked is None:
            return
        step, blocks, found = self._unchecked
        self._unchecked = None
        bad, ranks = self._bad(found.get(), blocks) if self.whole is None else self.whole.bad(found.get())
        if bad is not None:
            quantity = f"the gradient of {bad}" if bad in self.parameters else bad
            raise NonFinite(quantity, step, ranks)

    def _bad(self, within_limit: Tensor, blocks: list[Block]) -> tuple[str | None, list[int]]:
        """The first bad sum, if there is one, and the workers where it began."""
        bad = None if bool(within_limit) else self.terms.sums.first_bad()
        return bad, [] if bad is None else self._ranks_with_bad_rows(blocks)

    def _start_block(self, block: int, generator: torch.Generator) -> ChainState:
        rows = self.block_replicas[block]
        if self.sampler_config.initial_chains == "data":
            picks = torch.randint(len(self.batches.rows), (rows,), generator=generator, device=self.comm.device)
            visible = self.batches.rows[picks]
            ones = visible.new_ones(rows, 1)
            chains = ChainState(visible, visible.new_zeros(rows, self.rbm.config.num_hidden), ones)
        else:
            chains = self.wide_start.draw(self.rbm, rows, generator)
        if isinstance(self.sampler, ExchangeGibbs):
            return self.sampler.at_temperatures(chains)
        return chains._replace(beta=self.sampler.process.stationary(chains.beta, generator))

    def _add_noise(self, step: int, data: Sequence[Tensor]) -> None:
        """Add the schedule's noise to the rows [b, V] of each block of this worker."""
        if (noise := noise_std(self.config.schedules.noise, step, self.config.epochs_scale)) > 0:
            for rows, generator in zip(data, self.generators):
                rows.add_(torch.empty_like(rows).normal_(generator=generator).mul_(noise))

    def _fuse(self, rows: list[int]) -> None:
        """Make the fused kernels of this worker's particles, `rows` of each block."""
        from pipeline.samplers.fused import FusedGibbs, can_fuse  # not at the top: triton takes time to import
        from pipeline.training.fused_update import FusedUpdate, can_fuse_update

        if not can_fuse(self.rbm, self.comm.device) or not isinstance(self.sampler, DrivenGibbs):
            raise ValueError(
                'sampler.kernel = "fused" needs a CUDA device, triton, float32, Bernoulli hidden units and no replica '
                'exchange; use "torch"'
            )
        if sum(rows) == 0:
            return
        first = sum(self.block_chains[: self.blocks[0]])
        precision = torch.bfloat16 if self.products == "bfloat16" else torch.float32
        seed = stream_seed(self.config.seed, "fused sweeps")
        graph = self.comm.device.type == "cuda"
        of_run = (self.rbm, self.sampler, sum(rows), first, seed, precision, self.sampler_config.statistics_sweeps)
        batch = self.config.data.batch_size
        if self.ascent is None or not can_fuse_update(
            self.comm, self.recall, self.feature, self.ascent.optimizer, batch + sum(rows)
        ):
            self.fused = FusedGibbs(*of_run, graph=graph)
            self.chains = self.fused.hold(self.chains)
            return
        buffer = self.rbm.weights.new_zeros(batch + sum(rows), self.rbm.config.num_visible)
        sweeps = FusedGibbs(*of_run, statistics=buffer[batch:], graph=False)
        self.whole = FusedUpdate(self.rbm, sweeps, buffer, self.recall, self.feature, self.ascent, graph)
        self.chains = self.whole.hold(self.chains)

    def _sweep(self, step: int, couplings: Couplings | None) -> list[Tensor]:
        """Move this worker's chains; returns the visible states [m, V] of each block that enter the statistics."""
        if self.fused is not None:
            rows = [len(chains.beta) for chains in self.chains]
            # copies: the buffer is the next step's
            return [part.clone() for part in self.fused.sweep(step).split(rows)]
        with rounding_operands(self.products):
            every = range(len(self.blocks))
            if self.merged:
                return self._sweep_rows(every, couplings)
            return [self._sweep_rows([i], couplings)[0] for i in every]

    def _sweep_rows(self, which: Sequence[int], couplings: Couplings | None) -> list[Tensor]:
        """`_sweep` of some blocks as one tensor."""
        rows = [len(self.chains[i].beta) for i in which]
        coarse = self.precision == "bfloat16"
        random = RowStreams([self.generators[i] for i in which], rows, coarse)
        moved = self.chains[which[0]]
        if len(which) > 1:
            moved = ChainState(*(torch.cat(columns) for columns in zip(*(self.chains[i] for i in which))))
        moved = self.sampler.run(self.rbm, moved, random, couplings)
        visible = self.statistics_sampler.run(self.rbm, self.sampler.at_one(moved), random, couplings).visible
        if len(which) == 1:
            self.chains[which[0]] = moved
            return [visible]
        for i, parts in zip(which, zip(*(column.split(rows) for column in moved))):
            self.chains[i] = ChainState(*parts)
        # copies: products of a tensor that begins amid another one may differ in bits
        return [part.clone() for part in visible.split(rows)]

    def _ranks_with_bad_rows(self, blocks: list[Block]) -> list[int]:
        """The workers whose data or particles are not finite; collective, so all workers know."""
        finite = all(bool(torch.isfinite(rows).all()) for b in blocks for rows in (b.data, b.particles.visible))
        flags = self.comm.gather(torch.tensor([not finite], device=self.comm.device), [1] * self.comm.world_size)
        return flags.nonzero()[:, 0].tolist()

    def _build_recall(self) -> Recall | None:
        phases = self.config.schedules
        if self.config.critic is None or min(phases.likelihood.gamma, phases.adversarial.gamma) == 1:
            return None
        smallest = self.batches.size(self.batches.steps_per_epoch - 1)
        return build_recall(
            self.config.critic,
            self.config.seed,
            self.comm,
            choose_wire(self.config.critic, self.rbm),
            self.block_chains,
            self.config.data.batch_size,
            smallest,
        )

    def _natural_update(self, sums: dict[str, Tensor], rate: float, step: int, blocks: list[Block]) -> None:
        """A natural-gradient step; every worker computes it from the rows of all, in the order of blocks."""
        assert isinstance(self.config.optimizer, NaturalGradientConfig)
        empty = self.rbm.weights.new_zeros(0, self.rbm.config.num_visible)
        data, particles = (
            self.comm.gather(torch.cat(rows or [empty]), self.comm.rows_per_rank(block_rows))
            for rows, block_rows in (
                ([block.data for block in blocks], self.batches.block_rows(step)),
                ([block.particles.visible for block in blocks], self.block_chains),
            )
        )
        frozen = frozenset() if self.rbm.config.fixed_std is None else frozenset({"visible.log_variance"})
        change = natural_step(self.rbm, sums, data, particles, self.config.optimizer, rate, frozen)
        for name, parameter in self.parameters.items():
            parameter.add_(change[name].to(parameter.dtype))
        settle(self.rbm, sums)

    # --- evaluation and state ---------------------------------------------------------------------------------------

    def evaluate(self, step: int) -> Evaluation:
        """Held-out monitors by the fixed protocols, and the same distances for the persistent chains under own names."""
        self._check()
        # no hidden state has been drawn before the first step
        chains = self._gathered_chains(self.block_chains) if step > 0 else None
        return self.monitors.measure(self.rbm, self.wide_start, chains, self.comm)

    def _gathered_chains(self, block_rows: list[int]) -> ChainState:
        """The first block_rows[b] rows of every block's chain states: all replicas, or those at beta = 1."""
        per_rank = self.comm.rows_per_rank(block_rows)
        like = self.rbm.weights
        empty = ChainState(*(like.new_zeros(0, n) for n in (*like.shape, 1)))
        mine = [ChainState(*(c[: block_rows[b]] for c in chains)) for b, chains in zip(self.blocks, self.chains)]
        columns = [torch.cat(parts) for parts in zip(*(mine or [empty]))]
        return ChainState(*(self.comm.gather(c, per_rank) for c in columns))

    def state(self) -> dict[str, Tensor]:
        """See Objective.state."""
        self._check()
        chains = self._gathered_chains(self.block_replicas)
        generators = [g.get_state() for g in self.generators]
        width = stream(0, "size", device=self.comm.device).get_state().numel()
        mine = torch.stack(generators) if generators else torch.zeros(0, width, dtype=torch.uint8)
        per_rank = self.comm.rows_per_rank([1] * self.sampler_config.num_blocks)
        state = {
            **{f"model.{k}": v for k, v in self.rbm.state_dict().items()},
            **{f"optimizer.{k}": v for k, v in self._optimizer_state().items()},
            **{f"chains.{k}": v for k, v in chains._asdict().items()},
            "generators": self.comm.gather(mine.to(self.comm.device), per_rank),
        }
        if self.recall is not None:
            state |= self.recall.state()
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def _optimizer_state(self) -> dict[str, Tensor]:
        return {} if self.ascent is None else optimizer_state(self.ascent.optimizer, self.rbm)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Objective.load_state."""
        optional = ("optimizer.", "memory.", "critic.")  # not there before the first step, or in the first phase
        expected = {k: v.shape for k, v in self.state().items() if not k.startswith(optional)}
        found = {k: v.shape for k, v in state.items() if not k.startswith(optional)}
        if expected != found:
            wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
            raise ValueError(
                f"the checkpoint does not fit this run: {wrong[0]} is {found.get(wrong[0])}, expected "
                f"{expected.get(wrong[0])} (another recipe, or another kind of device)"
            )
        self.rbm.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        optimizer = {k.removeprefix("optimizer."): v for k, v in state.items() if k.startswith("optimizer.")}
        if self.ascent is not None:
            load_optimizer_state(self.ascent.optimizer, self.rbm, optimizer)
        columns = [
            state[f"chains.{name}"].to(self.comm.device).split(self.block_replicas) for name in ChainState._fields
        ]
        self.chains = [ChainState(*(column[b].clone() for column in columns)) for b in self.blocks]
        if (fused := self.whole or self.fused) is not None:
            self.chains = fused.hold(self.chains)
        for generator, block in zip(self.generators, self.blocks):
            generator.set_state(state["generators"][block].clone())
        if self.recall is not None:
            self.recall.load_state(state)
