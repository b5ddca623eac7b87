"""What the loop can train: anything with a step, a state and a held-out evaluation.

All methods are collective: every worker calls them in the same order with the same arguments.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class NonFinite(RuntimeError):
    """A quantity became NaN, infinite or absurdly large; every worker raises it at the same step."""

    def __init__(self, quantity: str, step: int, ranks: Sequence[int] = ()):
        where = f" (it began on rank {', '.join(map(str, ranks))})" if ranks else ""
        super().__init__(
            f"{quantity} is not finite (or beyond 32768) at step {step}{where}: training has diverged. The last checkpoint is "
            "untouched; lower the learning rate (schedules.*.learning_rate.initial) or raise model.*.min_std"
        )
        self.quantity = quantity
        self.step = step
        self.ranks = tuple(ranks)
        """The workers whose own data or particles were not finite; empty where only their sums were."""


class Evaluation(NamedTuple):
    """What a held-out evaluation found."""

    metrics: dict[str, float]
    samples: Tensor | None
    """A few of the rows it looked at [n, V], to be looked at by people; None when the objective draws none."""


class Objective(Protocol):
    """A training objective: it owns the model, the optimizer, its data and its random streams."""

    total_steps: int
    """Number of parameter updates of the whole run."""

    def step(self, step: int, measure: bool) -> dict[str, float]:
        """One parameter update, the `step`-th from 0. Returns global numbers, the same on all workers.

        With `measure` they are complete (temperatures, gradient norms, reconstruction error ...), without it they are those
        that cost nothing; the update itself does not depend on it. Raises NonFinite, on all workers together, before the
        parameters change; on a GPU, without `measure`, it may be for the step before, and `evaluate` and `state` raise it too.
        """
        ...

    def evaluate(self, step: int) -> Evaluation:
        """Held-out monitors after `step` updates, by fixed protocols and seeds; changes nothing of the run."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the remaining steps depend on, as named CPU tensors, the same on all workers."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`, on any number of workers. Raises ValueError on names or shapes that do not fit."""
        ...
