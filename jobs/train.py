"""Train one recipe: on N workers with Ray Train, or in this process with `--local`. Both give the same bits on CPUs.

The workers write checkpoints and metrics.jsonl into the run's folder (shared by all machines); this process follows that
file for the progress bar and the tracker. A killed worker is replaced and the group goes on from the last checkpoint;
Ctrl-C or SIGTERM writes one and stops; the same command goes on from there.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_prep.manifest import write_json
from jobs.ray_session import ray_session
from jobs.recipes import describe, recipe
from jobs.summary import as_table, write_summary
from pipeline.comm import Comm
from pipeline.config import AutoencoderConfig, ConfigError, GANConfig, RBMConfig, RunConfig, flatten, parse_settings
from pipeline.data.rows import load_rows
from pipeline.data.shards import ShardError, load_split, read_manifest
from pipeline.training.autoencoder import VALUES, AutoencoderObjective
from pipeline.training.beam import BeamObjective
from pipeline.training.checkpoint import load_latest
from pipeline.training.gan import GanObjective
from pipeline.training.loop import Progress, StopRequest, pick_device, read_history, refuse_another_run, train
from pipeline.training.objective import NonFinite, Objective

POLL_SECONDS = 0.5
MAX_FAILURES = 8
"""Worker failures after which Ray gives up; each one costs the updates since the last checkpoint."""
_log = logging.getLogger(__name__)


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


class _FileStop(StopRequest):
    """A stop request that any process can make: the file STOP in the run's folder."""

    def __init__(self, folder: Path):
        self.file = folder / "STOP"

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self.file.exists()


def make_objective(job: TrainJob, comm: Comm) -> Objective:
    """The objective of the job's config on the job's shards. Raises ShardError or ConfigError on what does not fit."""
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
    if of_pixels:
        train_rows, valid_rows = (load_split(data, split) for split in ("train", "valid"))
    else:
        train_rows, valid_rows = (load_rows(data, split, config.data.scaling) for split in ("train", "valid"))
    if isinstance(model, GANConfig):
        return GanObjective(config, train_rows, valid_rows, comm)
    objective = BeamObjective if isinstance(model, RBMConfig) else AutoencoderObjective
    return objective(config, train_rows, valid_rows, comm)


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
    yield from train(lambda: make_objective(job, comm), config, folder, comm, stop, meta, job.until)


def train_local(job: TrainJob) -> Iterator[dict[str, Any]]:
    """Train in this process, without Ray; yields rows."""
    device = pick_device()
    with StopRequest().on_signals() as stop:
        for progress in run_worker(job, Comm(device=device), stop):
            yield {"step": progress.step, **progress.metrics}


def _ray_worker(values: dict[str, Any]) -> None:
    """The function that every Ray Train worker runs; a diverged run ends it quietly, since a retry would diverge again."""
    import ray.train
    import ray.train.torch

    job = TrainJob(**values)
    device = ray.train.torch.get_device()
    comm = Comm.current(device)
    folder = Path(job.folder)
    if (
        comm.is_first
    ):  # what the worker has to say (a damaged checkpoint, the critic's backend) reaches the driver by file
        handler = logging.FileHandler(folder / "worker.log")
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logging.getLogger("pipeline").addHandler(handler)
        logging.getLogger("pipeline").setLevel(logging.INFO)
    if (folder / "failure.json").exists():  # another worker gave up: a retry would, too
        return
    try:
        for progress in run_worker(job, comm, _FileStop(folder)):
            if progress.evaluated:  # a report waits for Ray's controller, which looks every 2 seconds
                ray.train.report({"step": progress.step, **progress.metrics})
    except (NonFinite, ValueError) as error:
        (folder / "failure.json").write_text(json.dumps({"error": str(error)}))
        if not isinstance(error, NonFinite) and comm.world_size > 1:
            raise  # perhaps on this worker alone: end the group, or the others would wait for it


def make_trainer(job: TrainJob, workers: int, use_gpu: bool, callbacks: Sequence[Any] = ()) -> Any:
    """The TorchTrainer of a job (nccl with GPUs, gloo without); clears what an earlier attempt left for its workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path(job.folder)
    for stale in ("STOP", "failure.json", "worker.log"):
        (folder / stale).unlink(missing_ok=True)
    return TorchTrainer(
        _ray_worker,
        train_loop_config=asdict(job),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": job.threads, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"{folder.name}-{time.time_ns()}",  # Ray's own record; ours is the folder
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=list(callbacks),
        ),
    )


def train_on_ray(job: TrainJob, workers: int, use_gpu: bool) -> Iterator[dict[str, Any]]:
    """Train on `workers` Ray Train workers; yields rows as they appear in metrics.jsonl."""
    folder, trainer = Path(job.folder), make_trainer(job, workers, use_gpu)
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    undo_signals = _request_stop_on_signals(folder)
    last = max((row["step"] for row in read_history(folder)), default=-1)
    thread.start()
    try:
        while True:
            alive = thread.is_alive()
            for row in read_history(folder):
                if row["step"] > last:
                    last = int(row["step"])
                    yield row
            if not alive:
                break
            thread.join(POLL_SECONDS)
    finally:
        undo_signals()
    if (folder / "worker.log").exists():
        for line in (folder / "worker.log").read_text().splitlines():
            _log.warning("worker: %s", line)
    if (folder / "failure.json").exists():
        raise TrainingFailed(json.loads((folder / "failure.json").read_text())["error"])
    if errors:
        raise TrainingFailed(
            f"Ray Train gave up: {str(errors[0]).strip().splitlines()[-1]}; the last checkpoint in {folder} is whole, and the "
            "same command goes on from it"
        ) from errors[0]


def _request_stop_on_signals(folder: Path):  # type: ignore[no-untyped-def]
    """Turn the first Ctrl-C or SIGTERM into a STOP file; a second one kills as usual. Returns what undoes it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    previous: dict[int, Any] = {}

    def request(number: int, _frame: object) -> None:
        _log.warning("%s: asking the workers to write a checkpoint and stop", signal.Signals(number).name)
        (folder / "STOP").touch()
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)

    def undo() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    return undo


