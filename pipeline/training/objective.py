"""The protocol that the loop trains: anything with a schedule, a step, a state and a held-out evaluation.

All methods are collective: every worker calls them in the same order with the same arguments.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.learning.schedule import Schedule


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
    """The result of a held-out evaluation."""

    metrics: dict[str, float]
    samples: Tensor | None
    """A few of the evaluated rows [n, V], for people to look at; None when the objective draws none."""


class Objective(Protocol):
    """A training objective: it owns the model, the optimizer, its data and its random streams."""

    schedule: Schedule
    """Length of the run, and the values of each update."""

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


def saved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a state's tensors on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `<prefix><name>`."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def require_fit(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raise ValueError, naming the first tensor that differs, unless `state` has exactly the expected names and shapes."""
    found = {name: value.shape for name, value in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"the checkpoint does not fit this run: {wrong[0]} is {found.get(wrong[0])}, expected {expected.get(wrong[0])} "
            "(a checkpoint of another recipe, or of another kind of device)"
        )
