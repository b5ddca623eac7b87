"""Training an RBM by likelihood and adversary together (Eq. 9): one step, its state, its held-out evaluation.

A step, with particles and batch dealt to workers in fixed blocks: sweep the chains; score each particle against the
memory of the previous step; one weighted sum of energy gradients over all rows; one all-reduce; one Adam step; gather
this step's features into the next memory. With gamma = 1 there is no memory, and the numbers are plain PCD.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.comm import Comm, ExactSum, PendingGather, split_rows
from pipeline.config import Phase, PowerLaw, RBMConfig, RunConfig, SamplerConfig
from pipeline.critics.critic import Critic
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import BACKENDS, NeighborCritic, choose_backend
from pipeline.data.batches import Batches
from pipeline.gradients import data_weights, particle_weights
from pipeline.models.initialize import initialize_rbm
from pipeline.models.rbm import Couplings, Hidden
from pipeline.optimizers import build_optimizer, load_optimizer_state, optimizer_state, set_learning_rate
from pipeline.samplers.driven import DrivenGibbs, GammaProcess, plain_gibbs
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import WideStart
from pipeline.schedules import learning_rate
from pipeline.streams import stream
from pipeline.training.monitors import Monitors
from pipeline.training.objective import NonFinite


class Statistics(NamedTuple):
    """What one block of particles contributes to a step."""

    visible: Tensor
    """[m, V]"""
    hidden: Hidden
    """Sampled or mean hidden states [m, H] at beta = 1."""
    features: Tensor
    """What the critic sees [m, F]."""


class PhasePosition(NamedTuple):
    """Where a step lies in the schedule."""

    phase: Phase
    name: str
    step: int
    num_steps: int


class BeamObjective:
    """A BEAM on `comm.world_size` workers; implements training.objective.Objective."""

    def __init__(self, config: RunConfig, train: Tensor, heldout: Tensor, comm: Comm):
        """Build the model from data and start the chains.

        Args:
            config: with an RBMConfig, a SamplerConfig and, when a phase has gamma < 1, a CriticConfig.
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
        self.optimizer = build_optimizer(self.rbm, config.optimizer, maximize=True)
        s = self.sampler_config
        self.sampler = DrivenGibbs(GammaProcess(s.beta_std, s.beta_momentum), s.gibbs_steps, s.min_beta)
        self.statistics_sampler = plain_gibbs(s.statistics_sweeps)
        self.wide_start = WideStart.of(train)
        self.monitors = Monitors(config.evaluation, train, heldout.to(comm.device), config.data.batch_size)

        self.block_chains = split_rows(s.num_chains, s.num_blocks)
        self.blocks = comm.my_blocks(s.num_blocks)
        self.generators = [stream(config.seed, "chains", b, device=comm.device) for b in self.blocks]
        self.chains = [self._start_block(b, g) for b, g in zip(self.blocks, self.generators)]
        self.memory: Memory | None = None
        self._next_memory: tuple[PendingGather, PendingGather, int] | None = None
        self.backend = self._choose_critic()
        """Name of the critic's search; saved, since two backends may break ties differently."""

        shapes = {name: p.shape for name, p in self.rbm.named_parameters()}
        scalars = ("beta", "beta_square")
        measured = ("score_data", "reconstruction")
        self.sums = ExactSum(
            {**shapes, "hidden_mean": (config.model.num_hidden,), **{k: () for k in scalars}}, comm.device
        )
        self.measured_sums = ExactSum(
            {
                **{f"likelihood {k}": v for k, v in shapes.items()},
                **{f"adversarial {k}": v for k, v in shapes.items()},
                **{k: () for k in measured},
            },
            comm.device,
        )
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
        unit = unit or max(1, round(self.batches.steps_per_epoch * self.config.epochs_scale))
        return learning_rate(rule, at.step, at.num_steps, unit)

    # --- one step -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, step: int, measure: bool) -> dict[str, float]:
        """One update; see Objective.step. All returned numbers are global."""
        gamma = self.position(step).phase.gamma
        memory = self._take_memory() if gamma < 1 else None
        couplings = self.rbm.couplings()
        particles = [self._move_block(i, couplings) for i in range(len(self.blocks))]
        data = [self.batches.block(step, b) for b in self.blocks]
        data_hidden = [self.rbm.hidden_statistics(rows) for rows in data]
        data_features = self._data_features(data, data_hidden) if gamma < 1 else []

        scores, mean_score = self._score(particles, memory)
        effective_gamma = gamma if memory is not None else 1.0
        self._add_gradients(step, effective_gamma, data, data_hidden, particles, scores, mean_score)
        sums = self.sums.reduce(self.comm)
        if bad := self.sums.first_bad():
            raise NonFinite(f"the gradient of {bad}" if bad in dict(self.rbm.named_parameters()) else bad, step)
        report = self._report(step, gamma, sums, mean_score if memory is not None else None)
        if measure:
            report |= self._measure(step, data, data_hidden, data_features, particles, scores, mean_score, memory)

        rate = self.learning_rate(step)
        self._update(sums, rate)
        if gamma < 1:
            self._remember(step, data_features, particles)
        return {**report, "learning_rate": rate}

    def _start_block(self, block: int, generator: torch.Generator) -> ChainState:
        rows = self.block_chains[block]
        if self.sampler_config.initial_chains == "data":
            picks = torch.randint(len(self.batches.rows), (rows,), generator=generator, device=self.comm.device)
            visible = self.batches.rows[picks]
            ones = visible.new_ones(rows, 1)
            chains = ChainState(visible, visible.new_zeros(rows, self.rbm.config.num_hidden), ones)
        else:
            chains = self.wide_start.draw(self.rbm, rows, generator)
        return chains._replace(beta=self.sampler.process.stationary(chains.beta, generator))

    def _move_block(self, i: int, couplings: Couplings) -> Statistics:
        """Sweep this worker's i-th block of chains and take its statistics at beta = 1."""
        generator = self.generators[i]
        self.chains[i] = self.sampler.run(self.rbm, self.chains[i], generator, couplings)
        visible = self.statistics_sampler.run(self.rbm, self.chains[i], generator, couplings).visible
        hidden = self.rbm.hidden_statistics(visible)
        feature = self.config.critic.feature if self.config.critic else "hidden_mean"
        if feature == "hidden_sample":
            total = self.rbm.hidden.bias + self.rbm.hidden_field(visible)
            hidden = Hidden(self.rbm.hidden.sample_(total, None, generator), None)
        return Statistics(visible, hidden, visible if feature == "visible" else hidden.states)

    def _score(self, particles: list[Statistics], memory: Memory | None) -> tuple[list[Tensor | None], float]:
        """T of this worker's particles by block, and the mean over all particles; ([None, ...], 0) without a memory."""
        if memory is None:
            return [None] * len(particles), 0.0
        critic = self._critic_on()
        scores: list[Tensor | None] = []
        for block, statistics in zip(self.blocks, particles):
            first = sum(self.block_chains[:block])
            scores.append(critic.score(statistics.features, memory, first))
        mine = torch.cat([t for t in scores if t is not None]) if scores else memory.features.new_zeros(0)
        everyone = self.comm.gather(mine, self.comm.rows_per_rank(self.block_chains))
        return scores, float(everyone.double().mean())

    def _choose_critic(self) -> str | None:
        """The search backend of this run's critic; None when no phase has an adversary."""
        critic, chains = self.config.critic, self.sampler_config.num_chains
        phases = self.config.schedules
        if critic is None or min(phases.likelihood.gamma, phases.adversarial.gamma) == 1:
            return None
        smallest = chains + self.batches.size(self.batches.steps_per_epoch - 1)
        if critic.num_neighbors + critic.exclude_own_chain > smallest:
            raise ValueError(
                f"critic.num_neighbors = {critic.num_neighbors}: the memory holds {smallest} rows after the smallest batch;"
                " lower it"
            )
        width = self.rbm.config.num_visible if critic.feature == "visible" else self.rbm.config.num_hidden
        rows = chains + self.config.data.batch_size
        return choose_backend(critic, max(1, self.block_chains[0]), rows, width, self.comm)

    def _critic_on(self) -> Critic:
        assert self.config.critic is not None and self.backend is not None
        return NeighborCritic(self.config.critic, BACKENDS[self.backend])

    def _add_gradients(
        self,
        step: int,
        gamma: float,
        data: list[Tensor],
        data_hidden: list[Hidden],
        particles: list[Statistics],
        scores: list[Tensor | None],
        mean_score: float,
    ) -> None:
        """Add this worker's blocks to the sums: one weighted product per block over its data rows and particles."""
        self.sums.zero_()
        num_data = self.batches.size(step)
        for rows, hidden, block, t, chains in zip(data, data_hidden, particles, scores, self.chains):
            weights = torch.cat(
                [
                    data_weights(gamma, len(rows), num_data, rows),
                    particle_weights(gamma, t, mean_score, self.sampler_config.num_chains, block.visible),
                ]
            )
            self.sums.add_(self._weighted_gradient(rows, hidden, block, weights))
            beta = chains.beta.double()
            self.sums.add_(
                {
                    "hidden_mean": hidden.states.sum(0) / num_data,
                    "beta": beta.sum() / self.sampler_config.num_chains,
                    "beta_square": beta.square().sum() / self.sampler_config.num_chains,
                }
            )

    def _weighted_gradient(self, rows: Tensor, hidden: Hidden, block: Statistics, weights: Tensor) -> dict[str, Tensor]:
        if (hidden.variance is None) == (block.hidden.variance is None):
            both = Hidden(torch.cat([hidden.states, block.hidden.states]), hidden.variance)
            return self.rbm.negative_energy_gradient(torch.cat([rows, block.visible]), both, weights)
        # Gaussian hidden units with means on the data but samples on the particles
        on_data = self.rbm.negative_energy_gradient(rows, hidden, weights[: len(rows)])
        on_model = self.rbm.negative_energy_gradient(block.visible, block.hidden, weights[len(rows) :])
        return {name: on_data[name] + on_model[name] for name in on_data}

    def _update(self, sums: dict[str, Tensor], rate: float) -> None:
        """The optimizer's step along the ascent direction, the clamp of scales, the hidden offsets."""
        for name, parameter in self.rbm.named_parameters():
            parameter.grad = sums[name].to(parameter.dtype)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        model = self.rbm.config
        self.rbm.visible.clamp_(model.min_std)
        self.rbm.hidden.clamp_(model.min_std)
        if model.center_hidden:
            new = self.rbm.hidden.offset.lerp(
                sums["hidden_mean"].to(self.rbm.hidden.offset.dtype), model.centering_rate
            )
            self.rbm.move_hidden_offset_(new)

    # --- memory -------------------------------------------------------------------------------------------------------

    def _data_features(self, data: list[Tensor], data_hidden: list[Hidden]) -> list[Tensor]:
        """What the critic sees of this worker's data rows, by block."""
        feature = self.config.critic.feature if self.config.critic else "hidden_mean"
        if feature == "visible":
            return data
        if feature == "hidden_mean":
            return [h.states for h in data_hidden]
        totals = [self.rbm.hidden.bias + self.rbm.hidden_field(rows) for rows in data]
        return [self.rbm.hidden.sample_(total, None, g) for total, g in zip(totals, self.generators)]

    def _remember(self, step: int, data_features: list[Tensor], particles: list[Statistics]) -> None:
        """Start gathering this step's features; the next step's sweeps run meanwhile."""
        visible = self.config.critic is not None and self.config.critic.feature == "visible"
        width = self.rbm.config.num_visible if visible else self.rbm.config.num_hidden
        empty = self.rbm.weights.new_zeros(0, width)
        mine = torch.cat(data_features) if data_features else empty
        chains = torch.cat([p.features for p in particles]) if particles else empty
        self._next_memory = (
            self.comm.gather_async(mine, self.comm.rows_per_rank(self.batches.block_rows(step))),
            self.comm.gather_async(chains, self.comm.rows_per_rank(self.block_chains)),
            self.batches.size(step),
        )

    def _take_memory(self) -> Memory | None:
        """The memory of the previous step, once its gather is done."""
        if self._next_memory is not None:
            data, chains, num_data = self._next_memory
            self.memory = Memory(torch.cat([data.wait(), chains.wait()]), num_data)
            self._next_memory = None
        return self.memory

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self, step: int, gamma: float, sums: dict[str, Tensor], mean_score: float | None) -> dict[str, float]:
        beta = float(sums["beta"])
        report = {
            "gamma": gamma,
            "epoch": step / self.batches.steps_per_epoch,
            "beta_mean": beta,
            "beta_std": max(0.0, float(sums["beta_square"]) - beta**2) ** 0.5,
        }
        return report if mean_score is None else {**report, "score_particles": mean_score}

    def _measure(
        self,
        step: int,
        data: list[Tensor],
        data_hidden: list[Hidden],
        data_features: list[Tensor],
        particles: list[Statistics],
        scores: list[Tensor | None],
        mean_score: float,
        memory: Memory | None,
    ) -> dict[str, float]:
        """The two gradients apart, T on the data, reconstruction error."""
        sums, num_data = self.measured_sums, self.batches.size(step)
        sums.zero_()
        for i, (rows, hidden, block, t) in enumerate(zip(data, data_hidden, particles, scores)):
            num_chains = self.sampler_config.num_chains
            w_data = data_weights(1.0, len(rows), num_data, rows)
            w_chains = particle_weights(1.0, None, 0.0, num_chains, block.visible)
            likelihood = self._weighted_gradient(rows, hidden, block, torch.cat([w_data, w_chains]))
            sums.add_({f"likelihood {k}": v for k, v in likelihood.items()})
            if t is not None and memory is not None:
                w_chains = particle_weights(0.0, t, mean_score, num_chains, block.visible)
                adversarial = self.rbm.negative_energy_gradient(block.visible, block.hidden, w_chains)
                sums.add_({f"adversarial {k}": v for k, v in adversarial.items()})
                score = self._critic_on().score(data_features[i], memory)
                sums.add_({"score_data": score.sum() / num_data})
            error = (self.rbm.visible_mean(hidden.states) - rows).square().sum() / (num_data * rows.shape[1])
            sums.add_({"reconstruction": error})
        totals = sums.reduce(self.comm)
        likelihood_part = torch.cat([totals[k].flatten() for k in totals if k.startswith("likelihood ")])
        report = {
            "gradient_norm_likelihood": float(likelihood_part.norm()),
            "reconstruction_error": float(totals["reconstruction"]),
        }
        std = self.rbm.visible.variance()
        if std is not None:
            report["visible_std"] = float(std.sqrt().median())
        if memory is not None:
            adversarial_part = torch.cat([totals[k].flatten() for k in totals if k.startswith("adversarial ")])
            report["gradient_norm_adversarial"] = float(adversarial_part.norm())
            report["gradient_cosine"] = float(torch.cosine_similarity(likelihood_part, adversarial_part, dim=0))
            report["score_data"] = float(totals["score_data"])
        return report

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out monitors by the fixed protocols, and the same distances for the persistent chains under own names."""
        chains = self._gathered_chains() if step > 0 else None  # no hidden state has been drawn before the first step
        return self.monitors.measure(self.rbm, self.wide_start, chains, self.comm)

    # --- state --------------------------------------------------------------------------------------------------------

    def _gathered_chains(self) -> ChainState:
        per_rank = self.comm.rows_per_rank(self.block_chains)
        like = self.rbm.weights
        empty = ChainState(*(like.new_zeros(0, n) for n in (*like.shape, 1)))
        columns = [torch.cat(parts) for parts in zip(*(self.chains or [empty]))]
        return ChainState(*(self.comm.gather(c, per_rank) for c in columns))

    def state(self) -> dict[str, Tensor]:
        """See Objective.state."""
        chains = self._gathered_chains()
        generators = [g.get_state() for g in self.generators]
        width = stream(0, "size", device=self.comm.device).get_state().numel()
        mine = torch.stack(generators) if generators else torch.zeros(0, width, dtype=torch.uint8)
        per_rank = self.comm.rows_per_rank([1] * self.sampler_config.num_blocks)
        state = {
            **{f"model.{k}": v for k, v in self.rbm.state_dict().items()},
            **{f"optimizer.{k}": v for k, v in optimizer_state(self.optimizer, self.rbm).items()},
            **{f"chains.{k}": v for k, v in chains._asdict().items()},
            "generators": self.comm.gather(mine.to(self.comm.device), per_rank),
        }
        memory = self._take_memory()
        if memory is not None:
            state["memory.features"] = memory.features
            state["memory.num_data"] = torch.tensor(memory.num_data)
        if self.backend is not None:
            state["critic.backend"] = torch.tensor(list(BACKENDS).index(self.backend))
        return {name: value.detach().cpu().clone() for name, value in state.items()}

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
        load_optimizer_state(self.optimizer, self.rbm, optimizer)
        columns = [state[f"chains.{name}"].to(self.comm.device).split(self.block_chains) for name in ChainState._fields]
        self.chains = [ChainState(*(column[b].clone() for column in columns)) for b in self.blocks]
        for generator, block in zip(self.generators, self.blocks):
            generator.set_state(state["generators"][block].clone())
        if "critic.backend" in state:
            self.backend = list(BACKENDS)[int(state["critic.backend"])]
        self._next_memory, self.memory = None, None
        if "memory.features" in state:
            self.memory = Memory(state["memory.features"].to(self.comm.device), int(state["memory.num_data"]))
