"""What `benchmarks.scaling` measures: real updates of one configuration in a group of workers, and what they waited for."""

import functools
import time
from collections import Counter
from typing import Literal, NamedTuple

import torch

from benchmarks.cost_model import Job
from benchmarks.timed_comm import TimedComm
from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import (
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    Phase,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.training.beam import BeamObjective

GAMMA = 0.5
TRAIN_ROWS, HELDOUT_ROWS = 2048, 100


Mode = Literal["strong", "weak"]


class Case(NamedTuple):
    """One configuration."""

    workers: int
    mode: Mode
    """strong: the same run on more workers; weak: as much more run. With one worker they are one."""
    sweeps: int
    adversary: bool
    overlap: bool = True
    """False: the gather of the memory is awaited where it is started."""

    def job(self) -> Job:
        """Its sizes: 128 chains and data rows in 4 blocks, of all workers or of each."""
        job = Job(sweeps=self.sweeps, adversary=self.adversary)
        return job if self.mode == "strong" else job.weak(self.workers)

    @property
    def name(self) -> str:
        """For people, and the key in the results."""
        critic = "with the adversary" if self.adversary else "likelihood alone"
        blocking = "" if self.overlap else ", gather not overlapped"
        mode = "" if self.workers == 1 else f", {self.mode}"
        return f"k = {self.sweeps}, {critic}, {self.workers} worker{'s' * (self.workers > 1)}{mode}{blocking}"


def build_cases(workers: tuple[int, ...] = (1, 2, 4), sweeps: tuple[int, ...] = (10, 100)) -> list[Case]:
    """All cases, those that differ in one thing beside each other."""
    found = []
    for k in sweeps:
        for adversary in (False, True):
            for n in workers:
                modes: tuple[Mode, ...] = ("strong",) if n == 1 else ("strong", "weak")
                for mode in modes:
                    found.append(Case(n, mode, k, adversary))
                    if adversary and n > 1:
                        found.append(Case(n, mode, k, adversary, overlap=False))
    return found


class Turn(NamedTuple):
    """What one worker measured in one turn, per update."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of processor time, those of gloo's threads included."""
    seconds: dict[str, float]
    """In collectives, by timed_comm.KINDS."""
    traffic: dict[str, float]
    """Bytes that the worker has put into sums and gathers."""
    merged: bool
    """Whether the worker's blocks are swept as one tensor."""


def config_of(job: Job) -> RunConfig:
    """A driven BEAM of a job's sizes that is past its likelihood phase from the start."""
    return RunConfig(
        "scaling",
        data=DataConfig(job.batch),
        model=RBMConfig(job.visible, job.hidden),
        sampler=SamplerConfig(job.chains, job.sweeps, statistics_sweeps=0, num_blocks=job.num_blocks),
        critic=CriticConfig(search="torch", num_neighbors=job.neighbors, memory=job.memory),
        schedules=Schedules(Phase(updates=0), Phase(updates=10**6, gamma=GAMMA if job.adversary else 1.0)),
        evaluation=EvaluationConfig(num_rows=HELDOUT_ROWS),
    )


class _Run(NamedTuple):
    objective: BeamObjective
    comm: TimedComm
    steps: list[int]
    """Updates done, one number."""


@functools.cache
def _run(job: Job) -> _Run:
    """The run of this worker, when its first memory has been used."""
    rows = torch.randn(TRAIN_ROWS + HELDOUT_ROWS, job.visible, generator=torch.Generator().manual_seed(0))
    comm = TimedComm.current()
    assert isinstance(comm, TimedComm)
    objective = build_beam(config_of(job), rows[HELDOUT_ROWS:], rows[:HELDOUT_ROWS], comm)
    for step in range(2):
        objective.step(step, measure=False)
    return _Run(objective, comm, [2])


def take_turn(case: Case, updates: int) -> Turn:
    """Make `updates` updates; to be called on all workers of a group at once."""
    objective, comm, steps = _run(case.job())
    if comm.overlap != case.overlap:
        comm.overlap = case.overlap
        objective.step(steps[0], measure=False)  # the memory that is awaited first shall be gathered in this way too
        steps[0] += 1
    first = steps[0]
    Comm.current().from_first(0)  # begin together
    seconds, traffic = dict(comm.seconds), Counter(comm.traffic)
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(first, first + updates):
        objective.step(step, measure=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    steps[0] = first + updates
    return Turn(
        wall / updates,
        cpu / updates,
        {kind: (value - seconds[kind]) / updates for kind, value in comm.seconds.items()},
        {kind: value / updates for kind, value in (comm.traffic - traffic).items()},
        len(objective.chains.groups) == 1,  # type: ignore[attr-defined]
    )
