"""SIGKILL at random moments: a run ends with the bits it would have had, and a file is wholly old or wholly new.

The moments come from the seed in FAULT_SEED (0 by default); a failure names it.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from groups import GroupFailure, run_group
from latents import write_latents
from small_runs import ENVIRONMENT, assert_same_bits, final, job_in, run_job, small

from jobs import train_on_ray
from jobs.train_job import run_training
from pipeline.comm import Comm
from pipeline.data.manifest import read_manifest
from pipeline.data.shards import write_shard
from pipeline.files import file_hash
from pipeline.runs.job import TrainJob, run_worker
from pipeline.training.checkpoint import load_checkpoint, load_latest, save_checkpoint
from pipeline.training.loop import StopRequest, read_history

SEED = int(os.environ.get("FAULT_SEED", "0"))


def moments(kills: int, updates: int, rng: random.Random) -> list[int]:
    """Updates after which to kill, in order: half of them in the first `updates`, half in the second."""
    return sorted(phase * updates + rng.randrange(2, updates - 60) for phase in (0, 1) for _ in range(kills // 2))


def _run_and_die(job: TrainJob, victim: int, after: int, delay: float) -> None:
    """Train; the `victim` kills itself from another thread, `delay` seconds after update `after`."""
    comm = Comm.current()
    for row in run_worker(job, comm, StopRequest()):
        if comm.rank == victim and row.step >= after:
            after = sys.maxsize
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


@pytest.mark.slow
def test_a_group_killed_in_both_phases_ends_with_the_bits_of_an_undisturbed_run(tmp_path: Path) -> None:
    """Two processes; one is killed, both are started again, and so on."""
    data = tmp_path / "latents"
    data_hash = write_latents(data).hash
    rng, updates = random.Random(SEED), 200
    config = small(updates, rate=1e-3, every=7)
    run_job(job_in(tmp_path / "undisturbed", data, data_hash, config))
    job = job_in(tmp_path / "killed", data, data_hash, config)
    started = []
    for after in moments(4, updates, rng):
        found = load_latest(tmp_path / "killed" / "checkpoints")
        started.append(0 if found is None else found.step)
        with pytest.raises(GroupFailure, match="-9"):
            run_group(_run_and_die, 2, job, rng.randrange(2), after, rng.uniform(0, 0.03))
    assert run_group(run_job, 2, job) == [2 * updates] * 2
    assert started[1] > 0 and started[-1] >= updates, f"seed {SEED}: no kill in the second phase ({started})"
    assert_same_bits(final(tmp_path / "killed"), final(tmp_path / "undisturbed"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_ray_run_killed_twenty_times_resumes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command, two workers, ten SIGKILLs in each phase at random moments; the bits of an undisturbed run."""
    monkeypatch.setattr(train_on_ray, "MAX_FAILURES", 25)
    data = tmp_path / "latents"
    data_hash = write_latents(data).hash
    rng, updates, kills = random.Random(SEED), 1500, 20
    config = small(updates, rate=1e-3, every=10)
    run_job(job_in(tmp_path / "undisturbed", data, data_hash, config))
    folder, killed, over = tmp_path / "ray", [], threading.Event()

    def workers() -> dict[int, psutil.Process]:
        found = {}
        for process in psutil.Process().children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found[process.pid] = process
            except psutil.Error:
                pass
        return found

    def kill() -> None:
        before: set[int] = set()
        for after in moments(kills, updates, rng):
            while not over.is_set():  # until the group that follows the last kill has reached the update
                now, history = workers(), read_history(folder)
                reached = history[-1]["step"] if history else 0
                if len(now) == 2 and not before & now.keys() and reached >= after:
                    time.sleep(rng.uniform(0, 0.1))
                    now[rng.choice(sorted(now))].send_signal(signal.SIGKILL)
                    killed.append(int(reached))
                    before = set(now)
                    break
                time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        outcome = run_training(job_in(folder, data, data_hash, config), 2, False, None, tmp_path / "cache")
    finally:
        over.set()
        thread.join(5)
    print(f"seed {SEED}: killed after updates {killed}")
    assert len(killed) == kills and sum(step > updates for step in killed) >= kills // 4, killed
    assert outcome.finished
    assert_same_bits(final(folder), final(tmp_path / "undisturbed"))


WRITERS = {
    "checkpoint": """
from pipeline.training.checkpoint import save_checkpoint
for i in range(1, 10**6):
    save_checkpoint(folder / "checkpoints", i, {"x": torch.full((250_000,), float(i))}, {"i": i}, 2)
    print(i, flush=True)
""",
    "shard and manifest": """
from pipeline.data.manifest import write_manifest
from pipeline.data.shards import write_shard
from pipeline.data.manifest import Manifest
from pipeline.data.manifest import SplitEntry
for i in range(1, 10**6):
    entry = write_shard(folder / "train-00000.tar", np.full((20_000, 8), i, np.float32))
    split = SplitEntry(20_000, (entry,), (float(i),) * 8, (1.0,) * 8)
    write_manifest(folder, Manifest("latents", str(i), "0" * 64, {}, (8,), {"train": split}))
    print(i, flush=True)
""",
}


def write_until_killed(kind: str, folder: Path, delay: float) -> int:
    """Let a process write again and again, kill it `delay` seconds after its first; the number of the last whole one."""
    head = f"import numpy as np, torch\nfrom pathlib import Path\nfolder = Path({str(folder)!r})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", head + WRITERS[kind]], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline()]
    time.sleep(delay)
    process.kill()
    said += process.stdout.readlines()
    process.wait()
    return int([line for line in said if line.endswith("\n")][-1])


@pytest.mark.parametrize("number", range(5))
def test_a_kill_while_checkpoints_are_written_leaves_whole_ones(number: int, tmp_path: Path) -> None:
    last = write_until_killed("checkpoint", tmp_path, random.Random(SEED + number).uniform(0, 0.2))
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None and found.step in (last, last + 1)
    assert bool((found.tensors["x"] == found.step).all()) and found.meta["i"] == found.step
    for path in (tmp_path / "checkpoints").glob("step_*"):
        load_checkpoint(path)
    save_checkpoint(tmp_path / "checkpoints", last + 2, {"x": torch.zeros(1)}, {}, 2)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "a leftover was not cleaned"


@pytest.mark.parametrize("number", range(5))
def test_a_kill_while_shards_and_manifests_are_written_leaves_whole_ones(number: int, tmp_path: Path) -> None:
    last = write_until_killed("shard and manifest", tmp_path, random.Random(SEED + number).uniform(0, 0.2))
    manifest = read_manifest(tmp_path)
    assert manifest.dataset in (str(last), str(last + 1))
    entry = manifest.splits["train"].shards[0]
    found = file_hash(tmp_path / entry.name)
    of_next = write_shard(tmp_path / "next.tar", np.full((20_000, 8), int(manifest.dataset) + 1, np.float32))
    assert found in (entry.sha256, of_next.sha256)
