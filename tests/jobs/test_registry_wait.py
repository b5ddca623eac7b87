"""A registry that is away: it is waited for, up to a limit; then the exact command finishes later, without training again."""

import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Relay, Server

from jobs import registry_wait
from jobs.celeba_train import main
from jobs.registry_wait import RegistryAway, as_command, when_there
from pipeline.registry.versions import RegistryError, find_model
from pipeline.training.loop import read_history

ROOT = Path(__file__).parents[2]


def look_up() -> object:
    return find_model("models:/no-such-model@champion")


def test_it_ends_at_the_limit_with_the_command_that_finishes_the_work(
    dead_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server.replace("//", "//someone:hidden@"))
    monkeypatch.setenv("REGISTRY_WAIT_SECONDS", "1")
    monkeypatch.setattr(registry_wait, "PAUSE_SECONDS", 0.2)
    finish = as_command("jobs.celeba_train", ["--name", "a b", "--local"])
    before = time.perf_counter()
    with pytest.raises(RegistryAway) as error:
        when_there(look_up, "looking it up", finish)
    assert 1 <= time.perf_counter() - before < 5
    said = str(error.value)
    assert said.endswith("finish with: python -m jobs.celeba_train --name 'a b' --local")
    assert "for 1 s" in said and "\n" not in said and "hidden" not in said + caplog.text
    assert "looking it up: waiting up to 1 s for the registry" in caplog.text  # while it waits, not only afterwards


def test_a_registry_that_comes_back_is_asked_again_and_its_own_no_is_not_waited_for(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_WAIT_SECONDS", "60")
    monkeypatch.setattr(registry_wait, "PAUSE_SECONDS", 0.2)
    with pytest.raises(RegistryError, match="no-such-model"):
        when_there(look_up, "looking it up", "command")
    relay.close()
    threading.Timer(1.0, relay.reopen).start()
    before = time.perf_counter()
    with pytest.raises(RegistryError, match="no-such-model"):
        when_there(look_up, "looking it up", "command")
    assert time.perf_counter() - before >= 1


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_limit_that_is_no_number_of_seconds_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, value: str
) -> None:
    monkeypatch.setenv("REGISTRY_WAIT_SECONDS", value)
    assert main(["--quick", "--local", "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]) == 2
    assert f"REGISTRY_WAIT_SECONDS={value!r}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.long
def test_the_main_job_trains_without_the_server_and_its_command_registers_later(
    server: Server, relay: Relay, tmp_path: Path
) -> None:
    """The server goes when the autoencoder is registered, and comes back when the job has given up waiting."""
    folder = tmp_path / "runs" / "synthetic-faces-faces_toy"
    command = [sys.executable, "-m", "jobs.celeba_train", "--quick", "--local"]
    command += ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    environment = {**os.environ, "REGISTRY_WAIT_SECONDS": "3"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    while not (folder / "stages" / "latents.json").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.05)
    relay.close()
    assert process.wait(600) == 2
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: registering the BEAM: the registry at") and "for 3 s" in last
    finish = shlex.split(last.partition("finish with: ")[2])
    assert finish == ["python", *command[1:]]
    trained = sorted((folder / "beam" / "checkpoints").rglob("*"))
    times = [path.stat().st_mtime_ns for path in trained]
    assert trained and len(read_history(folder / "beam")) > 1

    relay.reopen()
    done = subprocess.run([sys.executable, *finish[1:]], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted((folder / "beam" / "checkpoints").rglob("*")) == trained
    assert [path.stat().st_mtime_ns for path in trained] == times  # nothing was trained again
    client = MlflowClient(server.uri)
    champion = client.get_model_version_by_alias("synthetic-faces-toy-beam", "champion")
    assert str(champion.version) == "1" and champion.run_id == (folder / "beam" / "mlflow_run_id").read_text()
    parts = [path.parent for path in folder.glob("*/mlflow_run_id")]
    assert {part.name for part in parts} >= {"autoencoder", "beam", "control"}
    for part in parts:
        run = client.get_run((part / "mlflow_run_id").read_text())
        assert run.info.status == "FINISHED", part.name
        rows = read_history(part)
        for key in {key for row in rows for key in row} - {"step"}:
            expected = [(row["step"], row[key]) for row in rows if key in row]
            found = client.get_metric_history(run.info.run_id, key)
            assert sorted((m.step, m.value) for m in found) == expected, (part.name, key)
    files = {file.path for file in client.list_artifacts(champion.run_id)}
    assert {"config.json", "scores.json", "pictures"} <= files
