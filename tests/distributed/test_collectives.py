"""Comm in real gloo groups: gathers of uneven and empty shares, order-free sums, agreement."""

import pytest
import torch
from groups import run_group
from torch import Tensor

from pipeline.comm import Comm, ExactSum, split_rows

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 4])
DTYPES = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
PARTIALS = 7


def all_rows(num_rows: int, dtype: torch.dtype) -> Tensor:
    values = torch.arange(num_rows * 6).view(num_rows, 2, 3)
    return values * 2**40 if dtype == torch.int64 else values.remainder(251 if dtype == torch.uint8 else 2).to(dtype)


def _gather(block_rows: list[int]) -> list[list[Tensor]]:
    """What this rank gets for every dtype, by a plain gather and by two overlapping ones."""
    comm = Comm.current()
    starts = [sum(block_rows[:b]) for b in range(len(block_rows))]
    mine = [i for b in comm.my_blocks(len(block_rows)) for i in range(starts[b], starts[b] + block_rows[b])]
    shares = comm.rows_per_rank(block_rows)
    results = []
    for dtype in DTYPES:
        rows = all_rows(sum(block_rows), dtype)[mine]
        first, second = comm.gather_async(rows, shares), comm.gather_async(rows[:, :1].contiguous(), shares)
        results.append([comm.gather(rows, shares), first.wait(), second.wait()])
    return results


@WORLDS
@pytest.mark.parametrize("block_rows", [[3, 3, 3, 3], [5, 4, 4, 4, 1], [2, 0, 0, 7], [4], [0, 0, 0]])
def test_a_gather_returns_the_blocks_in_order_on_every_rank(world_size: int, block_rows: list[int]) -> None:
    """Uneven shares, ranks without rows, and nothing at all: [4] is one block for up to four workers."""
    for results in run_group(_gather, world_size, block_rows):
        for dtype, (plain, first, second) in zip(DTYPES, results):
            expected = all_rows(sum(block_rows), dtype)
            assert plain.dtype == first.dtype == dtype
            assert torch.equal(plain, expected) and torch.equal(first, expected)
            assert torch.equal(second, expected[:, :1])


def partial(index: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(index)
    scale = 10.0 ** torch.randint(-9, 2, (1009,), generator=generator)
    return {"weights": scale * torch.randn(1009, generator=generator), "count": torch.tensor(float(index))}


def _sum() -> tuple[Tensor, Tensor]:
    """The exact sum of 7 blocks' partials, and the plain float32 one."""
    comm = Comm.current()
    total = ExactSum({"weights": (1009,), "count": ()})
    plain = torch.zeros(1009)
    for block in comm.my_blocks(PARTIALS):
        total.add_(partial(block))
        plain += partial(block)["weights"]
    return total.reduce(comm)["weights"].clone(), comm.sum_(plain)


def test_sums_have_the_same_bits_on_any_number_of_ranks() -> None:
    expected = sum(partial(b)["weights"].double() for b in range(PARTIALS))
    results = {world_size: run_group(_sum, world_size) for world_size in (1, 2, 3, 4)}
    alone, plain_alone = results[1][0]
    torch.testing.assert_close(alone, expected, rtol=0, atol=PARTIALS * 2.0**-37)
    for ranks in results.values():
        assert all(torch.equal(exact, alone) for exact, _ in ranks)
    # the contrast: plain float32 sums depend on the number of ranks
    assert any(not torch.equal(results[n][0][1], plain_alone) for n in (2, 3, 4))


def _bad_sum() -> str | None:
    comm = Comm.current()
    total = ExactSum({"weights": (3,), "count": ()})
    total.add_({"weights": torch.ones(3), "count": torch.tensor(torch.nan if comm.rank == 1 else 1.0)})
    total.reduce(comm)
    return total.first_bad()


def test_a_bad_number_on_one_rank_is_seen_by_all() -> None:
    assert run_group(_bad_sum, 3) == ["count"] * 3


def _agree() -> tuple[list[bool], int, int, bool]:
    comm = Comm.current()
    flags = [comm.any(comm.rank == r) for r in range(comm.world_size)] + [comm.any(False)]
    return flags, comm.from_first(2**40 + comm.rank), comm.rank, comm.is_first


@WORLDS
def test_ranks_agree(world_size: int) -> None:
    for rank, (flags, value, own_rank, is_first) in enumerate(run_group(_agree, world_size)):
        assert flags == [True] * world_size + [False]
        assert value == 2**40
        assert own_rank == rank and is_first == (rank == 0)


def _shares(num_rows: int) -> list[int]:
    comm = Comm.current()
    return comm.rows_per_rank(split_rows(num_rows, 4))


def test_all_ranks_know_all_shares() -> None:
    assert run_group(_shares, 3, 10) == [[6, 2, 2]] * 3


def _copy() -> Tensor:
    comm = Comm.current()
    values = torch.full((3,), float(comm.rank))
    assert comm.copy_from_first_(values) is values
    return values


@WORLDS
def test_a_copy_from_the_first_is_on_every_rank(world_size: int) -> None:
    assert all(torch.equal(values, torch.zeros(3)) for values in run_group(_copy, world_size))
