"""A training job on N workers of Ray Train.

The workers write checkpoints and metrics.jsonl into the run's folder (shared by all machines); this process follows that
file. A killed worker is replaced and the group goes on from the last checkpoint; Ctrl-C or SIGTERM writes one and stops.
"""

import contextlib
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.cluster_room import Need, RoomWatch
from jobs.imports import importing
from pipeline.comm import Comm, lost_a_peer
from pipeline.runs.job import TrainingFailed, TrainJob, run_worker
from pipeline.training.loop import StopRequest, read_history
from pipeline.training.objective import NonFinite

POLL_SECONDS = 0.5
ROOM_SECONDS = 5.0
"""How often lost machines are looked for."""
MAX_FAILURES = 8
"""Worker failures after which Ray gives up; each one costs the updates since the last checkpoint."""
COLLECTIVE_TIMEOUT_SECONDS = 600
"""Longest wait in one collective, or for one; longer than the slowest checkpoint and evaluation of the first worker."""
RESIZE_SECONDS = float(os.environ.get("ELASTIC_RESIZE_SECONDS", "60"))
"""How often an elastic group looks for machines that have come; a larger group goes on from the last checkpoint."""
ELASTIC_START_SECONDS = "30"
"""How long an elastic group waits for all the workers that it was promised before it counts the machines anew."""
_log = logging.getLogger(__name__)


class _FileStop(StopRequest):
    """A stop request that any process can make: the file STOP in the run's folder."""

    def __init__(self, folder: Path):
        self.file = folder / "STOP"

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self.file.exists()


def _ray_worker(values: dict[str, Any]) -> None:
    """The function that every Ray Train worker runs; a diverged run ends it quietly, since a retry would diverge again.

    A worker that died is no error of this function. An error of its own is tried again once: the same one twice in
    succession ends the run with it.
    """
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
    if comm.is_first:
        with (folder / "workers.txt").open("a") as file:
            file.write(f"{comm.world_size}\n")
    if (folder / "failure.json").exists():  # another worker gave up: a retry would, too
        return
    try:
        for progress in run_worker(job, comm, _FileStop(folder)):
            if progress.evaluated:  # a report waits for Ray's controller, which looks every 2 seconds
                ray.train.report({"step": progress.step, **progress.metrics})
    except (NonFinite, ValueError) as error:
        if lost_a_peer(error):  # Ray takes a group apart while its workers compute
            raise
        write_first(folder / "failure.json", str(error))
        if not isinstance(error, NonFinite) and comm.world_size > 1:
            raise  # perhaps on this worker alone: end the group, or the others would wait for it
    except Exception as error:
        text = f"rank {comm.rank}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if not lost_a_peer(error):  # those who miss a worker in a collective have nothing to say
            said = folder / f"error-{comm.rank}.txt"
            if said.exists() and said.read_text() == text:
                write_first(folder / "failure.json", f"{text} (twice in succession)")
            said.write_text(text)
        raise


def write_first(file: Path, error: str) -> None:
    """Keep `error` as {"error": ...}, whole, unless another worker was first."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.write_text(json.dumps({"error": error}))
    try:
        os.link(temporary, file)  # fails when it is there, unlike a rename
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def make_trainer(
    job: TrainJob,
    workers: int,
    use_gpu: bool,
    callbacks: Sequence[Any] = (),
    min_workers: int | None = None,
    alone: bool = False,
) -> Any:
    """The TorchTrainer of a job (nccl with GPUs, gloo without); clears what an earlier attempt left for its workers.

    With fewer `min_workers` than `workers` the group is elastic: it goes on with what is left, and with more when they come.
    `alone`: see LeanTorchTrainer.
    """
    with importing():
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from jobs.ray_network import NodeTorchConfig
        from jobs.ray_trainer import LeanTorchTrainer, begin_coordinator

    folder = Path(job.folder)
    least = workers if min_workers is None else min_workers
    for stale in ("STOP", "failure.json", "worker.log", "workers.txt"):
        (folder / stale).unlink(missing_ok=True)
    for said in folder.glob("error-*.txt"):
        said.unlink()
    begin_coordinator()
    trainer = LeanTorchTrainer(
        _ray_worker,
        train_loop_config=asdict(job),
        torch_config=NodeTorchConfig("nccl" if use_gpu else "gloo", COLLECTIVE_TIMEOUT_SECONDS),  # type: ignore[arg-type]  # not a TorchConfig
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # Ray's annotations are those of an older one
            num_workers=(least, workers) if least < workers else workers,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
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
    trainer.alone = alone
    return trainer


def train_on_ray(
    job: TrainJob, need: Need, on_group: Callable[[int, int], None], alone: bool
) -> Iterator[dict[str, Any]]:
    """Train on need.workers Ray Train workers, or at least need.min_workers; yields rows as they appear in metrics.jsonl.

    Args:
        job: what to train.
        need: what the group takes, and the fewest that may train.
        on_group: called with the number of workers and the last reported update when a group begins.
        alone: see LeanTorchTrainer.

    Raises:
        TrainingFailed: the workers gave up, or machines that were lost did not come back in time.
    """
    folder, workers = Path(job.folder), need.workers
    trainer = make_trainer(job, workers, need.use_gpu, min_workers=need.min_workers, alone=alone)
    watch, look = RoomWatch(need), time.monotonic()
    groups: list[str] = []
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
            for size in _group_sizes(folder)[len(groups) :]:
                if groups or int(size) != workers:
                    _log.warning("%s of %d workers train%s", size, workers, ", from the last checkpoint" * bool(groups))
                groups.append(size)
                on_group(int(size), int(max(last, 0)))
            for row in read_history(folder):
                if row["step"] > last:
                    last = int(row["step"])
                    yield row
            if not alive:
                break
            if time.monotonic() > look:
                look = time.monotonic() + ROOM_SECONDS
                if not watch.has_room() and (folder / "STOP").exists():
                    return  # no worker is there to write a checkpoint; the last one is whole
            thread.join(POLL_SECONDS)
    finally:
        undo_signals()
        if thread.is_alive():  # it would speak to Ray after its end, which ends the process with it
            _kill_controller()
            thread.join(10 * POLL_SECONDS)
    if (folder / "worker.log").exists():
        for line in (folder / "worker.log").read_text().splitlines():
            _log.warning("worker: %s", line)
    if (folder / "failure.json").exists():
        raise TrainingFailed(json.loads((folder / "failure.json").read_text())["error"])
    if errors:
        said = sorted(folder.glob("error-*.txt"), key=lambda file: file.stat().st_mtime)
        why = said[0].read_text() if said else str(errors[0]).strip().splitlines()[-1]
        raise TrainingFailed(
            f"Ray Train gave up: {why}; the last checkpoint in {folder} is whole, and the same command goes on from it"
        ) from errors[0]


def _kill_controller() -> None:
    """End Ray Train's controller of this job, and `fit` with it; it runs on this machine, and has no name to ask Ray for."""
    import ray
    from ray._private import state

    for actor in state.actors().values():
        mine = actor["JobID"] == ray.get_runtime_context().get_job_id()
        if mine and actor["ActorClassName"] == "TrainController" and actor["State"] == "ALIVE":
            with contextlib.suppress(ProcessLookupError):
                os.kill(actor["Pid"], signal.SIGKILL)


def _group_sizes(folder: Path) -> list[str]:
    """Numbers of workers of all groups so far; a line that is being written is left for the next time."""
    file = folder / "workers.txt"
    return (
        [line[:-1] for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if file.exists()
        else []
    )


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
