"""Collectives between workers: sum, gather, broadcast. With one worker each returns its input.

The only file that knows torch.distributed. Two properties make a run on N workers equal to a run on one, bit for bit:

- Rows (data, particles) are dealt in fixed *blocks*; a worker owns a contiguous range of blocks, and a gather returns the
  blocks in order, whoever owned them.
- Sums do not depend on order or grouping. Floating-point addition does, so every partial sum is first rounded to a fixed
  grid (multiples of 2^-36) in float64. Sums of grid values below 2^17 are exact in float64, hence associative: any
  all-reduce gives the same bits. A NaN or an infinity passes through and is seen by all workers.
"""

import itertools
import math
from collections import Counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

GRID = 2.0**-36
"""Spacing of the grid on which sums are exact. Gradients are stored as float32, whose own spacing at 1e-3 is 1e-10."""
LIMIT = 2.0**15
"""Sums must stay below this magnitude; totals are checked, so partial sums beyond it that cancel pass unseen."""
_SNAP = 1.5 * 2.0**16  # float64 numbers near it are spaced by exactly GRID
_STRETCH = 2**16
"""Numbers per thread and pass of a CPU, few enough to stay in a core's cache between the passes."""


def split_rows(num_rows: int, num_blocks: int) -> list[int]:
    """Rows of each of `num_blocks` blocks that share `num_rows`: as equal as can be, larger ones first; may hold zeros."""
    base, extra = divmod(num_rows, num_blocks)
    return [base + (block < extra) for block in range(num_blocks)]


def snap_to_grid(values: Tensor, out: Tensor | None = None) -> Tensor:
    """`values` rounded to multiples of GRID, as float64, into `out` if given; exact sums of them need |value| < LIMIT."""
    out = torch.empty_like(values, dtype=torch.float64) if out is None else out
    return out.copy_(values).add_(_SNAP).sub_(_SNAP)


def lost_a_peer(error: BaseException) -> bool:
    """True for what a collective raises when another worker is gone or late, or when the group is being taken apart."""
    said = str(error).lower()
    late = isinstance(error, RuntimeError) and "gloo" in said
    taken_apart = isinstance(error, RuntimeError | ValueError) and "process group has not been" in said
    return isinstance(error, dist.DistError) or late or taken_apart


class PendingGather(NamedTuple):
    """A gather under way; `wait()` returns the gathered rows."""

    out: Tensor
    rows_per_rank: list[int]
    work: "dist.Work | None"

    def wait(self) -> Tensor:
        """The rows of all workers in order of rank, [sum(rows_per_rank), ...]."""
        if self.work is None:
            return self.out
        self.work.wait()
        padded = max(self.rows_per_rank)
        return torch.cat([self.out[r * padded : r * padded + n] for r, n in enumerate(self.rows_per_rank)])


class Comm:
    """One worker's view of the group: its rank, the number of workers, and the collectives."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"):
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.traffic: Counter[str] = Counter()
        """Bytes that this worker has put into each kind so far: "sum", "gather", "exchange"; with one worker none."""

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> "Comm":
        """The initialized process group of torch.distributed, or a group of one when there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(device=device)

    @property
    def is_first(self) -> bool:
        """True on the one worker that writes files and reports."""
        return self.rank == 0

    def blocks_of(self, rank: int, num_blocks: int) -> range:
        """The contiguous blocks of a worker; empty for some workers when there are fewer blocks than workers."""
        shares = split_rows(num_blocks, self.world_size)
        start = sum(shares[:rank])
        return range(start, start + shares[rank])

    def my_blocks(self, num_blocks: int) -> range:
        """The contiguous blocks of this worker."""
        return self.blocks_of(self.rank, num_blocks)

    def rows_per_rank(self, block_rows: list[int]) -> list[int]:
        """Rows that each worker holds when block b has block_rows[b] rows."""
        return [sum(block_rows[b] for b in self.blocks_of(r, len(block_rows))) for r in range(self.world_size)]

    def sum_(self, buffer: Tensor) -> Tensor:
        """Sum of `buffer` over the workers, in place. Order-free when the values come from `snap_to_grid`."""
        if self.world_size > 1:
            self.traffic["sum"] += buffer.nbytes
            dist.all_reduce(buffer)
        return buffer

    def gather_async(self, rows: Tensor, rows_per_rank: list[int]) -> PendingGather:
        """Start to gather `rows` [rows_per_rank[rank], ...] of all workers; the caller may compute meanwhile."""
        assert len(rows) == rows_per_rank[self.rank], (len(rows), rows_per_rank, self.rank)
        if self.world_size == 1:
            return PendingGather(rows, rows_per_rank, None)
        padded = max(rows_per_rank)
        mine = rows.new_zeros((padded, *rows.shape[1:]))
        mine[: len(rows)] = rows
        out = rows.new_empty((padded * self.world_size, *rows.shape[1:]))
        self.traffic["gather"] += mine.nbytes
        return PendingGather(out, rows_per_rank, dist.all_gather(list(out.chunk(self.world_size)), mine, async_op=True))

    def gather(self, rows: Tensor, rows_per_rank: list[int]) -> Tensor:
        """The rows of all workers in order of rank, on every worker."""
        return self.gather_async(rows, rows_per_rank).wait()

    def exchange(self, rows: Tensor, rows_per_rank: list[int]) -> Tensor:
        """Send each worker its rows, and take from each what it has for this one.

        Args:
            rows: [sum(rows_per_rank), ...], those for worker 0 first.
            rows_per_rank: numbers of rows that worker r is to have from every worker, the same on all of them.

        Returns:
            [world_size, rows_per_rank[rank], ...], from worker r at place r.
        """
        assert len(rows) == sum(rows_per_rank), (len(rows), rows_per_rank)
        if self.world_size == 1:
            return rows[None]
        mine = rows_per_rank[self.rank]
        out = rows.new_empty((self.world_size * mine, *rows.shape[1:]))
        self.traffic["exchange"] += rows.nbytes
        dist.all_to_all_single(out, rows.contiguous(), [mine] * self.world_size, rows_per_rank)
        return out.view(self.world_size, mine, *rows.shape[1:])

    def any(self, flag: bool) -> bool:
        """True on every worker when `flag` is true on at least one."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return bool(flags.item())

    def same(self, digest: int) -> bool:
        """True when all workers hold the same number, in [0, 2^62)."""
        mine = torch.tensor([digest], dtype=torch.int64, device=self.device)
        return bool((self.gather(mine, [1] * self.world_size) == digest).all())

    def from_first(self, value: int) -> int:
        """The first worker's `value`, on every worker."""
        if self.world_size == 1:
            return value
        box = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(box, src=0)
        return int(box.item())

    def copy_from_first_(self, values: Tensor) -> Tensor:
        """`values` become the first worker's on every worker, in place."""
        if self.world_size > 1:
            dist.broadcast(values, src=0)
        return values


