"""The critic that a run's settings name, with its memory."""

from typing import Literal

from pipeline.comm import Comm
from pipeline.config import AnyCriticConfig, CriticConfig, ForestCriticConfig
from pipeline.critics.adversary import Adversary, ReplicatedAdversary
from pipeline.critics.critic import Critic
from pipeline.critics.memory import FeatureEncoding
from pipeline.critics.neighbors import BACKENDS, NeighborCritic, choose_backend
from pipeline.critics.network import NetworkCritic
from pipeline.critics.sharded import ShardedAdversary
from pipeline.models.rbm import RBM


def choose_encoding(config: AnyCriticConfig, rbm: RBM) -> FeatureEncoding:
    """Bits where features are states in {0, 1}; else what critic.wire says."""
    form: Literal["bits", "bfloat16", "float32"] = config.wire
    if config.feature == "hidden_sample" and rbm.config.hidden_units != "gaussian":
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
    else:
        critic = NetworkCritic(config, wire.num_features, seed, comm, wire.dtype)
    return ReplicatedAdversary(critic, wire, comm, block_chains)
