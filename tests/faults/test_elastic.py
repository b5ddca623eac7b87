"""Machines that are lost and machines that come: a run on a cluster goes on with what there is, to the same bits."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from latents import write_latents
from small_runs import assert_same_bits, final, job_in, run_job, small

from jobs import train_on_ray
from jobs.train_job import run_training
from pipeline.runs.job import Outcome
from pipeline.training.loop import read_history

LONGEST_WAIT = 150.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A head without CPUs and four machines (raylets) of one CPU each."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(4):
        found.add_node(num_cpus=1)
    found.wait_for_nodes(60)
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    monkeypatch.setattr(train_on_ray, "RESIZE_SECONDS", 3.0)
    try:
        yield found
    finally:
        found.shutdown()


def processes_of(node) -> list[psutil.Process]:  # type: ignore[no-untyped-def]
    """A machine's raylet and all that it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or dead and not yet fetched by its parent."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def node_of_first_worker(cluster, folder: Path):  # type: ignore[no-untyped-def]
    """The machine on which rank 0 runs: the one that writes checkpoints and the log."""
    for node in cluster.worker_nodes:
        for worker in processes_of(node):
            try:
                if any(file.path == str(folder / "worker.log") for file in worker.open_files()):
                    return node
            except psutil.Error:
                pass
    raise AssertionError("no worker has the log open")


class Followed:
    """A training of 4 workers in a thread of its own (a cluster takes new machines in the main thread alone)."""

    def __init__(self, folder: Path, data: Path, data_hash: str, updates: int):
        self.folder, self.data, self.data_hash = folder, data, data_hash
        self.config = small(updates, rate=1e-3, every=20)
        self.events: list[str] = []
        self.tracked = Tracked()
        self.done: list[Outcome | BaseException] = []
        self.thread = threading.Thread(target=self.train, daemon=True)
        self.thread.start()

    def train(self) -> None:
        job, cache = job_in(self.folder, self.data, self.data_hash, self.config), self.folder.parent / "cache"
        try:
            self.done.append(run_training(job, 4, False, self.tracked, cache))
        except BaseException as error:
            self.done.append(error)

    def wait_for(self, what: str, there: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not there():
            assert not self.done, self.done
            assert time.monotonic() - began < LONGEST_WAIT, f"waited in vain for {what}; {self.events}"
            time.sleep(0.1)
        self.events.append(f"{what} after {time.monotonic() - began:.1f} s")

    def step(self) -> int:
        history = read_history(self.folder)
        return int(history[-1]["step"]) if history else 0

    def sizes(self) -> list[str]:
        return train_on_ray._group_sizes(self.folder)

    def assert_ended_as_if_undisturbed(self) -> None:
        self.thread.join(LONGEST_WAIT)
        print("; ".join(self.events), "; groups of", ", ".join(self.sizes()))
        (outcome,) = self.done
        assert isinstance(outcome, Outcome) and outcome.finished, outcome
        assert self.tracked.workers == [int(size) for size in self.sizes()]
        undisturbed = self.folder.parent / "undisturbed"
        run_job(job_in(undisturbed, self.data, self.data_hash, self.config))
        assert_same_bits(final(self.folder), final(undisturbed))


class Tracked:
    """Keeps what is logged of the number of workers."""

    def __init__(self) -> None:
        self.workers: list[int] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if "workers" in metrics:
            self.workers.append(int(metrics["workers"]))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_group_shrinks_and_grows_with_the_cluster(cluster, tmp_path: Path) -> None:
    """4 machines, one is killed; a new one comes; in the second phase that of the first worker is killed."""
    data, updates = tmp_path / "latents", 1200
    run = Followed(tmp_path / "ray", data, write_latents(data).hash, updates)
    run.wait_for("update 60 of the first phase", lambda: run.step() >= 60)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    run.wait_for("three workers", lambda: run.sizes()[-1] == "3")
    at = run.step()
    run.wait_for("an update of three", lambda: run.step() > at)
    cluster.add_node(num_cpus=1)
    run.wait_for("four workers", lambda: len(run.sizes()) > 2 and run.sizes()[-1] == "4")
    run.wait_for("update 60 of the second phase", lambda: run.step() >= updates + 60)
    cluster.remove_node(node_of_first_worker(cluster, run.folder), allow_graceful=False)
    number = len(run.sizes())
    run.wait_for("three workers again", lambda: len(run.sizes()) > number and run.sizes()[-1] == "3")
    run.assert_ended_as_if_undisturbed()
    assert run.sizes()[0] == "4" and {"3", "4"} == set(run.sizes())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_frozen_machine_is_given_up_and_may_come_back(cluster, tmp_path: Path) -> None:
    """SIGSTOP to a raylet and its workers, as when a machine swaps or its network hangs (cluster/rehearse.sh cuts a real
    one): they answer nobody, and no connection breaks. Awake again they know that they were given up, and end.
    """
    data = tmp_path / "latents"
    run = Followed(tmp_path / "ray", data, write_latents(data).hash, 1200)
    run.wait_for("update 60", lambda: run.step() >= 60)
    frozen = processes_of(next(n for n in cluster.worker_nodes if n is not node_of_first_worker(cluster, run.folder)))
    for process in frozen:
        process.suspend()
    try:
        run.wait_for("three workers", lambda: run.sizes()[-1] == "3")
        at = run.step()
        run.wait_for("an update of three", lambda: run.step() > at)
    finally:
        for process in frozen:
            process.resume()
    run.assert_ended_as_if_undisturbed()
    _, left = psutil.wait_procs(frozen, timeout=60)  # which buries the raylet, too: its workers wait for that
    assert all(has_ended(process) for process in left), left


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "the limit"])
def test_a_wait_for_machines_ends(how: str, cluster, tmp_path: Path) -> None:
    """6 workers where there is room for 4: nobody trains, so nobody could write a checkpoint and stop."""
    data = tmp_path / "latents"
    write_latents(data)
    command = [*("--workers", "6", "--min-workers", "5", "--data", str(data), "--no-tracking", "--runs", str(tmp_path))]
    command += ["--set", "sampler.num_blocks=6", "--cache", str(tmp_path / "cache"), "mixture_toy"]
    environment = {**os.environ, "ELASTIC_WAIT_SECONDS": "3600" if how == "Ctrl-C" else "6"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *command],
        cwd=Path(__file__).parents[2],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if "waiting for 5" in line:
                break
        if how == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == (130 if how == "Ctrl-C" else 2), said
    assert "room for 4 of 6 workers (1 CPU each)" in said and "Traceback" not in said, said
    if how == "the limit":
        assert "had none for 5 in" in said.splitlines()[-1], said
