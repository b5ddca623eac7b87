"""The critic that a run's settings name."""

from typing import NamedTuple

import torch

from pipeline.comm import Comm
from pipeline.config import AnyCriticConfig, CriticConfig, ForestCriticConfig
from pipeline.critics.critic import Critic
from pipeline.critics.neighbors import BACKENDS, NeighborCritic, choose_backend
from pipeline.critics.network import NetworkCritic


class CriticSizes(NamedTuple):
    """Numbers of rows that a critic will meet, over all workers, and their width."""

    queries: int
    """In one call, about."""
    particles: int
    """In the memory."""
    data: int
    """In the memory, after a full batch."""
    smallest_data: int
    """In the memory, after the smallest batch of an epoch."""
    features: int


def build_critic(config: AnyCriticConfig, sizes: CriticSizes, seed: int, comm: Comm, dtype: torch.dtype) -> Critic:
    """The critic of `config`, before its first memory; the same on all workers, which call this together.

    Args:
        config: the kind of critic and its settings.
        sizes: of memory and queries; the search backend is chosen for them, and a network has their width.
        seed: of the run; a network and forests have random streams of their own.
        comm: this worker's group and device.
        dtype: of the features.

    Raises:
        ValueError: when neighbors are asked for that the memory does not hold.
    """
    if isinstance(config, CriticConfig):
        wanted, smallest = config.num_neighbors + config.exclude_own_chain, sizes.particles + sizes.smallest_data
        if wanted > smallest:
            raise ValueError(
                f"critic.num_neighbors = {config.num_neighbors}: the memory holds {smallest} rows after the smallest batch;"
                " lower it"
            )
        backend = choose_backend(config, sizes.queries, sizes.particles + sizes.data, sizes.features, comm)
        return NeighborCritic(config, BACKENDS[backend])
    if isinstance(config, ForestCriticConfig):
        from pipeline.critics.forest import ForestCritic  # not at the top: scikit-learn takes a second to import

        return ForestCritic(config, seed)
    return NetworkCritic(config, sizes.features, seed, comm, dtype)