class ExactSum:
    """Named sums over blocks and workers in one flat float64 buffer and one all-reduce; the same bits for any grouping."""

    def __init__(
        self,
        shapes: dict[str, torch.Size | tuple[int, ...]],
        device: torch.device | str = "cpu",
        single: bool = False,
    ):
        """Make the buffer.

        Args:
            shapes: of each sum, by name.
            device: of the buffer.
            single: one block in all adds to each sum, so there is nothing to group: its values, float32, stay as they are.
        """
        self.single = single
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.buffer = torch.zeros(sum(sizes.values()), dtype=torch.float32 if single else torch.float64, device=device)
        on_cpu = self.buffer.device.type == "cpu"
        self._stretch = _STRETCH * torch.get_num_threads() if on_cpu else max(sizes.values())
        self._scratch = torch.empty_like(self.buffer[: 0 if single else self._stretch])
        ends = itertools.accumulate(sizes.values())
        self._views = {
            name: self.buffer[end - sizes[name] : end].view(shape) for end, (name, shape) in zip(ends, shapes.items())
        }
        self.parts = dict(self._views)
        """The sums: views of the buffer, or a single block's own values."""
        self._untouched = set(shapes)

    def zero_(self) -> None:
        """Forget what was added."""
        self._untouched = set(self.parts)

    def add_(self, partial: dict[str, Tensor]) -> None:
        """Add one block's partial sums."""
        for name, value in partial.items():
            part = self._views[name]
            assert value.shape == part.shape, (name, value.shape)
            first = name in self._untouched
            self._untouched.discard(name)
            if self.single:
                assert first, f"two blocks add to {name}"
                self.parts[name] = value
                continue
            for total, some in zip(part.flatten().split(self._stretch), value.flatten().split(self._stretch)):
                if first:
                    snap_to_grid(some, out=total)
                else:
                    total.add_(snap_to_grid(some, out=self._scratch[: len(some)]))

    def reduce(self, comm: Comm) -> dict[str, Tensor]:
        """The sums over all workers, valid until the next `zero_`."""
        for name in self._untouched:  # a worker without blocks
            self.parts[name] = self._views[name].zero_()
        if comm.world_size > 1:
            for name, part in self._views.items():
                if self.parts[name] is not part:
                    self.parts[name] = part.copy_(self.parts[name])
            comm.sum_(self.buffer)
        return self.parts

    def within_limit(self) -> Tensor:
        """True (a scalar on the device, for which nothing waits) when no reduced sum can be bad; not for a NaN either."""
        sums = [part.flatten() for part in self.parts.values()] if self.single else [self.buffer]
        squares = [x @ x for x in sums]
        return sum(squares[1:], squares[0]) < LIMIT**2

    def first_bad(self) -> str | None:
        """Name of the first reduced sum that is not finite or beyond the exact range, or None; the same on all workers."""
        if bool(self.within_limit()):
            return None
        for name, part in self.parts.items():
            if not bool((part.abs() < LIMIT).all()):
                return name
        return None
