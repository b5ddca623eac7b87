"""Whole sweeps and trainings whose MLflow server, PostgreSQL or driver is killed in the middle: all trials come, once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from latents import write_latents
from mlflow import MlflowClient
from mlflow_server import Server
from test_tracking_faults import UPDATES, assert_bits_of_an_undisturbed_run, assert_complete, command

from pipeline.tracking.journal import Journal
from pipeline.training.loop import read_history

ROOT = Path(__file__).parents[2]
RATE = "schedules.likelihood.learning_rate.initial"
ARGUMENTS = [
    *("--recipe", "mixture_toy", "--trials", "2", "--concurrent", "2", "--seed", "1"),
    *("--set", "schedules.likelihood.epochs=0.5", "--set", "schedules.adversarial.epochs=0.5"),
    *("--set", "evaluation.every_updates=25", "--set", "checkpoint.every_updates=25"),
    *("--space", f"{RATE}=choice(0.05,0.1)", "--space", "sampler.gibbs_steps=-"),
]
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def database() -> Iterator[postgres.Database]:
    pytest.importorskip("psycopg2", reason="the extra `server` is not installed")
    if postgres.programs() is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not here (apt-get install postgresql)")
    database = postgres.Database()
    database.start()
    yield database
    database.remove()


def sweep_with_a_fault(folder: Path, server: Server, seconds: float, database: postgres.Database | None) -> str:
    """Run a sweep; when its trials have begun to train, the server or its database is away for `seconds`. What it said."""
    arguments = [*ARGUMENTS, "--runs", str(folder), "--cache", str(folder / "cache")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.tune", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    sweep, deadline = folder / "sweep-mixture_toy", time.monotonic() + 300
    try:
        while not list(sweep.glob("progress/search/*.run")):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.1)
        if database is None:
            server.kill()
            time.sleep(seconds)
            server.start()
        else:
            database.crash()
            time.sleep(seconds)
            database.start()
        assert process.wait(600) == 0, (folder / "log").read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return (folder / "log").read_text()


@pytest.mark.ray
@pytest.mark.parametrize(("cause", "seconds"), [("server", 120.0), ("postgres", 20.0)])
def test_a_sweep_whose_server_or_database_is_killed(
    cause: str, seconds: float, migrated_database: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    database = request.getfixturevalue("database") if cause == "postgres" else None
    server = Server(tmp_path, database.uri if database else "")
    if database is None:
        shutil.copy(migrated_database, tmp_path / "mlflow.db")
    server.start()
    try:
        said = sweep_with_a_fault(folder, server, seconds, database)
        assert "entries wait" in said, "the fault was not noticed"
        check_sweep(folder / "sweep-mixture_toy", MlflowClient(server.uri))
    finally:
        server.kill()


def check_sweep(sweep: Path, client: MlflowClient) -> None:
    """Each trial has one run, closed, with all of its rows once; the winner is registered."""
    summary = json.loads((sweep / "summary.json").read_text())
    experiment = client.get_experiment_by_name("beam")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    notes = sorted(sweep.glob("progress/*/*.json"))
    trials = [note for note in notes if note.with_suffix(".run").exists()]
    assert len(trials) == len(notes) >= 2 + 3  # of the search; of the seeds of the final comparison
    assert len(runs) == 1 + len(trials), "a run is there twice, or not at all"
    parent = runs[summary["mlflow_run_id"]]
    assert parent.info.status == "FINISHED" and Journal(sweep / "mlflow_run_id").waiting() == (0, 0)
    for note in trials:
        run = runs[note.with_suffix(".run").read_text()]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status in ("FINISHED", "KILLED") and "model.num_hidden" in run.data.params
        assert Journal(note.with_suffix(".run")).waiting() == (0, 0)
        rows = read_history(sweep / "trials" / json.loads(note.read_text())["folder"])
        for key in ("gamma", "kl_sum"):
            points = [(row["step"], row[key]) for row in rows if key in row]
            found = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
            # a trial that was cut may have been trained on afterwards, as another run
            assert found == (points if run.info.status == "FINISHED" else points[: len(found)]), (note.name, key)
            assert found, (note.name, key)
    model = summary["model"]
    assert str(client.get_model_version_by_alias(model["name"], "candidate").version) == str(model["version"])


def test_a_driver_killed_three_times_while_the_server_comes_and_goes(server: Server, tmp_path: Path) -> None:
    """SIGKILL of `jobs.train`, with the server there, away and frozen; the same command ends with all rows and the bits."""
    data = tmp_path / "latents"
    write_latents(data)
    folder = tmp_path / "runs" / "run"
    arguments = [*command(data, "run"), "--set", "sampler.gibbs_steps=300"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "jobs.train", *arguments], cwd=ROOT, env=environment)

    for fault, step in (("none", 12), ("away", 30), ("frozen", 45)):
        process, before = start(), len(read_history(folder))
        rows = read_history(folder)
        while not rows or rows[-1]["step"] < step or len(rows) < before:
            assert process.poll() is None
            time.sleep(0.02)
            rows = read_history(folder)  # once: a driver that goes on cuts it back
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_history(folder)[-1]["step"] < UPDATES, "it ended before it was killed"
        if fault == "none":
            server.kill()
        elif fault == "away":
            server.start()
            server.freeze()
        else:
            server.thaw()
    assert start().wait(120) == 0
    assert_complete(server, folder, redone=True)
    assert_bits_of_an_undisturbed_run(data, folder, "--set", "sampler.gibbs_steps=300")
