"""From settings to an objective: the only place that chooses a model, sampler, kernel, learner, critic and its memory."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pipeline.comm import Comm, split_rows
from pipeline.config import (
    AnyCriticConfig,
    CriticConfig,
    ForestCriticConfig,
    GANConfig,
    NaturalGradientConfig,
    NetworkCriticConfig,
    RBMConfig,
    RunConfig,
)
from pipeline.critics.adversary import Adversary, ReplicatedAdversary
from pipeline.critics.critic import Critic
from pipeline.critics.memory import FeatureEncoding
from pipeline.critics.neighbors import BACKENDS, NeighborCritic, choose_backend
from pipeline.critics.network import NetworkCritic
from pipeline.critics.sharded import ShardedAdversary
from pipeline.data.batches import Batches
from pipeline.device.precision import choose_for_sweeps
from pipeline.learning.adam import build_optimizer
from pipeline.models.initialize import initialize_rbm
from pipeline.models.rbm import RBM
from pipeline.samplers.build import build_sampler
from pipeline.samplers.driven import DrivenGibbs
from pipeline.samplers.protocols import WideStart
from pipeline.training.autoencoder import AutoencoderObjective
from pipeline.training.beam import BeamObjective
from pipeline.training.block import FEATURES
from pipeline.training.chains import TorchChains, start_at_data
from pipeline.training.gan import GanObjective
from pipeline.training.learners import AdamLearner, Learner, NaturalLearner
from pipeline.training.monitors import Monitors
from pipeline.training.objective import Objective


def build_objective(config: RunConfig, train: Tensor, heldout: Tensor, comm: Comm) -> Objective:
    """The objective of a run's settings.

    Args:
        config: of the run.
        train: training rows, the same on all workers: whitened [N, V] of a BEAM, pixels uint8 [N, 64, 64, 3] of an
            autoencoder, either of a GAN.
        heldout: held-out rows of the same kind, for the monitors.
        comm: this worker's group; its device is the model's.

    Raises:
        ValueError: rows that do not fit the settings, or settings that this device cannot compute.
    """
    if isinstance(config.model, RBMConfig):
        return build_beam(config, train, heldout, comm)
    kind: Callable[..., Objective] = GanObjective if isinstance(config.model, GANConfig) else AutoencoderObjective
    return kind(config, train, heldout, comm)


def build_beam(config: RunConfig, train: Tensor, heldout: Tensor, comm: Comm) -> BeamObjective:
    """`build_objective` of a BEAM: its config has an RBMConfig and a SamplerConfig."""
    if not isinstance(config.model, RBMConfig) or config.sampler is None:
        raise ValueError(f"recipe {config.name!r} is not a BEAM: it has no RBM or no sampler")
    train, s = train.to(comm.device), config.sampler
    batches = Batches(train, config.data.batch_size, config.seed, s.num_blocks)
    rbm = initialize_rbm(config.model, train, config.seed, comm.device)
    wide_start, sampler = WideStart.of(train), build_sampler(s)
    start = start_at_data(rbm, train) if s.initial_chains == "data" else partial(wide_start.draw, rbm)
    of_chains = (s, start, config.seed, comm)
    exchanges = s.num_temperatures > 1
    arithmetic = choose_for_sweeps(s.precision, min(rbm.weights.shape), s.kernel == "fused", exchanges, comm)
    adversary = _adversary_of_run(config, rbm, batches, comm)
    learner: Learner
    if isinstance(config.optimizer, NaturalGradientConfig):
        learner = NaturalLearner(rbm, config.optimizer, comm)
    else:
        learner = AdamLearner(rbm, build_optimizer(rbm, config.optimizer, maximize=True))
    features = FEATURES[config.critic.feature if config.critic else "hidden_mean"]
    monitors = Monitors(config.evaluation, train, heldout.to(comm.device))
    others = (features, monitors, wide_start, comm)
    if s.kernel == "torch":
        chains = TorchChains(rbm, sampler, *of_chains, arithmetic)
        return BeamObjective(config, batches, rbm, chains, learner, adversary, *others)

    from pipeline.fused.sweeps import FusedChains, can_fuse  # not at the top: triton takes time to import
    from pipeline.fused.update import FusedBeam, can_fuse_update

    if not can_fuse(rbm, comm.device) or not isinstance(sampler, DrivenGibbs):
        raise ValueError(
            'sampler.kernel = "fused" needs a CUDA device, triton, float32, Bernoulli hidden units and no replica '
            'exchange; use "torch"'
        )
    if not comm.my_blocks(s.num_blocks):  # a worker without chains has nothing to fuse
        none = TorchChains(rbm, sampler, *of_chains, arithmetic)
        return BeamObjective(config, batches, rbm, none, learner, adversary, *others)
    operands = torch.bfloat16 if arithmetic[1] == "bfloat16" else torch.float32
    if can_fuse_update(config, comm, adversary, learner):
        of_update = FusedChains(rbm, sampler, *of_chains, operands, config.data.batch_size)
        return FusedBeam(config, batches, rbm, of_update, learner, adversary, *others)
    fused = FusedChains(rbm, sampler, *of_chains, operands)
    return BeamObjective(config, batches, rbm, fused, learner, adversary, *others)


def _adversary_of_run(config: RunConfig, rbm: RBM, batches: Batches, comm: Comm) -> Adversary | None:
    """The critic with its memory; None when no phase has an adversary."""
    phases, s = config.schedules, config.sampler
    if config.critic is None or s is None or min(phases.likelihood.gamma, phases.adversarial.gamma) == 1:
        return None
    rows = config.data.batch_size, batches.size(batches.steps_per_epoch - 1)
    encoding = choose_encoding(config.critic, rbm)
    return build_adversary(config.critic, config.seed, comm, encoding, split_rows(s.num_chains, s.num_blocks), *rows)


def choose_encoding(config: AnyCriticConfig, rbm: RBM) -> FeatureEncoding:
    """Bits where features are states in {0, 1}; else what critic.wire says."""
    form: Literal["bits", "bfloat16", "float32"] = config.wire
    if config.feature == "hidden_sample" and rbm.hidden.in_unit_interval:
        form = "bits"
    width = rbm.config.num_visible if config.feature == "visible" else rbm.config.num_hidden
    return FeatureEncoding(width, rbm.weights.dtype, form)


def build_adversary(
    config: AnyCriticConfig,
    seed: int,
    comm: Comm,
    wire: FeatureEncoding,
    block_chains: list[int],
    batch_rows: int,
    smallest_batch: int,
) -> Adversary:
    """The critic of `config` and its memory, which is empty; all workers call this together.

    Args:
        config: the kind of critic and its settings.
        seed: of the run; a network and forests have random streams of their own.
        comm: this worker's group and device.
        wire: width, type and form of the features.
        block_chains: particles of all blocks of the run.
        batch_rows: data rows of a full batch; a search backend is chosen for it.
        smallest_batch: data rows of the smallest batch of an epoch.

    Raises:
        ValueError: when neighbors are asked for that the memory does not hold.
    """
    if isinstance(config, CriticConfig):
        particles = sum(block_chains)
        wanted, smallest = config.num_neighbors + config.exclude_own_chain, particles + smallest_batch
        if wanted > smallest:
            raise ValueError(
                f"critic.num_neighbors = {config.num_neighbors}: the memory holds {smallest} rows after the smallest batch;"
                " lower it"
            )
        queries, rows = max(1, block_chains[0]), particles + batch_rows
        if config.memory == "sharded":
            queries, rows = particles, max(wanted, -(-rows // len(block_chains)))
        backend = BACKENDS[choose_backend(config, queries, rows, wire.num_features, comm)]
        if config.memory == "sharded":
            return ShardedAdversary(config, backend, wire, comm, block_chains)
        return ReplicatedAdversary(NeighborCritic(config, backend), wire, comm, block_chains)
    critic: Critic
    if isinstance(config, ForestCriticConfig):
        from pipeline.critics.forest import ForestCritic  # not at the top: scikit-learn takes a second to import

        critic = ForestCritic(config, seed)
    elif isinstance(config, NetworkCriticConfig):
        critic = NetworkCritic(config, wire.num_features, seed, comm, wire.dtype)
    else:
        raise ValueError(f"critic = {config}: no critic is built from {type(config).__name__} (pipeline/build.py)")
    return ReplicatedAdversary(critic, wire, comm, block_chains)
