"""Small runs for the tests of faults: a BEAM of 23 -> 11 units in four blocks, as a process of its own or a group of them."""

import dataclasses
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import (
    CheckpointConfig,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.runs.job import TrainJob, run_worker
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import StopRequest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def small(updates: int = 20, rate: float = 0.01, every: int = 4) -> RunConfig:
    """`updates` updates of each phase, a checkpoint after every `every`."""
    return RunConfig(
        name="small",
        data=DataConfig(batch_size=17),
        model=RBMConfig(23, 11, center_hidden=True),
        sampler=SamplerConfig(num_chains=13, gibbs_steps=3, num_blocks=4),
        critic=CriticConfig(search="torch"),
        schedules=Schedules(
            likelihood=Phase(updates=updates, learning_rate=PowerLaw(rate, 0.0)),
            adversarial=Phase(updates=updates, gamma=0.1, learning_rate=PowerLaw(rate / 2, 0.0)),
        ),
        evaluation=EvaluationConfig(every_updates=100_000, num_rows=19, num_components=5),
        checkpoint=CheckpointConfig(every_updates=every, log_every_updates=2),
    )


def job_in(folder: Path, data: Path, data_hash: str, config: RunConfig, **extra: int | None) -> TrainJob:
    return TrainJob(config.to_dict(), str(data), data_hash, str(folder), **extra)


def run_job(job: TrainJob) -> int:
    """Train as a member of the current group (or alone); returns the number of the last update."""
    last = 0
    for row in run_worker(job, Comm.current(), StopRequest()):
        last = row.step
    return last


def run_until(job: TrainJob, until: int) -> int:
    return run_job(dataclasses.replace(job, until=until))


def final(folder: Path) -> dict[str, Tensor]:
    found = load_latest(folder / "checkpoints")
    assert found is not None
    return {"step": torch.tensor(found.step), **found.tensors}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
