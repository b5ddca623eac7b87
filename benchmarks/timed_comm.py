"""A Comm that measures what a worker waits for: seconds in each collective, and the same with gathers that do not overlap."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.comm import Comm, PendingGather

KINDS = ("sum", "scores", "gather_start", "gather_wait")
"""sum: the all-reduce of all parameters. scores: that of one number, the mean score of the particles. gather_start and
gather_wait: of gathers that run during the sweeps, the packing and launch, and what is left to wait for afterwards."""


class _TimedGather(PendingGather):
    """A gather whose `wait` is measured."""

    comm: "TimedComm"

    def wait(self) -> Tensor:
        with self.comm.clock("gather_wait"):
            return super().wait()


class TimedComm(Comm):
    """The group's Comm with a clock. Seconds are of the wall and hold the time until the slowest worker arrives."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"):
        super().__init__(rank, world_size, device)
        self.overlap = True
        """False: a gather is awaited where it is started, and nothing is left to wait for later; the numbers are the same."""
        self.seconds = dict.fromkeys(KINDS, 0.0)
        """So far, by kind (KINDS)."""

    @contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        """Add the time of the block to `seconds[kind]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def sum_(self, buffer: Tensor) -> Tensor:
        """See Comm.sum_."""
        with self.clock("sum" if buffer.numel() > 1 else "scores"):
            return super().sum_(buffer)

    def gather(self, rows: Tensor, rows_per_rank: list[int]) -> Tensor:
        """See Comm.gather. Not timed: with a replicated memory only checkpoints and evaluations call it."""
        return super().gather_async(rows, rows_per_rank).wait()

    def gather_async(self, rows: Tensor, rows_per_rank: list[int]) -> PendingGather:
        """See Comm.gather_async."""
        with self.clock("gather_start"):
            pending = super().gather_async(rows, rows_per_rank)
            if not self.overlap:
                return PendingGather(pending.wait(), rows_per_rank, None)
        timed = _TimedGather(*pending)
        timed.comm = self
        return timed
