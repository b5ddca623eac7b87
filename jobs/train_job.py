"""A training job: what a worker needs to know, and how it is run to its end, in this process or on Ray (train_on_ray.py).

Both give the same bits on CPUs. The caller's process draws the progress bar and writes to the tracker.
"""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jobs.ray_session import ray_session
from pipeline.config import RunConfig
from pipeline.data.manifest import read_manifest
from pipeline.runs.job import Outcome, TrainJob, describe_folder, total_updates, train_local
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import read_history

_log = logging.getLogger(__name__)


def run_training(
    job: TrainJob,
    workers: int,
    local: bool,
    tracker: Any | None,
    cache: Path,
    label: str = "",
    min_workers: int | None = None,
) -> Outcome:
    """Train to the end or to a stop, with a progress bar on the terminal and rows in the tracker (None for none).

    `min_workers`: fewest that may train while others are away; None: 1 on a cluster (RAY_ADDRESS), all of them here.
    """
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

        def note_group(size: int, step: int) -> None:
            if tracker is not None:
                tracker.log(step, {"workers": float(size)})

        if local:
            steps = follow(train_local(job))
        else:
            with ray_session(cache, max(workers, os.cpu_count() or 1)) as alone:
                import ray

                from jobs.cluster_room import Need
                from jobs.train_on_ray import ELASTIC_START_SECONDS, train_on_ray

                least = min(workers, min_workers or (1 if os.environ.get("RAY_ADDRESS") else workers))
                use_gpu = ray.cluster_resources().get("GPU", 0) >= least
                need = Need(workers, least, job.threads, use_gpu)
                if least < workers:  # read by Ray Train's controller at its start
                    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", ELASTIC_START_SECONDS)
                steps = follow(train_on_ray(job, need, note_group, alone))
    found = load_latest(folder / "checkpoints")
    if found is not None and "total_steps" in found.meta:  # epochs are shorter when damaged rows were left out
        total = int(found.meta["total_steps"])
    history = read_history(folder)
    reached = int(history[-1]["step"]) if history else 0
    return Outcome(reached, total, time.perf_counter() - start, history, steps == 0 and reached >= total)
