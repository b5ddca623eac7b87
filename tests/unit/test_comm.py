"""Blocks and exact sums: every block has one owner, and sums have the same bits for any order and grouping."""

import math

import pytest
import torch
from torch import Tensor

from pipeline import comm
from pipeline.comm import GRID, LIMIT, Comm, ExactSum, snap_to_grid, split_rows


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 5, 101, 128])
def test_rows_are_split_as_equally_as_can_be(num_rows: int, num_blocks: int) -> None:
    shares = split_rows(num_rows, num_blocks)
    assert len(shares) == num_blocks
    assert sum(shares) == num_rows
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("world_size", range(1, 8))
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 5, 16])
def test_every_block_has_one_owner_in_order_of_rank(world_size: int, num_blocks: int) -> None:
    shares = [list(Comm(0, world_size).blocks_of(rank, num_blocks)) for rank in range(world_size)]
    assert [block for share in shares for block in share] == list(range(num_blocks))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank in range(world_size):
        assert list(Comm(rank, world_size).my_blocks(num_blocks)) == shares[rank]


@pytest.mark.parametrize("world_size", range(1, 8))
def test_rows_per_rank_are_those_of_the_rank_s_blocks(world_size: int) -> None:
    comm, block_rows = Comm(0, world_size), [7, 5, 0, 3, 2]
    rows = comm.rows_per_rank(block_rows)
    assert rows == [sum(block_rows[b] for b in comm.blocks_of(r, 5)) for r in range(world_size)]
    assert sum(rows) == 17 and len(rows) == world_size


def test_one_worker_talks_to_nobody() -> None:
    comm, rows = Comm(), torch.arange(6.0).view(3, 2)
    assert comm.is_first and comm.world_size == 1
    assert comm.gather(rows, [3]) is rows
    assert comm.gather_async(rows, [3]).wait() is rows
    assert comm.sum_(rows) is rows
    assert comm.any(True) is True and comm.any(False) is False
    assert comm.from_first(2**40) == 2**40
    assert Comm.current().world_size == 1


def test_rows_that_are_not_this_rank_s_share_are_refused() -> None:
    with pytest.raises(AssertionError):
        Comm().gather(torch.zeros(3, 2), [4])


