"""The protocol of critics: a score T of features, positive where data are denser than particles, from p(data | features)."""

import math
from typing import Protocol

from torch import Tensor

from pipeline.config import ScoreConfig
from pipeline.critics.memory import Memory


class Critic(Protocol):
    """At each step with a memory: `observe` it, then `score` particles, and anything else, as often as needed.

    All workers make the same calls with the same memory, and what they know is the same. T is a constant of the gradient.
    """

    def observe(self, memory: Memory, step: int) -> None:
        """Learn from the memory of the previous step, before update `step`; nothing to do where the memory is all."""
        ...

    def score(self, queries: Tensor, memory: Memory, first_particle: int | None = None) -> Tensor:
        """T [q] of query features [q, F] against the memory that was observed last; see NeighborCritic.score."""
        ...

    def state(self) -> dict[str, Tensor]:
        """State on which the remaining updates depend besides the memory, as named tensors, the same on all workers."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned; passes over that of another kind of critic, and of none."""
        ...


def score_of(probability: Tensor, config: ScoreConfig) -> Tensor:
    """T of p = p(data | features), any shape: 2p - 1 (Eq. 12), or log 2 + log max(p, min_probability); times the sign."""
    if config.form == "linear":
        return config.sign * (2 * probability - 1)
    return config.sign * (math.log(2) + probability.clamp(min=config.min_probability).log())
