"""Global batches of rows held in memory, dealt in blocks. All objectives draw their data from here.

The order of an epoch is a permutation that depends on (seed, epoch) alone, and a step's position on the step number
alone, so a run resumes at any step with nothing to restore, and all workers agree without talking.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.comm import split_rows
from pipeline.streams import stream


class Batches:
    """Batches of `rows` [N, ...] of `batch_size` rows over all workers, reshuffled every epoch; the last may be smaller."""

    def __init__(self, rows: Tensor, batch_size: int, seed: int, num_blocks: int):
        if not 1 <= batch_size <= len(rows):
            raise ValueError(
                f"data.batch_size = {batch_size}: the data set has {len(rows)} rows; choose 1 to {len(rows)}"
            )
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.num_blocks = num_blocks
        self.steps_per_epoch = -(-len(rows) // batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def size(self, step: int) -> int:
        """Rows of the global batch at `step`."""
        start = (step % self.steps_per_epoch) * self.batch_size
        return min(self.batch_size, len(self.rows) - start)

    def block_rows(self, step: int) -> list[int]:
        """Rows of each block of the batch at `step`; they sum to `size(step)`."""
        return split_rows(self.size(step), self.num_blocks)

    def batch(self, step: int, out: Tensor | None = None) -> Tensor:
        """All rows of the batch at `step`, a copy [size(step), ...]; into `out` if given."""
        return self._copied(step, 0, self.size(step), out)

    def blocks(self, step: int, blocks: Iterable[int]) -> list[Tensor]:
        """Rows of several blocks of the batch at `step`, a copy each."""
        return [self.block(step, block) for block in blocks]

    def block(self, step: int, block: int) -> Tensor:
        """Rows of one block of the batch at `step`, a copy [block_rows(step)[block], ...]."""
        sizes = self.block_rows(step)
        return self._copied(step, sum(sizes[:block]), sizes[block], None)

    def _copied(self, step: int, start: int, count: int, out: Tensor | None) -> Tensor:
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.rows), generator=stream(self.seed, "data order", epoch))
            self._order, self._epoch = order.to(self.rows.device), epoch
        start += position * self.batch_size
        return torch.index_select(self.rows, 0, self._order[start : start + count], out=out)
