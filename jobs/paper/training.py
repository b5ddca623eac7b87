"""Training inside a unit, without Ray: a run folder, forks from another run's switch, and looks at it on the way."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.paper.units import Stopped, stop_wanted
from pipeline.comm import Comm
from pipeline.config import GANConfig, RunConfig
from pipeline.data.manifest import read_manifest
from pipeline.models.gan import Gan, Generator
from pipeline.runs.job import TrainJob, run_worker
from pipeline.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from pipeline.training.loop import StopRequest, pick_device, read_history
from pipeline.training.objective import part_of

Measure = Callable[[Checkpoint], dict[str, Any]]


def train_in(
    folder: Path,
    config: RunConfig,
    data: Path,
    *,
    until: int | None = None,
    fork: Path | None = None,
    measure_every: int | None = None,
    measure: Measure | None = None,
) -> Checkpoint:
    """Train `config` on the shards in `data` to its end, or to `until` updates; returns the last checkpoint.

    Args:
        folder: the run's; a run that is there goes on.
        config: of the run.
        data: folder of shards.
        until: updates after which to end early; None: the run's own end.
        fork: a folder of checkpoints; the run starts from the newest one there, whatever config it was made with. What it
            starts from is not looked at: that is the other run's.
        measure_every: checkpoints are written, and looked at, every so many updates, and at the end.
        measure: what is noted about such a checkpoint, in <folder>/measured.jsonl; see `read_measured`.

    Raises:
        Stopped: it was interrupted, and a checkpoint is written.
    """
    if measure_every is not None:
        config = dataclasses.replace(
            config, checkpoint=dataclasses.replace(config.checkpoint, every_updates=measure_every)
        )
    manifest = read_manifest(data)
    checkpoints = folder / "checkpoints"
    start = None if fork is None else load_latest(fork)
    assert fork is None or start is not None, f"no checkpoint in {fork}: its run comes first"
    if start is not None and load_latest(checkpoints) is None:
        meta = {**start.meta, "config": config.to_dict()}
        save_checkpoint(checkpoints, start.step, start.tensors, meta, config.checkpoint.keep)
    job = TrainJob(config.to_dict(), str(data), manifest.hash, str(folder.resolve()), 1, until)

    def look(found: Checkpoint | None) -> None:
        if found is None or measure is None or found.step in {row["step"] for row in read_measured(folder)}:
            return
        if start is not None and found.step == start.step:
            return
        row = {"step": found.step, **measure(found)}
        with (folder / "measured.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    look(load_latest(checkpoints))  # written, and perhaps not looked at, before a kill
    with StopRequest().on_signals() as stop:
        stop.requested = stop_wanted()
        for progress in run_worker(job, Comm(device=pick_device()), stop):
            if progress.stopped:
                raise Stopped
            if progress.checkpoint is not None:
                look(load_latest(checkpoints))
    found = load_latest(checkpoints)
    assert found is not None
    return found


def read_generator(found: Checkpoint, config: GANConfig) -> Generator:
    """The generator of a GAN's checkpoint."""
    model = Gan(config)
    model.load_state_dict(part_of(found.tensors, "model."))
    model.requires_grad_(False)
    return model.generator


def read_measured(folder: Path) -> list[dict[str, Any]]:
    """The rows that `measure` made, in order of the step."""
    file = folder / "measured.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter 0 for one value."""
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
    return mean, spread


def read_curve(folder: Path) -> list[tuple[float, float, float]]:
    """(epoch, forward, reverse) of every held-out evaluation of a run, driven chains, per dimension."""
    rows = read_history(folder)
    per_epoch = max((row["step"] / row["epoch"] for row in rows if row.get("epoch")), default=1.0)
    return [(row["step"] / per_epoch, row["kl_forward"], row["kl_reverse"]) for row in rows if "kl_forward" in row]
