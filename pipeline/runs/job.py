"""A training job as plain values, and what one worker does with it; the same bits with and without Ray on CPUs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.build import build_objective
from pipeline.comm import Comm
from pipeline.config import AutoencoderConfig, ConfigError, GANConfig, RunConfig
from pipeline.data.manifest import ShardError, read_manifest
from pipeline.data.rows import read_scaling
from pipeline.data.undamaged import load_undamaged_rows
from pipeline.files import write_json
from pipeline.training.autoencoder import VALUES
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import Progress, StopRequest, pick_device, refuse_another_run, train
from pipeline.training.objective import Objective


@dataclass(frozen=True)
class TrainJob:
    """Everything a worker needs to know; plain values, so that it travels."""

    config: dict[str, Any]
    data_dir: str
    """Latent shards or points of a BEAM or GAN, pixel shards of an autoencoder or a GAN of photographs."""
    data_hash: str
    folder: str
    """The run's folder, an absolute path that all workers see."""
    threads: int = 1
    """Compute threads of each worker; the bits of a run depend on it, not on the number of workers."""
    until: int | None = None
    """Updates after which to end early, with a checkpoint; None: the run's own end."""


class TrainingFailed(RuntimeError):
    """A run that ended without a result; says why and what is left."""


class JobRows(NamedTuple):
    """The rows that a job trains on, as its objective takes them."""

    train: Tensor
    valid: Tensor
    skipped: dict[str, Any]
    """Damaged rows left out: {"rows": number, "which": digest}; empty when there were none."""


def load_job_rows(job: TrainJob, comm: Comm) -> JobRows:
    """The rows of the job's shards, the same on all workers. Raises ShardError or ConfigError on what does not fit."""
    config, data = RunConfig.from_dict(job.config), Path(job.data_dir)
    kind = read_manifest(data).kind
    model = config.model
    of_pixels = isinstance(model, AutoencoderConfig) or (isinstance(model, GANConfig) and model.num_visible == VALUES)
    if (kind == "pixels") != of_pixels:
        wanted = "pixels" if of_pixels else "latents or points"
        raise ShardError(f"recipe {config.name!r} trains on {wanted}, but {data} holds {kind}")
    if kind == "pixels" and config.data.scaling != "manifest":
        raise ConfigError(
            f"data.scaling = {config.data.scaling!r}: pixels are taken as they are; leave it at 'manifest'"
        )
    train, valid = (load_undamaged_rows(data, split, config.data.max_skipped_share) for split in ("train", "valid"))
    digest = (train.digest + valid.digest) >> 1
    # with other files on one machine its workers would make other steps, and the group would hang or drift apart
    if not comm.same(digest):
        raise ShardError(
            f"the workers left out different rows of {data}: it is damaged on some machines and not on others; copy it anew"
        )
    number = len(train.skipped) + len(valid.skipped)
    skipped = {"rows": number, "which": digest} if number else {}
    if of_pixels:
        return JobRows(train.rows, valid.rows, skipped)
    scaling = read_scaling(data, config.data.scaling)
    return JobRows(scaling.apply(train.rows), scaling.apply(valid.rows), skipped)


def make_objective(
    job: TrainJob, comm: Comm, config: RunConfig | None = None, rows: JobRows | None = None
) -> Objective:
    """The objective of `config` on `rows`; None: the job's own. Raises as `load_job_rows`."""
    config, rows = config or RunConfig.from_dict(job.config), rows or load_job_rows(job, comm)
    return build_objective(config, rows.train, rows.valid, comm)


def run_worker(job: TrainJob, comm: Comm, stop: StopRequest) -> Iterator[Progress]:
    """Train as one worker of `comm`; yields the loop's progress, on every worker."""
    torch.set_num_threads(job.threads)
    config, folder = RunConfig.from_dict(job.config), Path(job.folder)
    meta = {
        "data": job.data_hash,
        "world_size": comm.world_size,
        "torch": torch.__version__,
        "device": comm.device.type,
    }
    rows = load_job_rows(job, comm)
    if rows.skipped:
        meta["skipped"] = rows.skipped
    yield from train(lambda c: make_objective(job, comm, c, rows), config, folder, comm, stop, meta, job.until)


def train_local(job: TrainJob) -> Iterator[dict[str, Any]]:
    """Train in this process, without Ray; yields rows."""
    device = pick_device()
    with StopRequest().on_signals() as stop:
        for progress in run_worker(job, Comm(device=device), stop):
            yield {"step": progress.step, **progress.metrics}


@dataclass(frozen=True)
class Outcome:
    """The end of a training run."""

    steps: int
    total_steps: int
    seconds: float
    history: list[dict[str, Any]]
    skipped: bool
    """True when the run was finished before."""

    @property
    def finished(self) -> bool:
        """False when it was stopped before its end."""
        return self.steps >= self.total_steps


def check_folder(folder: Path, config: RunConfig, data_hash: str) -> None:
    """Raise ValueError when `folder` holds another run; before anything of that run is touched."""
    found = load_latest(folder / "checkpoints")
    if found is not None:
        refuse_another_run(folder, found, config, data_hash)


def describe_folder(job: TrainJob, workers: int) -> None:
    """Write config.json and job.json (which data, how many workers) into the run's folder."""
    folder, manifest = Path(job.folder), read_manifest(Path(job.data_dir))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", job.config)
    facts = {"dataset": manifest.dataset, "data_hash": job.data_hash, "data_dir": job.data_dir, "kind": manifest.kind}
    write_json(folder / "job.json", {**facts, "workers": workers})


def total_updates(config: RunConfig, train_rows: int) -> tuple[int, int]:
    """(updates of the likelihood phase, of the whole run) on `train_rows` rows."""
    epoch = -(-train_rows // config.data.batch_size)
    first = config.schedules.likelihood.num_updates(epoch, config.epochs_scale)
    return first, first + config.schedules.adversarial.num_updates(epoch, config.epochs_scale)
