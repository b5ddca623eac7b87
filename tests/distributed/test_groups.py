"""The helper that starts groups of processes: results in order, and every kind of failure ends with its reason."""

import os
import time

import pytest
import torch
from groups import GroupFailure, run_group

from pipeline.comm import Comm


def _sum_of_ranks(offset: int) -> tuple[int, torch.Tensor]:
    comm = Comm.current()
    return comm.rank, comm.sum_(torch.tensor([float(comm.rank + offset)], dtype=torch.float64))


def _misbehave(kind: str) -> None:
    comm = Comm.current()
    if comm.rank == 1:
        if kind == "raise":
            raise RuntimeError("a reason to look for")
        if kind == "die":
            os._exit(3)
        time.sleep(60)
    comm.sum_(torch.zeros(1))


@pytest.mark.parametrize("world_size", [1, 3])
def test_results_come_in_order_of_rank(world_size: int) -> None:
    results = run_group(_sum_of_ranks, world_size, 10)
    total = sum(range(10, 10 + world_size))
    assert [rank for rank, _ in results] == list(range(world_size))
    assert all(value.item() == total for _, value in results)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("raise", "a reason to look for"), ("die", "exit codes by rank: .*3"), ("hang", "not done in time")],
)
def test_a_failing_rank_ends_the_group_with_its_reason(kind: str, says: str) -> None:
    start = time.monotonic()
    with pytest.raises(GroupFailure, match=says):
        run_group(_misbehave, 2, kind, timeout=4.0 if kind == "hang" else 60.0)
    assert time.monotonic() - start < 20
