"""One worker fails or hangs while the others are in a collective: all end in a stated time, its error first."""

import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from groups import run_group
from latents import write_latents
from small_runs import assert_same_bits, final, job_in, run_job, small

from jobs import train_on_ray
from jobs.train_job import run_training
from jobs.train_on_ray import write_first
from pipeline.comm import Comm, lost_a_peer
from pipeline.runs.job import TrainingFailed
from pipeline.training.loop import read_history


def _sum_without_worker_one() -> tuple[bool, float, str]:
    """(whether the error says that a peer is lost, seconds waited, the error); worker 1 of 3 never joins."""
    comm = Comm.current()
    group = dist.new_group(timeout=timedelta(seconds=3))
    if comm.rank == 1:
        time.sleep(6.0)
        return True, 0.0, ""
    start = time.monotonic()
    try:
        dist.all_reduce(torch.zeros(3), group=group)
    except Exception as error:
        return lost_a_peer(error), time.monotonic() - start, str(error)
    raise AssertionError("the collective went through")


def test_a_worker_that_hangs_is_given_up_at_the_timeout() -> None:
    """With 3 s: the others raise then, and what they raise is known not to be the cause."""
    for lost, waited, text in run_group(_sum_without_worker_one, 3):
        assert lost and waited < 5.0, (waited, text)


def test_an_error_of_the_work_itself_is_a_cause() -> None:
    assert not lost_a_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_a_peer(OSError("No space left on device"))
    assert not lost_a_peer(ValueError("gloo"))
    assert lost_a_peer(ValueError("Default process group has not been initialized, please make sure to call init"))


def test_the_first_error_stays(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_first(tmp_path / "failure.json", text)
    assert (tmp_path / "failure.json").read_text() == '{"error": "first"}' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_the_failing_workers_error_ends_the_run_and_comes_first(tmp_path: Path) -> None:
    """The first worker cannot make its folder of checkpoints; the other waits for it in a collective."""
    data_hash = write_latents(tmp_path / "d").hash
    job = job_in(tmp_path / "run", tmp_path / "d", data_hash, small(40))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "switch").write_text("a file where a folder is to be")
    start = time.monotonic()
    with pytest.raises(TrainingFailed) as failure:
        run_training(job, 2, False, None, tmp_path / "cache")
    assert time.monotonic() - start < 150
    assert str(failure.value).startswith("rank 0: FileExistsError") and "\n" not in str(failure.value), failure.value


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_on_ray_a_worker_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP to one of two workers, with a timeout of 10 s: the run goes on by itself and ends with the same bits."""
    monkeypatch.setattr(train_on_ray, "COLLECTIVE_TIMEOUT_SECONDS", 10)
    data_hash = write_latents(tmp_path / "d").hash
    config = small(800, rate=1e-3, every=10)
    run_job(job_in(tmp_path / "undisturbed", tmp_path / "d", data_hash, config))
    folder, stopped = tmp_path / "run", []

    def stop_one() -> None:
        while not (history := read_history(folder)) or history[-1]["step"] < 100:
            time.sleep(0.02)
        processes = psutil.Process().children(recursive=True)
        workers = [p for p in processes if "RayTrainWorker" in " ".join(p.cmdline())]
        workers[-1].send_signal(signal.SIGSTOP)
        stopped.append(workers[-1])

    threading.Thread(target=stop_one, daemon=True).start()
    outcome = run_training(job_in(folder, tmp_path / "d", data_hash, config), 2, False, None, tmp_path / "cache")
    assert stopped and outcome.finished and outcome.seconds < 200
    assert_same_bits(final(folder), final(tmp_path / "undisturbed"))
    assert not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE
