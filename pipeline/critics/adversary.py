"""The adversary: a critic with its memory over all workers.

It keeps the features of one update and scores the particles of the next.
"""

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from pipeline.comm import Comm, PendingGather
from pipeline.critics.critic import Critic
from pipeline.critics.memory import FeatureEncoding, Memory

CRITIC_DOES_NOT_FIT = (
    "the checkpoint's critic does not fit this run: start from one before the adversary, or use the same kind of critic"
)


class Adversary(Protocol):
    """Each step: `ready`, then `score` as often as needed, then `remember`. All workers make the same calls."""

    def ready(self, step: int) -> bool:
        """Take in what was remembered last, before update `step`; False when there is nothing yet."""
        ...

    def score(self, queries: list[Tensor], block_rows: list[int], own: bool) -> list[Tensor]:
        """T [q] of the query features [q, F] of each of this worker's blocks.

        Args:
            queries: one tensor for each block of this worker.
            block_rows: numbers of queries of all blocks of the run.
            own: the queries are the run's particles, in its order.
        """
        ...

    def remember(self, data: list[Tensor], particles: list[Tensor], data_rows: list[int]) -> None:
        """Keep the features of the data rows [b, F] and particles [m, F] of each of this worker's blocks.

        Args:
            data: one tensor for each block of this worker.
            particles: one tensor for each block of this worker.
            data_rows: numbers of data rows of all blocks of the run.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """State on which the remaining updates depend, the same on all workers: "memory.*" (if there is one), "critic.*"."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned, among other tensors.

        Raises:
            ValueError: when there is a memory, and another kind of critic has learned from it.
        """
        ...


def memory_state(memory: Memory | None, critic: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint; the same however the memory is spread over workers."""
    state = {f"critic.{name}": value for name, value in critic.items()}
    if memory is not None:
        state |= {"memory.features": memory.features, "memory.num_data": torch.tensor(memory.num_data)}
    return state


def saved_memory(state: dict[str, Tensor], device: torch.device) -> Memory | None:
    """The memory in a checkpoint, if there is one."""
    if "memory.features" not in state:
        return None
    return Memory(state["memory.features"].to(device), int(state["memory.num_data"]))


class ReplicatedAdversary:
    """Every worker holds all rows: they are gathered while the next sweeps run."""

    def __init__(self, critic: Critic, wire: FeatureEncoding, comm: Comm, block_chains: list[int]):
        """Nothing is remembered yet; `block_chains` are the particles of all blocks."""
        self.critic, self.wire, self.comm, self.block_chains = critic, wire, comm, block_chains
        self.memory: Memory | None = None
        self._coming: tuple[PendingGather, PendingGather, int] | None = None

    def ready(self, step: int) -> bool:
        """See Adversary."""
        memory = self._take()
        if memory is None:
            return False
        self.critic.observe(memory, step)
        return True

    def score(self, queries: list[Tensor], block_rows: list[int], own: bool) -> list[Tensor]:
        """See Adversary. Block by block: a search of other numbers of rows may differ in bits."""
        assert self.memory is not None
        blocks = self.comm.my_blocks(len(block_rows))
        firsts = [sum(block_rows[:block]) if own else None for block in blocks]
        return [self.critic.score(rows, self.memory, first) for rows, first in zip(queries, firsts)]

    def remember(self, data: list[Tensor], particles: list[Tensor], data_rows: list[int]) -> None:
        """See Adversary."""
        empty = torch.zeros(0, self.wire.num_features, dtype=self.wire.dtype, device=self.comm.device)
        self._coming = (
            self.comm.gather_async(self.wire.pack(torch.cat(data or [empty])), self.comm.rows_per_rank(data_rows)),
            self.comm.gather_async(
                self.wire.pack(torch.cat(particles or [empty])), self.comm.rows_per_rank(self.block_chains)
            ),
            sum(data_rows),
        )

    def _take(self) -> Memory | None:
        if self._coming is not None:
            data, particles, num_data = self._coming
            self.memory = Memory(self.wire.unpack(torch.cat([data.wait(), particles.wait()])), num_data)
            self._coming = None
        return self.memory

    def state(self) -> dict[str, Tensor]:
        """See Adversary."""
        memory = self._take()
        if memory is not None:
            digest = hashlib.sha256(memory.features.cpu().contiguous().numpy().tobytes()).digest()
            assert self.comm.same(int.from_bytes(digest[:7], "little")), "the memory differs between workers"
        return memory_state(memory, self.critic.state())

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Adversary."""
        saved = {k.removeprefix("critic."): v for k, v in state.items() if k.startswith("critic.")}
        self.critic.load_state(saved)
        # before the first memory a run may go on with another critic: it has learned nothing yet
        if "memory.features" in state and self.critic.state().keys() != saved.keys():
            raise ValueError(CRITIC_DOES_NOT_FIT)
        self._coming, self.memory = None, saved_memory(state, self.comm.device)
