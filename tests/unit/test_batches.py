"""Batches and streams: every row once per epoch, an order that depends on (seed, step) alone, blocks in order."""

import itertools

import pytest
import torch
from torch import Tensor

from pipeline.data.batches import Batches
from pipeline.streams import stream, stream_seed


def numbered(num_rows: int) -> Tensor:
    """Rows that hold their own number."""
    return torch.arange(num_rows)[:, None].repeat(1, 2)


def batch_of(batches: Batches, step: int) -> list[int]:
    return [i for block in range(batches.num_blocks) for i in batches.block(step, block)[:, 0].tolist()]


SIZES = pytest.mark.parametrize(
    ("num_rows", "batch_size", "num_blocks"), [(101, 17, 4), (64, 16, 4), (7, 7, 3), (13, 5, 7), (1, 1, 1), (11, 10, 2)]
)


@SIZES
def test_every_row_comes_once_per_epoch(num_rows: int, batch_size: int, num_blocks: int) -> None:
    batches = Batches(numbered(num_rows), batch_size, 3, num_blocks)
    steps = batches.steps_per_epoch
    assert steps == -(-num_rows // batch_size)
    for epoch in range(3):
        rows = [i for step in range(epoch * steps, (epoch + 1) * steps) for i in batch_of(batches, step)]
        assert sorted(rows) == list(range(num_rows))


@SIZES
def test_the_last_batch_holds_the_rest(num_rows: int, batch_size: int, num_blocks: int) -> None:
    batches = Batches(numbered(num_rows), batch_size, 3, num_blocks)
    for step in range(2 * batches.steps_per_epoch):
        last = step % batches.steps_per_epoch == batches.steps_per_epoch - 1
        size = num_rows - (batches.steps_per_epoch - 1) * batch_size if last else batch_size
        assert batches.size(step) == size == len(batch_of(batches, step))
        shares = batches.block_rows(step)
        assert len(shares) == num_blocks and sum(shares) == size and max(shares) - min(shares) <= 1
        assert [len(batches.block(step, b)) for b in range(num_blocks)] == shares


def test_blocks_cut_one_global_batch_in_order() -> None:
    """The number of blocks deals the batch and does not change it, so the same rows in the same order come out."""
    rows = [[batch_of(Batches(numbered(101), 17, 3, n), step) for step in range(13)] for n in (1, 2, 4, 7)]
    assert all(other == rows[0] for other in rows)


def test_any_order_of_calls_gives_the_same_rows() -> None:
    """Stateless, also across epochs (7 steps each): a resumed run asks for step 30 first."""
    fresh = {step: batch_of(Batches(numbered(101), 15, 5, 3), step) for step in (2, 7, 30)}
    batches = Batches(numbered(101), 15, 5, 3)
    for step in (7, 2, 7, 30, 2, 30, 7):
        assert batch_of(batches, step) == fresh[step]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(numbered(101), 20, seed, 2)
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        return [i for step in steps for i in batch_of(batches, step)]

    orders = [order(seed, epoch) for seed, epoch in itertools.product((0, 1, 2), (0, 1, 2))]
    for a, b in itertools.combinations(orders, 2):
        # independent permutations agree at about one place (Poisson with mean 1): 15 or more has probability 1e-13
        assert sum(x == y for x, y in zip(a, b)) < 15


def test_a_block_is_a_copy() -> None:
    rows = numbered(11)
    batches = Batches(rows, 11, 0, 1)
    batches.block(0, 0).zero_()
    assert torch.equal(rows, numbered(11))


def test_rows_may_have_any_shape_and_type() -> None:
    images = torch.arange(7 * 3 * 4 * 4, dtype=torch.uint8).view(7, 3, 4, 4)
    block = Batches(images, 4, 0, 2).block(1, 0)
    assert block.shape == (2, 3, 4, 4) and block.dtype == torch.uint8


@pytest.mark.parametrize("batch_size", [0, -1, 12])
def test_a_batch_size_that_cannot_be_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.batch_size = {batch_size}.*11 rows"):
        Batches(numbered(11), batch_size, 0, 2)


def test_streams_are_named_by_seed_purpose_and_ids() -> None:
    names = [
        (s, p, ids) for s in (0, 1, 10) for p in ("chains", "beta") for ids in ((), (0,), (1,), (0, 1), (1, 0), (10,))
    ]
    seeds = [stream_seed(s, p, *ids) for s, p, ids in names]
    assert len(set(seeds)) == len(names)
    assert len({seed % 2**32 for seed in seeds}) == len(names)  # the bits that torch's CPU generator uses
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.rand(3, generator=stream(s, p, *ids)) for s, p, ids in names]
    assert len({tuple(d.tolist()) for d in draws}) == len(names)
    assert torch.equal(torch.rand(3, generator=stream(0, "chains", 1)), torch.rand(3, generator=stream(0, "chains", 1)))


def test_stream_seeds_are_those_of_earlier_runs() -> None:
    """A change of the hash would make every saved run's data order another one."""
    assert stream_seed(0, "data order", 0) == 9141125557858602351
    assert stream_seed(7, "chains", 3, 1) == 8066099618225728975


def test_streams_do_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=stream(0, "chains"))
    Batches(numbered(11), 3, 0, 2).block(0, 0)
    assert torch.equal(torch.get_rng_state(), before)
