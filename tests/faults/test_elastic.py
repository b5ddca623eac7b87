"""Machines that are lost and machines that come: a run on a cluster goes on with what there is, to the same bits."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from latents import write_latents
from small_runs import assert_same_bits, final, job_in, run_job, small

from jobs import train_on_ray
from jobs.train_job import Outcome, run_training
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


def node_of_first_worker(cluster, folder: Path):  # type: ignore[no-untyped-def]
    """The machine on which rank 0 runs: the one that writes checkpoints and the log."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for worker in raylet.children(recursive=True):
            try:
                if any(file.path == str(folder / "worker.log") for file in worker.open_files()):
                    return node
            except psutil.Error:
                pass
    raise AssertionError("no worker has the log open")


@pytest.mark.ray
@pytest.mark.slow
def test_a_group_shrinks_and_grows_with_the_cluster(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 machines, one is killed; a new one comes; in the second phase that of the first worker is killed."""
    data, folder, updates = tmp_path / "latents", tmp_path / "ray", 1200
    data_hash = write_latents(data).hash
    config = small(updates, rate=1e-3, every=20)
    events: list[str] = []
    done: list[Outcome | BaseException] = []

    def wait_for(what: str, there) -> None:  # type: ignore[no-untyped-def]
        began = time.monotonic()
        while not there():
            assert not done, done
            assert time.monotonic() - began < LONGEST_WAIT, f"waited in vain for {what}; {events}"
            time.sleep(0.1)
        events.append(f"{what} after {time.monotonic() - began:.1f} s")

    def step() -> int:
        history = read_history(folder)
        return int(history[-1]["step"]) if history else 0

    def sizes() -> list[str]:
        return train_on_ray._group_sizes(folder)

    def train() -> None:
        try:
            done.append(run_training(job_in(folder, data, data_hash, config), 4, False, None, tmp_path / "cache"))
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=train, daemon=True)  # a cluster takes new machines in the main thread alone
    thread.start()
    wait_for("update 60 of the first phase", lambda: step() >= 60)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    wait_for("three workers", lambda: sizes()[-1] == "3")
    at = step()
    wait_for("an update of three", lambda: step() > at)
    cluster.add_node(num_cpus=1)
    wait_for("four workers", lambda: len(sizes()) > 2 and sizes()[-1] == "4")
    wait_for("update 60 of the second phase", lambda: step() >= updates + 60)
    cluster.remove_node(node_of_first_worker(cluster, folder), allow_graceful=False)
    number = len(sizes())
    wait_for("three workers again", lambda: len(sizes()) > number and sizes()[-1] == "3")
    thread.join(LONGEST_WAIT)
    print("; ".join(events), "; groups of", ", ".join(sizes()))
    assert len(done) == 1 and isinstance(done[0], Outcome) and done[0].finished, done
    assert sizes()[0] == "4" and {"3", "4"} == set(sizes())
    run_job(job_in(tmp_path / "undisturbed", data, data_hash, config))
    assert_same_bits(final(folder), final(tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("cpus", "gpus", "said"),
    [
        (4.0, 0.0, None),
        (3.0, 0.0, "room for 3 of 4 workers (1 CPU each): training begins with 3"),
        (1.0, 0.0, "room for 1 of 4 workers (1 CPU each): waiting for 2"),
        (8.0, 2.0, "room for 2 of 4 workers (1 CPU and a GPU each): training begins with 2"),
    ],
)
def test_a_cluster_that_is_too_small_is_told(cpus, gpus, said, caplog: pytest.LogCaptureFixture) -> None:
    train_on_ray.say_what_there_is({"CPU": cpus, "GPU": gpus}, 4, 2, 1, gpus > 0)
    assert (said in caplog.text) if said else not caplog.text
