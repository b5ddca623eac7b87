"""One training loop for every objective: step, report, evaluate, checkpoint; resume; stop cleanly.

The loop is a generator of Progress rows, so that whoever runs it (a plain process, a Ray worker) reports as it likes and
the loop knows nothing of trackers or clusters. Every worker iterates it; rows are the same on all.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.comm import Comm
from pipeline.config import RunConfig, flatten
from pipeline.files import naming_a_full_disk, replacing
from pipeline.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from pipeline.training.objective import NonFinite, Objective

STOP_SECONDS = 5.0
"""About how long a requested stop may go unnoticed when updates are slow; a preempted machine has 30 s."""
_log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """The events since the last row."""

    step: int
    """Updates made so far."""
    total_steps: int
    metrics: dict[str, float]
    """Global numbers of the last update, `updates_per_second`, and held-out monitors when they were due."""
    checkpoint: Path | None
    """The checkpoint just written, on the first worker."""
    evaluated: bool
    """True when the metrics hold held-out monitors."""
    stopped: bool
    """True in the last row of a run that was asked to stop before its end."""


class StopRequest:
    """Set by Ctrl-C or SIGTERM; the loop looks at it every checkpoint.log_every_updates updates, or STOP_SECONDS."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def on_signals(self) -> Iterator["StopRequest"]:
        """Catch SIGINT and SIGTERM meanwhile (main thread only); a second one kills as usual."""

        def request(number: int, _frame: FrameType | None) -> None:
            self.requested = True
            _log.warning("%s: stopping at the next report, with a checkpoint", signal.Signals(number).name)
            signal.signal(number, previous[number])

        previous: dict[int, Any] = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def train(
    build: Callable[[RunConfig], Objective],
    config: RunConfig,
    folder: Path,
    comm: Comm,
    stop: StopRequest,
    meta: dict[str, Any],
    until: int | None = None,
) -> Iterator[Progress]:
    """Train to the end, or until a stop is requested; continue from the newest whole checkpoint in `folder`.

    Args:
        build: makes the objective of the config that it is given: the run's own, or after a restart the same with smaller
            learning rates (config.divergence). Called once, and once more for each restart.
        config: of the run; a folder that holds another config's checkpoints is refused (ValueError).
        folder: the run's folder, seen by all workers; holds checkpoints/, samples/ and metrics.jsonl.
        comm: this worker's group.
        stop: asked every checkpoint.log_every_updates updates, more often when they are slow; any worker's request stops all.
        meta: further facts for the checkpoint's meta.json (data hash, versions).
        until: number of updates after which to end, evaluated and with a checkpoint; None: the run's own end.

    Raises:
        NonFinite: on all workers together, when no restart is left; the last checkpoint stays as it is.
        DiskFull: on the first worker; the last checkpoint stays as it is.
    """
    restarts: int | None = None
    while True:
        try:
            yield from _train_until_it_diverges(build, config, folder, comm, stop, meta, until, restarts)
            return
        except NonFinite as error:
            # the count is the last checkpoint's and what came since: a killed run diverges, and counts, again
            restarts = 1 + (_restarts_behind(folder) if restarts is None else restarts)
            if restarts > config.divergence.restarts:
                raise
            _log.warning(
                "%s. Restart %d of %d from the last checkpoint, learning rates times %g",
                *(error, restarts, config.divergence.restarts, config.divergence.rate_factor**restarts),
            )


def _restarts_behind(folder: Path) -> int:
    """Restarts after divergence that the newest whole checkpoint has behind it."""
    found = load_latest(folder / "checkpoints")
    return 0 if found is None else int(found.meta.get("restarts", 0))


