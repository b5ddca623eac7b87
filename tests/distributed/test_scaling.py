"""What `benchmarks.scaling` measures is real: the bytes that its model counts, its clocks, and the same run without overlap."""

import dataclasses

import pytest
import torch
from groups import run_group
from torch import Tensor

from benchmarks.cost_model import Job, bytes_per_update
from benchmarks.scaling_cases import config_of
from benchmarks.timed_comm import KINDS, TimedComm
from benchmarks.workers import Group, WorkerFailure
from pipeline.build import build_beam
from pipeline.comm import Comm

TOY = Job(chains=13, batch=17, sweeps=3, num_blocks=4, visible=23, hidden=11)


def run(job: Job, overlap: bool = True) -> tuple[dict[str, int], dict[str, float], dict[str, Tensor]]:
    """Bytes of the fourth update, seconds in collectives so far, and the state after it."""
    rows = torch.randn(17 * 4 + 20, job.visible, generator=torch.Generator().manual_seed(0))
    config = config_of(job)
    assert config.critic is not None
    critic = {"feature": "hidden_sample"} if job.wire == "bits" else {"wire": job.wire}
    config = dataclasses.replace(
        config,
        critic=dataclasses.replace(config.critic, **critic),
        evaluation=dataclasses.replace(config.evaluation, num_rows=20, num_components=5),
    )
    comm = TimedComm.current()
    assert isinstance(comm, TimedComm)
    comm.overlap = overlap
    objective = build_beam(config, rows[20:], rows[:20], comm)
    for step in range(3):
        objective.step(step, measure=False)
    before = comm.traffic.copy()
    objective.step(3, measure=False)
    return dict(comm.traffic - before), comm.seconds, objective.state()


def bytes_of_all_forms(jobs: list[Job]) -> list[dict[str, int]]:
    return [run(job)[0] for job in jobs]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_model_counts_the_bytes_that_the_communicator_counts(workers: int) -> None:
    """Uneven shares: 13 particles and 17 data rows in 4 blocks; 11 features are 44, 22 or 2 bytes."""
    jobs = [dataclasses.replace(TOY, wire=wire) for wire in ("float32", "bfloat16", "bits")]
    jobs += [dataclasses.replace(TOY, adversary=False), dataclasses.replace(TOY, memory="sharded", neighbors=3)]
    for found in run_group(bytes_of_all_forms, workers, jobs):
        assert found == [bytes_per_update(job, workers) for job in jobs]


def test_without_the_adversary_only_sums_travel() -> None:
    job = dataclasses.replace(TOY, adversary=False)
    for traffic, seconds, _ in run_group(run, 2, job):
        assert traffic.keys() == {"sum"}
        assert seconds["sum"] > 0 and seconds["gather_wait"] == 0


def test_waiting_at_once_changes_nothing_but_the_time() -> None:
    overlapped, at_once = (run_group(run, 2, TOY, overlap)[0] for overlap in (True, False))
    assert overlapped[0] == at_once[0]
    assert all(torch.equal(value, at_once[2][name]) for name, value in overlapped[2].items())
    assert all(overlapped[1][kind] > 0 for kind in KINDS)
    assert at_once[1]["gather_wait"] == 0 < at_once[1]["gather_start"]


def sum_of_ranks(offset: int) -> float:
    comm = Comm.current()
    if offset < 0 and comm.rank == 1:
        raise RuntimeError("a reason to look for")
    return float(comm.sum_(torch.tensor([float(comm.rank + offset)]))) if offset >= 0 else 0.0


def test_a_group_answers_again_and_says_why_it_fails() -> None:
    with Group(2, timeout=60.0) as group:
        assert group.call(sum_of_ranks, 1) == [3.0, 3.0]
        assert group.call(sum_of_ranks, 2) == [5.0, 5.0]
        with pytest.raises(WorkerFailure, match="a reason to look for"):
            group.call(sum_of_ranks, -1)
