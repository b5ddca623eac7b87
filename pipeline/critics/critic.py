"""What a critic is: a score T of features against the memory; positive where data are denser than particles."""

from typing import Protocol

from torch import Tensor

from pipeline.critics.memory import Memory


class Critic(Protocol):
    """A critic that needs no training of its own: everything it knows is in the memory."""

    def score(self, queries: Tensor, memory: Memory, first_particle: int | None = None) -> Tensor:
        """T [q] of query features [q, F]; see NeighborCritic.score."""
        ...