def _train_until_it_diverges(
    build: Callable[[RunConfig], Objective],
    config: RunConfig,
    folder: Path,
    comm: Comm,
    stop: StopRequest,
    meta: dict[str, Any],
    until: int | None,
    restarts: int | None,
) -> Iterator[Progress]:
    """One stretch of `train`; `restarts` is the count so far, None: the checkpoint's."""
    if restarts is None:
        restarts = _restarts_behind(folder)
    objective = build(config if restarts == 0 else config.with_rates(config.divergence.rate_factor**restarts))
    start = resume(objective, config, folder, meta)
    if comm.is_first:
        truncate_history(folder, start)
    every, evaluate_every = config.checkpoint, config.evaluation.every_updates
    switch, total = objective.schedule.switch_step, objective.schedule.total_steps
    end = total if until is None else min(until, total)
    last_time, last_step = time.perf_counter(), start
    ask_at = start + 1  # of slow updates the first says how many fit into STOP_SECONDS
    if start == 0:
        metrics = _evaluate(objective, folder, 0, comm)
        _append_history(folder, 0, metrics, comm)
        yield Progress(0, total, metrics, None, True, False)
        last_time = time.perf_counter()
    for step in range(start, end):
        done = step + 1
        boundary = done in (switch, end)
        log = done % every.log_every_updates == 0 or boundary
        evaluate = boundary or done % evaluate_every == 0
        save = boundary or done % every.every_updates == 0
        metrics = objective.step(step, measure=log or evaluate or save)
        stopping = (log or done == ask_at) and comm.any(stop.requested)
        if done == switch:  # updates of the next phase may be slower
            ask_at = done + 1
        elif log or done == ask_at:
            pace = (time.perf_counter() - last_time) / (done - last_step)
            ask_at = done + comm.from_first(max(1, int(STOP_SECONDS / max(pace, 1e-6))))
        save = save or stopping
        if not (log or evaluate or save):
            continue
        now = time.perf_counter()
        if config.divergence.restarts:
            metrics["restarts"] = restarts
        metrics["updates_per_second"] = (done - last_step) / max(now - last_time, 1e-9)
        if evaluate:
            metrics |= _evaluate(objective, folder, done, comm)
        path = None
        if save:
            state = objective.state()
            if comm.is_first:
                record = {**meta, "config": config.to_dict(), "stopped": stopping, "restarts": restarts}
                record["total_steps"] = total
                if done == switch < total:  # kept: what the phases are compared from
                    save_checkpoint(folder / "switch", done, state, record, 1)
                path = save_checkpoint(folder / "checkpoints", done, state, record, every.keep)
        _append_history(folder, done, metrics, comm)
        yield Progress(done, total, metrics, path, evaluate, stopping and done < total)
        if stopping:
            return
        last_time, last_step = time.perf_counter(), done


def resume(objective: Objective, config: RunConfig, folder: Path, meta: dict[str, Any]) -> int:
    """Load the newest whole checkpoint of `folder` into `objective`; returns the number of updates it has behind it."""
    found = load_latest(folder / "checkpoints")
    if found is None:
        return 0
    refuse_another_run(folder, found, config, meta.get("data"))
    mine, theirs = (m.get("skipped", {"rows": 0}) for m in (meta, found.meta))
    if mine != theirs:
        raise ValueError(
            f"{folder} holds a run that left out {theirs['rows']} damaged rows; now {mine['rows']} (or others) are left out. "
            "Give it the data that it had, choose another --name, or delete that folder to start over"
        )
    objective.load_state(found.tensors)
    return found.step


def refuse_another_run(folder: Path, found: Checkpoint, config: RunConfig, data: str | None) -> None:
    """Raise ValueError, naming what differs, when a folder's checkpoint is of other settings or of other data."""
    # read and written again: a setting that came up since then has the default that the run had
    mine, theirs = (flatten(c.to_dict()) for c in (config, RunConfig.from_dict(found.meta["config"])))
    different = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
    if different:
        key = different[0]
        raise ValueError(
            f"{folder} holds a run with other settings: {key} is {theirs.get(key)!r} there and {mine.get(key)!r} here"
            f" ({len(different)} differ); choose another --name, or delete that folder to start over"
        )
    if found.meta.get("data") != data:
        raise ValueError(
            f"{folder} holds a run on other data ({found.meta.get('data')} there, {data} here); choose another --name, or "
            "delete that folder to start over"
        )


def _evaluate(objective: Objective, folder: Path, step: int, comm: Comm) -> dict[str, float]:
    """The held-out metrics; the rows for people go to samples/step_00000500.npy, float32 [n, V]."""
    found = objective.evaluate(step)
    if comm.is_first and found.samples is not None:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        with replacing(folder / "samples" / f"step_{step:08d}.npy") as file:
            np.save(file, found.samples.float().cpu().numpy())
    return found.metrics


def _append_history(folder: Path, step: int, metrics: dict[str, float], comm: Comm) -> None:
    if comm.is_first:
        path = folder / "metrics.jsonl"
        with naming_a_full_disk(path), path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of the run's metrics.jsonl, each with its "step"; a last line cut by a kill is passed over."""
    file = folder / "metrics.jsonl"
    rows = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            break
        rows.append(row)
    return rows


def truncate_history(folder: Path, step: int) -> None:
    """Drop the rows after `step` updates: the resumed run writes them again."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [row for row in read_history(folder) if step > 0 and row["step"] <= step]
    with replacing(folder / "metrics.jsonl") as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in kept)


def pick_device() -> torch.device:
    """The first CUDA device that this process sees, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
