"""SIGTERM with 30 seconds of grace: a checkpoint within it, marked as such; the same command goes on from there."""

import dataclasses
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from latents import write_latents
from small_runs import ENVIRONMENT, assert_same_bits, final, small

from pipeline.comm import Comm
from pipeline.config import CheckpointConfig, Phase, Schedules
from pipeline.learning.schedule import Schedule
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import StopRequest, read_history, train
from pipeline.training.objective import Evaluation

GRACE_SECONDS = 30
SETTINGS = [
    "model.num_visible=23",
    "model.num_hidden=11",
    "sampler.num_chains=13",
    "sampler.gibbs_steps=40",
    "data.batch_size=17",
    "evaluation.num_rows=19",
    "evaluation.num_components=5",
    "critic.search=torch",
    "checkpoint.every_updates=100000",
    "checkpoint.log_every_updates=10",
    "schedules.likelihood.updates=300",
    "schedules.adversarial.updates=100",
]


@pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=[pytest.mark.ray, pytest.mark.slow])], ids=["one process", "two Ray workers"]
)
def test_a_checkpoint_within_the_grace_and_the_same_bits_at_the_end(workers: int, tmp_path: Path) -> None:
    """To the process of the command; with Ray it is the driver, whose workers write the checkpoint."""
    write_latents(tmp_path / "d")
    settings = [item for setting in SETTINGS for item in ("--set", setting)]

    def command(name: str, local: bool) -> list[str]:
        how = ["--local"] if local else ["--workers", str(workers)]
        where = ["--data", str(tmp_path / "d"), "--runs", str(tmp_path), "--cache", str(tmp_path / "c"), "--name", name]
        return [sys.executable, "-m", "jobs.train", "celeba_beam", "--no-tracking", *how, *where, *settings]

    process = subprocess.Popen(command("r", workers == 1), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(read_history(tmp_path / "r")) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    found = None
    while found is None and time.monotonic() - start < GRACE_SECONDS:
        found = load_latest(tmp_path / "r" / "checkpoints")
        time.sleep(0.02)
    took = time.monotonic() - start
    _, errors = process.communicate(timeout=60)
    print(f"checkpoint after {took:.2f} s, ended after {time.monotonic() - start:.2f} s")
    assert found is not None and found.meta["stopped"] is True and 0 < found.step < 400, errors
    assert time.monotonic() - start < GRACE_SECONDS and process.returncode == 130 and "Traceback" not in errors
    for name in ("r", "undisturbed"):
        assert subprocess.run(command(name, True), env=ENVIRONMENT, capture_output=True).returncode == 0
    assert_same_bits(final(tmp_path / "r"), final(tmp_path / "undisturbed"))
    ended = load_latest(tmp_path / "r" / "checkpoints")
    assert ended is not None and ended.meta["stopped"] is False


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_after_the_driver_was_killed_the_same_command_goes_on_alone(tmp_path: Path) -> None:
    """SIGKILL to the command on two Ray workers, twice; the next command goes on at once, and no worker is left behind."""
    write_latents(tmp_path / "d")
    settings = [*SETTINGS, "checkpoint.every_updates=20", "schedules.likelihood.updates=1500"]
    settings = [item for setting in settings for item in ("--set", setting)]
    where = ["--data", str(tmp_path / "d"), "--runs", str(tmp_path), "--cache", str(tmp_path / "c")]
    command = [sys.executable, "-m", "jobs.train", "celeba_beam", "--no-tracking", *where, *settings, "--name"]
    for reached in (100, 300):
        process = subprocess.Popen([*command, "r", "--workers", "2"], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (history := read_history(tmp_path / "r")) or history[-1]["step"] < reached:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        workers = [
            p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
        ]
        process.kill()
        process.wait()
    assert len(workers) == 2
    done = subprocess.run([*command, "r", "--local"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [p for p in workers if p.is_running()], "workers of the killed command still train"
    assert subprocess.run([*command, "u", "--local"], env=ENVIRONMENT, capture_output=True).returncode == 0
    assert_same_bits(final(tmp_path / "r"), final(tmp_path / "u"))


class Slow:
    """An objective whose updates take a second, as those of a large model may."""

    schedule = Schedule(Schedules(likelihood=Phase(updates=1000), adversarial=Phase(updates=0)), 1, 1.0)

    def step(self, step: int, measure: bool) -> dict[str, float]:
        time.sleep(1.0)
        return {}

    def evaluate(self, step: int) -> Evaluation:
        return Evaluation({}, None)

    def state(self) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(1)}

    def load_state(self, state: dict[str, Any]) -> None: ...


def test_slow_updates_are_stopped_within_seconds(tmp_path: Path) -> None:
    """Reports come every 50 updates by default; a stop is looked for every 5 seconds nevertheless."""
    config = dataclasses.replace(small(), checkpoint=CheckpointConfig(every_updates=100_000, log_every_updates=50))
    stop = StopRequest()
    rows = train(lambda _: Slow(), config, tmp_path, Comm(), stop, {})
    threading.Timer(1.5, setattr, (stop, "requested", True)).start()
    start = time.monotonic()
    last = list(rows)[-1]
    assert last.stopped and last.checkpoint is not None and 1.5 < time.monotonic() - start < 10
