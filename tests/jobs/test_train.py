"""`jobs.train`: the same bits in one process and on Ray workers, also after a worker was killed; its command line."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from latents import write_latents

from jobs.train import main
from jobs.train_job import run_training
from pipeline.config import (
    CheckpointConfig,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.runs.job import TrainJob
from pipeline.training.checkpoint import load_latest

SETTINGS = [
    "model.num_visible=23",
    "model.num_hidden=11",
    "sampler.num_chains=13",
    "data.batch_size=17",
    "evaluation.num_rows=19",
    "evaluation.num_components=5",
    "critic.search=torch",
]


def config(updates: int) -> RunConfig:
    """23 -> 11 units; half of the updates with the adversary. gibbs_steps is large enough for a kill to hit mid-run."""
    return RunConfig(
        name="tiny",
        data=DataConfig(batch_size=17),
        model=RBMConfig(23, 11, center_hidden=True),
        sampler=SamplerConfig(num_chains=13, gibbs_steps=40),
        critic=CriticConfig(search="torch"),
        schedules=Schedules(
            likelihood=Phase(updates=updates // 2, learning_rate=PowerLaw(1e-3, 0.0)),
            adversarial=Phase(updates=updates // 2, gamma=0.1, learning_rate=PowerLaw(1e-3, 0.0)),
        ),
        evaluation=EvaluationConfig(every_updates=100_000, num_rows=19, num_components=5),
        checkpoint=CheckpointConfig(every_updates=20, log_every_updates=5),
    )


def job_in(folder: Path, data: Path, data_hash: str, updates: int) -> TrainJob:
    return TrainJob(config(updates).to_dict(), str(data), data_hash, str(folder))


def final(folder: Path) -> dict[str, torch.Tensor]:
    found = load_latest(folder / "checkpoints")
    assert found is not None
    return {"step": torch.tensor(found.step), **found.tensors}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_give_the_bits_of_one_process_also_after_one_was_killed(tmp_path):
    """SIGKILL to one of two workers in the adversarial phase: Ray starts the group again, the run ends as undisturbed."""
    data = tmp_path / "latents"
    data_hash = write_latents(data).hash
    updates = 1600
    run_training(job_in(tmp_path / "local", data, data_hash, updates), 1, True, None, tmp_path / "cache")
    folder = tmp_path / "ray"
    killed: list[int] = []

    def kill_one() -> None:
        while not (folder / "switch").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        if workers:
            workers[-1].send_signal(signal.SIGKILL)
            killed.append(workers[-1].pid)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    outcome = run_training(job_in(folder, data, data_hash, updates), 2, False, None, tmp_path / "cache")
    thread.join(5)
    assert killed, "the run was over before a worker could be killed: raise `updates`"
    assert outcome.finished
    assert_same_bits(final(folder), final(tmp_path / "local"))


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    """A real process, interrupted once; the second run ends with the bits of an undisturbed one."""
    data = tmp_path / "latents"
    write_latents(data)
    extra = ["--set", "schedules.likelihood.updates=300", "--set", "schedules.adversarial.updates=100"]
    extra += [item for setting in SETTINGS for item in ("--set", setting)]

    def command(name: str) -> list[str]:
        where = ["--data", str(data), "--runs", str(tmp_path), "--name", name, "--cache", str(tmp_path / "cache")]
        return [sys.executable, "-m", "jobs.train", "celeba_beam", "--local", "--no-tracking", *where, *extra]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command("stopped"), env=environment, stderr=subprocess.PIPE, text=True)
    history = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (history.exists() and len(history.read_text().splitlines()) >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "with a checkpoint" in errors
    found = load_latest(tmp_path / "stopped" / "checkpoints")
    assert found is not None and 0 < found.step < 400 and found.meta["stopped"] is True
    for name in ("stopped", "undisturbed"):
        assert subprocess.run(command(name), env=environment, capture_output=True).returncode == 0
    assert_same_bits(final(tmp_path / "stopped"), final(tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe"),
        (["celeba_bean"], "unknown recipe 'celeba_bean'"),
        (["celeba_beam"], "--data is needed"),
        (["celeba_beam", "--set", "critic.num_neighbours=3"], "critic.num_neighbors"),
        (["celeba_beam", "--set", "gamma"], "KEY=VALUE"),
        (["celeba_beam", "--data", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(arguments, message, capsys):
    assert main([*arguments, "--no-tracking"]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors and errors.count("\n") == 1


def test_the_wrong_kind_of_shards_is_named(tmp_path, capsys):
    data = tmp_path / "latents"
    write_latents(data)
    arguments = ["celeba_autoencoder", "--data", str(data), "--runs", str(tmp_path), "--local", "--no-tracking"]
    assert main(arguments) == 2
    assert "trains on pixels" in capsys.readouterr().err


def test_list_and_show(capsys):
    assert main(["--list"]) == 0
    assert "celeba_beam_paper" in capsys.readouterr().out
    assert main(["celeba_beam_paper", "--show", "--set", "seed=3"]) == 0
    out = capsys.readouterr().out
    assert "seed = 3" in out and "schedules.adversarial.gamma = 0.1" in out