def some_values(dtype: torch.dtype = torch.float64) -> Tensor:
    """Values of both signs over 16 orders of magnitude, as gradients have."""
    g = seeded(1)
    size = 10 ** (8 * torch.rand(4001, generator=g, dtype=torch.float64) - 12)
    large = 100 * torch.randn(97, generator=g, dtype=torch.float64)
    return torch.cat([size * torch.randn(4001, generator=g, dtype=torch.float64), large]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_snapped_values_are_the_nearest_multiples_of_the_grid(dtype: torch.dtype) -> None:
    edge = torch.tensor([0.0, -0.0, LIMIT - 1, 1 - LIMIT, 0.75 * GRID, -0.25 * GRID, 0.5 * GRID], dtype=dtype)
    values = torch.cat([some_values(dtype), edge])
    before = values.clone()
    snapped = snap_to_grid(values)
    assert snapped.dtype == torch.float64
    assert torch.equal(snapped / GRID, (snapped / GRID).round())  # dividing by a power of two is exact
    assert ((snapped - values.double()).abs() <= GRID / 2).all()
    assert torch.equal(snap_to_grid(snapped), snapped)
    assert torch.equal(values, before)  # the caller's tensor is left alone, also when it is float64 itself


def test_values_that_are_not_finite_pass_through() -> None:
    snapped = snap_to_grid(torch.tensor([math.nan, math.inf, -math.inf, 1.0]))
    assert snapped[0].isnan() and snapped[1] == math.inf and snapped[2] == -math.inf and snapped[3] == 1


def grouped_sums(partials: Tensor) -> list[Tensor]:
    """Sums of the rows of `partials` [n, size] in many orders and groupings, as all-reduces of N workers might do."""
    g, sums = seeded(2), []
    for world_size in (1, 2, 3, 4, 7, len(partials)):
        for _ in range(5):
            order = torch.randperm(len(partials), generator=g)
            workers = []
            for share in order.tensor_split(world_size):
                total = torch.zeros_like(partials[0])
                for row in share.tolist():
                    total = total + partials[row]
                workers.append(total)
            total = workers[0]
            for worker in workers[1:]:
                total = total + worker
            sums.append(total)
    return sums


def num_different(sums: list[Tensor]) -> int:
    return sum(not torch.equal(total, sums[0]) for total in sums[1:])


def test_sums_of_snapped_values_have_the_same_bits_in_any_order_and_grouping() -> None:
    partials = torch.stack([some_values()[torch.randperm(4098, generator=seeded(i))] for i in range(16)])
    assert num_different(grouped_sums(snap_to_grid(partials))) == 0
    # the contrast: floating-point sums differ, in double precision as in single
    assert num_different(grouped_sums(partials)) > 10
    assert num_different(grouped_sums(partials.float())) > 10


def test_sums_up_to_the_limit_stay_exact() -> None:
    """16 partials just below 2^15 / 16 with all grid bits in use: compared with integer arithmetic."""
    partials = snap_to_grid((LIMIT / 16 - 1) + torch.rand(16, 101, generator=seeded(3), dtype=torch.float64))
    in_units = (partials / GRID).to(torch.int64)
    assert num_different(grouped_sums(partials)) == 0
    assert torch.equal((partials.sum(0) / GRID).to(torch.int64), in_units.sum(0))


SHAPES: dict[str, torch.Size | tuple[int, ...]] = {"weights": (5, 3), "bias": (7,), "count": ()}


def test_sums_in_stretches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of values that do not lie in one piece."""
    parts = [{"weights": torch.rand(3, 5, generator=seeded(i)).T, "bias": torch.rand(7)} for i in range(3)]
    whole = ExactSum(SHAPES)
    monkeypatch.setattr(comm, "_STRETCH", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    stretched = ExactSum(SHAPES)
    for part in parts:
        whole.add_(part)
        stretched.add_(part)
    found = stretched.reduce(Comm())
    for name, value in whole.reduce(Comm()).items():
        assert torch.equal(found[name], value)
    expected = sum(snap_to_grid(part["weights"]) for part in parts)
    assert torch.equal(found["weights"], expected)


def test_named_sums_share_one_buffer() -> None:
    total = ExactSum(SHAPES)
    assert total.buffer.shape == (23,) and total.buffer.dtype == torch.float64
    total.add_({"weights": torch.ones(5, 3), "count": torch.tensor(2.5)})
    total.add_({"weights": torch.full((5, 3), 0.25), "bias": torch.arange(7.0)})
    sums = total.reduce(Comm())
    assert {name: tuple(value.shape) for name, value in sums.items()} == SHAPES
    assert torch.equal(sums["weights"], torch.full((5, 3), 1.25, dtype=torch.float64))
    assert torch.equal(sums["bias"], torch.arange(7.0, dtype=torch.float64))
    assert sums["count"] == 2.5
    assert total.first_bad() is None
    assert all(
        value.untyped_storage().data_ptr() == total.buffer.untyped_storage().data_ptr() for value in sums.values()
    )
    total.zero_()
    assert not any(value.any() for value in total.reduce(Comm()).values()), "what nothing was added to is 0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_values_are_rounded_to_the_grid_like_all_others(dtype: torch.dtype) -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) / 3
    total = ExactSum(SHAPES)
    total.add_({"weights": values})
    assert torch.equal(total.reduce(Comm())["weights"], snap_to_grid(values))


def test_what_a_single_block_adds_stays_as_it_is() -> None:
    total = ExactSum(SHAPES, single=True)
    for scale in (1.0, 2.0):
        values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * scale / 3e9  # below the grid in part
        total.zero_()
        total.add_({"weights": values})
        assert torch.equal(total.reduce(Comm())["weights"], values)
        assert not total.parts["bias"].any() and total.first_bad() is None
    with pytest.raises(AssertionError, match="two blocks add to weights"):
        total.add_({"weights": values})
    total.zero_()
    total.add_({"count": torch.tensor(math.inf), "weights": values})
    total.reduce(Comm())
    assert total.first_bad() == "count"


def test_adding_leaves_the_partial_sums_alone() -> None:
    partial = {"bias": torch.full((7,), 1 / 3, dtype=torch.float64)}
    ExactSum(SHAPES).add_(partial)
    assert torch.equal(partial["bias"], torch.full((7,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, LIMIT, -LIMIT, 1e30])
@pytest.mark.parametrize("name", SHAPES)
def test_a_bad_sum_is_named(name: str, bad: float) -> None:
    total = ExactSum(SHAPES)
    total.add_({key: torch.ones(shape) for key, shape in SHAPES.items()})
    value = torch.zeros(SHAPES[name])
    value.view(-1)[-1] = bad
    total.add_({name: value})
    total.add_({name: torch.zeros(SHAPES[name])})
    total.reduce(Comm())
    if abs(bad) == LIMIT:
        total.parts[name].view(-1)[-1] = bad  # exactly at the limit (1 was added to it above)
    assert total.first_bad() == name
    total.zero_()
    total.reduce(Comm())
    assert total.first_bad() is None


def test_the_first_of_several_bad_sums_is_named() -> None:
    total = ExactSum(SHAPES)
    total.add_({"count": torch.tensor(math.nan), "bias": torch.full((7,), math.inf)})
    total.reduce(Comm())
    assert total.first_bad() == "bias"


def test_sums_within_the_limit_are_not_bad() -> None:
    total = ExactSum(SHAPES)
    total.add_({"bias": torch.full((7,), LIMIT - 1), "count": torch.tensor(1 - LIMIT)})
    total.reduce(Comm())
    assert total.first_bad() is None