@dataclass(frozen=True)
class Outcome:
    """How a training run ended."""

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


def run_training(
    job: TrainJob, workers: int, local: bool, tracker: Any | None, cache: Path, label: str = ""
) -> Outcome:
    """Train to the end or to a stop, with a progress bar on the terminal and rows in the tracker (None for none)."""
    config, folder = RunConfig.from_dict(job.config), Path(job.folder)
    describe_folder(job, workers)
    rows = read_manifest(Path(job.data_dir)).splits["train"].rows
    total = total_updates(config, rows)[1]
    blocks = config.sampler.num_blocks if config.sampler else getattr(config.model, "num_blocks", workers)
    if workers > blocks:
        _log.warning(
            "%d workers asked for, but the run has %d blocks: using %d (sampler.num_blocks=%d makes work for all; it is "
            "part of what defines the run)",
            *(workers, blocks, blocks, workers),
        )
        workers = blocks
    start, steps = time.perf_counter(), 0
    with tqdm(total=total, desc=label or config.name, unit="update", dynamic_ncols=True, mininterval=1.0) as bar:

        def follow(source: Iterator[dict[str, Any]]) -> int:
            step = 0
            for row in source:
                step = int(row["step"])
                bar.update(step - bar.n)
                shown = {k: f"{row[k]:.3g}" for k in ("kl_reverse", "frechet_latent", "psnr", "gamma") if k in row}
                if shown:
                    bar.set_postfix(shown, refresh=False)
                if tracker is not None:
                    tracker.log(step, {k: v for k, v in row.items() if k != "step"})
            return step

        if local:
            steps = follow(train_local(job))
        else:
            with ray_session(cache, max(workers, os.cpu_count() or 1)):
                import ray

                use_gpu = ray.cluster_resources().get("GPU", 0) >= workers
                steps = follow(train_on_ray(job, workers, use_gpu))
    history = read_history(folder)
    reached = int(history[-1]["step"]) if history else 0
    return Outcome(reached, total, time.perf_counter() - start, history, steps == 0 and reached >= total)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 finished, 130 stopped with a checkpoint, 2 a user's error."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("recipe", nargs="?", help="a name from --list")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of shards: latents or points for a BEAM, pixels for an autoencoder or a GAN of photographs",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--local", action="store_true", help="one process, no Ray")
    parser.add_argument("--name", help="name of the run's folder under --runs (default: the recipe's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    parser.add_argument("--list", action="store_true", help="list the recipes and end")
    parser.add_argument("--show", action="store_true", help="print the resolved settings and end")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if args.list:
        print(describe())
        return 0
    try:
        if args.workers < 1:
            raise ConfigError(f"--workers {args.workers}: at least 1")
        if args.recipe is None:
            raise ConfigError("name a recipe (see --list)")
        config = recipe(args.recipe, parse_settings(args.settings))
        if args.show:
            print("\n".join(f"{k} = {v}" for k, v in flatten(config.to_dict()).items()))
            return 0
        if args.data is None:
            raise ConfigError("--data is needed: the folder of shards that `python -m jobs.prepare` made")
        manifest = read_manifest(args.data)
        folder = (args.runs / (args.name or config.name)).resolve()
        job = TrainJob(config.to_dict(), str(args.data.resolve()), manifest.hash, str(folder))
        check_folder(folder, config, manifest.hash)
        tracker = None
        if not args.no_tracking:
            from jobs.tracked import start_tracker

            tracker = start_tracker(folder, config, manifest.dataset, manifest.hash)
        try:
            outcome = run_training(job, args.workers, args.local, tracker, args.cache.resolve())
        except BaseException:
            if tracker is not None:
                tracker.finish("FAILED")
            raise
        if tracker is not None:
            tracker.finish("FINISHED" if outcome.finished else "KILLED")
    except (ValueError, NonFinite, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    metrics = {k: v for row in outcome.history for k, v in row.items() if k != "step"}  # the last value of each
    summary = write_summary(
        folder,
        config.name,
        {"train": {"seconds": round(outcome.seconds, 2), "skipped": outcome.skipped}},
        metrics,
        dataset=manifest.dataset,
        data_hash=manifest.hash,
        mlflow_run_id=None if tracker is None else tracker.run_id,
        updates=outcome.steps,
        total_updates=outcome.total_steps,
        config=config.to_dict(),
    )
    facts = {"recipe": config.name, "data set": manifest.dataset, "seconds": outcome.seconds}
    updates = f"{outcome.steps} of {outcome.total_steps}" + (" (nothing left to do)" if outcome.skipped else "")
    print(as_table({**facts, "updates": updates, **metrics, "summary": summary}))
    return 0 if outcome.finished else 130


if __name__ == "__main__":
    from jobs.train import main as imported_main  # so that workers unpickle by the module's name

    sys.exit(imported_main())
