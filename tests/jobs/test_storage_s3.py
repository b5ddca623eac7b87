"""Runs and shards in an S3 store: a real server on loopback and the real command, with kills, damage and an absent store."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from latents import write_latents
from object_store import ObjectStore

from jobs.train import main
from pipeline.storage.cache import store_shards
from pipeline.storage.places import Place
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import read_history

SETTINGS = {
    "model.num_visible": 23,
    "model.num_hidden": 11,
    "model.fixed_std": "null",
    "data.batch_size": 17,
    "sampler.num_chains": 13,
    "sampler.gibbs_steps": 3,
    "schedules.likelihood.epochs": "null",
    "schedules.likelihood.updates": 150,
    "schedules.adversarial.epochs": "null",
    "schedules.adversarial.updates": 150,
    "evaluation.every_updates": 100_000,
    "evaluation.num_rows": 19,
    "checkpoint.every_updates": 20,
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    pytest.importorskip("moto")
    found = ObjectStore(tmp_path)
    found.start()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield found
    finally:
        found.stop()


def command(data: Path | str, work: Path, name: str, storage: str | None = None) -> list[str]:
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    places = ["--data", str(data), "--runs", str(work / "runs"), "--cache", str(work / "cache"), "--name", name]
    kept = ["--storage", storage] if storage else []
    return ["mixture_bimodal", *settings, *places, *kept, "--local", "--no-tracking"]


def bits(folder: Path) -> dict[str, torch.Tensor]:
    found = load_latest(folder / "checkpoints")
    assert found is not None and found.step == 300
    return dict(found.tensors)


def assert_same(a: Path, b: Path) -> None:
    one, other = bits(a), bits(b)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_killed_on_one_machine_goes_on_on_another(store: ObjectStore, tmp_path: Path) -> None:
    """Data from the store, SIGKILL amid the run, another empty folder, the newest checkpoint damaged in the store."""
    write_latents(tmp_path / "latents")
    store_shards(tmp_path / "latents", "s3://beam/latents")
    assert main(command(tmp_path / "latents", tmp_path / "undisturbed", "run")) == 0

    first = tmp_path / "first"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"MIRROR_EVERY_SECONDS": "0.1"}
    slow = ["--set", "sampler.gibbs_steps=3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *command("s3://beam/latents", first, "run", "s3://beam/kept"), *slow],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    place = Place("s3://beam/kept/runs/run")

    def steps() -> list[str]:
        return sorted({item.name.split("/")[1] for item in place.items() if item.name.startswith("checkpoints/")})

    end = time.monotonic() + 90
    while not steps() or not any(item.name == "index.json" for item in place.items()):
        assert time.monotonic() < end and process.poll() is None, "nothing came to the store while the run went on"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = [item.name for item in place.items() if item.name.startswith(f"checkpoints/{steps()[-1]}/")]
    content = place.read(newest[-1])
    place.write(newest[-1], content[: len(content) // 2])

    second = tmp_path / "second"
    assert main(command("s3://beam/latents", second, "run", "s3://beam/kept")) == 0
    assert_same(second / "runs" / "run", tmp_path / "undisturbed" / "runs" / "run")
    rows = [row["step"] for row in read_history(second / "runs" / "run")]
    assert rows == sorted(set(rows)) and rows[-1] == 300
    third = tmp_path / "third"
    assert main(command("s3://beam/latents", third, "run", "s3://beam/kept")) == 0, (
        "a finished run is fetched, not made"
    )
    assert_same(third / "runs" / "run", second / "runs" / "run")


@pytest.mark.slow
def test_a_store_that_goes_away_does_not_hold_up_the_run(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Gone for good right after the run began: the run ends as if nothing was; one line says what is missing."""
    write_latents(tmp_path / "latents")
    assert main(command(tmp_path / "latents", tmp_path / "undisturbed", "run")) == 0
    monkeypatch.setattr("pipeline.storage.mirror.LAST_SECONDS", 1.0)
    monkeypatch.setattr("pipeline.storage.mirror.Mirror.start", lambda self: (store.stop(), self._thread.start())[1])
    assert main(command(tmp_path / "latents", tmp_path, "run", "s3://beam/kept")) == 0
    assert_same(tmp_path / "runs" / "run", tmp_path / "undisturbed" / "runs" / "run")
    store.start()
    monkeypatch.undo()
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    assert main(command(tmp_path / "latents", tmp_path, "run", "s3://beam/kept")) == 0
    assert any(item.name.startswith("checkpoints/") for item in Place("s3://beam/kept/runs/run").items())


@pytest.mark.parametrize(
    ("url", "keys", "said"),
    [
        ("s3://missing/kept", {}, "no such bucket"),
        ("s3://beam/kept", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer"),
        ("ftp://beam/kept", {}, "a place is s3://"),
    ],
)
def test_a_place_that_is_not_there_is_said_in_one_line(
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    keys: dict[str, str],
    said: str,
) -> None:
    write_latents(tmp_path / "latents")
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    assert main(command(tmp_path / "latents", tmp_path, "run", url)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
